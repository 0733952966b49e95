"""Rollouts from start to end on a real database, with real orders."""

import pytest

from agent.protocol.words import Action, ExecutionState, Reason, Verdict
from control_plane.domain.errors import (
    ConflictError,
    IllegalTransitionError,
    InvalidError,
    NotFoundError,
)
from control_plane.services import rollout_codec, rollout_document
from control_plane.services import rollouts as service
from control_plane.store import rollouts as store
from tests.integration.engine.conftest import Fleet, digest_of

E = ExecutionState


def test_a_good_version_reaches_everyone_wave_by_wave(fleet: Fleet) -> None:
    name = fleet.start("1.1.0")
    assert [wave.state for wave in fleet.view(name).waves] == ["open", "planned", "planned"]
    canary = fleet.in_state(name, E.OFFERED)
    assert len(canary) == 3
    assert len({fleet.parts(name)[device].blueprint for device in canary}) == 3
    fleet.finish(name)
    view = fleet.view(name)
    assert (view.state, view.ended_at) == ("SUCCEEDED", fleet.now)
    assert fleet.in_state(name, E.SUCCEEDED) == sorted(fleet.parts(name))


def test_the_order_carries_the_bundle_the_trial_and_the_soak(fleet: Fleet) -> None:
    name = fleet.start("1.1.0", soak="7s", gates={"tolerance": {"token_ms": 0.25}})
    device = fleet.in_state(name, E.OFFERED)[0]
    order = fleet.order(device)
    part = fleet.parts(name)[device]
    assert order.action is Action.RUN
    assert order.bundle is not None
    assert order.bundle.digest == digest_of("1.1.0", part.blueprint) == part.digest
    assert (order.execution, order.generation) == (part.id, part.generation)
    assert (order.soak_s, order.trial.tolerances) == (7.0, {"token_ms": 0.25})


def test_a_regression_in_the_canary_halts_and_reaches_nobody_else(fleet: Fleet) -> None:
    name = fleet.start("1.1.0", pace={"max_in_flight": 2, "per_minute": 100})
    first, second = fleet.in_state(name, E.OFFERED)
    fleet.report(name, second, E.DOWNLOADING)
    fleet.fail(name, first)
    assert fleet.tick().offered == 0
    view = fleet.view(name)
    assert view.state == "HALTED"
    assert "1 failures (1 ROLLED_BACK), at most 0 allowed" in view.state_reason
    fleet.later(3600)
    assert fleet.tick().offered == 0
    exposed = {d for d, part in fleet.parts(name).items() if part.state != "QUEUED"}
    assert exposed == {first, second}


def test_a_halt_takes_back_what_nobody_has_begun(fleet: Fleet) -> None:
    name = fleet.start("1.1.0")
    failing, begun, waiting = fleet.in_state(name, E.OFFERED)
    fleet.report(name, begun, E.DOWNLOADING)
    fleet.fail(name, failing)
    fleet.tick()
    assert fleet.order(waiting).action is Action.HOLD
    assert fleet.order(begun).action is Action.RUN
    assert fleet.parts(name)[waiting].state == "QUEUED"


def test_explain_says_why_with_the_numbers(fleet: Fleet) -> None:
    name = fleet.start("1.1.0")
    device = fleet.in_state(name, E.OFFERED)[0]
    fleet.fail(name, device, ratio=1.9)
    fleet.tick()
    text = fleet.explain(name).text()
    assert "HALTED" in text
    assert f"trial on {device}: 1.1.0 against 1.0.0: regression" in text
    assert "token_ms ratio 1.90 (1.86 to 1.94, tolerated 1.10)" in text
    assert "at most 0 allowed" in text
    assert f"next: flotilla rollout resume {name}" in text


def test_resuming_acknowledges_and_only_new_failures_trip_again(fleet: Fleet) -> None:
    name = fleet.start("1.1.0")
    failing, second, third = fleet.in_state(name, E.OFFERED)
    fleet.fail(name, failing)
    fleet.tick()
    fleet.do("resume", name, reason="a known bad board")
    fleet.tick()
    assert fleet.view(name).state == "RUNNING"
    fleet.succeed(name, second)
    fleet.tick()
    assert fleet.view(name).state == "RUNNING"
    fleet.fail(name, third)
    fleet.tick()
    assert fleet.view(name).state == "HALTED"


