"""The use cases: load, decide, save, outbox; never commit."""
