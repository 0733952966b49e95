"""Rollouts of many devices, driven at random: the safety rules hold on every path."""

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from control_plane.domain.pace import MINUTE_S
from control_plane.domain.rollout import (
    ENDED,
    FAILURES,
    IN_FLIGHT,
    TERMINAL,
    Approval,
    BreachScope,
    Budget,
    GatePolicy,
    Growth,
    OnBreach,
    Pace,
    RolloutState,
    WaveSpec,
    Windows,
)
from control_plane.domain.rollout_machine import legal
from control_plane.domain.rollout_view import (
    Abort,
    Approve,
    BuildsReady,
    Decision,
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
VERBS: dict[str, Event] = {
    "approve": Approve("ann"),
    "approve too": Approve("bob"),
    "pause": Pause(),
    "resume": Resume(),
    "revert": Revert(),
    "abort": Abort("keep"),
}
STEERING = {"pause", "resume", "approve"}

policies = st.builds(
    GatePolicy,
    min_answered=st.sampled_from([0.5, 0.75, 1.0]),
    max_failures=st.integers(0, 2),
    tolerance=st.just({"token_ms": 0.1}),
    scope=st.sampled_from(BreachScope),
)
growths = st.none() | st.builds(
    Growth, st.sampled_from([1.5, 3.0]), st.integers(1, 3), st.integers(8, 12)
)
paces = st.builds(
    Pace, max_in_flight=st.integers(1, 6), per_minute=st.integers(1, 8), growth=growths
)
waves_of = st.builds(
    WaveSpec,
    st.just("wave"),
    percent=st.just(100),
    approval=st.none() | st.builds(Approval, st.integers(1, 2)),
    timeout_s=st.none() | st.sampled_from([30.0, 300.0]),
    pace=st.none() | paces,
)
wave_lists = st.lists(waves_of, min_size=1, max_size=4)
budget_lists = st.just(()) | st.tuples(st.builds(Budget, st.just("site"), st.integers(1, 2)))
windows = st.just(Windows()) | st.just(Windows(download=Window("0 2 * * *", 3600)))
fleets = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from("xy"), st.sampled_from(["", "a", "b"])),
    min_size=1,
    max_size=14,
)