def test_pause_withdraws_and_resume_offers_again(fleet: Fleet) -> None:
    name = fleet.start("1.1.0")
    offered = fleet.in_state(name, E.OFFERED)
    fleet.do("pause", name, reason="lunch")
    assert fleet.in_state(name, E.OFFERED) == []
    old = fleet.parts(name)[offered[0]].generation
    # The device had begun before the HOLD reached it; then it says that it withdrew.
    assert not fleet.report(name, offered[0], E.DOWNLOADING, generation=old - 1)
    assert not fleet.report(name, offered[0], E.CANCELED, reason=Reason.WITHDRAWN)
    assert fleet.tick().offered == 0
    fleet.do("resume", name)
    fleet.tick()
    assert fleet.in_state(name, E.OFFERED) == offered
    fleet.finish(name)


def test_a_silent_device_times_out_and_counts(fleet: Fleet) -> None:
    name = fleet.start("1.1.0", timeouts={"silent": "10m"})
    device = fleet.in_state(name, E.OFFERED)[0]
    fleet.later(599)
    fleet.tick()
    assert fleet.view(name).state == "RUNNING"
    fleet.later(2)
    fleet.tick()
    assert fleet.view(name).state == "HALTED"
    assert fleet.parts(name)[device].state == "TIMED_OUT"
    assert fleet.order(device).action is Action.HOLD
    digest = fleet.parts(name)[device].digest
    assert not fleet.report(name, device, E.SUCCEEDED, digest=digest)
    assert fleet.parts(name)[device].state == "TIMED_OUT"


def test_revert_sends_every_updated_device_back(fleet: Fleet) -> None:
    name = fleet.start("1.1.0")
    done, soaking, waiting = fleet.in_state(name, E.OFFERED)
    fleet.succeed(name, done)
    fleet.report(name, soaking, E.SOAKING, digest=fleet.parts(name)[soaking].digest)
    assert fleet.do("revert", name, reason="complaints").state == "REVERTING"
    assert fleet.order(waiting).action is Action.HOLD
    for device in (done, soaking):
        order = fleet.order(device)
        blueprint = fleet.parts(name)[device].blueprint
        assert order.action is Action.REVERT
        assert order.bundle is not None
        assert order.bundle.digest == digest_of("1.0.0", blueprint)
        fleet.tick()
        assert fleet.view(name).state == "REVERTING"
        assert fleet.report(
            name, device, E.ROLLED_BACK, reason=Reason.REVERTED, digest=order.bundle.digest,
            generation=order.generation,
        )  # fmt: skip
    fleet.tick()
    assert fleet.view(name).state == "REVERTED"
    assert fleet.parts(name)[done].state == "SUCCEEDED"
    assert fleet.parts(name)[done].reverted


def test_a_device_that_cannot_be_reached_does_not_block_a_revert(fleet: Fleet) -> None:
    name = fleet.start("1.1.0", timeouts={"silent": "10m"})
    fleet.succeed(name, fleet.in_state(name, E.OFFERED)[0])
    fleet.do("abort", name, mode="revert")
    fleet.later(601)
    fleet.tick()
    assert fleet.view(name).state == "REVERTED"


def test_on_breach_revert_sends_back_without_asking(fleet: Fleet) -> None:
    name = fleet.start("1.1.0", on_breach="revert")
    done, failing, _ = fleet.in_state(name, E.OFFERED)
    fleet.succeed(name, done)
    fleet.fail(name, failing)
    fleet.tick()
    assert fleet.view(name).state == "REVERTING"
    assert fleet.order(done).action is Action.REVERT


def test_abort_keeps_what_runs_and_ends_the_rest(fleet: Fleet) -> None:
    name = fleet.start("1.1.0")
    done = fleet.in_state(name, E.OFFERED)[0]
    fleet.succeed(name, done)
    assert fleet.do("abort", name).state == "ABORTED"
    assert fleet.order(done).action is Action.RUN
    assert len(fleet.in_state(name, E.CANCELED)) == 11
    with pytest.raises(IllegalTransitionError, match="nothing more: it has ended"):
        fleet.do("resume", name)


