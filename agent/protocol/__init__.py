"""The wire between device and control plane: topics, messages, manifest, envelope; no I/O."""