class RolloutOfMany(RuleBasedStateMachine):
    """Draws policies, devices, and what people and devices do."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.offers: list[tuple[float, int]] = []
        self.silenced = False

    @initialize(
        gates=policies,
        pace=paces,
        waves=wave_lists,
        budgets=budget_lists,
        window=windows,
        dynamic=st.booleans(),
        fleet=fleets,
        breach=st.sampled_from(OnBreach),
    )
    def begin(
        self,
        *,
        gates: GatePolicy,
        pace: Pace,
        waves: list[WaveSpec],
        budgets: tuple[Budget, ...],
        window: Windows,
        dynamic: bool,
        fleet: list[tuple[int, str, str]],
        breach: OnBreach,
    ) -> None:
        last = len(waves) - 1
        parts = tuple(Part(min(at, last), name, site=site) for at, name, site in sorted(fleet))
        policy = spec(
            gates=gates,
            pace=pace,
            waves=tuple(waves),
            on_breach=breach,
            budgets=budgets,
            windows=window,
            dynamic=dynamic,
        )
        self.world = World(policy, parts)
        self._do(Start())
        self._do(BuildsReady())

    @rule(seconds=st.sampled_from([0.0, 1.0, 59.0, 61.0]))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        self._do(Tick())

    @rule(seconds=st.sampled_from([0.0, 61.0]))
    def settle(self, seconds: float) -> None:
        self.now += seconds
        for _ in range(50):
            before = self.world
            self._do(Tick())
            if self.world == before:
                return
        raise AssertionError("a tick never comes to rest")

    @precondition(lambda self: self.world.spec.windows.download is not None)
    @rule()
    def the_window_turns(self) -> None:
        other = CLOSED if self.world.window is OPEN else OPEN
        self.world = replace(self.world, window=other)

    @precondition(lambda self: bool(self.world.spec.budgets))
    @rule(busy=st.integers(0, 2))
    def another_rollout_disturbs_a_site(self, busy: int) -> None:
        self.world = replace(self.world, elsewhere={"a": busy})

    @precondition(lambda self: self.world.spec.dynamic and len(self.world.parts) < 20)
    @rule()
    def a_device_changes(self) -> None:
        self.world = replace(self.world, newcomers=1)

    @precondition(lambda self: any(part.state in IN_FLIGHT for part in self.world.parts))
    @rule(
        data=st.data(),
        state=st.sampled_from(
            [E.DOWNLOADING, E.SOAKING, E.SUCCEEDED, E.SUCCEEDED, E.ROLLED_BACK, E.REJECTED]
        ),
    )
    def report(self, data: st.DataObject, state: E) -> None:
        flying = [i for i, part in enumerate(self.world.parts) if part.state in IN_FLIGHT]
        self.world = self.world.report(data.draw(st.sampled_from(flying)), state)

    @precondition(lambda self: any(part.state in IN_FLIGHT for part in self.world.parts))
    @rule(data=st.data())
    def fall_silent(self, data: st.DataObject) -> None:
        flying = [i for i, part in enumerate(self.world.parts) if part.state in IN_FLIGHT]
        self.world = self.world.says(data.draw(st.sampled_from(flying)), silent=True)

    @precondition(lambda self: any(part.to_return for part in self.world.parts))
    @rule()
    def return_home(self) -> None:
        back = next(i for i, part in enumerate(self.world.parts) if part.to_return)
        self.world = self.world.says(back, to_return=False)

    @precondition(lambda self: bool(STEERING & set(legal(self.world.machine.state))))
    @rule(data=st.data())
    def steer(self, data: st.DataObject) -> None:
        verbs = sorted(STEERING & set(legal(self.world.machine.state)))
        verbs += ["approve too"] if "approve" in verbs else []
        self._do(VERBS[data.draw(st.sampled_from(verbs))])

    @precondition(lambda self: self.world.machine.state is S.RUNNING and self._may_promote())
    @rule()
    def promote(self) -> None:
        self._do(Promote())

    @precondition(lambda self: "abort" in legal(self.world.machine.state))
    @rule(verb=st.sampled_from(["abort", "revert"]), sure=st.integers(0, 9))
    def end(self, verb: str, sure: int) -> None:
        if sure == 0 and verb in legal(self.world.machine.state):
            self._do(VERBS[verb])

    @invariant()
    def the_pace_is_kept(self) -> None:
        begun = range(self.world.machine.wave + 1)
        paces = [self.world.spec.wave_pace(wave) for wave in begun]
        most = max((pace.max_in_flight for pace in paces), default=0)
        assert sum(part.state in IN_FLIGHT for part in self.world.parts) <= most
        fastest = max((p.growth.limit if p.growth else p.per_minute for p in paces), default=0)
        starts = {at for at, _ in self.offers}
        for start in starts:
            # The fullest of all minutes begins with an offer.
            inside = [n for at, n in self.offers if start <= at < start + MINUTE_S]
            assert sum(inside) <= fastest

    @invariant()
    def no_wave_is_begun_before_it_is_open(self) -> None:
        waiting = {E.QUEUED, E.CANCELED, E.TIMED_OUT}
        later = [part for part in self.world.parts if part.wave > self.world.machine.wave]
        assert all(part.state in waiting for part in later)

    def _may_promote(self) -> bool:
        more = self.world.machine.wave + 1 < len(self.world.spec.waves)
        inside = self.world.spec.windows.download is None or self.world.window is OPEN
        return more and inside and self._fresh() <= self.world.spec.gates.max_failures

    def _fresh(self, halted: frozenset[str] | None = None) -> int:
        m = self.world.machine
        out = m.halted if halted is None else halted
        counts = {
            name: sum(p.blueprint == name and p.state in FAILURES for p in self.world.parts)
            - m.acknowledged.get(name, 0)
            for name in ("x", "y")
            if name not in out
        }
        return max(counts.values(), default=0)

    def _do(self, event: Event) -> None:
        before = self.world
        fresh = self._fresh()
        self.world, decisions = before.step(event, self.now)
        offered = [decision.n for decision in decisions if isinstance(decision, Offer)]
        self.offers += [(self.now, n) for n in offered]
        self._check(before, event, decisions, fresh)

    def _check(
        self, before: World, event: Event, decisions: tuple[Decision, ...], fresh: int
    ) -> None:
        budget = before.spec.gates.max_failures
        state = self.world.machine.state
        for old, new in zip(before.parts, self.world.parts, strict=False):
            if old.state in TERMINAL:
                assert new.state is old.state
        self._check_policy(before, decisions)
        if any(isinstance(decision, Offer) for decision in decisions):
            assert state is S.RUNNING
            assert fresh <= budget, "an offer over the budget"
        if any(isinstance(decision, OpenWave) for decision in decisions):
            assert fresh <= budget or not isinstance(event, Tick)
        if any(isinstance(decision, Halt | SendBack) for decision in decisions):
            assert not any(isinstance(decision, Offer) for decision in decisions)
        if before.machine.state in ENDED:
            assert self.world.machine == before.machine
        if state is S.SUCCEEDED:
            assert all(part.state in TERMINAL for part in self.world.parts)
            assert fresh <= budget

    def _check_policy(self, before: World, decisions: tuple[Decision, ...]) -> None:
        for old, new in zip(before.parts, self.world.parts, strict=False):
            if old.state is E.QUEUED and new.state in IN_FLIGHT and new.site:
                for one in before.spec.budgets:
                    assert self.world.in_flight_at(new.site) <= one.max, "more than the budget"
        if before.spec.windows.download is not None and before.window is CLOSED:
            assert not any(isinstance(decision, Offer | OpenWave) for decision in decisions)
        for wave in (decision.wave for decision in decisions if isinstance(decision, OpenWave)):
            asked = before.spec.waves[wave].approval
            said = {who for of, who in self.world.approvals if of == wave}
            assert asked is None or len(said) >= asked.needed, "a wave opened unapproved"


RolloutOfMany.TestCase.settings = settings(settings.default, stateful_step_count=40)
TestRolloutOfMany = RolloutOfMany.TestCase


def test_without_incidents_every_rollout_succeeds() -> None:
    for devices in (1, 2, 5, 11):
        world = World(
            spec(pace=Pace(max_in_flight=2, per_minute=1000)),
            tuple(Part(min(i, 1), "xy"[i % 2]) for i in range(devices)),
        )
        for event in (Start(), BuildsReady()):
            world, _ = world.step(event)
        for _ in range(100):
            world, _decisions = world.settle()
            flying = [i for i, part in enumerate(world.parts) if part.state in IN_FLIGHT]
            for index in flying:
                world = world.report(index, E.SUCCEEDED)
        assert world.machine.state is S.SUCCEEDED, replace(world.machine)
