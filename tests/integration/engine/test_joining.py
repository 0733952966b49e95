"""Devices that match a rollout only after it was planned."""

from agent.protocol.words import ExecutionState
from control_plane.services import builds
from tests.integration.engine.conftest import Fleet, digest_of

E = ExecutionState
ALL = [{"name": "all", "percent": 100}]
HOUR = 3600.0


def _all_succeed(fleet: Fleet, name: str) -> None:
    while offered := fleet.in_state(name, E.OFFERED):
        for device in offered:
            fleet.succeed(name, device)
        fleet.tick()


def test_devices_that_match_later_join_the_last_wave_of_a_dynamic_rollout(fleet: Fleet) -> None:
    ring = 'labels.ring = "stable"'
    for device in ("x86-64-avx2-0", "x86-64-avx2-1"):
        fleet.label(device, ring="stable")
    waves = [{"name": "canary", "count": 1}, *ALL]
    name = fleet.start("1.1.0", waves=waves, selector=ring, dynamic=True)
    _all_succeed(fleet, name)
    assert fleet.view(name).state == "RUNNING"
    assert fleet.in_state(name, E.SUCCEEDED) == ["x86-64-avx2-0", "x86-64-avx2-1"]
    assert "still join" in fleet.rules(name)["dynamic"]
    fleet.later(HOUR)
    fleet.label("arm64-board-1", ring="stable")
    fleet.label("arm64-board-2", ring="beta")
    assert fleet.tick().offered == 1
    part = fleet.parts(name)["arm64-board-1"]
    assert (part.state, part.wave) == ("OFFERED", 1)
    assert part.digest == digest_of("1.1.0", "arm64-board")
    fleet.later(1)
    fleet.tick()
    assert len(fleet.parts(name)) == 3
    _all_succeed(fleet, name)
    assert fleet.do("promote", name).state == "SUCCEEDED"
    fleet.check_replay(name)


def test_a_newcomer_joins_when_the_bundle_of_its_blueprint_is_built(fleet: Fleet) -> None:
    fleet.add_version("1.2.0", built=("x86-64-avx2",))
    fleet.label("x86-64-avx2-0", ring="stable")
    name = fleet.start("1.2.0", waves=ALL, selector='labels.ring = "stable"', dynamic=True)
    fleet.succeed(name, "x86-64-avx2-0")
    fleet.label("arm64-board-1", ring="stable")
    fleet.tick()
    asked = _builds(fleet, "1.2.0", "arm64-board")
    assert asked == ["QUEUED"], "nobody else asks for it"
    fleet.later(HOUR)
    fleet.tick()
    assert _builds(fleet, "1.2.0", "arm64-board") == asked
    assert "arm64-board-1" not in fleet.parts(name)
    fleet.build("1.2.0", "arm64-board")
    assert fleet.tick().offered == 1
    assert fleet.parts(name)["arm64-board-1"].digest == digest_of("1.2.0", "arm64-board")


def test_a_newcomer_whose_bundle_cannot_be_built_is_left_behind(fleet: Fleet) -> None:
    fleet.add_version("1.2.0", built=("x86-64-avx2",))
    fleet.label("x86-64-avx2-0", ring="stable")
    name = fleet.start("1.2.0", waves=ALL, selector='labels.ring = "stable"', dynamic=True)
    fleet.label("arm64-board-1", ring="stable")
    fleet.tick()
    fleet.build("1.2.0", "arm64-board", error="no recipe fits")
    for _ in range(3):
        fleet.later(HOUR)
        fleet.tick()
    assert _builds(fleet, "1.2.0", "arm64-board") == ["FAILED"], "and is not asked for again"
    assert "arm64-board-1" not in fleet.parts(name)


def _builds(fleet: Fleet, version: str, blueprint: str) -> list[str]:
    with fleet.scope() as scope:
        page = builds.list_builds(scope, model="slm", version=version, blueprint=blueprint)
    return [build.state for build in page.items]


def test_a_device_that_a_newer_rollout_has_taken_over_joins_no_older_one(fleet: Fleet) -> None:
    fleet.label("x86-64-avx2-0", ring="stable")
    older = fleet.start("1.1.0", waves=ALL, selector='labels.ring = "stable"', dynamic=True)
    fleet.succeed(older, "x86-64-avx2-0")
    fleet.later(1)
    fleet.add_version("1.2.0")
    newer = fleet.start(
        "1.2.0", waves=ALL, selector='labels.ring = "beta" or not labels.ring exists'
    )
    fleet.tick()
    assert "arm64-board-1" in fleet.in_state(newer, E.OFFERED)
    fleet.later(HOUR)
    fleet.label("arm64-board-1", ring="stable")
    fleet.tick()
    assert "arm64-board-1" not in fleet.parts(older)


def test_a_rollout_that_is_not_dynamic_stays_as_it_was_planned(fleet: Fleet) -> None:
    name = fleet.start("1.1.0", waves=ALL)
    fleet.add_devices_more(1)
    fleet.label("arm64-board-100", site="vie")
    fleet.tick()
    assert "arm64-board-100" not in fleet.parts(name)
