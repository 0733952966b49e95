"""What many devices prove together, from their reports to the halt and back."""

import pytest

from agent.protocol.words import ExecutionState, Reason
from control_plane.domain import gates
from control_plane.domain.measured import ENOUGH_FOR_SPREAD
from control_plane.services import rollout_codec
from control_plane.store import rollouts as store
from tests.integration.engine.conftest import Fleet

E = ExecutionState
ALL = [{"name": "everyone", "percent": 100}]
SLOW = "arm64-board"


def _keeps_it(fleet: Fleet, name: str, device: str, ratio: float) -> None:
    fleet.trial(name, device, ratio=ratio)
    digest = fleet.parts(name)[device].digest
    fleet.report(name, device, E.SUCCEEDED, digest=digest, reason=Reason.SOAKED)


def test_devices_that_all_kept_it_prove_together_that_it_is_too_slow(fleet: Fleet) -> None:
    fleet.add_devices_more(8)
    name = fleet.start("1.1.0", waves=ALL, gates={"max_failures": 9})
    slow = [device for device in fleet.in_state(name, E.OFFERED) if device.startswith(SLOW)]
    kept = 0
    while fleet.view(name).state == "RUNNING":
        _keeps_it(fleet, name, slow[kept], 1.17 + 0.01 * (kept % 2))
        kept += 1
        fleet.tick()
    assert ENOUGH_FOR_SPREAD < kept < len(slow), "proven by a few, and never by one"
    view = fleet.view(name)
    assert view.state == "HALTED"
    assert f"{SLOW}: first_token_ms ratio 1.17" not in view.state_reason
    assert f"{SLOW}: token_ms ratio 1.17" in view.state_reason
    told = fleet.explain(name)
    assert told.decision is not None
    (gate,) = told.decision.evidence
    assert (gate["rule"], gate["verdict"], gate["n"]) == ("measurement", "breach", kept)
    assert gate["low"] > gate["limit"] == pytest.approx(1.1)
    assert "[breach]" in told.text()

    # A person has seen it: the same evidence halts no more, nor does one more like it.
    fleet.do("resume", name, reason="slower, and worth it")
    fleet.tick()
    assert fleet.view(name).state == "RUNNING"
    _keeps_it(fleet, name, slow[kept], 1.17)
    fleet.tick()
    assert fleet.view(name).state == "RUNNING"
    _replays(fleet, name)


def test_a_wave_waits_while_its_outputs_differ_and_the_newest_trial_counts(fleet: Fleet) -> None:
    name = fleet.start("1.1.0")
    canaries = fleet.in_state(name, E.OFFERED)
    odd = canaries[0]
    for device in canaries:
        fleet.trial(name, device, wrong=0.4 if device == odd else 0.0)
        fleet.report(name, device, E.SUCCEEDED, digest=fleet.parts(name)[device].digest)
    fleet.tick()
    held = next(one for one in fleet.decisions(name) if one.kind == "hold")
    (gate,) = [one for one in held.evidence if one["verdict"] == "hold"]
    assert fleet.view(name).wave == 0
    assert (gate["metric"], gate["value"], gate["n"]) == (gates.GOLDEN, 0.4, 1)
    assert "not shown to be within 10 %" in gate["text"]
    fleet.trial(name, odd, wrong=0.05)
    fleet.tick()
    assert fleet.view(name).wave == 1
    _replays(fleet, name)


def _replays(fleet: Fleet, name: str) -> None:
    """Compute every stored decision again, from what is stored with it."""
    with fleet.scope() as scope:
        rows = store.decisions(scope.tx, name, before_id=None, limit=500)
        kept = [row.inputs for row in rows]
    decided = [inputs for inputs in kept if inputs["decision"] is not None]
    assert decided
    for inputs in decided:
        _, again = rollout_codec.replay(inputs)
        assert inputs["decision"] in again
