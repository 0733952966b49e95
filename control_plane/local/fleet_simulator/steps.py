"""PURE: the steps of an update on a simulated device: how long they take, and how they end."""

from collections.abc import Callable

from msgspec.structs import replace

from agent.protocol.messages import ActivationWindow, BundleRef
from agent.protocol.words import Action, ExecutionState, Reason, Verdict
from control_plane.local.fleet_simulator import orders, trial
from control_plane.local.fleet_simulator.profile import Failures
from control_plane.local.fleet_simulator.states import Fetch, Stage, Vanish, Work
from control_plane.local.fleet_simulator.trial import Truth
from control_plane.local.fleet_simulator.turn import Turn, digest_of

MB = 1_000_000
PROBE_S = 0.5
"""A model is loaded and says something, even where no probation is asked for."""
LOOK_EVERY_S = 60.0
"""How often a device that awaits its window looks at the clock, as the agent."""
RETURN_S = 0.5
"""What was under way when a device fell silent is done again so soon after it came back."""
_TRIAL_REASON = {
    Verdict.PASS: Reason.TRIAL_PASSED,
    Verdict.REGRESSION: Reason.TRIAL_REGRESSION,
    Verdict.WRONG_OUTPUT: Reason.TRIAL_WRONG_OUTPUT,
    Verdict.OVER_LIMIT: Reason.TRIAL_OVER_LIMIT,
    Verdict.INCONCLUSIVE: Reason.TRIAL_INCONCLUSIVE,
}
_ON_THE_LINE = frozenset({Stage.VERIFYING, Stage.DOWNLOADING})


def end_step(turn: Turn, work: Work) -> None:
    """The time of the step under way is over: it ends well, badly, or in silence."""
    if work.stage in _ON_THE_LINE and not turn.device.connected:
        turn.change(work=replace(work, due=None))
        return
    if not work.silenced and _falls_silent(turn, work):
        turn.change(work=replace(work, due=None, silenced=True), asleep=True)
        turn.effects.append(Vanish(turn.traits.spec.offline.silent_for))
        return
    _ENDINGS[work.stage](turn, work)


def back_on_the_line(turn: Turn) -> None:
    """A connection is here again: go on with what waited for one, or slept."""
    work = turn.device.work
    if work is None or work.due is not None:
        return
    if work.stage is Stage.DOWNLOADING and turn.traits.spec.download == "real":
        turn.effects.append(Fetch(work.order))
        return
    turn.change(work=replace(work, due=turn.now.steady + RETURN_S))


def fetched(turn: Turn, work: Work, reason: Reason) -> None:
    """The real bytes are here, or are not to be had."""
    if reason is Reason.NONE:
        _downloaded(turn, work)
    else:
        orders.give_up(turn, work.order, reason)


# --- towards the candidate ------------------------------------------------------------------


def _download(turn: Turn, work: Work) -> None:
    previous, bundle = turn.standing.previous, work.order.bundle
    on_disk = previous is not None and bundle is not None and previous.digest == bundle.digest
    if previous is not None and not on_disk:
        turn.stand(previous=None)  # two slots: the candidate needs the spare
    _enter(turn, work, ExecutionState.DOWNLOADING)
    after = replace(work, stage=Stage.DOWNLOADING, silenced=False)
    if on_disk:
        turn.change(work=replace(after, due=turn.now.steady + orders.SWITCH_S))
    elif turn.traits.spec.download == "real":
        turn.change(work=replace(after, due=None))
        turn.effects.append(Fetch(work.order))
    else:
        turn.change(work=replace(after, due=turn.now.steady + _download_s(turn, bundle)))


def _download_s(turn: Turn, bundle: BundleRef | None) -> float:
    link = turn.traits.spec.link
    size = 0 if bundle is None else bundle.size / MB
    name = digest_of(bundle)
    spread = link.latency.spread
    return turn.traits.draws.lognormal(size * link.seconds_per_mb, spread, "download", name)


def _downloaded(turn: Turn, work: Work) -> None:
    if _fails(turn, work, _failures(turn, work).downloading.failed):
        orders.give_up(turn, work.order, Reason.DOWNLOAD_FAILED)
        return
    _enter(turn, work, ExecutionState.STAGED)
    if work.order.action is Action.REVERT:
        _activate(turn, work, Reason.NONE)
    elif _may_begin(turn, work):
        _begin_trial(turn, work)
    else:
        _await_window(turn, work)
        turn.tell_state()


def _may_begin(turn: Turn, work: Work) -> bool:
    """Return whether the activation window, if there is one, is open; a revert waits for none."""
    order, window = work.order, work.order.activate
    if not isinstance(window, ActivationWindow) or order.action is Action.REVERT:
        return True
    return max(window.not_before, order.issued) <= turn.now.wall < window.not_after


def _await_window(turn: Turn, work: Work) -> None:
    window, due = work.order.activate, None
    if isinstance(window, ActivationWindow) and turn.now.wall < window.not_after:
        left = window.not_before - turn.now.wall
        due = turn.now.steady + (min(left, LOOK_EVERY_S) if left > 0 else LOOK_EVERY_S)
    turn.change(work=replace(work, stage=Stage.WAITING, due=due, silenced=False))


def _begin_trial(turn: Turn, work: Work) -> None:
    _enter(turn, work, ExecutionState.BENCHMARKING)
    _run_trial(turn, replace(work, tries=work.tries + (work.stage is Stage.WAITING)))


def _look_at_the_clock(turn: Turn, work: Work) -> None:
    if _may_begin(turn, work):
        _begin_trial(turn, work)
    else:
        _await_window(turn, work)


