"""The Rollout document of `apply -f`: read strictly, errors name the field; and written again."""

from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from agent.protocol.words import ExecutionState
from control_plane.domain import selector, windows
from control_plane.domain.errors import InvalidError
from control_plane.domain.rollout import (
    Approval,
    BreachScope,
    Budget,
    GatePolicy,
    Growth,
    OnBreach,
    Pace,
    RolloutSpec,
    Timeouts,
    TrialSpec,
    WaveSpec,
    Windows,
)
from control_plane.domain.windows import Window
from control_plane.services import rollout_fields as fields

API_VERSION = "flotilla/v1"


def parse(document: object) -> RolloutSpec:
    """Read a document that YAML or JSON gave.

    Raises:
        InvalidError: names the first wrong field by its path, and what it should be.
    """
    try:
        read = fields.RolloutDocument.model_validate(document)
    except ValidationError as error:
        raise _first(error) from error
    spec = _domain(read.metadata.name, read.spec)
    selector.parse(spec.selector, field="spec.selector")
    for index, wave in enumerate(spec.waves):
        if wave.selector:
            selector.parse(wave.selector, field=f"spec.waves[{index}].selector")
        _check_growth(wave.pace, f"spec.waves[{index}].pace")
    _check_growth(spec.pace, "spec.pace")
    _check_windows(spec.windows)
    _check_steps(spec)
    return spec


def spec_of(name: str, spec: dict[str, Any]) -> RolloutSpec:
    """Read back the `spec` that `to_document` wrote."""
    return _domain(name, fields.Spec.model_validate(spec))


