"""PURE: the device's state machine: a state and an event in, the next state and effects out.

Reading order: the table in agent/lifecycle.py, then `step`, then agent/transitions.py. An answer
to a step that nobody waits for any more (its generation is not the current one) is ignored; any
other event that a state cannot take is a defect and raises `IllegalTransitionError`.
"""

from msgspec.structs import replace

from agent import admission
from agent.errors import IllegalTransitionError
from agent.lifecycle import (
    Activating,
    Benchmarking,
    BundleStaged,
    Cancel,
    CheckSlot,
    Collect,
    Download,
    Downloading,
    Event,
    FetchManifest,
    Holding,
    Idle,
    ManifestRead,
    Moment,
    OperatorRollback,
    Ordered,
    OrderRefused,
    Probed,
    Report,
    ReportState,
    Restore,
    Reverting,
    SlotSound,
    Soaking,
    Staged,
    Standing,
    Started,
    State,
    StepFailed,
    Switched,
    Tick,
    TrialEnded,
    Verifying,
    Waiting,
)
from agent.protocol.messages import Order
from agent.protocol.words import Action, ExecutionState, Reason
from agent.transitions import (
    Pending,
    Step,
    begin,
    bundle_of,
    candidate,
    digest_of,
    displace,
    download,
    finish,
    generation_under_way,
    give_up,
    hold,
    judge_probe,
    judge_trial,
    keep,
    newest_generation,
    nowhere_to_go,
    probe,
    report,
    reverted,
    run_trial,
    running,
    soak,
    switch,
    switch_back,
    try_out,
    turn_back,
    wake_at,
)

REVERT_RETRY_S = 30.0


def step(state: State, event: Event, now: Moment) -> Step:
    """Return the state after `event`, and what is to be done.

    Raises:
        IllegalTransitionError: the event cannot come in this state.
    """
    match event:
        case Started():
            return _started(state, event, now)
        case Ordered():
            return _ordered(state, event, now)
        case OrderRefused():
            return _order_refused(state, event)
        case OperatorRollback():
            return _operator_rollback(state)
        case Tick():
            return _tick(state, now)
        case _ if event.generation != generation_under_way(state) or isinstance(state, Idle):
            return state, ()
        case StepFailed():
            return _failed(state, event, now)
        case _:
            return _answered(state, event, now)


def _answered(
    state: State,
    event: ManifestRead | BundleStaged | SlotSound | TrialEnded | Switched | Probed,
    now: Moment,
) -> Step:
    match state, event:
        case Verifying(), ManifestRead():
            return download(state, event)
        case Downloading(), BundleStaged():
            after = Staged(standing=state.standing, order=state.order)
            return after, (report(state, ExecutionState.STAGED), _read_back(after))
        case Staged(), SlotSound():
            return try_out(state, now)
        case Benchmarking(), TrialEnded():
            return judge_trial(state, event, now)
        case Activating(), Switched():
            return soak(state, now)
        case Soaking(), Probed():
            return judge_probe(state, event, now)
        case Reverting(), Switched():
            return reverted(state, now)
        case Reverting(), Probed():
            return state, ()  # a probe that was under way when the device turned back
        case _:
            raise IllegalTransitionError(f"{type(event).__name__} in {type(state).__name__}")


def _wake(state: Waiting) -> Step:
    """The window is open: read the slot back, as after a download, since days may have passed."""
    after = Staged(standing=state.standing, order=state.order)
    return after, (_read_back(after),)


def _read_back(state: Staged) -> CheckSlot:
    return CheckSlot(generation=state.order.generation, digest=bundle_of(state.order).digest)


# --- orders ---------------------------------------------------------------------------------


