"""What a simulated rollout asks for: each document is drawn, plain ones more often than others."""

from collections.abc import Collection
from datetime import UTC, datetime
from random import Random
from typing import Any

from tests.simulation import bundles
from tests.simulation.agenda import START

PEOPLE = ("ada", "ben", "cara", "dora")
"""Ada writes the rollouts."""
JOINING = 'labels.ring = "on"'
_CRONS = ("*/15 * * * *", "*/30 * * * *", "0 * * * *")
_ZONES = ("UTC", "Europe/Vienna", "America/New_York")


def document(
    draw: Random, number: int, devices: int, faults_s: float, always: Collection[str] = ()
) -> dict[str, Any]:
    """Draw one rollout of the next model version.

    Args:
        draw: the stream of draws.
        number: how many rollouts were drawn before.
        devices: how many there are.
        faults_s: when the last of its times may come, in seconds after the beginning.
        always: what it asks for whatever is drawn: windows, budgets and so on.
    """
    version = bundles.VERSIONS[number + 1]
    spec: dict[str, Any] = {"model": bundles.MODEL, "version": version, **_plain(draw, devices)}
    for likely, more in (
        (0.14, _windows),
        (0.16, _budgets),
        (0.16, _growth),
        (0.12, _wave_pace),
        (0.14, _wave_timeout),
        (0.18, _approval),
        (0.30, _priority),
        (0.12, _dynamic),
        (0.10, _steps),
    ):
        if draw.random() < likely or more.__name__.strip("_") in always:
            more(draw, spec)
    if draw.random() < 0.08:
        at = datetime.fromtimestamp(START + draw.random() * faults_s, UTC)
        spec["not_before"] = at.isoformat(timespec="seconds")
    return {
        "apiVersion": "flotilla/v1",
        "kind": "Rollout",
        "metadata": {"name": f"slm-{version}"},
        "spec": spec,
    }


def _plain(draw: Random, devices: int) -> dict[str, Any]:
    waves: list[dict[str, Any]] = [{"name": "everyone", "percent": 100}]
    if draw.random() < 0.75:
        waves.insert(0, {"name": "canary", "count": 1 + int(draw.random() * 2)})
    if devices > 3 and draw.random() < 0.4:
        waves.insert(-1, {"name": "half", "percent": 60})
    return {
        "waves": waves,
        "soak": f"{draw.choice((0, 0, 30, 200))}s",
        "pace": {"max_in_flight": draw.choice((1, 1, 2, 3, 10)), "per_minute": 60},
        "gates": {
            "max_failures": draw.choice((0, 0, 0, 1, 2)),
            "min_answered": draw.choice((1.0, 1.0, 0.5)),
            "scope": draw.choice(("rollout", "rollout", "blueprint")),
        },
        "timeouts": {
            "silent": f"{draw.choice((400, 900, 2700))}s",
            "execution": f"{draw.choice((900, 1800, 5400))}s",
        },
        "trial": {"retry": "120s"},
        "on_breach": draw.choice(("halt", "halt", "revert")),
    }


def _windows(draw: Random, spec: dict[str, Any]) -> None:
    names = draw.choice((("download",), ("activate",), ("download", "activate")))
    spec["windows"] = {
        name: {
            "cron": draw.choice(_CRONS),
            "duration": f"{draw.choice((3, 5, 10))}m",
            "timezone": draw.choice(_ZONES),
        }
        for name in names
    }


def _budgets(draw: Random, spec: dict[str, Any]) -> None:
    spec["budgets"] = [{"label": "site", "max": draw.choice((1, 1, 2))}]
    spec["pace"]["max_in_flight"] = 10  # so that the budget is what binds


def _growth(draw: Random, spec: dict[str, Any]) -> None:
    growth = {"factor": 2, "every": draw.choice((1, 2)), "limit": 8}
    spec["pace"] = {"max_in_flight": 10, "per_minute": 1, "growth": growth}


def _wave_pace(draw: Random, spec: dict[str, Any]) -> None:
    wave = draw.choice(spec["waves"])
    wave["pace"] = {"max_in_flight": draw.choice((1, 2)), "per_minute": draw.choice((1, 2))}


def _wave_timeout(draw: Random, spec: dict[str, Any]) -> None:
    draw.choice(spec["waves"])["timeout"] = f"{draw.choice((300, 900, 2400))}s"


def _approval(draw: Random, spec: dict[str, Any]) -> None:
    asked: list[Any] = [
        "required",
        {"needed": 2},
        {"needed": 1, "of": ["cara"]},
        {"needed": 2, "of": list(PEOPLE[1:])},
    ]
    draw.choice((*spec["waves"], spec))["approval"] = draw.choice(asked)


def _priority(draw: Random, spec: dict[str, Any]) -> None:
    spec["priority"] = draw.choice((40, 60, 60))


def _dynamic(draw: Random, spec: dict[str, Any]) -> None:
    spec["dynamic"] = draw.random() < 0.8
    spec["selector"] = JOINING


def _steps(draw: Random, spec: dict[str, Any]) -> None:
    step = draw.choice(("downloading", "benchmarking", "soaking"))
    spec["timeouts"]["steps"] = {step: "450s"}


# --- what a document's words mean -----------------------------------------------------------------

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(text: str) -> float:
    """Return a duration as a document writes it."""
    unit = "ms" if text.endswith("ms") else text[-1]
    return float(text.removesuffix(unit)) * _UNITS[unit]


def seconds_of(text: str) -> float:
    """Return a moment as a document writes it, in Unix seconds."""
    return datetime.fromisoformat(text).timestamp()


def is_open(window: dict[str, Any] | None, at: float) -> bool:
    """Return whether a window of one of our cron lines, in zones of whole hours, is open."""
    return window is None or at % _every(window) < seconds(window["duration"])


def next_opening(window: dict[str, Any], at: float) -> float:
    """Return when it opens next, in Unix seconds."""
    every = _every(window)
    return (at // every + 1) * every


def _every(window: dict[str, Any]) -> float:
    minute = window["cron"].split()[0]
    return 3600.0 if minute == "0" else 60.0 * int(minute.removeprefix("*/"))
