"""Every reachable state of a rollout over two devices and two waves, with the safety rules."""

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest

from control_plane.domain.errors import ForbiddenError, IllegalTransitionError
from control_plane.domain.rollout import (
    ENDED,
    FAILURES,
    IN_FLIGHT,
    TERMINAL,
    Approval,
    BreachScope,
    Budget,
    GatePolicy,
    OnBreach,
    Pace,
    RolloutSpec,
    RolloutState,
    WaveSpec,
    Windows,
)
from control_plane.domain.rollout_view import (
    Abort,
    Approve,
    BuildsFailed,
    BuildsReady,
    Decision,
    Deny,
    EndWave,
    Event,
    Halt,
    Offer,
    OpenWave,
    Pause,
    Promote,
    Resume,
    Revert,
    SendBack,
    Start,
    Tick,
)
from control_plane.domain.windows import Window
from tests.unit.domain.rollout_model import CLOSED, OPEN, E, Part, World, spec

S = RolloutState
PEOPLE: tuple[Event, ...] = (
    Start(),
    BuildsReady(),
    BuildsFailed("no build"),
    Approve("ann"),
    Approve("author"),
    Deny("ada", "no"),
    Tick(),
    Pause(),
    Resume(),
    Promote(),
    Abort("keep"),
    Abort("revert"),
    Revert(),
)
# Where the policy looks at the world around it, fewer of the other moves keep the walk small.
FEWER = (
    Approve("bob"),
    Abort("keep"),
    *(event for event in PEOPLE if not isinstance(event, Abort | Revert | BuildsFailed)),
)
REPORTS = (E.SOAKING, E.SUCCEEDED, E.ROLLED_BACK, E.REJECTED)
MAY_OFFER = frozenset({S.RUNNING})

Step = tuple[str, Event | None, World, tuple[Decision, ...]]


def _steps(world: World) -> Iterator[Step]:
    for event in FEWER if _looks_around(world.spec) else PEOPLE:
        try:
            after, decisions = world.step(event)
        except (IllegalTransitionError, ForbiddenError):
            continue
        yield type(event).__name__, event, after, decisions
    yield from _surroundings(world)
    for index, part in enumerate(world.parts):
        if _looks_around(world.spec):
            for state in (E.SUCCEEDED, E.ROLLED_BACK):
                yield f"{index} says {state}", None, world.report(index, state), ()
            continue
        for state in REPORTS:
            yield f"{index} says {state}", None, world.report(index, state), ()
        if part.state in IN_FLIGHT:
            yield f"{index} falls silent", None, world.says(index, silent=True), ()
        if part.to_return:
            yield f"{index} is back", None, world.says(index, to_return=False), ()
        if part.state is E.QUEUED:
            taken = world.put({index: replace(part, state=E.SUPERSEDED)})
            yield f"{index} is taken over", None, taken, ()


def _looks_around(spec: RolloutSpec) -> bool:
    several = any(wave.approval and wave.approval.needed > 1 for wave in spec.waves)
    timed = any(wave.timeout_s for wave in spec.waves)
    asked = spec.windows.download is not None or spec.budgets or spec.dynamic
    return bool(several or timed or asked)


def _surroundings(world: World) -> Iterator[Step]:
    """What happens around a rollout whose policy looks at it."""
    if world.spec.windows.download is not None:
        other = CLOSED if world.window is OPEN else OPEN
        yield "the window turns", None, replace(world, window=other), ()
    if world.spec.budgets:
        busy = {} if world.elsewhere else {"a": 1}
        yield "another rollout", None, replace(world, elsewhere=busy), ()
    if any(wave.timeout_s for wave in world.spec.waves) and world.now < LATE:
        yield "time passes", None, replace(world, now=world.now + LATE / 2), ()
    if world.spec.dynamic and len(world.parts) < MOST_PARTS and not world.newcomers:
        yield "a device changes", None, replace(world, newcomers=1), ()


def _key(world: World) -> object:
    m = world.machine
    known = tuple(sorted(m.acknowledged.items()))
    around = (world.now, world.window, world.approvals, bool(world.elsewhere), world.newcomers)
    policy = (m.due_at, m.stopped_at, m.sent_back) if world.now else m.sent_back
    return (m.state, m.wave, m.resumes, known, m.halted, world.parts, around, policy)