def _ordered(state: State, event: Ordered, now: Moment) -> Step:
    order = event.order
    if order.device != state.standing.device:
        return _order_refused(state, _refused(event, Reason.ORDER_DEVICE))
    if order.generation <= newest_generation(state):
        return state, (ReportState(),)
    if order.action is Action.REVERT and order.expires <= now.wall:
        # Not ended by that: who was away for longer than an order lives is sent it again, renewed.
        return _order_refused(state, _refused(event, Reason.ORDER_EXPIRED))
    match state:
        case Idle():
            return begin(state.standing, order, now)
        case Soaking() if order.action is Action.REVERT:
            displaced = displace(state.waiting, order, state.standing)
            after, effects = turn_back(replace(state, waiting=order), Reason.SUPERSEDED)
            return after, (*displaced, *effects)
        case Activating() | Soaking() | Reverting():
            displaced = displace(state.waiting, order, state.standing)
            return replace(state, waiting=order), (*displaced, ReportState())
        case _:
            return _supersede(state, order, now)


def _refused(event: Ordered, reason: Reason) -> OrderRefused:
    return OrderRefused(
        envelope=event.envelope,
        reason=reason,
        generation=event.order.generation,
        execution=event.order.execution,
    )


def _order_refused(state: State, event: OrderRefused) -> Step:
    """Say once that an envelope is refused; what is under way goes on, since anyone may send it."""
    if event.envelope == state.standing.refused:
        return state, (ReportState(),)
    refusal = Report(
        generation=event.generation,
        execution=event.execution,
        state=ExecutionState.REJECTED,
        reason=event.reason,
        digest=digest_of(running(state)),
    )
    standing = replace(state.standing, refused=event.envelope)
    return replace(state, standing=standing), (refusal,)


def _supersede(state: Pending, order: Order, now: Moment) -> Step:
    """Drop what has not been activated, say so, and turn to the newer order."""
    displaced = displace(state.order, order, state.standing)
    after, effects = begin(state.standing, order, now)
    collect = Collect(keep=keep(state.standing, candidate(after)))
    return after, (Cancel(), *displaced, *effects, collect)


def _operator_rollback(state: State) -> Step:
    match state:
        case Idle(standing=standing) if standing.previous is not None:
            after = _further_back(standing)
            return after, (switch_back(after), ReportState())
        case Soaking():
            return turn_back(state, Reason.OPERATOR)
        case Idle() | Activating() | Reverting():
            return state, (ReportState(),)  # nothing to go back to, or on the way there already
        case _:
            canceled, effects = finish(
                state.standing, state.order, ExecutionState.CANCELED, Reason.OPERATOR
            )
            return canceled, (Cancel(), *effects)


def _further_back(standing: Standing) -> Reverting:
    """Leave last known good for the bundle before, as a person asked."""
    return Reverting(
        standing=standing,
        generation=standing.generation,
        execution=standing.outcome.execution if standing.outcome else "",
        leaving=standing.good,
        back_to=standing.previous,
        reason=Reason.OPERATOR,
    )


# --- faults and time ------------------------------------------------------------------------


def _failed(state: State, event: StepFailed, now: Moment) -> Step:
    match state:
        case Idle():
            return state, ()
        case Activating():
            # The link may lead to either: only a switch back makes it certain.
            return turn_back(state, Reason.ACTIVATE_FAILED)
        case Soaking():
            return turn_back(state, Reason.SOAK_UNHEALTHY)
        case Reverting() if event.reason is Reason.BUNDLE_DIGEST:
            return nowhere_to_go(state, now)
        case Reverting():
            return replace(state, retry_at=now.steady + REVERT_RETRY_S), ()
        case Staged():
            # What was whole when it came in is not when read back: the disk, not the bundle.
            return give_up(state.standing, state.order, Reason.DISK_ERROR)
        case _:
            return give_up(state.standing, state.order, event.reason)


