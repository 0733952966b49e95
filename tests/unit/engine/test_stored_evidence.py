"""What is stored with a decision says the same again when it is computed from its inputs."""

import json

from hypothesis import given
from hypothesis import strategies as st

from agent.protocol.words import ExecutionState
from control_plane.domain import gates
from control_plane.domain.gates import Group, Measured
from control_plane.domain.rollout import BreachScope, GatePolicy, OnBreach, RolloutState
from control_plane.domain.rollout_machine import advance
from control_plane.domain.rollout_view import Event, Machine, Resume, Tick, View
from control_plane.services import rollout_codec
from tests.unit.domain.rollout_model import spec

E = ExecutionState
METRICS = ("token_ms", "first_token_ms", "memory_mb", "load_ms")
LOGS = st.lists(st.floats(-0.3, 0.4), min_size=0, max_size=12)


def _measured(logs: list[float]) -> Measured:
    whole = Measured()
    for log in logs:
        whole = whole.merged(Measured(1, log, log * log, 1e-4))
    return whole


@st.composite
def _groups(draw: st.DrawFn) -> Group:
    logs = {name: draw(LOGS) for name in METRICS}
    measured = {name: _measured(found) for name, found in logs.items()}
    trials = {gates.TRIALS: Measured(n=max(len(found) for found in logs.values()))}
    counts = {state: draw(st.integers(0, 12)) for state in (E.SUCCEEDED, E.FAILED, E.REJECTED)}
    return Group(0, draw(st.sampled_from("xy")), counts, {**measured, **trials})


@st.composite
def _views(draw: st.DrawFn) -> View:
    groups = {group.blueprint: group for group in draw(st.lists(_groups(), max_size=3))}
    before = draw(st.lists(_groups(), max_size=2))
    state = draw(st.sampled_from([RolloutState.RUNNING, RolloutState.HALTED]))
    known = {group.blueprint: group.failures for group in before}
    machine = Machine(
        state=state, wave=0, opened_at=(0.0,), acknowledged=known, seen=gates.all_seen(before)
    )
    policy = GatePolicy(
        max_failures=draw(st.integers(0, 5)),
        max_failure_rate=draw(st.sampled_from([None, 0.05, 0.3])),
        scope=draw(st.sampled_from(BreachScope)),
    )
    asked = spec(gates=policy, on_breach=draw(st.sampled_from(OnBreach)))
    return View(asked, machine, tuple(groups.values()))


@given(_views(), st.sampled_from([Tick(), Resume()]))
def test_evidence_is_computed_again_to_the_last_digit(view: View, event: Event) -> None:
    if isinstance(event, Resume) and view.machine.state is RolloutState.RUNNING:
        return
    machine, decisions = advance(view, event, 100.0)
    for decision in decisions or (None,):
        # As the database keeps it: text, and no number that JSON does not know.
        kept = rollout_codec.inputs(view, event, 100.0, decision)
        stored = json.loads(json.dumps(kept, allow_nan=False))
        again, redone = rollout_codec.replay(stored)
        assert again == machine
        if decision is not None:
            assert stored["decision"] in redone


def test_a_machine_that_was_stored_before_anything_was_seen_is_read() -> None:
    old = rollout_codec.plain(Machine(acknowledged={"x": 1}))
    del old["seen"]
    assert rollout_codec.read_machine(old) == Machine(acknowledged={"x": 1})
