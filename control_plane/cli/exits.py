"""Exit codes, and the one error that carries them."""

from enum import IntEnum


class Exit(IntEnum):
    """What a script can tell from the exit code alone."""

    OK = 0
    FAILED = 1
    USAGE = 2
    WAITS = 3
    UNAUTHENTICATED = 4
    NOT_FOUND = 5
    CONFLICT = 6
    UNREACHABLE = 7
    TIMED_OUT = 124
    INTERRUPTED = 130


class CliError(Exception):
    """Ends the command.

    Args:
        message: what went wrong, for a person.
        code: the exit code.
        hint: what to do about it.
    """

    def __init__(self, message: str, code: Exit = Exit.FAILED, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.hint = hint


class UnreachableError(CliError):
    """Nobody answers at the control plane's address."""

    def __init__(self, url: str, why: str) -> None:
        super().__init__(
            f"no answer from {url}: {why}",
            Exit.UNREACHABLE,
            hint="is it running? `flotilla up` starts it here; FLOTILLA_URL says where else it is",
        )
