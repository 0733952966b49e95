"""Moves rollouts: loads the view, asks the machine, carries out, and keeps each decision."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from control_plane.domain.gates import Group
from control_plane.domain.rollout import ENDED, RolloutSpec, RolloutState
from control_plane.domain.rollout_machine import advance
from control_plane.domain.rollout_verbs import kind_of
from control_plane.domain.rollout_view import (
    BuildsFailed,
    BuildsReady,
    Decision,
    Event,
    Hold,
    Machine,
    RequestBuilds,
    SendBack,
    Tick,
    View,
    Withdraw,
)
from control_plane.observability import logger
from control_plane.services import (
    builds,
    rollout_codec,
    rollout_document,
    rollout_inputs,
    rollout_orders,
    rollout_planning,
    rollout_sweep,
    webhooks,
)
from control_plane.services.rollout_views import DecisionView, TickResult
from control_plane.services.scope import Scope
from control_plane.store import benches, executions, leases, tallies
from control_plane.store import rollouts as store
from control_plane.store.database import is_outage
from control_plane.store.overdue import Overdue
from control_plane.store.rollouts import RolloutRow

# A tick of one rollout ends by itself; more steps than this are a bug, and the next tick goes on.
MAX_STEPS = 500

log = logger(__name__)


@dataclass(frozen=True)
class Done:
    """What one step did."""

    changed: bool
    decisions: int = 0
    offered: int = 0


def due(scope: Scope) -> list[str]:
    """Return the rollouts for which a tick would do something, the newest first; only reads.

    Without any lock, so nobody waits for it; what it sees may be older than a commit of now, and
    then the next tick sees it. Most ticks end here and have written nothing.
    """
    return [name for name in store.active(scope.tx) if _is_due(scope, name)]


def tick(
    scope: Scope, names: Collection[str] | None = None, *, steps: int = MAX_STEPS
) -> TickResult:
    """Move rollouts, one step after another; of several, one that fails does not hold up others.

    Whoever ticks gives each rollout a transaction of its own (jobs/ticks.py). Any number may: a
    rollout at which another works is left to it.

    Args:
        scope: the scope.
        names: which; None: all that are active.
        steps: after so many steps of a rollout the rest waits for the next transaction.

    Returns:
        What was done; `going` names those that may have more to do.
    """
    active = store.active(scope.tx) if names is None else list(names)
    mine = [name for name in active if leases.tick_alone(scope.tx, name)]
    if mine:
        # All of them, from the newest on: an offer looks at, and takes from, the other rollouts.
        executions.lock_for_tick(scope.tx, mine)
    decided = offered = 0
    going: list[str] = []
    # One alone has the transaction to itself, and needs no savepoint.
    take = _tick_one if names is not None and len(mine) == 1 else _try_one
    for name in mine:
        for _ in range(steps):
            done = take(scope, name)
            decided += done.decisions
            offered += done.offered
            if not done.changed:
                break
        else:
            going.append(name)
    return TickResult(len(active), decided, offered, going)


def step(scope: Scope, row: RolloutRow, event: Event, reason: str = "") -> Done:
    """Apply one event to a locked rollout."""
    view = load_view(scope, row)
    now = scope.now.timestamp()
    machine, decisions = advance(view, event, now)
    if isinstance(event, Tick) and machine == view.machine and _nothing_new(scope, row, decisions):
        return Done(changed=False)
    person = not isinstance(event, Tick | BuildsReady | BuildsFailed)
    if person:
        _keep(scope, row, _Kept(view, event, None), reason)
    offered = 0
    for decision in decisions:
        _keep(scope, row, _Kept(view, event, decision), reason if person else "")
        if isinstance(decision, RequestBuilds):
            builds.request_missing(scope, row.model, row.version, _blueprints(view))
        offered += rollout_orders.carry_out(scope, view.spec, decision, machine.wave + 1)
    before = rollout_sweep.read(row.pending)
    if event != Tick() or before or any(isinstance(d, Withdraw | SendBack) for d in decisions):
        work = rollout_sweep.left(before, machine.state, decisions)
        _sweep(scope, row, work)
    _save(scope, row, machine, revised=person or machine.state.value != row.state)
    return Done(changed=True, decisions=len(decisions), offered=offered)


def _sweep(scope: Scope, row: RolloutRow, work: list[rollout_sweep.Work]) -> None:
    left = rollout_sweep.text(rollout_sweep.carry_on(scope, row.name, work))
    if left != row.pending:
        store.save(scope.tx, row.name, revised=False, pending=left)


def builds_event(scope: Scope, row: RolloutRow) -> Event | None:
    """Return whether the bundles that a BUILDING rollout needs are there; None: not yet.

    Blueprints whose build failed leave the plan: their devices become misfits with the reason.
    """
    view = load_view(scope, row)
    made = builds.request_missing(scope, row.model, row.version, _blueprints(view))
    if any(build.state not in builds.OVER for build in made):
        return None
    failed = {build.blueprint: build.error for build in made if build.state == "FAILED"}
    if len(failed) == len(made):
        why = "; ".join(f"{name}: {error}" for name, error in sorted(failed.items()))
        return BuildsFailed(f"no bundle could be built: {why}")
    planned = row.plan.get("bundles", {})
    for build in made:
        if build.state == "SUCCEEDED" and planned.get(build.blueprint) != build.digest:
            executions.set_digest(scope.tx, row.name, build.blueprint, build.digest)
    built = {build.blueprint: build.digest for build in made if build.digest}
    plan = _without(scope, row, failed) | {"bundles": planned | built}
    if plan != row.plan:
        store.save(scope.tx, row.name, revised=False, plan=plan)
    return BuildsReady()


def load_view(scope: Scope, row: RolloutRow) -> View:
    """Return what the machine may know of a rollout, as of now."""
    machine = rollout_codec.read_machine(row.machine)
    spec = rollout_document.spec_of(row.name, row.spec)
    groups = _groups(scope, row.name)
    view = View(spec, machine, groups)
    if view.in_flight and _may_be_overdue(scope, spec, row):
        overdue = executions.count_overdue(scope.tx, row.name, _overdue(scope, spec, machine))
        view = replace(view, overdue=overdue)
    if machine.state is RolloutState.REVERTING:
        view = replace(view, to_return=executions.count_to_return(scope.tx, row.name))
    return rollout_inputs.load(scope, row, view)


def _try_one(scope: Scope, name: str) -> Done:
    """Take one step, or none of it: what went wrong with one rollout is no other's fault."""
    try:
        with scope.tx.begin_nested():
            return _tick_one(scope, name)
    except Exception as error:
        if is_outage(error):
            raise
        log.exception("rollout.tick_failed", rollout=name, error=str(error)[:500])
        return Done(changed=False)


