"""The central service: what should run where, and the proof that it is no worse."""
