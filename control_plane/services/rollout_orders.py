"""Carries decisions out: orders to devices, and the executions that they move."""

import math
from collections.abc import Collection, Sequence
from datetime import UTC, datetime

import msgspec

from agent.protocol.messages import ActivationWindow, TrialPolicy
from agent.protocol.words import Action, ExecutionState
from control_plane.domain.rollout import IN_FLIGHT, RolloutSpec
from control_plane.domain.rollout_plan import execution_id
from control_plane.domain.rollout_view import (
    Decision,
    EndWave,
    Join,
    NextWindow,
    Offer,
    TimeOut,
)
from control_plane.domain.windows import Opening
from control_plane.services import desired, rollout_inputs, withdrawal
from control_plane.services.desired import Wanted
from control_plane.services.scope import Scope
from control_plane.store import activation, executions, invalidations, joining, offers, sweeps
from control_plane.store.executions import ExecutionRow, Moved
from control_plane.store.overdue import Overdue
from control_plane.store.room import Wave

E = ExecutionState
_BEGUN = frozenset({E.ACTIVATING, E.SOAKING})
NOTHING_VALID = "nothing valid to go back to"
"""Why a device that runs it stays: what it ran before was invalidated."""
_MAY_RUN_IT = _BEGUN | {E.SUCCEEDED, E.TIMED_OUT}


def carry_out(scope: Scope, spec: RolloutSpec, decision: Decision, waves: int) -> int:
    """Do what was decided for devices; returns how many were offered it.

    Args:
        scope: the scope.
        spec: the rollout.
        decision: what to do.
        waves: how many waves are open.
    """
    match decision:
        case Offer():
            return _offer(scope, spec, decision)
        case TimeOut(silent, offered, steps):
            in_step = {step: _time(at) for step, at in steps.items()}
            by = Overdue(waves, _time(silent), _time(offered), in_step, scope.now)
            moved = executions.time_out(scope.tx, scope.now, spec.name, by)
            # Whoever wakes up late must not begin what nobody waits for any more.
            withdrawal.hold(scope, moved)
        case EndWave(wave, halted):
            _end_wave(scope, spec.name, wave, halted)
        case NextWindow(closed):
            _next_window(scope, spec, waves, closed)
        case Join():
            _join(scope, spec)
        case _:  # what takes many devices back is done in slices: rollout_sweep
            pass
    return 0


def _offer(scope: Scope, spec: RolloutSpec, offer: Offer) -> int:
    wave = Wave(spec.name, offer.wave, offer.halted, offer.start)
    bounds = rollout_inputs.limits(scope, spec)
    chosen = offers.next_queued(scope.tx, wave, offer.n, bounds)
    away = [one.id for one in chosen if not one.active]
    if away:
        which = executions.among(away)
        executions.move(scope.tx, scope.now, which, [E.QUEUED], E.CANCELED, reason="quarantined")
    fit = [one for one in chosen if one.active]
    if fit:
        offers.supersede(scope.tx, scope.now, spec.name, [one.device for one in fit])
        window = rollout_inputs.activation_window(scope, spec)
        times = None if window is None else (_time(window.opens_at), _time(window.closes_at))
        with desired.ordering(scope, _runs(spec, fit, window)) as generations:
            offers.offer(scope.tx, scope.now, spec.name, fit, generations, window=times)
    return len(fit)


def _runs(
    spec: RolloutSpec, parts: Sequence[offers.Candidate | ExecutionRow], window: Opening | None
) -> list[Wanted]:
    trial = TrialPolicy(
        tolerances=dict(spec.gates.tolerance),
        min_blocks=spec.trial.min_blocks,
        max_blocks=spec.trial.max_blocks,
        tokens=spec.trial.tokens,
        retry_s=spec.trial.retry_s,
    )
    told = _told(window)
    return [
        Wanted(
            device=one.device,
            action=Action.RUN,
            digest=one.digest,
            rollout=spec.name,
            execution=one.id,
            trial=trial,
            activate=told,
            soak_s=spec.wave_soak_s(one.wave),
            max_tries=spec.max_tries,
        )
        for one in parts
    ]


