"""The gates of a wave as a table: rules down, blueprints across, with what was measured; pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from control_plane.dashboard import charts, words
from control_plane.dashboard.words import Look, look_of
from control_plane.domain import gates as rules
from control_plane.domain.gates import Gate, Group, Measured
from control_plane.domain.rollout_view import View

METRICS = {
    "token_ms": "Time per token",
    "first_token_ms": "Time to first token",
    "load_ms": "Load time",
    "memory_mb": "Peak memory",
}


@dataclass(frozen=True)
class Cell:
    """What one gate says of one blueprint: what was measured, on how much, and the verdict."""

    look: Look
    value: str
    evidence: str
    text: str


@dataclass(frozen=True)
class GateRow:
    """One rule with its limit, judged for each blueprint."""

    name: str
    limit: str
    cells: list[Cell | None]


@dataclass(frozen=True)
class GateTable:
    """The gates of a wave: rules down, blueprints across."""

    wave: str
    blueprints: list[str]
    rows: list[GateRow]


def of(view: View, now: datetime) -> GateTable | None:
    """Judge the open wave as the machine would now; None before the first wave opens."""
    machine, spec = view.machine, view.spec
    if machine.wave < 0:
        return None
    wave = max((g.wave for g in view.groups if g.wave <= machine.wave), default=machine.wave)
    opened, seen = machine.opened_at[wave], machine.seen
    judged = [
        *rules.failures(spec, view.groups, machine.acknowledged, machine.wave, seen=seen),
        *rules.advance(spec, view.groups, wave, opened, now.timestamp(), seen=seen),
    ]
    names = sorted({group.blueprint for group in view.groups if group.wave <= machine.wave})
    cells = {(gate.rule, gate.metric, gate.blueprint): _cell(gate) for gate in judged}
    share, failures = spec.gates.min_answered, spec.gates.max_failures
    asked = [
        ("Devices answered", f"at least {100 * share:g} %", "answered", ""),
        ("Failures", f"at most {failures}", "failures", ""),
        ("Devices confirmed", f"after {spec.wave_soak_s(wave):g} s of soak", "soak", ""),
    ]
    if spec.gates.max_failure_rate is not None:
        rate = f"not proven above {100 * spec.gates.max_failure_rate:g} %"
        asked.insert(2, ("Failure rate", rate, "failure_rate", ""))
    for metric, tolerance in spec.gates.tolerance.items():
        limit = f"at most {charts.percent(1 + tolerance)}"
        asked.append((METRICS.get(metric, metric), limit, "measurement", metric))
        for key, measured in _measured(view.groups, machine.wave, metric).items():
            cells.setdefault(("measurement", metric, key), _unjudged(measured, tolerance))
    golden = next((gate.limit for gate in judged if gate.metric == rules.GOLDEN), None)
    if golden is not None:
        asked.append(
            (
                "Golden outputs that differ",
                f"at most {100 * golden:.2g} %",
                "measurement",
                rules.GOLDEN,
            )
        )
    rows = [
        GateRow(name, limit, [cells.get((rule, metric, blueprint)) for blueprint in names])
        for name, limit, rule, metric in asked
    ]
    return GateTable(spec.waves[wave].name, names, rows)


def _cell(gate: Gate) -> Cell:
    look = look_of(gate.verdict.value)
    value = look.word if gate.value is None else f"{gate.value:g}"
    evidence = ""
    match gate.rule:
        case "answered":
            value, evidence = f"{value} of {gate.n}", f"{gate.limit:g} needed"
        case "failure_rate" if gate.value is not None:
            value, evidence = f"{100 * gate.value:.2g} %", _share(gate)
        case "measurement" if gate.metric == rules.GOLDEN:
            value, evidence = f"{100 * (gate.value or 0):.2g} %", words.devices(gate.n)
        case "measurement" if gate.value is not None:
            value, evidence = charts.percent(gate.value), _interval(gate.low, gate.high, gate.n)
        case "measurement":
            value, evidence = "missing", words.devices(gate.n)
    return Cell(look, value, evidence, gate.text)


def _unjudged(measured: Measured, tolerance: float) -> Cell:
    """Say what was measured where no gate is judged on it: no device there has confirmed."""
    ratio, low, high = rules.interval(measured)
    look = look_of("breach" if low > 1 + tolerance else "hold")
    text = "measured on devices that did not keep it"
    return Cell(look, charts.percent(ratio), _interval(low, high, measured.n), text)


def _share(gate: Gate) -> str:
    if gate.low is None or gate.high is None:
        return words.devices(gate.n)
    return f"{100 * gate.low:.2g} to {100 * gate.high:.2g} %, n {gate.n}"


def _interval(low: float | None, high: float | None, n: int) -> str:
    if low is None or high is None:
        return words.devices(n)
    if low == 0:  # too few devices for a lower bound
        return f"up to {charts.percent(high)}, n {n}"
    return f"{charts.signed(low)} to {charts.percent(high)}, n {n}"


def _measured(groups: Iterable[Group], last: int, metric: str) -> dict[str, Measured]:
    found: dict[str, Measured] = {}
    for group in groups:
        one = group.measured.get(metric, Measured())
        if group.wave <= last and one.n:
            found[group.blueprint] = found.get(group.blueprint, Measured()).merged(one)
    return found
