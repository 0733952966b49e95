"""A simulated device says what a real one would: both live through the same, side by side."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from agent import lifecycle as real
from agent import telemetry
from agent.machine import step
from agent.protocol import messages
from agent.protocol.manifest import File
from agent.protocol.messages import ActivationWindow, Bench, BundleRef, Event, Order
from agent.protocol.words import Action, ExecutionState, Reason, Verdict
from control_plane.domain.rollout import moves_forward
from control_plane.local.fleet_simulator.device import wake_at
from control_plane.local.fleet_simulator.draws import Draws
from control_plane.local.fleet_simulator.states import Ordered, Say, Stage, Woke, Work
from control_plane.local.fleet_simulator.turn import Turn
from tests.unit.fleet_simulator.people import NOW, Life, born, bundle, order, traits
from tests.unit.protocol.documents import DOCUMENTS

BUNDLES = [bundle("1.0.0", 1), bundle("1.1.0", 2), bundle("slow", 3), bundle("1.2.0", 4)]
SPEC: dict[str, Any] = {
    "trial": {"seconds": 1, "device_noise": 0, "trial_noise": 0, "block_noise": 0.5},
    "failures": {
        "downloading": {"failed": 0.5},
        "benchmarking": {"rolled_back": 0.5},
        "activating": {"failed": 0.5},
        "soaking": {"rolled_back": 0.5},
    },
    "versions": {"slow": {"slowdown": 3.0}},
    "heartbeat": "300d",
    "resend": "300d",
}


WINDOWS = [
    ActivationWindow(int(NOW.wall) + after, int(NOW.wall) + before)
    for after, before in ((-100, 1), (-100, 400), (90, 100_000), (20, 40))
]
_FAULTS = {
    Stage.DOWNLOADING: Reason.DOWNLOAD_FAILED,
    Stage.BENCHMARKING: Reason.TRIAL_CRASHED,
    Stage.ACTIVATING: Reason.ACTIVATE_FAILED,
}


class Scripted(Draws):
    """Draws as the test says: whether a step fails, and whether a trial is noisy."""

    __slots__ = ("fails", "noisy")

    def __init__(self) -> None:
        super().__init__(1, "scripted")
        self.fails = False
        self.noisy = False

    def uniform(self, *what: object) -> float:
        if what[0] == "fails":
            return 0.0 if self.fails else 0.9
        if what[0] == "block" and self.noisy:
            return 0.001 if super().uniform(*what) < 0.5 else 0.999
        return 0.5


class SideBySide:
    """A simulated device and the agent's machine."""

    def __init__(self) -> None:
        self.draws = Scripted()
        self.life = Life(traits(self.draws, **SPEC), born(BUNDLES[0]))
        standing = real.Standing(device=self.life.traits.name, good=BUNDLES[0])
        self.state: real.State = real.Idle(standing=standing)
        self.told: list[real.Effect] = []
        self.generation = 0
        self.life.done.clear()

    @property
    def work(self) -> Work | None:
        return self.life.device.work

    def order(self, wanted: Order) -> None:
        envelope = f"{wanted.generation}{wanted.action}{wanted.expires}"
        self.life.take(Ordered(wanted, envelope))
        self.agent(real.Ordered(order=wanted, envelope=envelope))

    def agent(self, event: real.Event) -> None:
        now = real.Moment(wall=self.life.now.wall, steady=self.life.now.steady)
        self.state, effects = step(self.state, event, now)
        self.told += effects

    def end_step(self, *, fails: bool, noisy: bool) -> None:
        """The step under way ends, in both in the same way."""
        work = self.work
        if work is None or work.due is None:
            return
        self.draws.fails, self.draws.noisy = fails, noisy
        self.life.wait(max(0.0, wake_at(self.life.device) - self.life.now.steady))
        before = len(self.life.done)
        self.life.take(Woke())
        fails = fails and work.order.action is Action.RUN
        for event in self.answers(work, self.life.done[before:], fails=fails):
            self.agent(event)
        if work.stage is Stage.WAITING and isinstance(self.state, real.Staged):
            self.agent(real.SlotSound(generation=work.order.generation))

    def answers(self, work: Work, done: list[Any], *, fails: bool) -> list[real.Event]:
        n = work.order.generation
        if fails and work.stage in _FAULTS:
            return [real.StepFailed(generation=n, reason=_FAULTS[work.stage])]
        match work.stage:
            case Stage.VERIFYING:
                return [real.ManifestRead(generation=n, manifest=manifest(work.order.bundle))]
            case Stage.DOWNLOADING:
                return [real.BundleStaged(generation=n), real.SlotSound(generation=n)]
            case Stage.BENCHMARKING:
                return [real.TrialEnded(generation=n, verdict=verdict_in(done))]
            case Stage.HOLDING | Stage.WAITING:
                return [real.Tick()]
            case Stage.SOAKING:
                return [real.Probed(generation=n, healthy=not fails)]
            case _:
                return [real.Switched(generation=n)]

    def check(self) -> None:
        assert reports_of(self.life.done) == reports_asked_for(self.told)
        turn = Turn(self.life.traits, self.life.device, self.life.now)
        turn.tell_state()
        said = [one for one in turn.effects if isinstance(one, Say)][-1]
        simulated = messages.decode(said.message, messages.State)
        expected = telemetry.reported(self.state, simulated.boot, simulated.seq)
        assert simulated == expected


