"""What runs on the device: verifies, measures, activates and takes back models."""

__version__ = "0.1.0"  # pyproject.toml's; a test keeps them equal, since metadata costs 2 MiB here
