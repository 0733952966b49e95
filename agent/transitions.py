"""PURE: the moves of the machine: towards a candidate, back from it, and how an order ends.

A move returns the next state and its effects; agent/machine.py decides which one an event makes.
"""

from msgspec.structs import replace

from agent import admission
from agent.errors import IllegalTransitionError
from agent.lifecycle import (
    Activating,
    Benchmarking,
    Cancel,
    Collect,
    Download,
    Downloading,
    Effect,
    FetchManifest,
    Holding,
    Idle,
    ManifestRead,
    Moment,
    Outcome,
    Probe,
    Probed,
    Report,
    ReportBench,
    ReportState,
    Restore,
    Reverting,
    RunTrial,
    Soaking,
    Staged,
    Standing,
    State,
    Switch,
    TrialEnded,
    Verifying,
    Waiting,
)
from agent.protocol.messages import BundleRef, Order
from agent.protocol.words import Action, ExecutionState, Reason, Verdict

PROBE_EVERY_S = 60.0

Step = tuple[State, tuple[Effect, ...]]
Pending = Verifying | Downloading | Staged | Waiting | Benchmarking | Holding
"""Before activation: the active slot is untouched, and a newer order takes over at once."""

# --- questions about a state ----------------------------------------------------------------


def wake_at(state: State) -> float | None:
    """Return when (steady clock) the state wants a `Tick`, if at all."""
    match state:
        case Holding(until=until) | Waiting(until=until):
            return until
        case Soaking(probe_at=at) | Reverting(retry_at=at):
            return at
        case _:
            return None


def candidate(state: State) -> BundleRef | None:
    """Return the bundle on its way in, if any."""
    match state:
        case Idle() | Reverting():
            return None
        case _:
            return state.order.bundle


def running(state: State) -> BundleRef | None:
    """Return the bundle that the active slot holds; between two, the one that is certain."""
    return state.order.bundle if isinstance(state, Soaking) else state.standing.good


def phase(state: State) -> ExecutionState | None:
    """Return the word for this state on the wire; none when nothing is under way."""
    match state:
        case Verifying() | Downloading():
            return ExecutionState.DOWNLOADING
        case Staged() | Waiting():
            return ExecutionState.STAGED
        case Benchmarking() | Holding():
            return ExecutionState.BENCHMARKING
        case Activating():
            return ExecutionState.ACTIVATING
        case Soaking() | Reverting():
            return ExecutionState.SOAKING
        case Idle():
            return None


def generation_under_way(state: State) -> int:
    """Return the generation that is being carried out; 0 when nothing is under way."""
    match state:
        case Idle():
            return 0
        case Reverting():
            return state.generation
        case _:
            return state.order.generation


def newest_generation(state: State) -> int:
    """Return the newest generation that this device has accepted, finished or not."""
    match state:
        case (
            Activating(waiting=Order() as waiting)
            | Soaking(waiting=Order() as waiting)
            | Reverting(waiting=Order() as waiting)
        ):
            return waiting.generation
        case _:
            return max(state.standing.generation, generation_under_way(state))


# --- towards the candidate ------------------------------------------------------------------


def begin(standing: Standing, order: Order, now: Moment) -> Step:
    """Take up an order whose signature is good: judge it, and start or finish it."""
    reason = admission.refuse_order(order, standing, now.wall)
    if reason is not None:
        return give_up(standing, order, reason)
    if order.action is Action.HOLD:
        return _held(standing, order)
    bundle = bundle_of(order)
    if standing.good is not None and bundle.digest == standing.good.digest:
        if order.action is Action.REVERT:
            return finish(standing, order, ExecutionState.ROLLED_BACK, Reason.REVERTED)
        return finish(standing, order, ExecutionState.SUCCEEDED, Reason.ALREADY_RUNNING)
    return Verifying(standing=standing, order=order), (
        FetchManifest(generation=order.generation, digest=bundle.digest),
        ReportState(),
    )


def _held(standing: Standing, order: Order) -> Step:
    """Nothing new is wanted: answer for the offer that is withdrawn, whatever became of it."""
    known = standing.outcome
    after = Idle(standing=replace(standing, generation=order.generation))
    if not order.execution:
        return after, (ReportState(),)
    if known is not None and known.execution == order.execution:
        return after, (_repeat(known), ReportState())
    return finish(standing, order, ExecutionState.CANCELED, Reason.WITHDRAWN)


