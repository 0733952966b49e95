"""One number that we claim, with its goal and what it is measured against in the same run."""

from typing import TypedDict


class Row(TypedDict):
    """One number."""

    name: str
    value: float
    unit: str
    goal: str
    """A bound on the value, such as ``<= 0.15``; empty: the number is published, not promised."""
    reference: float | None
    """Measured side by side in the same run: a peer, a physical limit, the naive way."""
    ratio: float | None
    """value / reference."""


def row(name: str, value: float, unit: str, goal: str = "", reference: float | None = None) -> Row:
    """Return a row; its ratio follows from the reference."""
    ratio = value / reference if reference else None
    return Row(name=name, value=value, unit=unit, goal=goal, reference=reference, ratio=ratio)
