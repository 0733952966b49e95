"""Planted bugs in what documents promise: windows, budgets, pace, approvals, versions, slices."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from agent import admission
from control_plane.domain import pace, rollout_machine, rollout_policy
from control_plane.domain.rollout_view import Tick
from control_plane.services import (
    invalidation,
    rollout_approvals,
    rollout_inputs,
    rollout_sweep,
    rollout_tick,
)
from control_plane.store import executions, invalidations, joining, room
from tests.simulation.planted import Bug
from tests.support.planting import instead


def offers_outside_the_window() -> AbstractContextManager[None]:
    """Nobody looks whether the download window is open."""
    return instead((rollout_policy, "window", lambda *_: None))


def a_device_switches_at_any_hour() -> AbstractContextManager[None]:
    """A device takes its activation window for a recommendation."""
    return instead((admission, "may_begin", lambda *_: True))


def a_budget_has_room_for_one_more() -> AbstractContextManager[None]:
    """At most means one more than that."""
    real = room.allowed

    def allowed(wave: Any, limits: Any) -> Any:
        more = [replace(budget, max=budget.max + 1) for budget in limits.budgets]
        return real(wave, replace(limits, budgets=more))

    return instead((room, "allowed", allowed))


def a_higher_priority_waits() -> AbstractContextManager[None]:
    """Which rollout comes first is not asked."""
    return instead((room, "outranked", lambda *_: []))


def the_pace_grows_at_once() -> AbstractContextManager[None]:
    """A pace that may grow begins where it is to end."""

    def per_minute(asked: Any, _successes: int) -> int:
        return int(asked.growth.limit if asked.growth else asked.per_minute)

    return instead((pace, "per_minute", per_minute))


def the_minute_is_forgotten() -> AbstractContextManager[None]:
    """Offers are not noted, so that every tick has a whole minute's."""
    return instead((pace, "noted", lambda offered, *_: offered))


def an_edit_keeps_the_approvals() -> AbstractContextManager[None]:
    """An approval is of a rollout, whatever it says by now."""

    def words(_row: Any) -> str:
        return "anything"

    return instead((rollout_inputs, "words_of", words), (rollout_approvals, "words_of", words))


def the_author_may_approve() -> AbstractContextManager[None]:
    """Who wrote a rollout lets its waves open."""
    return instead((rollout_policy, "check_approver", lambda *_: None))


def one_approval_is_enough() -> AbstractContextManager[None]:
    """How many people were asked for is not counted."""
    real = rollout_policy.still_needed

    def needed(view: Any, *more: str) -> int:
        return 0 if {*view.approvals, *more} else real(view)

    return instead((rollout_policy, "still_needed", needed))


def a_wave_ends_early() -> AbstractContextManager[None]:
    """A wave's time is counted in other units than it was asked for."""
    real = rollout_policy.due_at

    def due_at(view: Any, wave: int, now: float) -> float | None:
        due = real(view, wave, now)
        return None if due is None else now + (due - now) / 60

    return instead((rollout_policy, "due_at", due_at))


def an_invalid_version_goes_on() -> AbstractContextManager[None]:
    """A version is called invalid, and its rollouts are not told."""
    return instead((invalidations, "lock_rollouts", lambda *_: []))


def an_invalid_version_is_returned_to() -> AbstractContextManager[None]:
    """A device that goes back is sent to whatever it ran before, poisoned or not."""

    def none(*_: Any) -> set[str]:
        return set()

    def nothing(_scope: Any) -> None:
        """Leave them."""

    return instead(
        (invalidations, "among", none),
        (invalidation, "_stop_wrong_returns", nothing),
    )


def anybody_may_join() -> AbstractContextManager[None]:
    """A device joins the first wave as well as the last."""
    real = executions.add

    def add(tx: Any, rows: Sequence[dict[str, Any]]) -> None:
        real(tx, [{**row, "wave": 0} for row in rows])

    return instead((executions, "add", add))


def a_newcomer_is_passed_over() -> AbstractContextManager[None]:
    """What changed is noted as seen before it was looked at."""
    return instead((joining, "newcomers", lambda *_: []))


def the_rest_of_a_sweep_is_forgotten() -> AbstractContextManager[None]:
    """What one transaction does not take back is not taken back."""
    real = rollout_sweep.carry_on

    def carry_on(*args: Any) -> list[Any]:
        real(*args)
        return []

    return instead((rollout_sweep, "carry_on", carry_on))


def a_tick_offers_after_a_halt() -> AbstractContextManager[None]:
    """A rollout that a gate stopped is ticked as if it ran."""
    real = rollout_machine.advance

    def advance(view: Any, event: Any, now: float) -> Any:
        m = view.machine
        if m.state is rollout_machine.S.HALTED and isinstance(event, Tick):
            going = replace(view, machine=replace(m, state=rollout_machine.S.RUNNING))
            offered = rollout_machine._offer(going, now)
            if offered is not None:
                return replace(offered[0], state=m.state), offered[1]
        return real(view, event, now)

    return instead((rollout_machine, "advance", advance), (rollout_tick, "advance", advance))


POLICY: tuple[Bug, ...] = (
    offers_outside_the_window,
    a_device_switches_at_any_hour,
    a_budget_has_room_for_one_more,
    a_higher_priority_waits,
    the_pace_grows_at_once,
    the_minute_is_forgotten,
    an_edit_keeps_the_approvals,
    the_author_may_approve,
    one_approval_is_enough,
    a_wave_ends_early,
    an_invalid_version_goes_on,
    an_invalid_version_is_returned_to,
    anybody_may_join,
    a_newcomer_is_passed_over,
    the_rest_of_a_sweep_is_forgotten,
    a_tick_offers_after_a_halt,
)
