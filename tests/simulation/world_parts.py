"""What every simulated part is given of the world around it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.agenda import Agenda
from tests.simulation.broker import Broker
from tests.simulation.chance import Chance
from tests.simulation.ports import Clocks


@dataclass
class Surroundings:
    """Clock, draws, broker, and whom to tell."""

    agenda: Agenda
    chance: Chance
    clocks: Clocks
    broker: Broker
    trace: Callable[..., None]
    may_have: Callable[[str, str], bool]
    """Whether the server gives a device a bundle."""
    check_ack: Callable[[str, int, int], None]
    """Raises unless the report that is acknowledged is committed."""
    badness: Callable[[str], float]
    """The share of trials of a bundle that end badly."""
    activation: Callable[[str], dict[str, Any] | None]
    """The window in which an execution's device may switch, as its document has it."""
    openings: tuple[dict[str, Any], ...]
    """Every window of the seed's documents."""
    haste: float
    """How long devices take, as a share of the longest."""
    tempo: float
    """How long a gateway collects a batch at most, in seconds: the longer, the fewer commits."""
    counts: Counter[str] = field(default_factory=Counter)