def _tick(state: State, now: Moment) -> Step:
    due = wake_at(state)
    if due is None or now.steady < due:
        return state, ()
    match state:
        case Waiting() if admission.may_begin(state.order, now.wall):
            return _wake(state)
        case Waiting():
            return admission.await_window(state.standing, state.order, now), ()
        case Holding() if not admission.may_begin(state.order, now.wall):
            return admission.await_window(state.standing, state.order, now), (ReportState(),)
        case Holding():
            after = Benchmarking(standing=state.standing, order=state.order)
            return after, (run_trial(after),)
        case Soaking():
            return replace(state, probe_at=None), (probe(state),)
        case Reverting():
            return replace(state, retry_at=None), (switch_back(state),)
        case _:
            return state, ()


# --- after a start --------------------------------------------------------------------------


def _started(state: State, event: Started, now: Moment) -> Step:
    """Resume after any kill: make the active slot certain, then do the step under way again."""
    standing = replace(state.standing, device=event.device, blueprint=event.blueprint)
    state = replace(state, standing=_whole(standing, event.sound))
    match state:
        case Soaking():
            return _resume_soak(state, event, now)
        case Activating():
            return state, (switch(state),)
        case Reverting(back_to=back_to) if digest_of(back_to) not in ("", *event.sound):
            return nowhere_to_go(state, now)
        case Reverting():
            return replace(state, retry_at=None), (switch_back(state),)
        case _:
            return _resume_pending(state, event, now)


def _whole(standing: Standing, sound: tuple[str, ...]) -> Standing:
    """Forget bundles that rotted on disk; the newest whole one becomes last known good."""
    good, previous = standing.good, standing.previous
    if previous is not None and previous.digest not in sound:
        previous = None
    if good is not None and good.digest not in sound:
        good, previous = previous, None
    return replace(standing, good=good, previous=previous)


def _resume_pending(state: Idle | Pending, event: Started, now: Moment) -> Step:
    wanted = digest_of(state.standing.good)
    restore = (Restore(digest=wanted),) if event.link != wanted else ()
    after, effects = _again(state, now)
    collect = Collect(keep=keep(state.standing, candidate(after)))
    return after, (*restore, collect, *effects)


def _again(state: Idle | Pending, now: Moment) -> Step:  # noqa: PLR0911 - one return for each state
    match state:
        case Idle():
            return Idle(standing=_ask_again(state.standing)), ()
        case Verifying():
            digest = bundle_of(state.order).digest
            return state, (FetchManifest(generation=state.order.generation, digest=digest),)
        case Downloading():
            bundle = bundle_of(state.order)
            return state, (Download(generation=state.order.generation, bundle=bundle),)
        case Staged():
            return state, (_read_back(state),)
        case Waiting() | Benchmarking() if not admission.may_begin(state.order, now.wall):
            return admission.await_window(state.standing, state.order, now), ()
        case Waiting():
            return _wake(state)
        case Holding():
            return hold(state, now), ()
        case Benchmarking() if state.tries >= state.order.max_tries:
            return give_up(state.standing, state.order, Reason.CRASH_LOOP)
        case Benchmarking():
            return replace(state, tries=state.tries + 1), (run_trial(state),)


def _ask_again(standing: Standing) -> Standing:
    """If what the newest order left running has rotted, be behind it: it will be sent again."""
    outcome = standing.outcome
    if outcome is None or outcome.digest == digest_of(standing.good):
        return standing
    generation = min(standing.generation, outcome.generation - 1)
    return replace(standing, generation=generation, outcome=None)


def _resume_soak(state: Soaking, event: Started, now: Moment) -> Step:
    """Count the start durably before the model is loaded again; too many, and it goes back."""
    bundle = bundle_of(state.order)
    if state.tries >= state.order.max_tries:
        return turn_back(state, Reason.CRASH_LOOP)
    if event.link != bundle.digest or bundle.digest not in event.sound:
        return turn_back(state, Reason.SOAK_UNHEALTHY)
    again = replace(
        state, tries=state.tries + 1, until=now.steady + state.order.soak_s, probe_at=None
    )
    return again, (Collect(keep=keep(state.standing, bundle)), probe(again))
