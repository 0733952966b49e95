"""The rollout machine: view and event in, new machine and decisions out; pure.

advance() decides over tallies, never over devices, and others carry its decisions out. On each
tick the first of these that applies is decided: a breach, devices or waves whose time is over,
windows that have passed, newcomers, offers, the gates.

    DRAFT > BUILDING > (SCHEDULED) > (AWAITING_APPROVAL) > RUNNING > SUCCEEDED
    active > PAUSED (a person) | HALTED (a gate) > back | REVERTING > REVERTED | ABORTED
"""

from dataclasses import replace

from agent.protocol.words import ExecutionState
from control_plane.domain import gates, pace, rollout_policy
from control_plane.domain.errors import IllegalTransitionError
from control_plane.domain.gates import Gate, Group
from control_plane.domain.rollout import BreachScope, OnBreach, RolloutState
from control_plane.domain.rollout_view import (
    Abort,
    Approve,
    AwaitApproval,
    BuildsFailed,
    BuildsReady,
    Decision,
    Deny,
    EndRevert,
    EndWave,
    Event,
    GiveWay,
    Halt,
    Hold,
    Join,
    Machine,
    NextWindow,
    Offer,
    OpenWave,
    Pause,
    Promote,
    RequestBuilds,
    Resume,
    Revert,
    SendBack,
    Start,
    Succeed,
    Tick,
    TimeOut,
    View,
    Withdraw,
)

MAX_OFFER = 2_000
"""Offers of one step, which is one transaction: their locks are held for about a second, and the
relays publish them while the next are signed."""

S = RolloutState
_STEADY = frozenset({S.BUILDING, S.SCHEDULED, S.AWAITING_APPROVAL, S.RUNNING})
_STOPPED = frozenset({S.PAUSED, S.HALTED})


Advance = tuple[Machine, tuple[Decision, ...]]


def advance(  # noqa: C901, PLR0911, PLR0912 - one arm per transition is the clearest machine
    view: View, event: Event, now: float
) -> Advance:
    """Decide what follows from an event.

    Raises:
        IllegalTransitionError: a person asks for what this state does not allow. Ticks and
            builds are ignored where they mean nothing.
    """
    m = view.machine
    match event, m.state:
        case Start(), S.DRAFT:
            return replace(m, state=S.BUILDING), (RequestBuilds(),)
        case BuildsReady(), S.BUILDING:
            return _open_next(view, now, ())
        case BuildsFailed(why), S.BUILDING:
            return _halt_unbuilt(m, why)
        case Approve(who), S.AWAITING_APPROVAL:
            return _approve(view, who, now)
        case Deny(who, why), S.AWAITING_APPROVAL:
            said = f"denied by {who}: {why}"
            return replace(m, state=S.ABORTED, reason=said), (Withdraw(for_good=True),)
        case Tick(), S.SCHEDULED:
            return _open_next(view, now, ())
        case Tick(), S.RUNNING:
            return _run(view, now)
        case Tick(), S.AWAITING_APPROVAL:
            return _watch(view, now) or _keep_up(view, now) or _give_way(view) or (m, ())
        case Tick(), S.PAUSED | S.HALTED:
            return _watch(view, now) or (m, ())
        case Tick(), S.REVERTING:
            return _await_return(view, now)
        case Pause(), state if state in _STEADY:
            paused = replace(rollout_policy.stopped(m, now), state=S.PAUSED, resumes=state)
            return paused, (Withdraw(),)
        case Resume(), S.PAUSED:
            return replace(rollout_policy.resumed(m, now), state=m.resumes), ()
        case Resume(), S.HALTED if m.wave < 0:
            return replace(m, state=S.BUILDING, reason=""), (RequestBuilds(),)
        case Resume(), S.HALTED:
            return rollout_policy.resumed(_acknowledge(view), now), ()
        case Resume(), S.RUNNING if m.halted - m.sent_back:
            return _acknowledge(view), ()
        case Promote(), S.RUNNING:
            return _promote(view, now)
        case Abort("keep", why), state if state is S.DRAFT or state in _STEADY | _STOPPED:
            given_up = replace(m, state=S.ABORTED, reason=why or m.reason)
            return given_up, (Withdraw(for_good=True),)
        case Abort("keep"), S.REVERTING:
            return replace(m, state=S.ABORTED), ()
        case Abort("revert", why), state if state in _STEADY | _STOPPED:
            back, decisions = _revert(m, now, ())
            return replace(back, reason=why), decisions
        case Revert(), state if state in _STEADY | _STOPPED:
            return _revert(m, now, ())
        case ((Tick() | BuildsReady() | BuildsFailed()), _):
            return m, ()
    raise IllegalTransitionError(_refusal(event, m.state))


def legal(state: RolloutState) -> list[str]:
    """Return the verbs that a person may use in this state."""
    active = ["abort", "revert"]
    return {
        S.DRAFT: ["start", "abort"],
        S.BUILDING: ["pause", *active],
        S.SCHEDULED: ["pause", *active],
        S.AWAITING_APPROVAL: ["approve", "deny", "pause", *active],
        S.RUNNING: ["pause", "promote", *active],
        S.PAUSED: ["resume", *active],
        S.HALTED: ["resume", *active],
        S.REVERTING: ["abort"],
    }.get(state, [])


