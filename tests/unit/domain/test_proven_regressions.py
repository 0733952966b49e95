"""A regression that only many devices together prove stops a rollout like a failure does."""

from dataclasses import replace

import pytest

from agent.protocol.words import ExecutionState
from control_plane.domain import gates
from control_plane.domain.errors import IllegalTransitionError
from control_plane.domain.gates import Gate, Group, Measured, Verdict
from control_plane.domain.rollout import (
    BreachScope,
    GatePolicy,
    OnBreach,
    RolloutState,
)
from control_plane.domain.rollout_machine import Advance, advance
from control_plane.domain.rollout_view import (
    Event,
    Halt,
    Hold,
    Machine,
    Offer,
    OpenWave,
    Promote,
    Resume,
    SendBack,
    Tick,
    View,
    Withdraw,
)
from tests.unit.domain.rollout_model import spec

E = ExecutionState
S = RolloutState
RUNNING = Machine(state=S.RUNNING, wave=0, opened_at=(0.0,))
BAD, GOOD = 0.14, 0.0


def _measured(centre: float, n: int) -> Measured:
    whole = Measured()
    for index in range(n):
        log = centre + (0.01 if index % 2 else -0.01)
        whole = whole.merged(Measured(1, log, log * log, 1e-4))
    return whole


def _group(blueprint: str, centre: float, n: int = 20, queued: int = 5) -> Group:
    counts = {E.SUCCEEDED: n, E.QUEUED: queued}
    trials = {gates.TRIALS: Measured(n=n), "token_ms": _measured(centre, n)}
    return Group(0, blueprint, counts, trials)


def _step(
    machine: Machine, *groups: Group, event: Event | None = None, **changes: object
) -> Advance:
    return advance(View(spec(**changes), machine, groups), event or Tick(), 0.0)


def _policy(scope: BreachScope) -> GatePolicy:
    return GatePolicy(tolerance={"token_ms": 0.1}, scope=scope)


def test_a_proven_regression_halts_and_says_so() -> None:
    machine, (halt, withdraw) = _step(RUNNING, _group("x", BAD))
    assert machine.state is S.HALTED
    assert "token_ms" in machine.reason
    assert isinstance(halt, Halt)
    (gate,) = halt.evidence
    assert (gate.rule, gate.metric, gate.verdict) == ("measurement", "token_ms", Verdict.BREACH)
    assert withdraw == Withdraw()


def test_it_stops_a_paused_rollout_too_and_no_sound_one() -> None:
    paused = replace(RUNNING, state=S.PAUSED)
    assert _step(paused, _group("x", BAD))[0].state is S.HALTED
    machine, decisions = _step(RUNNING, _group("x", GOOD))
    assert machine.state is S.RUNNING
    assert isinstance(decisions[0], Offer)


def test_it_reverts_where_a_breach_reverts() -> None:
    machine, (back,) = _step(RUNNING, _group("x", BAD), on_breach=OnBreach.REVERT)
    assert machine.state is S.REVERTING
    assert isinstance(back, SendBack)
    assert [gate.rule for gate in back.evidence] == ["measurement"]


def test_it_stops_one_blueprint_alone_with_all_its_reasons_in_one_halt() -> None:
    bad = _group("x", BAD)
    bad = replace(bad, counts={**bad.counts, E.ROLLED_BACK: 1})
    policy = _policy(BreachScope.BLUEPRINT)
    machine, decisions = _step(RUNNING, bad, _group("y", GOOD), gates=policy)
    assert machine.state is S.RUNNING
    assert machine.halted == {"x"}
    (halt, withdraw) = decisions
    assert isinstance(halt, Halt)
    assert [gate.rule for gate in halt.evidence] == ["failures", "measurement"]
    assert withdraw == Withdraw(blueprint="x")
    after, (offer,) = _step(machine, bad, _group("y", GOOD), gates=policy)
    assert offer == Offer(0, 5, frozenset({"x"}))
    assert after.halted == {"x"}


def test_resuming_acknowledges_it_and_only_new_devices_trip_it_again() -> None:
    bad = _group("x", BAD, queued=0)
    halted, _ = _step(RUNNING, bad)
    resumed, _ = _step(halted, bad, event=Resume())
    assert resumed.state is S.RUNNING
    for same in (bad, _group("x", BAD, n=24, queued=0)):
        machine, (hold,) = _step(resumed, same)
        assert machine.state is S.RUNNING
        assert isinstance(hold, Hold)
        assert any("acknowledged" in gate.text for gate in hold.evidence)
    again, _ = _step(resumed, _group("x", BAD, n=40, queued=0))
    assert again.state is S.HALTED


def test_nobody_promotes_over_it_before_it_was_acknowledged() -> None:
    bad = _group("x", BAD, queued=0)
    with pytest.raises(IllegalTransitionError, match="a proven regression"):
        _step(RUNNING, bad, event=Promote())
    resumed, _ = _step(replace(RUNNING, state=S.HALTED), bad, event=Resume())
    _, (opened,) = _step(resumed, bad, event=Promote())
    assert isinstance(opened, OpenWave)


def test_resuming_acknowledges_the_failure_rate_too() -> None:
    policy = GatePolicy(max_failures=100, max_failure_rate=0.1, tolerance={"token_ms": 0.1})

    def group(failed: int, fine: int) -> Group:
        return replace(_group("x", GOOD, fine), counts={E.SUCCEEDED: fine, E.FAILED: failed})

    halted, (halt, _) = _step(RUNNING, group(20, 20), gates=policy)
    assert isinstance(halt, Halt)
    assert _rules(halt.evidence) == ["failure_rate"]
    resumed, _ = _step(halted, group(20, 20), event=Resume(), gates=policy)
    assert _step(resumed, group(20, 20), gates=policy)[0].state is not S.HALTED
    assert _step(resumed, group(21, 60), gates=policy)[0].state is not S.HALTED
    assert _step(resumed, group(40, 40), gates=policy)[0].state is S.HALTED


def _rules(evidence: tuple[Gate, ...]) -> list[str]:
    return [gate.rule for gate in evidence]
