"""Replaying recorded rollouts: as they were, and as they would be under another policy."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.protocol.words import ExecutionState, Reason
from control_plane.bootstrap import Application
from control_plane.config import Settings
from control_plane.domain.errors import ConflictError, FlotillaError, InvalidError
from control_plane.services import inventory, rollout_codec, rollout_replay
from control_plane.services.rollout_replay import Simulation
from control_plane.store import rollouts as store
from tests.integration.engine.conftest import Fleet

E = ExecutionState
ALL = [{"name": "all", "percent": 100}]
CANARY = [{"name": "canary", "count": 3}, *ALL]
FORWARD = (E.DOWNLOADING, E.STAGED, E.BENCHMARKING, E.SOAKING)


def simulate(fleet: Fleet, name: str, **how: Any) -> Simulation:
    with fleet.scope() as scope:
        return rollout_replay.simulate(scope, name, **how)


def kinds(fleet: Fleet, name: str) -> list[str]:
    return [one.kind for one in reversed(fleet.decisions(name))]


# --- recording --------------------------------------------------------------------------------


def _answer(fleet: Fleet, chance: random.Random, name: str, device: str) -> None:
    """Let a device say the next thing, or the last."""
    part = fleet.parts(name)[device]
    word = chance.random()
    if word < 0.15:
        return  # nothing, this second
    if (word < 0.55 and part.state in FORWARD[:-1]) or (part.state == E.OFFERED and word < 0.8):
        at = FORWARD.index(E(part.state)) + 1 if part.state in FORWARD else 0
        fleet.report(name, device, FORWARD[at], digest=part.digest)
    elif word < 0.93:
        fleet.succeed(name, device)
    elif word < 0.96:
        fleet.fail(name, device)
    else:
        fleet.report(name, device, E.FAILED, reason=Reason.DOWNLOAD_FAILED)


def _person(fleet: Fleet, chance: random.Random, name: str) -> None:
    verb = chance.choice(["pause", "resume", "resume", "promote", "approve", "approve", "revert"])
    if verb == "revert" and chance.random() < 0.7:
        return
    try:
        fleet.do(verb, name, reason="as I like")
    except FlotillaError:
        return


def _policy(chance: random.Random) -> dict[str, Any]:
    waves: list[dict[str, Any]] = [*CANARY] if chance.random() < 0.7 else [*ALL]
    if chance.random() < 0.3:
        waves[-1] = {**waves[-1], "approval": "required"}
    if chance.random() < 0.2:
        waves[0] = {**waves[0], "timeout": "9s"}
    return {
        "waves": waves,
        "soak": chance.choice(["0s", "3s"]),
        "pace": {
            "max_in_flight": chance.choice([2, 5, 100]),
            "per_minute": chance.choice([4, 600]),
        },
        "gates": {
            "max_failures": chance.choice([0, 1, 4]),
            "min_answered": chance.choice([0.5, 1.0]),
            "scope": chance.choice(["rollout", "blueprint"]),
        },
        "timeouts": {
            "silent": chance.choice(["8s", "1h"]),
            "execution": chance.choice(["15s", "6h"]),
        },
        "on_breach": chance.choice(["halt", "halt", "revert"]),
    }


def record(fleet: Fleet, seed: int, version: str) -> str:
    """Live through a rollout at random, a second at a time, as a fleet and its people might."""
    chance = random.Random(seed)
    name = fleet.create(version, name=f"recorded-{seed}", **_policy(chance))
    fleet.do("start", name)
    fleet.tick()
    silent = set(chance.sample(sorted(fleet.parts(name)), 2))
    for _ in range(24):
        fleet.later(1)
        for device in fleet.in_state(name, E.OFFERED, *FORWARD):
            if device not in silent:
                _answer(fleet, chance, name, device)
        if chance.random() < 0.2:
            _person(fleet, chance, name)
        if chance.random() < 0.04:
            with fleet.scope() as scope:
                inventory.quarantine(scope, chance.choice(sorted(silent)), reason="lost")
        fleet.tick()
        if fleet.view(name).ended_at is not None:
            break
    return name


@pytest.fixture
def recorded(sqlite_url: str, tmp_path: Path) -> Iterator[Fleet]:
    """Nine devices on SQLite: what is replayed does not depend on the database."""
    app = Application(Settings(data=tmp_path / "data", database_url=sqlite_url))
    made = Fleet(app)
    made.add_blueprints()
    made.add_version("1.0.0")
    made.add_version("1.1.0")
    made.add_devices(3, runs="1.0.0")
    yield made
    app.close()


@pytest.mark.parametrize("seed", range(8))
def test_under_its_own_policy_a_rollout_is_replayed_as_it_was(recorded: Fleet, seed: int) -> None:
    name = record(recorded, seed, "1.1.0")
    really = kinds(recorded, name)
    found = simulate(recorded, name)
    told = [one.kind for one in found.replayed.decisions]
    assert told[: len(really)] == really
    if recorded.view(name).ended_at is not None:
        assert told == really
        assert found.replayed.state == recorded.view(name).state
        assert found.replayed.outcomes == found.recorded.outcomes
        assert found.replayed.ran == found.recorded.ran
        assert found.replayed.duration_s == found.recorded.duration_s
    with recorded.scope() as scope:
        for one in store.decisions(scope.tx, name, before_id=None, limit=500):
            machine, decisions = rollout_codec.replay(one.inputs)
            assert machine.state
            assert one.inputs["decision"] in [None, *decisions], "replayed to another decision"


# --- other policies ---------------------------------------------------------------------------


def _good_but_for_one(fleet: Fleet, bad: int = 0) -> str:
    """Everybody in one wave; one of them regresses, and the budget allows it."""
    name = fleet.create("1.1.0", waves=ALL, gates={"max_failures": 2, "min_answered": 0.5})
    fleet.do("start", name)
    fleet.tick()
    fleet.later(30)
    devices = list(fleet.parts(name))
    fleet.fail(name, devices.pop(bad), ratio=1.3)
    for device in devices:
        fleet.succeed(name, device)
    fleet.tick()
    assert fleet.view(name).state == "SUCCEEDED"
    return name


def test_a_smaller_budget_would_have_halted_and_says_when_why_and_who_was_spared(
    fleet: Fleet,
) -> None:
    name = _good_but_for_one(fleet)
    policy = {"gates": {"max_failures": 0}, "pace": {"max_in_flight": 4}}
    found = simulate(fleet, name, policy=policy)
    assert found.recorded.state == "SUCCEEDED"
    assert found.recorded.halted_at_s is None
    assert (found.replayed.state, found.replayed.halted_at_s) == ("HALTED", 30.0)
    assert "at most 0 allowed" in found.replayed.halted_why
    assert found.replayed.offered == 4
    assert len(found.spared) == 8
    assert (found.without_answer, found.drawn, found.newly_exposed) == (0, [], [])
    assert fleet.view(name).state == "SUCCEEDED", "nothing was changed"


def test_a_canary_would_have_taken_longer_and_shares_are_cut_from_the_record(
    lone_fleet: Fleet,
) -> None:
    name = _good_but_for_one(lone_fleet, bad=-1)
    found = simulate(lone_fleet, name, policy={"waves": CANARY})
    opened = [one for one in found.replayed.decisions if one.kind == "open_wave"]
    assert [(one.wave, one.at_s) for one in opened] == [(0, 0.0), (1, 30.0)]
    assert (found.replayed.state, found.replayed.duration_s) == ("SUCCEEDED", 60.0)
    assert any("cut anew" in note for note in found.notes)


def test_a_wider_tolerance_does_not_know_how_a_refused_trial_would_have_ended(
    lone_fleet: Fleet,
) -> None:
    name = _good_but_for_one(lone_fleet)
    wide = {"gates": {"max_failures": 2, "min_answered": 0.5, "tolerance": {"token_ms": 0.5}}}
    found = simulate(lone_fleet, name, policy=wide, unknown="succeed")
    assert len(found.drawn) == 1
    assert found.newly_exposed == found.drawn
    strict = simulate(lone_fleet, name, policy={"gates": {"tolerance": {"token_ms": 0.0}}})
    assert strict.replayed.state == "HALTED"


def test_devices_without_an_answer_are_counted_and_drawn_as_asked(lone_fleet: Fleet) -> None:
    name = lone_fleet.start("1.1.0", waves=ALL, pace={"max_in_flight": 3})
    lone_fleet.later(10)
    good, bad, _ = lone_fleet.in_state(name, E.OFFERED)
    lone_fleet.succeed(name, good)
    lone_fleet.report(name, bad, E.FAILED, reason=Reason.DOWNLOAD_FAILED)
    lone_fleet.tick()
    assert lone_fleet.view(name).state == "HALTED"
    lenient = {"gates": {"max_failures": 12, "min_answered": 0.5}}
    answers = {}
    for unknown in ("succeed", "fail", "rate"):
        found = simulate(lone_fleet, name, policy=lenient, unknown=unknown, seed=1)
        assert found.without_answer == 10
        assert len(found.drawn) == 10
        answers[unknown] = found.replayed.outcomes
        again = simulate(lone_fleet, name, policy=lenient, unknown=unknown, seed=1)
        assert again.replayed == found.replayed, "the same question has the same answer"
    assert answers["succeed"] == {"FAILED": 1, "SUCCEEDED": 11}
    assert answers["fail"] == {"FAILED": 11, "SUCCEEDED": 1}
    assert answers["rate"] != answers["succeed"]


def test_a_silent_device_times_out_by_the_other_policys_clock(lone_fleet: Fleet) -> None:
    name = lone_fleet.start("1.1.0", waves=ALL, timeouts={"silent": "10m"})
    offered = lone_fleet.in_state(name, E.OFFERED)
    lone_fleet.later(60)
    for device in offered[1:]:
        lone_fleet.succeed(name, device)
    lone_fleet.tick()
    lone_fleet.later(600)
    lone_fleet.tick()
    assert lone_fleet.view(name).state == "HALTED"
    found = simulate(lone_fleet, name, policy={"timeouts": {"silent": "2m"}})
    assert found.without_answer == 0
    assert found.replayed.halted_at_s is not None
    assert 120 < found.replayed.halted_at_s < 400


def test_what_people_did_comes_as_long_after_it_was_asked_for(lone_fleet: Fleet) -> None:
    waves = [CANARY[0], {**ALL[0], "approval": "required"}]
    name = lone_fleet.start("1.1.0", waves=waves)
    lone_fleet.later(100)
    for device in lone_fleet.in_state(name, E.OFFERED):
        lone_fleet.succeed(name, device)
    lone_fleet.tick()
    lone_fleet.later(50)
    lone_fleet.do("deny", name, reason="no")
    slower = simulate(lone_fleet, name, policy={"pace": {"max_in_flight": 1}})
    asked = next(one for one in slower.replayed.decisions if one.kind == "await_approval")
    said = next(one for one in slower.replayed.decisions if one.kind == "deny")
    assert (asked.at_s, said.at_s - asked.at_s) == (300.0, 50.0)
    assert slower.replayed.state == "ABORTED"


def test_a_wave_that_nobody_was_asked_about_is_approved_at_once_and_says_so(
    lone_fleet: Fleet,
) -> None:
    name = _good_but_for_one(lone_fleet)
    found = simulate(lone_fleet, name, policy={"approval": "required"})
    assert found.replayed.state == "SUCCEEDED"
    assert any("approved at once" in note for note in found.notes)


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        ({"gates": {"max_failures": -1}}, "spec.gates.max_failures"),
        ({"colour": "red"}, "spec.colour"),
        ({"version": "2.0.0"}, "policy.version"),
        ({"kind": "Rollout", "spec": []}, "policy"),
    ],
)
def test_a_wrong_policy_is_refused_by_its_field(
    recorded: Fleet, policy: dict[str, Any], field: str
) -> None:
    name = recorded.start("1.1.0")
    with pytest.raises(InvalidError) as refused:
        simulate(recorded, name, policy=policy)
    assert refused.value.field == field


def test_without_any_answer_there_is_no_rate_and_nothing_to_replay_before_the_start(
    recorded: Fleet,
) -> None:
    name = recorded.create("1.1.0")
    with pytest.raises(ConflictError, match="never started"):
        simulate(recorded, name)
    recorded.do("start", name)
    recorded.tick()
    with pytest.raises(InvalidError, match="say succeed or fail"):
        simulate(recorded, name)
    assert simulate(recorded, name, unknown="succeed").replayed.state == "SUCCEEDED"
    assert simulate(recorded, name, unknown="fail").replayed.state == "HALTED"