def _refusal(event: Event, state: RolloutState) -> str:
    allowed = ", ".join(legal(state)) or "nothing more: it has ended"
    return f"cannot {type(event).__name__.lower()} a rollout that is {state}; legal is {allowed}"


# --- running ----------------------------------------------------------------------------------


def _run(view: View, now: float) -> Advance:
    return _watch(view, now) or _keep_up(view, now) or _offer(view, now) or _judge(view, now)


def _watch(view: View, now: float) -> Advance | None:
    """What goes on even while nothing is offered: breaches, and devices that fall silent."""
    return _breach(view, now) or _time_out(view, now)


def _breach(view: View, now: float) -> Advance | None:
    m = view.machine
    if m.state is S.HALTED or m.wave < 0:
        return None
    judged = _stops(view)
    tripped = tuple(g for g in judged if _trips(g) and g.blueprint not in m.halted)
    if not tripped:
        return None
    if view.spec.gates.scope is BreachScope.BLUEPRINT:
        halted = m.halted | {gate.blueprint for gate in tripped}
        if any(g.blueprint not in halted and g.eligible for g in view.groups):
            return _stop_blueprints(view, tripped)
    if view.spec.on_breach is OnBreach.REVERT:
        return _revert(m, now, tripped)
    resumes = m.resumes if m.state is S.PAUSED else m.state
    stopped = replace(rollout_policy.stopped(m, now), resumes=resumes, reason=_why(tripped))
    return replace(stopped, state=S.HALTED), (Halt(m.wave, tripped), Withdraw())


def _stop_blueprints(view: View, tripped: tuple[Gate, ...]) -> Advance:
    """Stop, or send back, the blueprints that tripped; the others go on."""
    m = view.machine
    names = sorted({gate.blueprint for gate in tripped})
    why = {name: tuple(g for g in tripped if g.blueprint == name) for name in names}
    halted = replace(m, halted=m.halted | set(names), reason=_why(tripped))
    if view.spec.on_breach is OnBreach.REVERT:
        back = replace(halted, sent_back=m.sent_back | set(names))
        return back, tuple(SendBack(why[name], name) for name in names)
    stops = tuple(Halt(m.wave, why[name], name) for name in names)
    return halted, (*stops, *(Withdraw(blueprint=name) for name in names))


def _time_out(view: View, now: float) -> Advance | None:
    if view.overdue == 0:
        return None
    limits = view.spec.timeouts
    steps = {step: now - limit for step, limit in limits.steps.items()}
    return view.machine, (TimeOut(now - limits.silent_s, now - limits.execution_s, steps),)


def _keep_up(view: View, now: float) -> Advance | None:
    """What goes on while it is not stopped: waves end, windows come again, devices join."""
    m = view.machine
    over = rollout_policy.over(view, now)
    if over is not None:
        return m, (EndWave(over, m.halted),)
    if view.lapsed:
        return m, (NextWindow(now),)
    if view.newcomers:
        return m, (Join(view.newcomers),)
    return None


def _offer(view: View, now: float) -> Advance | None:
    m = view.machine
    if rollout_policy.window(view, m.wave, now) is not None:
        return None
    room = rollout_policy.room(view, now)
    for wave in range(m.wave + 1):
        n = min(room, MAX_OFFER, rollout_policy.offerable(view, wave, m.halted))
        if n > 0:
            offered = replace(m, offered=pace.noted(m.offered, now, n))
            start = 0 if view.rooms is None else view.rooms[wave].start
            return offered, (Offer(wave, n, m.halted, start),)
    return None


def _judge(view: View, now: float) -> Advance:
    m, spec = view.machine, view.spec
    groups = tuple(group for group in view.groups if group.blueprint not in m.halted)
    # A wave that holds nobody proves nothing: judge the newest one that holds somebody.
    wave = max((group.wave for group in groups if group.wave <= m.wave), default=m.wave)
    opened, seen, without = m.opened_at[wave], m.seen, m.halted
    evidence = (
        *gates.failures(spec, view.groups, m.acknowledged, m.wave, seen=seen, without=without),
        *gates.advance(spec, view.groups, wave, opened, now, seen=seen, without=without),
        *rollout_policy.nobody(view, groups),
    )
    good = all(gate.verdict is gates.Verdict.PASS for gate in evidence)
    if good and m.wave + 1 < len(spec.waves):
        return _open_next(view, now, evidence)
    if _settled(groups):
        if good and m.halted - m.sent_back:
            return _halt_rest(view, now)
        if good and spec.dynamic:
            return m, (Hold(m.wave, (*evidence, rollout_policy.open_end(m.wave))),)
        if good:
            return _succeed(m, evidence)
    return _give_way(view) or (m, (Hold(m.wave, (*evidence, *rollout_policy.waits(view, now))),))