def to_document(spec: RolloutSpec) -> dict[str, Any]:
    """Write a rollout as a document, every default spelled out."""
    return {
        "apiVersion": API_VERSION,
        "kind": "Rollout",
        "metadata": {"name": spec.name},
        "spec": _spec(spec),
    }


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a Rollout document, for editors."""
    return fields.RolloutDocument.model_json_schema()


# --- reading ----------------------------------------------------------------------------------


def _domain(name: str, spec: fields.Spec) -> RolloutSpec:
    gates, trial = spec.gates, spec.trial
    pace = Pace(spec.pace.max_in_flight, spec.pace.per_minute, _growth(spec.pace.growth))
    waves = [_wave_spec(wave, pace) for wave in spec.waves]
    if spec.approval and not waves[0].approval:  # of the rollout: its first wave waits
        waves[0] = replace(waves[0], approval=_approval(spec.approval))
    return RolloutSpec(
        name=name,
        model=spec.model,
        version=spec.version,
        waves=tuple(waves),
        selector=spec.selector,
        soak_s=spec.soak,
        pace=pace,
        gates=GatePolicy(
            gates.min_answered,
            gates.max_failures,
            {str(name): limit for name, limit in gates.tolerance.items()},
            BreachScope(gates.scope),
            gates.max_failure_rate,
        ),
        trial=TrialSpec(trial.min_blocks, trial.max_blocks, trial.tokens, trial.retry),
        timeouts=Timeouts(
            spec.timeouts.silent,
            spec.timeouts.execution,
            {ExecutionState(step.upper()): at for step, at in spec.timeouts.steps.items()},
        ),
        not_before=None if spec.not_before is None else spec.not_before.timestamp(),
        on_breach=OnBreach(spec.on_breach),
        max_tries=spec.max_tries,
        budgets=tuple(Budget(budget.label, budget.max) for budget in spec.budgets),
        windows=Windows(_window(spec.windows.download), _window(spec.windows.activate)),
        priority=spec.priority,
        dynamic=spec.dynamic,
    )


def _wave_spec(wave: fields.WaveDocument, whole: Pace) -> WaveSpec:
    return WaveSpec(
        wave.name,
        wave.count,
        wave.percent,
        wave.soak,
        _approval(wave.approval),
        wave.selector or "",
        wave.timeout,
        None if wave.pace is None else _own_pace(wave.pace, whole),
    )


def _own_pace(own: fields.WavePaceDocument, whole: Pace) -> Pace:
    said = own.model_fields_set
    return Pace(
        own.max_in_flight or whole.max_in_flight,
        own.per_minute or whole.per_minute,
        _growth(own.growth) if "growth" in said else whole.growth,
    )


def _growth(growth: fields.GrowthDocument | None) -> Growth | None:
    return None if growth is None else Growth(growth.factor, growth.every, growth.limit)


def _approval(approval: fields.ApprovalDocument | None) -> Approval | None:
    return None if approval is None else Approval(approval.needed, tuple(approval.of))


def _window(window: fields.WindowDocument | None) -> Window | None:
    return None if window is None else Window(window.cron, window.duration, window.timezone)


def _check_growth(pace: Pace | None, where: str) -> None:
    if pace is not None and pace.growth is not None and pace.growth.limit < pace.per_minute:
        field = f"{where}.growth.limit"
        text = f"the limit {pace.growth.limit} is below per_minute, {pace.per_minute}"
        raise InvalidError(f"rollout: {field}: {text}", field=field)


def _check_windows(both: Windows) -> None:
    for name, window in (("download", both.download), ("activate", both.activate)):
        wrong = None if window is None else windows.problem(window)
        if wrong is not None:
            field = f"spec.windows.{name}.{wrong[0]}"
            raise InvalidError(f"rollout: {field}: {wrong[1]}", field=field)


def _check_steps(spec: RolloutSpec) -> None:
    limit = spec.timeouts.steps.get(ExecutionState.SOAKING)
    longest = max(spec.wave_soak_s(wave) for wave in range(len(spec.waves)))
    if limit is not None and limit <= longest:
        field = "spec.timeouts.steps.soaking"
        text = f"{_text(limit)} is over before the soak of {_text(longest)}: nobody could confirm"
        raise InvalidError(f"rollout: {field}: {text}", field=field)


# --- writing ----------------------------------------------------------------------------------


def _spec(spec: RolloutSpec) -> dict[str, Any]:
    written: dict[str, Any] = {
        "model": spec.model,
        "version": spec.version,
        "selector": spec.selector,
        "waves": [_wave(wave) for wave in spec.waves],
        "soak": _text(spec.soak_s),
        "pace": _pace(spec.pace),
        "budgets": [{"label": budget.label, "max": budget.max} for budget in spec.budgets],
        "gates": _gates(spec.gates),
        "trial": {
            "min_blocks": spec.trial.min_blocks,
            "max_blocks": spec.trial.max_blocks,
            "tokens": spec.trial.tokens,
            "retry": _text(spec.trial.retry_s),
        },
        "timeouts": {
            "silent": _text(spec.timeouts.silent_s),
            "execution": _text(spec.timeouts.execution_s),
            "steps": {step.lower(): _text(at) for step, at in spec.timeouts.steps.items()},
        },
        "approval": _people(spec.waves[0].approval),
        "priority": spec.priority,
        "dynamic": spec.dynamic,
        "on_breach": spec.on_breach.value,
        "max_tries": spec.max_tries,
    }
    both = {"download": spec.windows.download, "activate": spec.windows.activate}
    written["windows"] = {name: _opens(one) for name, one in both.items() if one is not None}
    if spec.not_before is not None:
        written["not_before"] = datetime.fromtimestamp(spec.not_before, UTC).isoformat()
    return written


def _wave(wave: WaveSpec) -> dict[str, Any]:
    written: dict[str, Any] = {"name": wave.name}
    if wave.selector:
        written["selector"] = wave.selector
    elif wave.count is None:
        written["percent"] = wave.percent
    else:
        written["count"] = wave.count
    if wave.soak_s is not None:
        written["soak"] = _text(wave.soak_s)
    if wave.approval is not None:
        written["approval"] = _people(wave.approval)
    if wave.timeout_s is not None:
        written["timeout"] = _text(wave.timeout_s)
    if wave.pace is not None:
        written["pace"] = {"growth": None, **_pace(wave.pace)}
    return written


def _pace(pace: Pace) -> dict[str, Any]:
    written: dict[str, Any] = {
        "max_in_flight": pace.max_in_flight,
        "per_minute": pace.per_minute,
    }
    if pace.growth is not None:
        written["growth"] = asdict(pace.growth)
    return written


def _gates(gates: GatePolicy) -> dict[str, Any]:
    rate = gates.max_failure_rate
    return {
        "min_answered": gates.min_answered,
        "max_failures": gates.max_failures,
        **({} if rate is None else {"max_failure_rate": rate}),
        "tolerance": dict(gates.tolerance),
        "scope": gates.scope.value,
    }


def _people(approval: Approval | None) -> str | dict[str, Any]:
    if approval is None:
        return "none"
    if approval == Approval():
        return "required"
    return {"needed": approval.needed, "of": list(approval.of)}


def _opens(window: Window) -> dict[str, Any]:
    return {
        "cron": window.cron,
        "duration": _text(window.duration_s),
        "timezone": window.timezone,
    }


def _text(seconds: float) -> str:
    for unit in ("d", "h", "m", "s"):
        if seconds >= fields.UNITS[unit] and seconds % fields.UNITS[unit] == 0:
            return f"{seconds / fields.UNITS[unit]:.0f}{unit}"
    return f"{seconds * 1000:.0f}ms"


# --- what was wrong ---------------------------------------------------------------------------


def _first(error: ValidationError) -> InvalidError:
    first = error.errors(include_url=False, include_context=False)[0]
    # A mapping's wrong key is told as the step ("steps", "cooking", "[key]").
    location = tuple(part for part in first["loc"] if part != "[key]")
    path = _path(location)
    others = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    known = ""
    if first["type"] == "extra_forbidden":
        known = f"; known here: {', '.join(_fields(location[:-1]))}"
    return InvalidError(f"rollout: {path}: {first['msg']}{known}{others}", field=path)


def _fields(location: tuple[int | str, ...]) -> list[str]:
    """Return the fields that a mapping of the document may have."""
    place = ".".join(part for part in location if isinstance(part, str))
    known = fields.PLACES.get(place)
    return [] if known is None else sorted(known.model_fields)


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path or "document"