def download(state: Verifying, event: ManifestRead) -> Step:
    """Judge the manifest and fetch what it names."""
    standing, bundle = state.standing, bundle_of(state.order)
    reason = admission.refuse_manifest(bundle, event.manifest, standing.blueprint)
    if reason is not None:
        return give_up(standing, state.order, reason)
    if standing.previous is not None and standing.previous.digest != bundle.digest:
        standing = replace(standing, previous=None)  # two slots: the candidate needs the spare
    return Downloading(standing=standing, order=state.order), (
        Collect(keep=keep(standing, bundle)),
        report(state, ExecutionState.DOWNLOADING),
        Download(generation=state.order.generation, bundle=bundle),
    )


def try_out(state: Staged, now: Moment) -> Step:
    """Run what was read back whole; a bundle confirmed on this device once needs no trial."""
    if state.order.action is Action.REVERT:
        return _activate(state, Reason.NONE)
    if not admission.may_begin(state.order, now.wall):
        return admission.await_window(state.standing, state.order, now), (ReportState(),)
    after = Benchmarking(standing=state.standing, order=state.order)
    return after, (report(state, ExecutionState.BENCHMARKING), run_trial(after))


def run_trial(state: Benchmarking | Holding) -> RunTrial:
    """Return the trial against what runs now."""
    return RunTrial(order=state.order, incumbent=digest_of(state.standing.good))


def judge_trial(state: Benchmarking, event: TrialEnded, now: Moment) -> Step:
    """Follow the verdict: activate, hold, or stay with the incumbent."""
    bench = ReportBench(order=state.order, incumbent=run_trial(state).incumbent, trial=event)
    after, effects = _follow(state, event.verdict, now)
    return after, (bench, *effects)


def _follow(state: Benchmarking, verdict: Verdict, now: Moment) -> Step:
    reason = admission.TRIAL_REASON[verdict]
    if verdict is Verdict.INCONCLUSIVE:
        return hold(state, now), (report(state, ExecutionState.BENCHMARKING, reason),)
    if verdict is not Verdict.PASS:
        return give_up(state.standing, state.order, reason)
    if not admission.may_begin(state.order, now.wall):  # too late: tried again in the next window
        return admission.await_window(state.standing, state.order, now), (ReportState(),)
    return _activate(state, reason)


def hold(state: Benchmarking | Holding, now: Moment) -> Holding:
    """Wait before the trial is repeated."""
    until = now.steady + state.order.trial.retry_s
    return Holding(standing=state.standing, order=state.order, until=until)


def _activate(state: Staged | Benchmarking, reason: Reason) -> Step:
    after = Activating(standing=state.standing, order=state.order)
    return after, (report(state, ExecutionState.ACTIVATING, reason), switch(after))


def switch(state: Activating) -> Switch:
    """Return the switch to the candidate."""
    return Switch(generation=state.order.generation, digest=bundle_of(state.order).digest)


def soak(state: Activating, now: Moment) -> Step:
    """The candidate is active: on probation, or at once confirmed if it is a revert."""
    order = state.order
    if order.action is Action.REVERT:
        return confirm(state, ExecutionState.ROLLED_BACK, Reason.REVERTED, now)
    after = Soaking(
        standing=state.standing,
        order=order,
        tries=1,
        until=now.steady + order.soak_s,
        waiting=state.waiting,
    )
    entered = replace(report(state, ExecutionState.SOAKING), digest=bundle_of(order).digest)
    if state.waiting is not None and state.waiting.action is Action.REVERT:
        back, effects = turn_back(after, Reason.SUPERSEDED)
        return back, (entered, *effects)
    return after, (entered, probe(after), ReportState())


def probe(state: Soaking) -> Probe:
    """Return the health check of the candidate."""
    return Probe(generation=state.order.generation, digest=bundle_of(state.order).digest)


def judge_probe(state: Soaking, event: Probed, now: Moment) -> Step:
    """Confirm at the first healthy probe after the soak; go back at the first unhealthy one."""
    if not event.healthy:
        return turn_back(state, Reason.SOAK_UNHEALTHY)
    if now.steady >= state.until:
        return confirm(state, ExecutionState.SUCCEEDED, Reason.SOAKED, now)
    return replace(state, probe_at=min(now.steady + PROBE_EVERY_S, state.until)), ()


def confirm(
    state: Activating | Soaking, result: ExecutionState, reason: Reason, now: Moment
) -> Step:
    """The candidate is now last known good; only here does the floor rise."""
    bundle, old = bundle_of(state.order), state.standing
    floors = old.floors
    if state.order.action is Action.RUN:
        floors = {**floors, bundle.model: max(admission.floor(old, bundle), bundle.release)}
    standing = replace(old, good=bundle, previous=old.good, floors=floors)
    return then_waiting(finish(standing, state.order, result, reason), state.waiting, now)


# --- back -----------------------------------------------------------------------------------