def _try_again(turn: Turn, work: Work) -> None:
    if _may_begin(turn, work):
        _run_trial(turn, replace(work, tries=work.tries + 1))
    else:
        _await_window(turn, work)
        turn.tell_state()


def _run_trial(turn: Turn, work: Work) -> None:
    traits = turn.traits
    what = ("trial", work.order.generation, work.tries)
    seconds = traits.draws.lognormal(traits.spec.trial.seconds, 1.2, *what)
    due = turn.now.steady + seconds
    turn.change(work=replace(work, stage=Stage.BENCHMARKING, due=due, silenced=False))


def _tried(turn: Turn, work: Work) -> None:
    if _fails(turn, work, _failures(turn, work).benchmarking.rolled_back):
        orders.give_up(turn, work.order, Reason.TRIAL_CRASHED)
        return
    order, traits = work.order, turn.traits
    incumbent = turn.standing.good
    slowdown = traits.spec.slowdown(_version(order.bundle))
    if incumbent is not None:
        slowdown /= traits.spec.slowdown(incumbent.version)
    found = trial.measure(
        traits.draws,
        traits.spec.trial,
        order.trial,
        Truth(traits.speed, slowdown, paired=incumbent is not None),
        digest_of(order.bundle),
        order.generation,
        work.tries,
    )
    turn.report_trial(
        generation=order.generation,
        execution=order.execution,
        candidate=digest_of(order.bundle),
        incumbent=digest_of(incumbent),
        verdict=found.verdict,
        metrics=found.metrics,
        seconds=traits.spec.trial.seconds,
        blocks=found.blocks,
    )
    _follow(turn, work, found.verdict)


def _follow(turn: Turn, work: Work, verdict: Verdict) -> None:
    reason = _TRIAL_REASON[verdict]
    if verdict is Verdict.PASS and not _may_begin(turn, work):
        _await_window(turn, work)  # too late: tried again in the next window
        turn.tell_state()
    elif verdict is Verdict.PASS:
        _activate(turn, work, reason)
    elif verdict is Verdict.INCONCLUSIVE:
        _enter(turn, work, ExecutionState.BENCHMARKING, reason)
        due = turn.now.steady + work.order.trial.retry_s
        turn.change(work=replace(work, stage=Stage.HOLDING, due=due))
    else:
        orders.give_up(turn, work.order, reason)


def _activate(turn: Turn, work: Work, reason: Reason) -> None:
    _enter(turn, work, ExecutionState.ACTIVATING, reason)
    due = turn.now.steady + orders.SWITCH_S
    turn.change(work=replace(work, stage=Stage.ACTIVATING, due=due, silenced=False))


def _switched(turn: Turn, work: Work) -> None:
    order, waiting = work.order, work.waiting
    if _fails(turn, work, _failures(turn, work).activating.failed):
        orders.turn_back(turn, Reason.ACTIVATE_FAILED)
        return
    if order.action is Action.REVERT:
        orders.confirm(turn, work, ExecutionState.ROLLED_BACK, Reason.REVERTED)
        return
    turn.report(
        order.generation,
        order.execution,
        ExecutionState.SOAKING,
        digest=digest_of(order.bundle),
    )
    due = turn.now.steady + max(order.soak_s, PROBE_S)
    turn.change(work=replace(work, stage=Stage.SOAKING, due=due, silenced=False))
    if waiting is not None and waiting.action is Action.REVERT:
        orders.turn_back(turn, Reason.SUPERSEDED)
    else:
        turn.tell_state()


def _soaked(turn: Turn, work: Work) -> None:
    if _fails(turn, work, _failures(turn, work).soaking.rolled_back):
        orders.turn_back(turn, Reason.SOAK_UNHEALTHY)
    else:
        orders.confirm(turn, work, ExecutionState.SUCCEEDED, Reason.SOAKED)


def _enter(turn: Turn, work: Work, entered: ExecutionState, reason: Reason = Reason.NONE) -> None:
    turn.report(work.order.generation, work.order.execution, entered, reason)


# --- chance ---------------------------------------------------------------------------------


def _failures(turn: Turn, work: Work) -> Failures:
    return turn.traits.spec.failures_of(_version(work.order.bundle))


def _fails(turn: Turn, work: Work, share: float) -> bool:
    """A revert never fails: it goes to what has run on this device before."""
    return work.order.action is Action.RUN and _happens(turn, work, share, "fails")


def _falls_silent(turn: Turn, work: Work) -> bool:
    failures = _failures(turn, work)
    shares = {
        Stage.DOWNLOADING: failures.downloading.silent,
        Stage.BENCHMARKING: failures.benchmarking.silent,
        Stage.ACTIVATING: failures.activating.silent,
        Stage.SOAKING: failures.soaking.silent,
    }
    return _happens(turn, work, shares.get(work.stage, 0.0), "silent")


def _happens(turn: Turn, work: Work, share: float, what: str) -> bool:
    """Draw once for a step of an order: asked again, it answers the same."""
    order = work.order
    asked = (what, work.stage, work.tries, digest_of(order.bundle), order.generation)
    return turn.traits.draws.happens(share, *asked)


def _version(bundle: BundleRef | None) -> str:
    return "" if bundle is None else bundle.version


_ENDINGS: dict[Stage, Callable[[Turn, Work], None]] = {
    Stage.VERIFYING: _download,
    Stage.DOWNLOADING: _downloaded,
    Stage.WAITING: _look_at_the_clock,
    Stage.BENCHMARKING: _tried,
    Stage.HOLDING: _try_again,
    Stage.ACTIVATING: _switched,
    Stage.SOAKING: _soaked,
    Stage.REVERTING: orders.leave,
}
