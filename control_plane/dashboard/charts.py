"""Charts as SVG text: pure functions, no script, colours from the page's own stylesheet.

Every length is in SVG user units; text sits on lines of its own, so that no two labels can meet.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

WIDTH = 380
LEFT, RIGHT = 104, 16
ROW = 22
TOP = 40
FOREST_MAX = 16
BINS = 30
MOST_NAME = 14
LABEL = 112  # room for the longest label of a rule
MOST_TICKS = 5
MARGIN = 1.1
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Change:
    """One device's paired change: ratio candidate / incumbent with its interval."""

    device: str
    ratio: float
    low: float
    high: float
    verdict: str


@dataclass(frozen=True)
class Segment:
    """A share of a bar: what it counts, how many, and its CSS class."""

    label: str
    n: int
    css: str


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float

    def x(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)


def signed(ratio: float) -> str:
    """Return a ratio as a signed number of percent, such as ``+11.4``."""
    return f"{(ratio - 1) * 100:+.1f}"


def percent(ratio: float) -> str:
    """Return a ratio as a signed percentage, such as ``+11.4 %``."""
    return f"{signed(ratio)} %"


def stacked_bar(segments: Sequence[Segment], *, title: str) -> str:
    """Return a full-width bar; an empty one when nothing is counted."""
    total = sum(s.n for s in segments)
    parts = []
    at = 0.0
    for segment in segments:
        if segment.n == 0:
            continue
        width = 100 * segment.n / total
        parts.append(
            f'<rect class="{segment.css}" x="{at:.3f}" y="0" width="{width:.3f}" height="6">'
            f"<title>{escape(segment.label)}: {segment.n}</title></rect>"
        )
        at += width
    return (
        '<svg class="bar" viewBox="0 0 100 6" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)}"><rect class="track" width="100" height="6"/>'
        f"{''.join(parts)}</svg>"
    )


def median(changes: Sequence[Change]) -> float:
    """Return the median ratio of at least one change."""
    return statistics.median(change.ratio for change in changes)


def median_words(changes: Sequence[Change]) -> str:
    """Return the median change as a percentage."""
    return percent(median(changes))


def span(changes: Sequence[Change], tolerance: float | None) -> tuple[float, float]:
    """Return the ratios between which an axis must run to show it all, no change included."""
    values = [v for c in changes for v in (c.low, c.high, c.ratio)]
    limits = [] if tolerance is None else [1 + tolerance]
    below, above = 1 - min([0.98, *values]), max([1.05, *values, *limits]) - 1
    return 1 - min(below * MARGIN, 1.0), 1 + min(above * MARGIN, 4.0)


def change_chart(
    changes: Sequence[Change], *, tolerance: float | None, title: str, between: tuple[float, float]
) -> str:
    """Return the change per device: a forest plot, or a histogram when there are many.

    Args:
        changes: one entry a device; ratio over 1 is worse.
        tolerance: tolerated relative worsening, drawn as the gate; None for no gate.
        title: what is compared, for screen readers.
        between: the ends of the axis, from `span`; charts side by side share them.
    """
    if not changes:
        return ""
    scale = _Scale(*between)
    ordered = sorted(changes, key=lambda c: (c.ratio, c.device))
    middle = median(ordered)
    if len(changes) <= FOREST_MAX:
        body, height = _forest(ordered, scale)
    else:
        body, height = _histogram(ordered, scale, tolerance)
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height + 38}" role="img" '
        f'aria-label="{escape(title)}, median {percent(middle)}">'
        f"{_rules(scale, tolerance, middle, height)}{body}{_axis(scale, height)}</svg>"
    )