def _is_due(scope: Scope, name: str) -> bool:
    """Return whether a tick would change something; what cannot be told is due."""
    try:
        row = store.find(scope.tx, name)
        if row is not None and row.pending:
            return True
        if row is None or row.state in ENDED:
            return False
        # Both have more to do than to decide: builds to ask for, devices to leave behind.
        if row.state == RolloutState.BUILDING or row.spec.get("dynamic"):
            return True
        view = load_view(scope, row)
        machine, decisions = advance(view, Tick(), scope.now.timestamp())
        return machine != view.machine or not _nothing_new(scope, row, decisions)
    except Exception as error:
        if is_outage(error):
            raise
        return True  # the tick itself says what is wrong with it


def _tick_one(scope: Scope, name: str) -> Done:
    row = store.find(scope.tx, name, lock=True)
    if row is not None and row.pending:
        _sweep(scope, row, rollout_sweep.read(row.pending))
        return Done(changed=True)
    if row is None or row.state in ENDED:
        return Done(changed=False)
    event: Event | None = Tick()
    if row.state == RolloutState.BUILDING:
        event = builds_event(scope, row)
    elif row.spec.get("dynamic") and row.state in rollout_inputs.MOVES:
        rollout_inputs.prepare_newcomers(scope, rollout_document.spec_of(row.name, row.spec))
    return Done(changed=False) if event is None else step(scope, row, event)


def _groups(scope: Scope, name: str) -> tuple[Group, ...]:
    counts: dict[tuple[int, str], dict[Any, int]] = {}
    for wave, blueprint, state, n in tallies.read(scope.tx, name):
        counts.setdefault((wave, blueprint), {})[state] = n
    measured = benches.tallies(scope.tx, name)
    return tuple(Group(*key, counts[key], measured.get(key, {})) for key in sorted(counts))


