"""The only home of onnx and onnxruntime on the server: quantize, evaluate, package."""