def turn_back(state: Soaking | Activating, reason: Reason) -> Step:
    """Switch back to last known good, wherever the link may lead."""
    after = Reverting(
        standing=state.standing,
        generation=state.order.generation,
        execution=state.order.execution,
        leaving=state.order.bundle,
        back_to=state.standing.good,
        reason=reason,
        waiting=state.waiting,
    )
    return after, (Cancel(), switch_back(after), ReportState())


def switch_back(state: Reverting) -> Switch:
    """Return the switch to where this device goes back to."""
    return Switch(generation=state.generation, digest=digest_of(state.back_to))


def reverted(state: Reverting, now: Moment) -> Step:
    """The link leads back; the order that failed is at its end."""
    standing = state.standing
    if standing.good != state.back_to:  # a person went back further than last known good
        standing = replace(standing, good=state.back_to, previous=standing.good)
    return _leave(replace(state, standing=standing), now)


def nowhere_to_go(state: Reverting, now: Moment) -> Step:
    """The slot to go back to has rotted: what is active stays, being the one whole bundle left."""
    standing = replace(state.standing, good=state.leaving, previous=None)
    failed = replace(state, standing=standing, reason=Reason.ACTIVATE_FAILED)
    after, effects = _leave(failed, now)
    return after, (Restore(digest=digest_of(state.leaving)), *effects)


def _leave(state: Reverting, now: Moment) -> Step:
    waiting = state.waiting
    if waiting and state.reason is Reason.SUPERSEDED and waiting.execution == state.execution:
        return begin(state.standing, waiting, now)  # the revert is this execution's own end
    end = admission.terminal_state(state.reason)
    ended = _end(state.standing, state.generation, state.execution, end, state.reason)
    return then_waiting(ended, waiting, now)


# --- endings --------------------------------------------------------------------------------


def give_up(standing: Standing, order: Order, reason: Reason) -> Step:
    """End before activation: the active slot was never touched."""
    return finish(standing, order, admission.terminal_state(reason), reason)


def finish(standing: Standing, order: Order, result: ExecutionState, reason: Reason) -> Step:
    """Bring an order to its one end."""
    return _end(standing, order.generation, order.execution, result, reason)


def _end(
    standing: Standing, generation: int, execution: str, result: ExecutionState, reason: Reason
) -> Step:
    outcome = Outcome(
        generation=generation,
        execution=execution,
        state=result,
        reason=reason,
        digest=digest_of(standing.good),
    )
    newest = max(standing.generation, generation)
    after = Idle(standing=replace(standing, generation=newest, outcome=outcome))
    return after, (_repeat(outcome), ReportState(), Collect(keep=keep(after.standing, None)))


def then_waiting(ended: Step, order: Order | None, now: Moment) -> Step:
    """Begin the order that waited for the end of what was activated."""
    if order is None:
        return ended
    state, effects = ended
    begun, more = begin(state.standing, order, now)
    return begun, (*effects, *more)


def _repeat(outcome: Outcome) -> Report:
    return Report(
        generation=outcome.generation,
        execution=outcome.execution,
        state=outcome.state,
        reason=outcome.reason,
        digest=outcome.digest,
    )


def displace(old: Order | None, new: Order, standing: Standing) -> tuple[Effect, ...]:
    """Answer for an order that a newer one puts aside."""
    if old is None or not old.execution or old.execution == new.execution:
        return ()
    held = new.action is Action.HOLD
    put_aside = Report(
        generation=old.generation,
        execution=old.execution,
        state=ExecutionState.CANCELED if held else ExecutionState.SUPERSEDED,
        reason=Reason.WITHDRAWN if held else Reason.SUPERSEDED,
        digest=digest_of(standing.good),
    )
    return (put_aside,)


def report(
    state: Pending | Activating, entered: ExecutionState, reason: Reason = Reason.NONE
) -> Report:
    """Return the report that this order entered a state; last known good still runs."""
    return Report(
        generation=state.order.generation,
        execution=state.order.execution,
        state=entered,
        reason=reason,
        digest=digest_of(state.standing.good),
    )


def keep(standing: Standing, incoming: BundleRef | None) -> tuple[str, ...]:
    """Return the digests that must stay on disk."""
    wanted = (standing.good, standing.previous, incoming)
    return tuple(sorted({bundle.digest for bundle in wanted if bundle is not None}))


def digest_of(bundle: BundleRef | None) -> str:
    """Return a bundle's digest, empty for none."""
    return "" if bundle is None else bundle.digest


def bundle_of(order: Order) -> BundleRef:
    """Return the bundle of an order that was accepted; only a hold has none."""
    if order.bundle is None:
        raise IllegalTransitionError(f"order {order.order} names no bundle")
    return order.bundle