def _overdue(scope: Scope, spec: RolloutSpec, machine: Machine) -> Overdue:
    now, limits = scope.now.timestamp(), spec.timeouts
    silent, offered = (
        datetime.fromtimestamp(now - limit, UTC) for limit in (limits.silent_s, limits.execution_s)
    )
    steps = {step: datetime.fromtimestamp(now - at, UTC) for step, at in limits.steps.items()}
    return Overdue(machine.wave + 1, silent, offered, steps, scope.now)


def _may_be_overdue(scope: Scope, spec: RolloutSpec, row: RolloutRow) -> bool:
    """Return whether anybody can be late yet: nobody is in flight for longer than the rollout.

    So the many who have just been offered it are not looked at, one by one, at each of its steps.
    """
    limits = spec.timeouts
    least = min((limits.silent_s, limits.execution_s, *limits.steps.values()))
    began = row.started_at
    return began is None or scope.now - began >= timedelta(seconds=least)


def _blueprints(view: View) -> list[str]:
    return sorted({group.blueprint for group in view.groups})


def _without(scope: Scope, row: RolloutRow, failed: dict[str, str]) -> dict[str, Any]:
    """Take blueprints without a bundle out of the plan; return what it says of itself then."""
    misfits = list(row.plan.get("misfits", []))
    reasons = dict(row.plan.get("misfit_reasons", {}))
    count = row.plan.get("misfit_count", 0)
    for name, error in sorted(failed.items()):
        reason = f"no bundle for {name}: {error}"
        room = max(0, rollout_planning.MAX_MISFITS - len(misfits))
        n, devices = executions.clear(scope.tx, row.name, name, named=room)
        misfits += [{"device": one, "blueprint": name, "reason": reason} for one in devices]
        reasons[reason] = reasons.get(reason, 0) + n
        count += n
    said = {"misfits": misfits, "misfit_count": count, "misfit_reasons": reasons}
    return row.plan | said if failed else dict(row.plan)


# --- keeping ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kept:
    """A decision, or a person's act, with what it was made from."""

    view: View
    event: Event
    decision: Decision | None


def _keep(scope: Scope, row: RolloutRow, kept: _Kept, reason: str) -> None:
    decision = kept.decision
    evidence = () if decision is None else rollout_codec.evidence_of(kept.view, decision)
    told = DecisionView(
        at=scope.now,
        wave=max(0, getattr(decision, "wave", kept.view.machine.wave)),
        kind=kind_of(kept.event if decision is None else decision),
        evidence=[rollout_codec.plain(gate) for gate in evidence],
        actor=scope.actor,
        reason=reason,
    )
    inputs = rollout_codec.inputs(kept.view, kept.event, scope.now.timestamp(), decision)
    store.add_decision(scope.tx, {"rollout": row.name, "inputs": inputs, **vars(told)})
    webhooks.emit(scope, f"rollout.{told.kind}", f"rollouts/{row.name}", told)


def _nothing_new(scope: Scope, row: RolloutRow, decisions: tuple[Decision, ...]) -> bool:
    """Return whether all that was decided is to hold, for the same reasons as last time."""
    if not decisions:
        return True
    first = decisions[0]
    if not isinstance(first, Hold):
        return False
    last = store.decisions(scope.tx, row.name, before_id=None, limit=1)
    if not last or last[0].kind != "hold" or last[0].wave != first.wave:
        return False
    now = [_judged(rollout_codec.plain(gate)) for gate in first.evidence]
    return now == [_judged(gate) for gate in last[0].evidence]


def _judged(gate: dict[str, Any]) -> tuple[str, str, str, str]:
    return gate["rule"], gate["blueprint"], gate["metric"], gate["verdict"]


def _save(scope: Scope, row: RolloutRow, machine: Machine, *, revised: bool) -> None:
    values: dict[str, Any] = {
        "state": machine.state.value,
        "state_reason": machine.reason,
        "wave": max(0, machine.wave),
        "machine": rollout_codec.plain(machine),
    }
    if row.started_at is None and machine.wave >= 0:
        values["started_at"] = scope.now
    if machine.state in ENDED:
        values["ended_at"] = scope.now
    store.save(scope.tx, row.name, revised=revised, **values)
