"""What a rollout's policy says of this moment: windows, approvals, room, waves that are over; pure.

The machine asks; everything it is answered from is in the view, so that it can be replayed.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from control_plane.domain import pace
from control_plane.domain.errors import ForbiddenError
from control_plane.domain.gates import Gate, Group, Verdict
from control_plane.domain.rollout import Approval
from control_plane.domain.rollout_view import Machine, View


def window(view: View, wave: int, now: float) -> Gate | None:
    """Return why nothing may be offered or opened now; None: the download window is open.

    A window that the view does not know is a closed one.
    """
    asked = view.spec.windows.download
    if asked is None or (view.download is not None and view.download.holds(now)):
        return None
    if view.download is None:
        return Gate("window", wave, "", Verdict.HOLD, "the download window is not known")
    at = view.download.opens_at
    said = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    text = f"the download window is closed; it opens at {said} ({asked.cron} in {asked.timezone})"
    return Gate("window", wave, "", Verdict.HOLD, text, value=now, limit=at)


def offerable(view: View, wave: int, without: frozenset[str]) -> int:
    """Return how many devices of a wave could be offered it, whatever the pace says."""
    queued = view.queued(wave, without)
    return queued if view.rooms is None else min(queued, view.rooms[wave].n)


def room(view: View, now: float) -> int:
    """Return how many more offers the pace of the newest open wave allows."""
    spec, wave = view.spec, view.machine.wave
    own = spec.waves[wave].pace is not None
    return pace.room(
        spec.wave_pace(wave),
        in_flight=view.in_flight,
        offered=sum(n for _, n in pace.recent(view.machine.offered, now)),
        successes=view.successes(wave if own else None),
    )


def waits(view: View, now: float) -> tuple[Gate, ...]:
    """Return what keeps queued devices of open waves waiting, apart from the pace."""
    m = view.machine
    queued = [wave for wave in range(m.wave + 1) if view.queued(wave, m.halted)]
    closed = window(view, m.wave, now)
    if queued and closed is not None:
        return (closed,)
    if view.rooms is None:
        return ()
    return tuple(
        Gate("room", wave, "", Verdict.HOLD, view.rooms[wave].text, value=view.rooms[wave].n)
        for wave in queued
        if view.rooms[wave].text and offerable(view, wave, m.halted) < view.queued(wave, m.halted)
    )


def nobody(view: View, groups: Sequence[Group]) -> tuple[Gate, ...]:
    """Return why no wave follows: none that is open holds one of these groups, so none is a canary.

    The builds of all that were to be first may have failed, or a gate has stopped them.
    """
    m = view.machine
    if m.wave + 1 == len(view.spec.waves) or any(group.wave <= m.wave for group in groups):
        return ()
    text = "no device has it, so nothing is proven; promote to open the next wave all the same"
    return (Gate("answered", m.wave, "", Verdict.HOLD, text, value=0, limit=1),)


def open_end(wave: int) -> Gate:
    """Return why a rollout that devices may still join does not end by itself."""
    text = "devices that match later still join; promote or abort it to end it"
    return Gate("dynamic", wave, "", Verdict.HOLD, text)


# --- approvals --------------------------------------------------------------------------------


def next_approval(view: View) -> Approval | None:
    """Return what the next wave needs; None: nobody."""
    wave = view.machine.wave + 1
    return view.spec.waves[wave].approval if wave < len(view.spec.waves) else None


def still_needed(view: View, *more: str) -> int:
    """Return how many people must still approve the next wave, with `more` counted in."""
    approval = next_approval(view)
    if approval is None:
        return 0
    return max(0, approval.needed - len({*view.approvals, *more}))


def check_approver(view: View, who: str) -> None:
    """Raise unless this person may approve the next wave.

    Raises:
        ForbiddenError: wrote the rollout, or is not among those who may approve.
    """
    approval = next_approval(view)
    if who and who in view.authors:
        raise ForbiddenError(f"{who} wrote this rollout: somebody else must approve it")
    if approval is not None and approval.of and who not in approval.of:
        may = ", ".join(approval.of)
        raise ForbiddenError(f"{who} may not approve this wave; these may: {may}")


# --- the time of a wave -----------------------------------------------------------------------


def due_at(view: View, wave: int, now: float) -> float | None:
    """Return when a wave that opens now is over for whoever has not answered."""
    limit = view.spec.waves[wave].timeout_s
    return None if limit is None else now + limit


def over(view: View, now: float) -> int | None:
    """Return the first open wave whose time is over and that holds devices without an answer."""
    m = view.machine
    for wave, due in enumerate(m.due_at):
        left = view.queued(wave, m.halted) + view.in_flight_of(wave, m.halted)
        if due is not None and now >= due and left:
            return wave
    return None


def stopped(m: Machine, now: float) -> Machine:
    """Stop the clocks of the waves; a rollout that has stopped already keeps its time."""
    return m if m.stopped_at is not None else replace(m, stopped_at=now)


def resumed(m: Machine, now: float) -> Machine:
    """Let the clocks go on: while nothing was offered, no wave's time passed."""
    if m.stopped_at is None:
        return m
    late = max(0.0, now - m.stopped_at)
    due = tuple(None if at is None else at + late for at in m.due_at)
    return replace(m, due_at=due, stopped_at=None)
