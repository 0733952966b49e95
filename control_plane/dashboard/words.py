"""How facts are said to people: states with an icon and a word, times, sizes; pure."""

from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlencode


@dataclass(frozen=True)
class Look:
    """How a state looks: colour never stands alone."""

    icon: str
    word: str
    css: str


_LOOKS = {
    "healthy": Look("✓", "healthy", "pass"),
    "unhealthy": Look("✕", "unhealthy", "fail"),
    "offline": Look("◔", "offline", "hold"),
    "quarantined": Look("✕", "quarantined", "fail"),
    "accepted": Look("✓", "accepted", "pass"),
    "refused": Look("✕", "refused", "fail"),
    # trials and gates
    "pass": Look("✓", "pass", "pass"),
    "regression": Look("✕", "regression", "fail"),
    "wrong_output": Look("✕", "wrong output", "fail"),
    "over_limit": Look("✕", "over limit", "fail"),
    "inconclusive": Look("◔", "inconclusive", "hold"),
    "breach": Look("✕", "breached", "fail"),
    "hold": Look("◔", "waits", "hold"),
    # executions
    "SUCCEEDED": Look("✓", "succeeded", "pass"),
    "ROLLED_BACK": Look("↩", "rolled back", "fail"),
    "FAILED": Look("✕", "failed", "fail"),
    "TIMED_OUT": Look("✕", "timed out", "fail"),
    "REJECTED": Look("✕", "rejected", "fail"),
    "CANCELED": Look("◔", "canceled", "hold"),
    "SUPERSEDED": Look("◔", "superseded", "hold"),
    # rollouts
    "HALTED": Look("✕", "halted by a gate", "fail"),
    "PAUSED": Look("◔", "paused by a person", "hold"),
    "AWAITING_APPROVAL": Look("◔", "waits for approval", "hold"),
    "REVERTED": Look("↩", "reverted", "hold"),
    "ABORTED": Look("✕", "aborted", "fail"),
}

WAITING = ("HALTED", "PAUSED", "AWAITING_APPROVAL")
BUSY = ("OFFERED", "DOWNLOADING", "STAGED", "BENCHMARKING", "ACTIVATING", "SOAKING")
FAILED = ("FAILED", "TIMED_OUT", "REJECTED")
ENDED = ("SUCCEEDED", "ROLLED_BACK", *FAILED, "CANCELED", "SUPERSEDED")


def look_of(state: str) -> Look:
    """Return how a state, verdict or health word looks."""
    return _LOOKS.get(state) or Look("◌", state.replace("_", " ").lower(), "busy")


def since(moment: datetime, now: datetime) -> str:
    """Return the time from `moment` to `now`, such as ``12 s``."""
    seconds = max(0, int((now - moment).total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size or (seconds >= size and unit != "d"):
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def query(**values: str) -> str:
    """Return a query string of the values that are not empty."""
    return urlencode({key: value for key, value in values.items() if value})


def megabytes(size: int) -> str:
    """Return bytes as decimal megabytes."""
    return f"{size / 1e6:.2f} MB"


def share(part: float, whole: float) -> str:
    """Return a share in percent; a dash when there is no whole."""
    return f"{100 * part / whole:.0f} %" if whole else "-"


def number(value: float | None) -> str:
    """Return a measured number in four significant digits; a dash when it was not measured."""
    return "-" if value is None else f"{value:.4g}"


def devices(n: int) -> str:
    """Return a number of devices in words."""
    return f"{n} device{'' if n == 1 else 's'}"


def said(reason: str) -> str:
    """Return a reason code in words: ``trial.wrong_output`` becomes ``trial: wrong output``."""
    return reason.replace(".", ": ").replace("_", " ")


_FACTS = {
    "arch": "architecture",
    "cpu": "CPU",
    "os": "OS",
    "memory_mb": "memory (MB)",
    "disk_free_mb": "free disk (MB)",
}


def fact(name: str) -> str:
    """Return what a hardware fact is called."""
    return _FACTS.get(name, name.replace("_", " "))
