"""What can be refused, named after the fault; each is a message for a person.

FlotillaError
├── NotFoundError            no such device, model, rollout ...
├── InvalidError             the input is wrong: field, line, what to do
├── ConflictError            somebody was quicker, or it exists with other content
│   ├── IllegalTransitionError   not from this state: says what is legal
│   └── InvalidatedError         a model version that a person has called invalid
├── GoneError                it was there, and is not given out any more
├── UnauthenticatedError     nobody we know
├── ForbiddenError           known, but may not
├── TooLargeError            over a limit
└── TooSlowError             a question that the database was not let go on with
"""


class FlotillaError(Exception):
    """The root; `code` is stable and appears in problem documents.

    Args:
        message: what was wrong and what to do.
        field: where, as a dotted path into the input; empty if not in one field.
    """

    code = "error"

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class NotFoundError(FlotillaError):
    """No such thing; the message names kind and name."""

    code = "not-found"


class InvalidError(FlotillaError):
    """The input is wrong; `field` says where."""

    code = "invalid"


class ConflictError(FlotillaError):
    """Somebody was quicker, or it exists with other content."""

    code = "conflict"


class IllegalTransitionError(ConflictError):
    """Not from this state; the message says what is legal."""

    code = "illegal-transition"


class InvalidatedError(ConflictError):
    """A model version that a person has called invalid; the message says who and why."""

    code = "version-invalid"


class GoneError(FlotillaError):
    """It was there, and is not given out any more: its version was called invalid."""

    code = "version-invalid"


class UnauthenticatedError(FlotillaError):
    """Nobody we know."""

    code = "unauthenticated"


class ForbiddenError(FlotillaError):
    """Known, but may not."""

    code = "forbidden"


class TooLargeError(FlotillaError):
    """Over a limit; the message names it."""

    code = "too-large"


class TooSlowError(FlotillaError):
    """The answer took longer than the operator allows; the message says what is quick."""

    code = "too-slow"
