"""The processes of a trial: one model, one measurement, then gone; onnxruntime lives here."""