def _canonical(world: World) -> World:
    # The pace per minute is held by its own property; here it would only multiply states.
    return replace(world, machine=replace(world.machine, offered=(), reason=""))


def _walk(start: World) -> tuple[dict[object, World], list[tuple[World, Step]]]:
    seen, steps = {_key(start): start}, list[tuple[World, Step]]()
    waiting = deque([start])
    while waiting:
        world = waiting.popleft()
        for name, event, reached, decisions in _steps(world):
            after = _canonical(reached)
            steps.append((world, (name, event, after, decisions)))
            if _key(after) not in seen:
                seen[_key(after)] = after
                waiting.append(after)
    return seen, steps


@cache
def _plain_walk() -> tuple[dict[object, World], list[tuple[World, Step]]]:
    return _walk(World(spec(), WAVE_EACH))


def _fresh_failures(world: World) -> int:
    """Return the failures nobody acknowledged, of the blueprint with the most."""
    fresh = Counter(part.blueprint for part in world.parts if part.state in FAILURES)
    fresh.subtract(world.machine.acknowledged)
    return max((n for name, n in fresh.items() if name not in world.machine.halted), default=0)


LATE, MOST_PARTS = 100.0, 3
TWO = (WaveSpec("canary", count=1), WaveSpec("everyone", percent=100))
NIGHT = Windows(download=Window("0 2 * * *", 3600))
PEOPLE_OF = Approval(2, ("ann", "bob", "author"))
VARIANTS = {
    "plain": spec(),
    "one at a time": spec(pace=Pace(max_in_flight=1, per_minute=1000)),
    "reverts on a breach": spec(on_breach=OnBreach.REVERT),
    "asks before the second wave": spec(
        waves=(WaveSpec("canary", count=1), WaveSpec("everyone", percent=100, approval=Approval()))
    ),
    "asks two people": spec(waves=(TWO[0], replace(TWO[1], approval=PEOPLE_OF))),
    "offers at night": spec(windows=NIGHT),
    "asks and opens at night": spec(
        windows=NIGHT, waves=(replace(TWO[0], approval=Approval()), TWO[1])
    ),
    "devices join": spec(dynamic=True),
    "a wave ends": spec(waves=(replace(TWO[0], timeout_s=LATE / 2), TWO[1])),
    "one failure allowed": spec(gates=GatePolicy(max_failures=1, tolerance={"token_ms": 0.1})),
}
PER_BLUEPRINT = spec(gates=GatePolicy(tolerance={"token_ms": 0.1}, scope=BreachScope.BLUEPRINT))
WAVE_EACH = (Part(0, "x"), Part(1, "x"))
ONE_SITE = (Part(0, "x", site="a"), Part(0, "x", site="a"))
SAME_WAVE = (Part(0, "x"), Part(0, "y"))
CASES = {name: (variant, WAVE_EACH) for name, variant in VARIANTS.items()} | {
    "two blueprints": (VARIANTS["plain"], SAME_WAVE),
    "halts per blueprint": (PER_BLUEPRINT, SAME_WAVE),
    "sends back per blueprint": (replace(PER_BLUEPRINT, on_breach=OnBreach.REVERT), SAME_WAVE),
    "one at a site": (spec(waves=TWO, budgets=(Budget("site", 1),)), ONE_SITE),
}


@pytest.mark.parametrize(("variant", "fleet"), CASES.values(), ids=CASES.keys())
def test_no_reachable_step_breaks_a_safety_rule(
    variant: RolloutSpec, fleet: tuple[Part, ...]
) -> None:
    seen, steps = _walk(World(variant, fleet))
    for before, (name, event, after, decisions) in steps:
        try:
            _check_step(before, event, after, decisions)
        except AssertionError as broken:
            raise AssertionError(f"{before}\n--{name}-->\n{after}\n{decisions}") from broken
    reached = {world.machine.state for world in seen.values()}
    missing = set(S) - reached - {S.SCHEDULED, S.AWAITING_APPROVAL}
    if _looks_around(variant):
        missing -= {S.REVERTING, S.REVERTED}
    assert (S.SCHEDULED in reached) is (variant.windows.download is not None)
    if variant.on_breach is OnBreach.REVERT:
        missing -= {S.HALTED}
    assert not missing


