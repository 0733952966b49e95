"""What people may do to a rollout: which verb is legal in which state, and what devices feel; pure.

docs/rollout-verbs.md holds the table that `table` writes; a test keeps the two the same.
"""

import re
from dataclasses import dataclass

from control_plane.domain import rollout_machine
from control_plane.domain.rollout import ENDED, RolloutState
from control_plane.domain.rollout_view import Decision, Event


@dataclass(frozen=True)
class Verb:
    """One verb: where it leads, and what it does to devices."""

    name: str
    leads: str
    devices: str


VERBS = (
    Verb("start", "BUILDING, then the first wave", "None before the first wave opens."),
    Verb("approve", "RUNNING, once enough people have said so", "The waiting wave is offered it."),
    Verb("deny", "ABORTED", "Keep what they run; a reason is required and shown."),
    Verb("pause", "PAUSED", "Offers that nobody has begun are taken back; the rest goes on."),
    Verb("resume", "where it was", "Offered again; after a halt, failures so far are known."),
    Verb("promote", "the next wave, or SUCCEEDED", "The next wave is offered it now."),
    Verb("abort", "ABORTED, or REVERTING with `revert`", "Keep what they run, or as for revert."),
    Verb("revert", "REVERTING, then REVERTED", "Each that runs it is ordered back."),
    Verb("retry", "as it is; makes a new DRAFT", "None before the new rollout starts."),
)
NAMES = tuple(verb.name for verb in VERBS)


def kind_of(value: Decision | Event) -> str:
    """Return the word under which a decision, or a person's act, is kept, such as open_wave."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(value).__name__).lower()


def legal(state: RolloutState) -> list[str]:
    """Return every verb that may be used in this state."""
    return [*rollout_machine.legal(state), *(["retry"] if state in ENDED else [])]


def table() -> str:
    """Return the verbs of each state as a Markdown table."""
    rows = [["state", *NAMES], ["---"] * (len(NAMES) + 1)]
    for state in RolloutState:
        allowed = legal(state)
        rows.append([f"`{state}`", *("yes" if name in allowed else "" for name in NAMES)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def meanings() -> str:
    """Return what each verb does as a Markdown table."""
    lines = [f"| `{verb.name}` | {verb.leads} | {verb.devices} |\n" for verb in VERBS]
    return "| verb | leads to | devices |\n|---|---|---|\n" + "".join(lines)
