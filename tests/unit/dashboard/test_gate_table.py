"""The gate table says what the gates say: value, bounds, number, and nothing that is not so."""

import math
from datetime import UTC, datetime

from agent.protocol.words import ExecutionState
from control_plane.dashboard import gate_table
from control_plane.dashboard.gate_table import Cell, GateTable
from control_plane.domain import gates
from control_plane.domain.gates import Group, Measured
from control_plane.domain.rollout import GatePolicy, RolloutState
from control_plane.domain.rollout_view import Machine, View
from tests.unit.domain.rollout_model import spec

E = ExecutionState
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
RUNNING = Machine(state=RolloutState.RUNNING, wave=0, opened_at=(0.0,))


def _table(
    counts: dict[ExecutionState, int], ratio: float = 1.0, rate: float | None = None
) -> GateTable:
    n, measured = counts.get(E.SUCCEEDED, 0), Measured()
    for index in range(n):
        log = math.log(ratio) + (0.01 if index % 2 else -0.01)
        measured = measured.merged(Measured(1, log, log * log, 1e-4))
    trials = {gates.TRIALS: Measured(n=n), "token_ms": measured}
    limited = GatePolicy(max_failures=9, max_failure_rate=rate)
    asked = spec(gates=limited)
    table = gate_table.of(View(asked, RUNNING, (Group(0, "x", counts, trials),)), NOW)
    assert table is not None
    return table


def _cell(table: GateTable, name: str) -> Cell:
    (cell,) = next(row for row in table.rows if row.name == name).cells
    assert cell is not None
    return cell


def test_a_failure_rate_is_shown_with_its_bounds_only_where_one_is_asked_for() -> None:
    counts = {E.SUCCEEDED: 30, E.FAILED: 10}
    assert "Failure rate" not in [row.name for row in _table(counts).rows]
    table = _table(counts, rate=0.05)
    row = next(row for row in table.rows if row.name == "Failure rate")
    assert row.limit == "not proven above 5 %"
    cell = _cell(table, "Failure rate")
    assert (cell.look.word, cell.value) == ("breached", "25 %")
    assert cell.evidence.endswith("%, n 40")
    assert "more than 5 %" in cell.text


def test_a_regression_that_is_proven_is_shown_as_breached() -> None:
    cell = _cell(_table({E.SUCCEEDED: 20}, 1.15), "Time per token")
    assert (cell.look.word, cell.value) == ("breached", "+15.0 %")
    assert cell.evidence.endswith("n 20")


def test_where_nothing_bounds_it_from_below_none_is_claimed() -> None:
    cell = _cell(_table({E.SUCCEEDED: 5}, rate=0.5), "Time per token")
    assert cell.look.word == "pass"
    assert cell.evidence.startswith("up to +")
    assert "up to 1.0" in cell.text


def test_rejections_are_told_apart_from_failures() -> None:
    cell = _cell(_table({E.SUCCEEDED: 3, E.REJECTED: 2}), "Failures")
    assert cell.value == "0"
    assert "2 REJECTED, counted apart" in cell.text
