"""What can go wrong around a build.

BuildError                  the build cannot be done; the message says why, for a person
└── LeaseLostError          another worker has it: stop, write nothing
"""


class BuildError(Exception):
    """The build cannot be done; the message is for a person."""


class LeaseLostError(BuildError):
    """Another worker has the build: stop, and write nothing."""