def test_a_newer_rollout_takes_devices_from_an_older_one(fleet: Fleet) -> None:
    older = fleet.start("1.1.0")
    fleet.later(1)
    fleet.add_version("1.2.0")
    newer = fleet.start("1.2.0", waves=[{"name": "all", "percent": 100}])
    assert len(fleet.in_state(newer, E.OFFERED)) == 12
    assert len(fleet.in_state(older, E.SUPERSEDED)) == 12
    fleet.tick()
    assert fleet.view(older).state == "ABORTED"
    assert "a newer rollout" in fleet.view(older).state_reason
    assert fleet.view(newer).state == "RUNNING"


def test_a_first_install_needs_no_paired_measurement(fleet: Fleet) -> None:
    name = fleet.start("1.1.0")
    fleet.finish(name, first=True)
    assert fleet.view(name).state == "SUCCEEDED"


def test_a_missing_measurement_holds_the_wave(fleet: Fleet) -> None:
    name = fleet.start("1.1.0")
    for device in fleet.in_state(name, E.OFFERED):
        digest = fleet.parts(name)[device].digest
        fleet.report(name, device, E.SUCCEEDED, digest=digest, reason=Reason.SOAKED)
    fleet.tick()
    assert fleet.view(name).wave == 0
    newest = fleet.decisions(name)[0]
    assert newest.kind == "hold"
    held = [gate["text"] for gate in newest.evidence if gate["verdict"] == "hold"]
    assert "arm64-board: 1 devices confirmed, 0 sent their trial" in held


def test_success_of_another_digest_is_a_failure(fleet: Fleet) -> None:
    name = fleet.start("1.1.0")
    device = fleet.in_state(name, E.OFFERED)[0]
    fleet.report(name, device, E.SUCCEEDED, digest=digest_of("1.0.0", "arm64-board"))
    part = fleet.parts(name)[device]
    assert (part.state, part.reason) == ("FAILED", "bundle.mismatch")


def test_identical_holds_are_stored_once(fleet: Fleet) -> None:
    name = fleet.start("1.1.0")
    for _ in range(5):
        fleet.later(1)
        fleet.tick()
    kinds = [one.kind for one in fleet.decisions(name)]
    assert kinds.count("hold") == 1


def test_every_stored_decision_can_be_made_again(fleet: Fleet) -> None:
    first = fleet.start("1.1.0", approval="required", pace={"max_in_flight": 2, "per_minute": 60})
    fleet.do_as("ann", "approve", first)
    fleet.tick()
    fleet.fail(first, fleet.in_state(first, E.OFFERED)[0])
    fleet.tick()
    fleet.do("resume", first)
    fleet.do("pause", first)
    fleet.do("resume", first)
    fleet.tick()
    fleet.later(4000)
    fleet.tick()
    fleet.do("revert", first)
    fleet.tick()
    with fleet.scope() as scope:
        stored = store.decisions(scope.tx, first, before_id=None, limit=500)
    assert len(stored) > 12
    for one in stored:
        machine, decisions = rollout_codec.replay(one.inputs)
        if one.inputs["decision"] is not None:
            assert one.inputs["decision"] in decisions
            assert one.evidence == one.inputs["decision"][1].get("evidence", one.evidence)
        assert machine.state


def test_the_plan_shown_is_the_plan_carried_out(fleet: Fleet) -> None:
    name = fleet.create("1.1.0")
    with fleet.scope() as scope:
        row = store.find(scope.tx, name)
        assert row is not None
        shown = service.plan(scope, rollout_document.spec_of(name, row.spec))
    assert [wave.total for wave in shown.waves] == [3, 3, 6]
    assert shown.bytes == 12_000_000
    for wave in shown.waves:
        stored = [d for d, part in fleet.parts(name).items() if part.wave == wave.index]
        assert stored == wave.devices