def _check_step(
    before: World, event: Event | None, after: World, decisions: tuple[Decision, ...]
) -> None:
    was, now = before.machine, after.machine
    if was.state in ENDED:
        assert now == was, "a terminal rollout is never left"
    for decision in decisions:
        if isinstance(decision, EndWave):
            due = was.due_at[decision.wave]
            assert due is not None
            assert before.now >= due, "a wave ended before its time"
    for old, new in zip(before.parts, after.parts, strict=False):
        if old.state in TERMINAL:
            assert new.state is old.state, "a terminal execution is never left"
        if new.wave > now.wave:
            assert new.state in {E.QUEUED, E.CANCELED, E.SUPERSEDED}, "a wave opened early"
    in_flight = sum(part.state in IN_FLIGHT for part in after.parts)
    assert in_flight <= before.spec.pace.max_in_flight, "more in flight than the pace"
    _check_offers(before, after, decisions)
    _check_opening(before, event, after, decisions)
    if now.state is S.SUCCEEDED and was.state is not S.SUCCEEDED:
        assert all(part.state in TERMINAL for part in after.parts), "somebody has not answered"
        assert now.halted == now.sent_back, "stopped at some, yet called a success"
        if isinstance(event, Tick):
            assert _fresh_failures(after) <= before.spec.gates.max_failures


def _check_offers(before: World, after: World, decisions: tuple[Decision, ...]) -> None:
    offers = [decision for decision in decisions if isinstance(decision, Offer)]
    stops = [decision for decision in decisions if isinstance(decision, Halt | SendBack)]
    if offers:
        assert before.machine.state in MAY_OFFER, "an offer while stopped"
        assert after.machine.state in MAY_OFFER
        assert not stops, "an offer in the step that halts"
        made = Counter(after.states())[E.OFFERED] - Counter(before.states())[E.OFFERED]
        assert made == sum(offer.n for offer in offers), "offers decided that nobody can take"
        if before.spec.windows.download is not None:
            assert before.window is OPEN, "an offer outside the window"
        for old, new in zip(before.parts, after.parts, strict=True):
            if old.state is E.QUEUED and new.state is E.OFFERED:
                assert new.blueprint not in after.machine.halted, "a halted blueprint got it"
                for budget in before.spec.budgets:
                    assert after.in_flight_at(new.site) <= budget.max, "more than the budget"
    if after.machine.state in {S.PAUSED, S.HALTED, S.REVERTING} | ENDED and decisions:
        assert E.OFFERED not in after.states(), "an offer outlives the stop"


def _check_opening(
    before: World, event: Event | None, after: World, decisions: tuple[Decision, ...]
) -> None:
    opened = [d.wave for d in decisions if isinstance(d, OpenWave)]
    assert after.machine.wave == before.machine.wave + len(opened), "a wave opened in silence"
    if opened and before.spec.windows.download is not None:
        assert before.window is OPEN, "a wave opened outside the window"
    for wave in opened:
        asked = before.spec.waves[wave].approval
        people = {who for of, who in after.approvals if of == wave}
        assert asked is None or len(people) >= asked.needed, "a wave opened unapproved"
        assert "author" not in people, "whoever wrote it approved it"
    if not opened or opened == [0] or not isinstance(event, Tick):
        return
    assert _fresh_failures(before) <= before.spec.gates.max_failures, "over budget, yet on"
    halted = before.machine.halted
    for part in before.parts:
        if part.wave < opened[0] and part.blueprint not in halted:
            assert part.state in TERMINAL, "opened before everybody answered"


def test_the_walk_is_exhaustive_and_small() -> None:
    seen, _ = _plain_walk()
    assert 300 < len(seen) < 5000


def test_after_a_settled_tick_a_running_rollout_is_within_its_budget() -> None:
    seen, _ = _plain_walk()
    for world in seen.values():
        settled, decisions = world.settle()
        if settled.machine.state is S.RUNNING:
            assert _fresh_failures(settled) <= world.spec.gates.max_failures
        if any(isinstance(decision, Halt) for decision in decisions):
            halt = [isinstance(d, Halt) for d in decisions].index(True)
            assert not any(isinstance(d, Offer) for d in decisions[halt:])
            assert not any(isinstance(d, Offer) for d in decisions[:halt]), "offered, then halted"


def test_every_unfinished_rollout_can_still_be_ended_by_a_person() -> None:
    seen, _ = _plain_walk()
    for world in seen.values():
        if world.machine.state not in ENDED:
            ended, _decisions = world.step(Abort("keep"))
            assert ended.machine.state is S.ABORTED