def _give_way(view: View) -> Advance | None:
    """End where nothing is left but what a newer rollout has taken over."""
    groups = tuple(group for group in view.groups if group.blueprint not in view.machine.halted)
    if not _settled(groups) or not any(g.of(ExecutionState.SUPERSEDED) for g in groups):
        return None
    reason = "a newer rollout has taken over the devices that were left"
    ended = replace(view.machine, state=S.ABORTED, reason=reason)
    if _settled(view.groups):
        return ended, (GiveWay(),)
    return ended, (GiveWay(), Withdraw(for_good=True))  # nobody goes on with halted blueprints


def _succeed(m: Machine, evidence: tuple[Gate, ...]) -> Advance:
    went = ", ".join(sorted(m.sent_back))
    reason = f"sent back on {went}, where a gate tripped" if went else ""
    return replace(m, state=S.SUCCEEDED, reason=reason), (Succeed(evidence),)


def _halt_rest(view: View, now: float) -> Advance:
    """Stop where every blueprint is done but those that were halted alone."""
    m = view.machine
    evidence = tuple(gate for gate in _stops(view) if gate.blueprint in m.halted)
    stopped = replace(rollout_policy.stopped(m, now), resumes=S.RUNNING, reason=_why(evidence))
    return replace(stopped, state=S.HALTED), (Halt(m.wave, evidence),)


def _settled(groups: tuple[Group, ...]) -> bool:
    return not any(group.of(ExecutionState.QUEUED) or group.in_flight for group in groups)


def _stops(view: View) -> tuple[Gate, ...]:
    """Judge what may halt, less what a person has acknowledged."""
    m = view.machine
    return gates.stops(view.spec, view.groups, m.acknowledged, m.wave, seen=m.seen)


def _why(evidence: tuple[Gate, ...]) -> str:
    return "; ".join(gate.text for gate in evidence)


def _trips(gate: Gate) -> bool:
    return gate.verdict is gates.Verdict.BREACH


# --- steps ------------------------------------------------------------------------------------


def _open_next(view: View, now: float, evidence: tuple[Gate, ...]) -> Advance:
    m, spec = view.machine, view.spec
    if m.wave < 0 and spec.not_before is not None and now < spec.not_before:
        return replace(m, state=S.SCHEDULED), ()
    if rollout_policy.still_needed(view):
        waiting = replace(m, state=S.AWAITING_APPROVAL)
        return waiting, (AwaitApproval(m.wave + 1, evidence),)
    return _open(view, now, evidence)


def _approve(view: View, who: str, now: float) -> Advance:
    rollout_policy.check_approver(view, who)
    if rollout_policy.still_needed(view, who):
        return view.machine, ()
    return _open(view, now, ())


def _open(view: View, now: float, evidence: tuple[Gate, ...]) -> Advance:
    """Open the next wave, or wait for the window in which it may begin."""
    m, wave = view.machine, view.machine.wave + 1
    closed = rollout_policy.window(view, wave, now)
    if closed is not None:
        waiting = S.SCHEDULED if m.wave < 0 else S.RUNNING
        return replace(m, state=waiting), (Hold(wave, (*evidence, closed)),)
    opened = replace(
        m,
        state=S.RUNNING,
        wave=wave,
        opened_at=(*m.opened_at, now),
        due_at=(*m.due_at, rollout_policy.due_at(view, wave, now)),
        reason="",
    )
    return opened, (OpenWave(wave, evidence),)


def _promote(view: View, now: float) -> Advance:
    m = view.machine
    judged = _stops(view)
    if any(_trips(gate) and gate.blueprint not in m.halted for gate in judged):
        raise IllegalTransitionError(
            "cannot promote over a failure budget or a proven regression: it is about to halt"
        )
    if m.wave + 1 < len(view.spec.waves):
        return _open_next(view, now, judged)
    if not _settled(view.groups) or m.halted - m.sent_back:
        raise IllegalTransitionError(
            "cannot promote the last wave while devices have not answered; wait, or abort"
        )
    return _succeed(m, judged)


def _acknowledge(view: View) -> Machine:
    m = view.machine
    failed: dict[str, int] = {}
    for group in view.groups:
        failed[group.blueprint] = failed.get(group.blueprint, 0) + group.failures
    state = m.resumes if m.state is S.HALTED else m.state
    seen = gates.all_seen(view.groups)
    return replace(m, state=state, acknowledged=failed, seen=seen, halted=m.sent_back, reason="")


def _halt_unbuilt(m: Machine, why: str) -> Advance:
    gate = Gate("builds", 0, "", gates.Verdict.BREACH, why)
    halted = replace(m, state=S.HALTED, resumes=S.BUILDING, reason=why)
    return halted, (Halt(0, (gate,)),)


def _revert(m: Machine, now: float, evidence: tuple[Gate, ...]) -> Advance:
    back = replace(m, state=S.REVERTING, reverting_at=now, reason=_why(evidence))
    return back, (SendBack(evidence),)


def _await_return(view: View, now: float) -> Advance:
    m = view.machine
    waited = now >= m.reverting_at + view.spec.timeouts.silent_s
    if view.to_return and not waited:
        return m, ()
    return replace(m, state=S.REVERTED), (EndRevert(view.to_return),)
