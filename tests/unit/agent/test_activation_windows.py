"""A device stages at once, and begins the trial and the switch only inside its window."""

import msgspec
import pytest

from agent import admission
from agent.lifecycle import Benchmarking, Holding, Idle, Moment, Staged, Tick, Waiting
from agent.protocol.messages import ActivationWindow, Order
from agent.protocol.words import Action, ExecutionState, Reason, Verdict
from agent.transitions import phase, wake_at
from tests.unit.agent.story import NEW, NOW, OLD, World, order, ordered

WALL = int(NOW.wall)
TONIGHT = ActivationWindow(WALL + 1000, WALL + 2000)
S = ExecutionState


def _staged(window: ActivationWindow = TONIGHT) -> World:
    world = World()
    world.take(ordered(activate=window))
    world.until(Waiting)
    return world


def _at(world: World, seconds: float) -> World:
    """Let this much time pass since the order, and wake the device if it wants to be."""
    world.now = Moment(NOW.wall + seconds, NOW.steady + seconds)
    if wake_at(world.state) is not None:
        world.take(Tick())
    return world


def test_before_its_window_a_device_is_staged_and_runs_what_it_ran() -> None:
    world = _at(_staged(), 999)
    assert isinstance(world.state, Waiting)
    assert phase(world.state) is S.STAGED
    assert (world.link, world.slots) == (OLD.digest, {OLD.digest, NEW.digest})
    assert not world.pending


def test_in_its_window_the_slot_is_read_back_and_tried() -> None:
    world = _at(_staged(), 1000)
    assert isinstance(world.state, Staged)
    world.settle()
    assert world.end == (S.SUCCEEDED, Reason.SOAKED)
    assert world.link == NEW.digest


def test_a_window_that_is_open_at_once_is_used_at_once() -> None:
    world = World()
    world.take(ordered(activate=ActivationWindow(WALL - 5, WALL + 500)))
    world.until(Benchmarking)


def test_when_the_window_has_passed_it_waits_for_a_newer_order() -> None:
    world = _at(_staged(), 2000)
    assert isinstance(world.state, Waiting)
    assert wake_at(world.state) is None
    tomorrow = ActivationWindow(WALL + 3000, WALL + 4000)
    world.take(ordered(2, activate=tomorrow, execution="x1"))
    world.until(Waiting)
    assert not [told for told in world.reports if told.state in {S.CANCELED, S.SUPERSEDED}]
    _at(world, 3000).settle()
    assert world.end == (S.SUCCEEDED, Reason.SOAKED)


def test_a_trial_that_ends_after_the_window_switches_nothing() -> None:
    world = _at(_staged(), 1999)
    world.until(Benchmarking)
    world.now = Moment(NOW.wall + 2001, NOW.steady + 2001)
    world.carry_out()
    assert isinstance(world.state, Waiting)
    assert world.link == OLD.digest


def test_a_trial_is_not_repeated_outside_the_window() -> None:
    world = _at(_staged(), 1900)
    world.verdict = Verdict.INCONCLUSIVE
    world.until(Holding)
    assert isinstance(_at(world, 2300).state, Waiting)


@pytest.mark.parametrize("wall", [0.0, float(WALL - 2000)])
def test_without_a_usable_clock_nothing_begins(wall: float) -> None:
    """It came up in 1970, or before its order was issued: then no window is open."""
    always = ActivationWindow(0, WALL + 2000)
    world = World(now=Moment(wall, NOW.steady))
    world.take(ordered(activate=always))
    world.until(Waiting)
    for hour in range(1, 5):
        world.now = Moment(wall, NOW.steady + 3600 * hour)
        world.take(Tick())
        assert isinstance(world.state, Waiting)
    world.now = Moment(NOW.wall, NOW.steady + 5 * 3600)  # somebody has set the clock
    world.take(Tick())
    assert isinstance(world.state, Staged)


def test_a_device_that_was_off_during_its_window_does_not_begin_after_it() -> None:
    world = _staged()
    world.now = Moment(NOW.wall + 5000, 0.0)
    world.kill()
    assert isinstance(world.state, Waiting)
    assert not world.pending


def test_a_trial_that_a_power_cut_ended_goes_on_only_inside_the_window() -> None:
    for wall, expected in ((1500, Benchmarking), (2500, Waiting)):
        world = _at(_staged(), 1400)
        world.until(Benchmarking)
        world.now = Moment(NOW.wall + wall, 0.0)
        world.kill()
        assert isinstance(world.state, expected)


def test_a_revert_and_a_hold_wait_for_no_window() -> None:
    world = World()
    world.take(ordered())
    world.settle()
    world.take(ordered(2, OLD, action=Action.REVERT, activate=TONIGHT))
    world.settle()
    assert world.end == (S.ROLLED_BACK, Reason.REVERTED)
    held = _staged()
    held.take(ordered(2, None, action=Action.HOLD, execution="x1"))
    assert isinstance(held.state, Idle)
    assert held.end == (S.CANCELED, Reason.WITHDRAWN)


def test_the_clock_is_looked_at_again_every_minute_and_on_time() -> None:
    for wall, pause in ((0, 60.0), (970, 30.0), (1500, 60.0)):
        now = Moment(NOW.wall + wall, 0.0)
        waiting = admission.await_window(World().state.standing, order(activate=TONIGHT), now)
        assert waiting.until == pause


def test_an_agent_that_knows_no_windows_reads_the_order_all_the_same() -> None:
    class Before(msgspec.Struct, frozen=True):
        order: str
        generation: int

    told = msgspec.json.encode(order(activate=TONIGHT))
    assert msgspec.json.decode(told, type=Before).generation == 1
    assert msgspec.json.decode(told, type=Order).activate == TONIGHT
    assert b"activate" not in msgspec.json.encode(order())
