"""For every state: its step fails, and the process dies; generated, so that none is missed."""

from typing import get_args

import pytest
from msgspec import UNSET

from agent.lifecycle import (
    Activating,
    Benchmarking,
    Downloading,
    Holding,
    Idle,
    Report,
    Restore,
    Reverting,
    Soaking,
    Staged,
    State,
    StepFailed,
    Verifying,
    Waiting,
)
from agent.machine import step
from agent.protocol.messages import ActivationWindow
from agent.protocol.words import ExecutionState, Reason, Verdict
from tests.unit.agent.story import NEW, NOW, OLD, TERMINAL, World, ordered

S = ExecutionState
STATES = get_args(State)
# How to come into each state, and how an order ends whose step fails there for good.
FAULTS: dict[type, tuple[str, Reason, tuple[ExecutionState, Reason] | None]] = {
    Idle: ("", Reason.NONE, None),
    Verifying: ("FetchManifest", Reason.BUNDLE_SIGNATURE, (S.REJECTED, Reason.BUNDLE_SIGNATURE)),
    Downloading: ("Download", Reason.DOWNLOAD_FAILED, (S.FAILED, Reason.DOWNLOAD_FAILED)),
    Staged: ("CheckSlot", Reason.BUNDLE_DIGEST, (S.FAILED, Reason.DISK_ERROR)),
    Waiting: ("CheckSlot", Reason.BUNDLE_DIGEST, (S.FAILED, Reason.DISK_ERROR)),
    Benchmarking: ("RunTrial", Reason.TRIAL_CRASHED, (S.ROLLED_BACK, Reason.TRIAL_CRASHED)),
    Holding: ("RunTrial", Reason.TRIAL_CRASHED, (S.ROLLED_BACK, Reason.TRIAL_CRASHED)),
    Activating: ("Switch", Reason.DISK_ERROR, (S.FAILED, Reason.ACTIVATE_FAILED)),
    Soaking: ("Probe", Reason.DISK_ERROR, (S.ROLLED_BACK, Reason.SOAK_UNHEALTHY)),
    Reverting: ("Switch", Reason.DISK_ERROR, (S.ROLLED_BACK, Reason.SOAK_UNHEALTHY)),
}


def entered(kind: type) -> World:
    """Return a world whose device has just entered the state."""
    world = World()
    if kind is Idle:
        return world
    if kind is Holding:
        world.verdict = Verdict.INCONCLUSIVE
    if kind is Reverting:
        world.healthy = False
    tonight = ActivationWindow(int(NOW.wall) + 1000, int(NOW.wall) + 2000)
    world.take(ordered(activate=tonight if kind is Waiting else UNSET))
    world.until(kind)
    world.verdict = Verdict.PASS
    return world


def converged(world: World) -> None:
    """Assert that the order has one end, and that what runs is what the end says."""
    assert isinstance(world.state, Idle)
    ends = {(report.state, report.digest) for report in world.reports if report.state in TERMINAL}
    assert len(ends) == 1
    state, digest = ends.pop()
    assert digest == world.link == (NEW.digest if state is S.SUCCEEDED else OLD.digest)
    assert world.slots <= {OLD.digest, NEW.digest}


def test_every_state_has_its_fault() -> None:
    assert set(FAULTS) == set(STATES)


@pytest.mark.parametrize("kind", [k for k in STATES if k is not Idle], ids=lambda k: k.__name__)
def test_error_in(kind: type) -> None:
    world = entered(kind)
    failing, reason, end = FAULTS[kind]
    world.fails = {failing: reason}
    if kind in {Activating, Reverting}:
        world.carry_out()  # fails
        world.fails = {}
    world.settle()
    assert world.end == end
    converged(world)


@pytest.mark.parametrize("kind", STATES, ids=lambda k: k.__name__)
@pytest.mark.parametrize("kills", [1, 2, 3, 4])
def test_killed_in(kind: type, kills: int) -> None:
    world = entered(kind)
    for _ in range(kills):
        world.kill()
    world.settle()
    if kind is not Idle:
        converged(world)
    assert world.link in world.slots


@pytest.mark.parametrize("kind", STATES, ids=lambda k: k.__name__)
@pytest.mark.parametrize("where", [OLD.digest, NEW.digest])
def test_killed_between_the_effect_and_its_answer_in(kind: type, where: str) -> None:
    """The link may lead to either slot whenever the power fails during a switch."""
    world = entered(kind)
    if kind not in {Activating, Reverting}:
        world.kill()
    else:
        world.link = where
        world.kill()
    world.settle()
    if kind is not Idle:
        converged(world)


@pytest.mark.parametrize("kind", STATES, ids=lambda k: k.__name__)
def test_killed_and_unhealthy_in(kind: type) -> None:
    world = entered(kind)
    world.healthy = False
    world.kill()
    world.settle()
    if kind is Idle:
        return
    assert world.link == OLD.digest
    converged(world)


def test_a_switch_back_that_fails_is_tried_until_it_works() -> None:
    world = entered(Reverting)
    world.fails = {"Switch": Reason.DISK_ERROR}
    for _ in range(5):
        world.carry_out()
        assert isinstance(world.state, Reverting)
    world.fails = {}
    world.settle()
    converged(world)


def test_when_the_slot_to_go_back_to_has_rotted_the_whole_one_stays() -> None:
    world = entered(Reverting)
    rotten = StepFailed(generation=1, reason=Reason.BUNDLE_DIGEST)
    state, effects = step(world.state, rotten, world.now)
    assert Restore(digest=NEW.digest) in effects
    assert state.standing.good == NEW
    end = next(effect for effect in effects if isinstance(effect, Report))
    assert (end.state, end.reason) == (S.FAILED, Reason.ACTIVATE_FAILED)
    assert end.digest == NEW.digest