def manifest(wanted: BundleRef | None) -> Any:
    assert wanted is not None
    files = [File("model.onnx", wanted.size, "d" * 64)]
    facts = {"model": wanted.model, "version": wanted.version, "release": wanted.release}
    return msgspec.structs.replace(DOCUMENTS["manifest"], files=files, **facts)


def verdict_in(done: list[Any]) -> Verdict:
    return next(
        s.report.verdict for s in done if isinstance(s, Say) and isinstance(s.report, Bench)
    )


def reports_of(done: list[Any]) -> list[tuple[Any, ...]]:
    """Return what the simulated device reported, as it would be read on the other side."""
    found: list[tuple[Any, ...]] = []
    for one in done:
        if isinstance(one, Say) and one.report is not None:
            read = messages.decode(one.message, type(one.report))
            assert read == one.report, "what is on the wire is what was meant"
            found.append(facts(read))
    return found


def facts(read: Event | Bench) -> tuple[Any, ...]:
    if isinstance(read, Bench):
        return ("bench", read.generation, read.execution, read.candidate, read.incumbent)
    return (read.generation, read.execution, read.state, read.reason, read.digest)


def reports_asked_for(told: list[real.Effect]) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    for one in told:
        if isinstance(one, real.ReportBench):
            candidate = "" if one.order.bundle is None else one.order.bundle.digest
            ids = (one.order.generation, one.order.execution)
            found.append(("bench", *ids, candidate, one.incumbent))
        elif isinstance(one, real.Report):
            found.append((one.generation, one.execution, one.state, one.reason, one.digest))
    return found


ACTS = st.one_of(
    st.tuples(st.just("end"), st.sampled_from(["well", "well", "well", "badly", "noisily"])),
    st.tuples(
        st.just("order"),
        st.sampled_from([Action.RUN, Action.RUN, Action.HOLD, Action.REVERT]),
        st.integers(0, len(BUNDLES) - 1),
        st.sampled_from(["new", "same", "none"]),
        st.sampled_from(["fresh", "fresh", "fresh", "fresh", "expired", "repeated"]),
        st.sampled_from([0.0, 30.0]),
        st.sampled_from([msgspec.UNSET, msgspec.UNSET, *WINDOWS]),
    ),
)


def live(acts: list[tuple[Any, ...]]) -> SideBySide:
    both = SideBySide()
    newest = ""
    for act in acts:
        if act[0] == "end":
            both.end_step(fails=act[1] == "badly", noisy=act[1] == "noisily")
        else:
            _, action, which, execution, age, soak, window = act
            if age != "repeated":
                both.generation += 1
            newest = {"new": f"x{both.generation}", "same": newest, "none": ""}[execution]
            wanted = order(
                both.life.traits,
                both.generation,
                None if action is Action.HOLD else BUNDLES[which],
                action=action,
                execution=newest,
                soak_s=soak,
                activate=window,
            )
            if age == "expired":
                wanted = msgspec.structs.replace(wanted, expires=1)
            both.order(wanted)
        both.check()
    return both


@given(st.lists(ACTS, max_size=25))
def test_a_simulated_device_reports_what_a_real_one_does(acts: list[tuple[Any, ...]]) -> None:
    live(acts)


@given(st.lists(ACTS.filter(lambda act: act[0] == "end" or act[3] == "new"), max_size=25))
def test_the_reports_of_an_execution_only_move_forward(acts: list[tuple[Any, ...]]) -> None:
    """As the control plane expects it; a trial that is held is told again."""
    newest: dict[str, ExecutionState] = {}
    for report in reports_of(live(acts).life.done):
        if report[0] == "bench":
            continue
        _, execution, state, reason, _ = report
        before = newest.get(execution)
        held = reason is Reason.TRIAL_INCONCLUSIVE and before is ExecutionState.BENCHMARKING
        assert before is None or held or moves_forward(before, state), (before, state)
        newest[execution] = state


def test_an_update_that_goes_well_is_told_step_by_step() -> None:
    both = live(
        [("order", Action.RUN, 1, "new", "fresh", 30.0, msgspec.UNSET), *[("end", "well")] * 5],
    )
    said = [one[2].value if one[0] != "bench" else "bench" for one in reports_of(both.life.done)]
    assert said == [
        "DOWNLOADING",
        "STAGED",
        "BENCHMARKING",
        "bench",
        "ACTIVATING",
        "SOAKING",
        "SUCCEEDED",
    ]