def test_missing_bundles_are_built_first_and_failed_ones_become_misfits(fleet: Fleet) -> None:
    fleet.add_version("1.2.0", built=("x86-64-vnni",))
    name = fleet.start("1.2.0")
    assert fleet.view(name).state == "BUILDING"
    fleet.build("1.2.0", "arm64-board")
    fleet.tick()
    assert fleet.view(name).state == "BUILDING"
    fleet.build("1.2.0", "x86-64-avx2", error="no recipe kept the quality")
    fleet.tick()
    view = fleet.view(name)
    assert view.state == "RUNNING"
    assert {one["reason"] for one in view.misfits} == {
        "no bundle for x86-64-avx2: no recipe kept the quality"
    }
    assert len(fleet.parts(name)) == 8
    assert all(part.digest for part in fleet.parts(name).values())


def test_a_rollout_of_which_nothing_can_be_built_halts_with_the_reason(fleet: Fleet) -> None:
    fleet.add_version("1.2.0", built=())
    name = fleet.start("1.2.0")
    for blueprint in ("x86-64-vnni", "x86-64-avx2", "arm64-board"):
        fleet.build("1.2.0", blueprint, error="broken model")
    fleet.tick()
    view = fleet.view(name)
    assert view.state == "HALTED"
    assert "broken model" in view.state_reason


def test_bad_requests_change_nothing(fleet: Fleet) -> None:
    with pytest.raises(NotFoundError) as missing:
        fleet.create("9.9.9")
    assert missing.value.field == "spec.version"
    with pytest.raises(InvalidError) as nobody:
        fleet.create("1.1.0", selector='labels.site = "moon"')
    assert nobody.value.field == "spec.selector"
    name = fleet.create("1.1.0")
    with pytest.raises(ConflictError):
        fleet.create("1.1.0")
    with pytest.raises(ConflictError, match="revision"):
        fleet.do("start", name, revision=7)
    with pytest.raises(IllegalTransitionError, match="legal is start, abort"):
        fleet.do("pause", name)
    with pytest.raises(NotFoundError):
        fleet.view("nothing")
    assert fleet.view(name).state == "DRAFT"
    assert fleet.view(name).revision == 1


def test_repeated_and_late_events_change_nothing(fleet: Fleet) -> None:
    name = fleet.start("1.1.0")
    device = fleet.in_state(name, E.OFFERED)[0]
    digest = fleet.parts(name)[device].digest
    assert fleet.report(name, device, E.SOAKING, digest=digest)
    assert not fleet.report(name, device, E.SOAKING, digest=digest)
    assert not fleet.report(name, device, E.STAGED)
    assert fleet.report(name, device, E.SUCCEEDED, digest=digest)
    assert not fleet.report(name, device, E.ROLLED_BACK, digest=digest)
    fleet.check_tallies()


def test_only_the_newest_conclusive_trial_counts(fleet: Fleet) -> None:
    name = fleet.start("1.1.0")
    device = fleet.in_state(name, E.OFFERED)[0]
    fleet.trial(name, device, ratio=1.5, verdict=Verdict.INCONCLUSIVE, seq=11)
    fleet.trial(name, device, ratio=1.3, verdict=Verdict.REGRESSION, seq=12)
    fleet.trial(name, device, ratio=1.02, seq=20)
    fleet.trial(name, device, ratio=1.7, verdict=Verdict.REGRESSION, seq=15)
    assert not fleet.trial(name, device, ratio=1.02, seq=20)
    for other in fleet.in_state(name, E.OFFERED)[1:]:
        fleet.succeed(name, other)
    digest = fleet.parts(name)[device].digest
    fleet.report(name, device, E.SUCCEEDED, digest=digest)
    fleet.tick()
    opened = next(one for one in fleet.decisions(name) if one.kind == "open_wave")
    blueprint = fleet.parts(name)[device].blueprint
    gate = next(
        gate
        for gate in opened.evidence
        if (gate["blueprint"], gate["metric"]) == (blueprint, "token_ms")
    )
    assert gate["n"] == 1
    assert gate["value"] == pytest.approx(1.02)
    assert gate["high"] == pytest.approx(1.02 * 1.02)