def _rules(scale: _Scale, tolerance: float | None, middle: float, height: float) -> str:
    """The zero line, the gate and the median; the labels on lines of their own, side by side."""
    zero, at = scale.x(1), scale.x(middle)
    gate = scale.high if tolerance is None else 1 + tolerance
    out = [f'<line class="zero" x1="{zero:.1f}" x2="{zero:.1f}" y1="{TOP - 4}" y2="{height}"/>']
    if tolerance is not None:
        x, label = scale.x(gate), f"gate {percent(gate)}"
        out.append(_rule(x, 12, _Label(label, "gate", x > WIDTH - LABEL), height))
    # Away from the gate's line, which would cross it; unless it would leave the picture.
    left = (middle <= gate and at > LABEL) or at > WIDTH - LABEL
    out.append(_rule(at, 28, _Label(f"median {percent(middle)}", "median", left), height))
    return "".join(out)


@dataclass(frozen=True)
class _Label:
    text: str
    css: str
    left: bool


def _rule(x: float, y: float, label: _Label, height: float) -> str:
    anchor, dx = ("end", -6) if label.left else ("start", 6)
    return (
        f'<line class="{label.css}" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 9}" y2="{height}"/>'
        f'<text class="{label.css}" x="{x + dx:.1f}" y="{y}" text-anchor="{anchor}">'
        f"{escape(label.text)}</text>"
    )


def _forest(changes: Sequence[Change], scale: _Scale) -> tuple[str, float]:
    out = []
    for row, change in enumerate(changes):
        y = TOP + row * ROW + ROW / 2
        low, high = scale.x(change.low), scale.x(change.high)
        said = f"{percent(change.ratio)} ({percent(change.low)} to {percent(change.high)})"
        css = "pass" if change.verdict == "pass" else "fail"
        if change.verdict == "inconclusive":
            css = "hold"
        out.append(
            f'<g class="{css}"><text class="name" x="{LEFT - 12}" y="{y + 4}" text-anchor="end">'
            f"{escape(_short(change.device))}</text>"
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>'
            f'<circle cx="{scale.x(change.ratio):.1f}" cy="{y}" r="4.5"/>'
            f"<title>{escape(change.device)}: {said}, {escape(change.verdict)}</title></g>"
        )
    return "".join(out), TOP + len(changes) * ROW + 4


def _histogram(
    changes: Sequence[Change], scale: _Scale, tolerance: float | None
) -> tuple[str, float]:
    step = (scale.high - scale.low) / BINS
    counts = [0] * BINS
    for change in changes:
        counts[min(BINS - 1, max(0, int((change.ratio - scale.low) / step)))] += 1
    tallest, base = max(counts), TOP + 140
    edges = [scale.low + i * step for i in range(BINS + 1)]
    out = []
    for count, (low, high) in zip(counts, pairwise(edges), strict=True):
        if count == 0:
            continue
        css = "fail" if tolerance is not None and low >= 1 + tolerance else "pass"
        tall = 136 * count / tallest
        out.append(
            f'<rect class="{css}" x="{scale.x(low) + 0.5:.1f}" y="{base - tall:.1f}" '
            f'width="{scale.x(high) - scale.x(low) - 1:.1f}" height="{tall:.1f}">'
            f"<title>{percent(low)} to {percent(high)}: {count} devices</title></rect>"
        )
    return "".join(out), base


def _axis(scale: _Scale, height: float) -> str:
    out = [f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height}" y2="{height}"/>']
    out += [
        f'<text class="tick" x="{scale.x(1 + change):.1f}" y="{height + 16}" '
        f'text-anchor="middle">{_tick(change)}</text>'
        for change in _ticks(scale)
    ]
    out.append(
        f'<text class="tick" x="{WIDTH - RIGHT}" y="{height + 31}" text-anchor="end">'
        "% change, right is worse</text>"
    )
    return "".join(out)


def _ticks(scale: _Scale) -> list[float]:
    """Round changes at even steps, both ways from none; few enough to stand apart."""
    length = scale.high - scale.low
    step = next((size for size in STEPS if length / size <= MOST_TICKS), STEPS[-1])
    steps = range(-MOST_TICKS, MOST_TICKS + 1)
    return [i * step for i in steps if scale.low <= 1 + i * step <= scale.high]


def _tick(change: float) -> str:
    return f"{100 * change:+.0f}" if change else "0"


def _short(name: str) -> str:
    return name if len(name) <= MOST_NAME else f"{name[: MOST_NAME - 1]}…"