def _told(window: Opening | None) -> ActivationWindow | msgspec.UnsetType:
    if window is None:
        return msgspec.UNSET
    # Rounded inwards: never a second early, never a second late.
    return ActivationWindow(math.ceil(window.opens_at), math.floor(window.closes_at))


def requeue(scope: Scope, name: str, blueprint: str, most: int) -> int:
    """Take back into the queue up to so many of those that have not begun; return how many."""
    return len(_requeue(scope, name, blueprint, most) or ())


def _requeue(scope: Scope, name: str, blueprint: str, most: int) -> list[Moved]:
    which = executions.of_blueprint(name, blueprint) & activation.not_begun(scope.now)
    found = sweeps.first(scope.tx, which, activation.MAY_WAIT, most)
    moved = executions.move(
        scope.tx,
        scope.now,
        executions.among(found.ids),
        found.states,
        E.QUEUED,
        reason="withdrawn",
        offered_at=None,
        opens_at=None,
        closes_at=None,
    )
    withdrawal.hold(scope, moved)
    return moved


def _end_wave(scope: Scope, name: str, wave: int, halted: Collection[str]) -> None:
    which, why = executions.of_wave(name, wave, halted), "wave_timeout"
    queued = executions.Step(E.QUEUED, E.TIMED_OUT, why)
    executions.end_queued(scope.tx, scope.now, name, which, queued)
    moved = executions.move(scope.tx, scope.now, which, IN_FLIGHT, E.TIMED_OUT, reason=why)
    withdrawal.hold(scope, moved)


def _next_window(scope: Scope, spec: RolloutSpec, waves: int, closed_before: float) -> None:
    """Order the same again, under a new generation, for the window that comes next."""
    window = rollout_inputs.activation_window(scope, spec)
    rows = activation.lapsed(scope.tx, spec.name, waves, _time(closed_before))
    if window is None or not rows:
        return
    generations = desired.set_desired(scope, _runs(spec, rows, window))
    executions.set_generations(scope.tx, {row.id: generations[row.device] for row in rows})
    ids = [row.id for row in rows]
    activation.set_windows(scope.tx, ids, _time(window.opens_at), _time(window.closes_at))


def _join(scope: Scope, spec: RolloutSpec) -> None:
    last = len(spec.waves) - 1
    first = joining.next_position(scope.tx, spec.name, last)
    rows = [
        {
            "id": execution_id(spec.name, one.device.id),
            "rollout": spec.name,
            "device_id": one.device.id,
            "wave": last,
            "position": first + number,
            "blueprint": one.blueprint,
            "digest": one.digest,
            "state": E.QUEUED.value,
            "updated_at": scope.now,
        }
        for number, one in enumerate(rollout_inputs.newcomers(scope, spec).joining)
    ]
    executions.add(scope.tx, rows)


def cancel(scope: Scope, ids: Collection[str], states: Collection[E] = IN_FLIGHT) -> None:
    """End those of these executions that are in flight, in these states, and hold their devices."""
    which = executions.among(ids)
    moved = executions.move(scope.tx, scope.now, which, states, E.CANCELED, reason="withdrawn")
    withdrawal.hold(scope, moved)


def send_back(scope: Scope, ids: Collection[str]) -> None:
    """Order the devices of these executions back to what they ran before, if they may run ours."""
    executions.correct_previous(scope.tx, ids)
    known = executions.to_send_back(scope.tx, ids, _MAY_RUN_IT)
    invalid = invalidations.among(scope.tx, {row.previous for row in known})
    rows = [row for row in known if row.previous not in invalid]
    begun = [row.id for row in rows if row.state in _BEGUN]
    if begun:
        which = executions.among(begun)
        executions.move(scope.tx, scope.now, which, _BEGUN, E.CANCELED, reason="reverted")
    withdrawal.order_back(scope, rows)
    stuck = [row for row in known if row.previous in invalid]
    ids_stuck = [row.id for row in stuck]
    cancel(scope, ids_stuck)
    invalidations.set_reason(scope.tx, ids_stuck, NOTHING_VALID)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
