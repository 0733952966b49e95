"""Every state that a small world can reach, with the safety rules asserted in each."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from agent.lifecycle import (
    Event,
    Idle,
    Moment,
    OperatorRollback,
    Ordered,
    OrderRefused,
    Soaking,
    State,
    Tick,
)
from agent.protocol.messages import ActivationWindow
from agent.protocol.words import Action, Reason, Verdict
from agent.transitions import newest_generation, wake_at
from tests.unit.agent.story import NEW, NOW, OLD, TERMINAL, World, bundle, order

THIRD = bundle("3.0.0", 3)
TONIGHT = ActivationWindow(int(NOW.wall) + 1000, int(NOW.wall) + 2000)
TONIGHT_ISSUED = 999_000
FORGED = OrderRefused(envelope="forged", reason=Reason.ORDER_SIGNATURE)
Move = tuple[str, Callable[[World], object]]


def orders(generation: int) -> list[Ordered]:
    """Return one order of each kind, of this generation."""
    made = [
        order(generation, NEW),
        order(generation, THIRD),
        order(generation, OLD, action=Action.REVERT),
        order(generation, None, action=Action.HOLD, execution=f"x{generation - 1}"),
    ]
    if generation == 1:  # the first may be any; with all of them the world is no longer small
        made.append(order(generation, NEW, activate=TONIGHT))
    return [
        Ordered(order=each, envelope=f"{generation}-{index}") for index, each in enumerate(made)
    ]


def moves(world: World) -> Iterator[Move]:
    """Yield everything that can happen next in a small world of three generations."""
    newest = newest_generation(world.state)
    for generation in {newest, newest + 1} & {1, 2, 3}:
        for one in orders(generation):
            yield f"order {one.envelope}", partial(_take, one)
    yield "forged", lambda w: w.take(FORGED)
    yield "operator", lambda w: w.take(OperatorRollback())
    yield "kill", lambda w: w.kill()
    if getattr(getattr(world.state, "order", None), "activate", None) == TONIGHT:
        yield "its window opens", partial(_set_clock, TONIGHT.not_before)
        yield "its window closes", partial(_set_clock, TONIGHT.not_after)
        yield "its clock is lost", partial(_set_clock, 0)
    if wake_at(world.state) is not None:
        yield "time passes", _let_time_pass
    if world.pending:
        name = type(world.pending[-1]).__name__
        yield "works", lambda w: w.carry_out()
        yield "fails", partial(_fail, name)
        if name == "RunTrial":
            for verdict in Verdict:
                yield f"verdict {verdict}", partial(_judge, verdict)


def _let_time_pass(world: World) -> None:
    due = wake_at(world.state)
    assert due is not None
    world.now = Moment(world.now.wall, max(due, world.now.steady))
    world.take(Tick())


def _set_clock(wall: float, world: World) -> None:
    world.now = Moment(wall, world.now.steady)


def _take(event: Event, world: World) -> None:
    world.take(event)


def _fail(name: str, world: World) -> None:
    world.fails = {name: Reason.DISK_ERROR}
    world.carry_out()
    world.fails = {}


def _judge(verdict: Verdict, world: World) -> None:
    world.verdict = verdict
    world.carry_out()
    world.verdict = Verdict.PASS


def key(world: World) -> bytes:
    """Return what makes two worlds the same; clocks and told reports do not."""
    plain = msgspec.to_builtins(world.state)
    for clock in ("until", "probe_at", "retry_at"):
        if plain.get(clock) is not None:
            plain[clock] = 0
    waiting = [repr(effect) for effect in world.pending]
    wall = world.now.wall
    told = (TONIGHT.not_before <= wall) + (TONIGHT.not_after <= wall) + (wall >= TONIGHT_ISSUED)
    windowed = b'"activate":{' in msgspec.json.encode(plain)
    shown = told if windowed else 0
    return msgspec.json.encode([plain, world.link, sorted(world.slots), waiting, shown])


def test_every_reachable_state_of_a_small_world_is_safe_and_can_settle() -> None:
    first = World()
    seen, frontier = {key(first)}, [first]
    kinds: set[str] = set()
    while frontier:
        world = frontier.pop()
        kinds.add(type(world.state).__name__)
        for name, move in moves(world):
            after = _copy(world)
            try:
                move(after)
            except Exception as error:
                raise AssertionError(f"{name} in {world.state}: {error}") from error
            _never_backwards(world, after)
            found = key(after)
            if found not in seen:
                seen.add(found)
                frontier.append(after)
        _settles(world)
    assert kinds == {kind.__name__ for kind in State.__args__}
    assert len(seen) > 1000


def _copy(world: World) -> World:
    copied = replace(world, slots=set(world.slots), pending=list(world.pending), reports=[])
    copied.fails = {}
    return copied


def _never_backwards(before: World, after: World) -> None:
    for model, floor in before.state.standing.floors.items():
        assert after.state.standing.floors[model] >= floor, "the floor sank"
    old, new = before.state.standing, after.state.standing
    assert new.generation >= old.generation
    if new.floors != old.floors:
        assert isinstance(before.state, Soaking), "the floor rose without a confirm"


def _settles(world: World) -> None:
    alone = copy.copy(_copy(world))
    alone.settle()
    assert isinstance(alone.state, Idle)


@given(st.data())
def test_whatever_happens_a_device_that_is_left_alone_settles_on_a_whole_slot(
    data: st.DataObject,
) -> None:
    world = World(now=NOW)
    for _ in range(data.draw(st.integers(0, 30))):
        possible = dict(moves(world))
        possible[data.draw(st.sampled_from(sorted(possible)))](world)
    world.settle()
    assert isinstance(world.state, Idle)
    assert world.link in world.slots
    told = {r.execution for r in world.reports if r.state in TERMINAL}
    outcome = world.state.standing.outcome
    assert outcome is None or not outcome.execution or outcome.execution in told
