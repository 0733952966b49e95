"""What a simulated fleet did, counted; and the record of it, a JSON line each."""

import json
from collections import Counter
from pathlib import Path
from typing import IO, Any

from agent.protocol.messages import Bench, Event, Order
from agent.protocol.words import ExecutionState, Reason

TERMINAL = frozenset(
    {
        ExecutionState.SUCCEEDED,
        ExecutionState.FAILED,
        ExecutionState.REJECTED,
        ExecutionState.ROLLED_BACK,
        ExecutionState.CANCELED,
        ExecutionState.SUPERSEDED,
    }
)
REVERTED = "reverted"


class Tallies:
    """Counts of a whole fleet.

    Args:
        record: where every happening is written, a JSON line each; None for nowhere.
    """

    def __init__(self, record: Path | None = None) -> None:
        self.connects = 0
        self.losses = 0
        self.failed_dials = 0
        self.sent = 0
        self.received = 0
        self.dropped = 0
        """Messages whose connection was gone when they should have left."""
        self.unread = 0
        """Messages from the control plane that could not be read, or whose signature is wrong."""
        self.told_to_wait = 0
        self.orders: Counter[str] = Counter()
        self.verdicts: Counter[str] = Counter()
        self._rollout_of: dict[str, str] = {}
        self._ends: dict[str, str] = {}
        self._out: IO[str] | None = None if record is None else record.open("a", buffering=1 << 16)

    # --- what happens -----------------------------------------------------------------------

    def ordered(self, wall: float, order: Order) -> None:
        self.orders[order.action.value] += 1
        if order.execution:
            self._rollout_of[order.execution] = order.rollout
        self.note(wall, "order", order.device, action=order.action.value, rollout=order.rollout)

    def reported(self, wall: float, device: str, report: Event | Bench) -> None:
        """Count a report that is made, once, whether or not it can leave now."""
        if isinstance(report, Bench):
            self.verdicts[report.verdict.value] += 1
            self.note(wall, "trial", device, verdict=report.verdict.value)
            return
        if report.state in TERMINAL and report.execution:
            returned = report.reason is Reason.REVERTED
            end = REVERTED if returned else report.state.value
            if returned or self._ends.get(report.execution) != REVERTED:
                self._ends[report.execution] = end
        self.note(
            wall,
            "event",
            device,
            seq=report.seq,
            execution=report.execution,
            state=report.state.value,
            reason=report.reason.value,
        )

    def note(self, wall: float, what: str, device: str, **more: Any) -> None:
        """Write to the record."""
        if self._out is not None:
            line = {"at": round(wall, 4), "what": what, "device": device, **more}
            self._out.write(json.dumps(line, separators=(",", ":")) + "\n")

    def flush(self) -> None:
        """Let readers of the record see what happened."""
        if self._out is not None:
            self._out.flush()

    def close(self) -> None:
        if self._out is not None:
            self._out.close()

    # --- what came of it --------------------------------------------------------------------

    def ends(self) -> dict[str, dict[str, int]]:
        """Return, for each rollout, in how many executions the last word was which."""
        found: dict[str, Counter[str]] = {}
        for execution, end in self._ends.items():
            found.setdefault(self._rollout_of.get(execution, ""), Counter())[end] += 1
        return {name: dict(sorted(counts.items())) for name, counts in sorted(found.items())}

    def total(self, *ends: str) -> int:
        """Return in how many executions the last word was one of these."""
        wanted = frozenset(ends)
        return sum(end in wanted for end in self._ends.values())
