"""Machine, view, events and decisions as plain data: what the database keeps, to replay them."""

from dataclasses import asdict
from typing import Any

import msgspec

from control_plane.domain import rollout_view as words
from control_plane.domain.gates import Gate, Verdict
from control_plane.domain.pace import per_minute
from control_plane.domain.rollout_machine import advance
from control_plane.domain.rollout_view import (
    AwaitApproval,
    Decision,
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
    RequestBuilds,
    SendBack,
    Succeed,
    TimeOut,
    View,
    Withdraw,
)

Data = dict[str, Any]
_Policy = EndWave | NextWindow | Join


def plain(value: object) -> Any:
    """Return a frozen value as JSON data, always the same for the same value."""
    return msgspec.json.decode(msgspec.json.encode(value, order="deterministic"))


def read_machine(data: Data) -> Machine:
    """Read back what `plain` made of a machine."""
    return msgspec.convert(data, Machine)


def inputs(view: View, event: Event, now: float, decision: Decision | None) -> Data:
    """Return what `replay` needs, and what was decided."""
    return {
        "view": plain(view),
        "event": {"kind": type(event).__name__, **asdict(event)},
        "now": now,
        "decision": None if decision is None else [type(decision).__name__, plain(decision)],
    }


def replay(stored: Data) -> tuple[Machine, list[Any]]:
    """Decide again from stored inputs; decisions in the form in which they are stored."""
    view = msgspec.convert(stored["view"], View)
    facts = dict(stored["event"])
    event: Event = getattr(words, facts.pop("kind"))(**facts)
    machine, decisions = advance(view, event, stored["now"])
    return machine, [[type(decision).__name__, plain(decision)] for decision in decisions]


def evidence_of(view: View, decision: Decision) -> tuple[Gate, ...]:
    """Return why, gate by gate; what is no gate is said in one line of the same form."""
    match decision:
        case OpenWave() | AwaitApproval() | Hold() | Halt() | SendBack() | Succeed():
            return decision.evidence
        case RequestBuilds() | GiveWay():
            return ()
        case _:
            return (_line(view, decision),)


def _line(view: View, decision: Offer | Withdraw | TimeOut | _Policy | EndRevert) -> Gate:
    now = view.machine.wave
    match decision:
        case Offer(wave, n):
            return _said("pace", wave, f"{n} devices of wave {_pace_text(view, wave)}", n)
        case Withdraw(for_good, blueprint):
            whose = f" of {blueprint}" if blueprint else ""
            what = "everything open" if for_good else "every offer that was not begun"
            return _said("withdraw", now, f"{what}{whose} is taken back")
        case TimeOut():
            text = f"{view.overdue} devices gave no sign in time, or took too long"
            return _said("silent", now, text, view.overdue)
        case EndWave(wave, halted):
            n = view.queued(wave, halted) + view.in_flight_of(wave, halted)
            spec = view.spec.waves[wave]
            text = f"wave {spec.name} is over after {spec.timeout_s:g} s; {n} had not answered"
            return _said("wave_timeout", wave, text, n)
        case NextWindow():
            text = f"{view.lapsed} devices let their activation window pass and are given the next"
            return _said("window", now, text, view.lapsed)
        case Join(n):
            text = f"{n} devices match since they changed, and join the last wave"
            return _said("dynamic", len(view.spec.waves) - 1, text, n)
        case EndRevert(unreachable):
            text = f"{unreachable} devices have not said that they are back; their orders wait"
            return _said("return", now, text, unreachable)


def _pace_text(view: View, wave: int) -> str:
    newest = view.machine.wave
    pace = view.spec.wave_pace(newest)
    own = view.spec.waves[max(0, newest)].pace is not None
    rate = per_minute(pace, view.successes(newest if own else None))
    return (
        f"{view.spec.waves[wave].name}; {view.in_flight} were in flight, "
        f"at most {pace.max_in_flight}, {rate} a minute"
    )


def _said(rule: str, wave: int, text: str, n: int = 0) -> Gate:
    return Gate(rule, wave, "", Verdict.PASS, text, n=n)
