"""What the coordinator asks of a block's process, and what the process read: JSON lines over pipes.

The first line in is a `BlockRequest`. To measure, the process answers with `Loaded`, then with one
`Slice` for every further line (a `Step`), and with `Ended` when its input ends. For the other tasks
it answers with one `Checked`.
"""

from enum import StrEnum

import msgspec

ROUNDS = 6
"""Generations per block: enough for a steady centre, few enough for a slow board."""
PREFILLS = 3
"""Per round: a prefill is short, and there is only one in a generation."""
SLICE_TOKENS = 4
"""Tokens that one side generates before it is the other's turn: a few milliseconds, so that both
meet the same neighbours and clock rate (measured: halves the spread of a pair against 32)."""
PROMPT_TOKENS = 32
"""Length of the prompt of the first-token measurement, where the context has room for it."""
MAX_LINE = 65_536  # bytes of one answer

EXIT_MALFORMED = 3
"""Exit status of a process that could not read its bundle; any other failure is a crash."""


class Task(StrEnum):
    """What one process does."""

    MEASURE = "measure"
    GOLDEN = "golden"
    PROBE = "probe"


class Step(StrEnum):
    """One slice of measuring."""

    REFERENCE = "reference_ms"
    PREFILL = "first_token_ms"
    DECODE = "token_ms"
    """Goes on after the last prefill or slice."""


class BlockRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One process's work on one bundle folder."""

    task: Task
    folder: str
    prompt: int = PROMPT_TOKENS
    tokens: int = 32
    """Tokens generated per round."""
    slice: int = SLICE_TOKENS
    wall: bool = False
    """Wall time instead of CPU time: where a side uses several threads, or an accelerator."""
    cpu: int = -1
    """The processor to stay on; -1: the one where the scheduler has put us once we are loaded."""


class Loaded(msgspec.Struct, frozen=True):
    """The model is loaded and warm, on one processor if it uses only one thread (else -1)."""

    load_ms: float
    cpu: int


class Slice(msgspec.Struct, frozen=True):
    """Milliseconds of one step: per token where it generates several."""

    ms: float


class Ended(msgspec.Struct, frozen=True):
    """The block is over; the process's own peak memory."""

    memory_mb: float


class Checked(msgspec.Struct, frozen=True):
    """The output check: how many positions agree, and whether every logit is a finite number."""

    agreeing: int
    positions: int
    finite: bool
