"""The table and the picture of docs/gates.md: ``python -m tests.benchmarks.gates_picture``.

``--pairs FILE`` takes pairs that ``tests.benchmarks.trial_noise --save FILE`` has measured.
"""

import argparse
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

from scipy.special import stdtrit

from control_plane.domain import gates, measured
from control_plane.domain.gates import Group, Measured
from control_plane.domain.rollout import RolloutSpec, WaveSpec
from tests.benchmarks.gates import (
    DEVICES,
    POLICY,
    STRICT,
    Device,
    E,
    at_the_edge,
    halted,
    playing,
    proven,
)
from tests.benchmarks.trial_noise import Pair, collect

OUT = Path("docs/images/gates.svg")
ROLLOUTS = 2000
BETWEEN = (0.0, 0.02, 0.04)
SLOWER = (1.0, 1.05, 1.08, 1.15)
WIDTH, HEIGHT, LEFT, BOTTOM = 720, 300, 56, 40
LOWEST, HIGHEST = 0.92, 1.24


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--pairs", type=Path)
    given = ask.parse_args()
    pairs: list[Pair] = (
        json.loads(given.pairs.read_text()) if given.pairs else collect("1.1.0", 60, together=True)
    )
    OUT.write_text(picture())
    print("| truly slower by | devices differ by | proven and halted | halted in all | passes |")
    print("|---|---|---|---|---|")
    for between in BETWEEN:
        edge = halted(at_the_edge(pairs, between), ROLLOUTS, _spec(halts=False), proven)
        print(f"| each tolerance, exactly | {between:.0%} | {edge:.2f} % | - | - |", flush=True)
        for slower in SLOWER:
            print(_line(playing(pairs, slower, between), slower, between), flush=True)


def _spec(*, halts: bool) -> RolloutSpec:
    policy = STRICT if halts else POLICY
    return RolloutSpec("r", "m", "2", (WaveSpec("all", percent=100),), soak_s=0, gates=policy)


def _line(devices: Sequence[Device], slower: float, between: float) -> str:
    alone = halted(devices, ROLLOUTS, _spec(halts=False), proven)
    whole = halted(devices, ROLLOUTS, _spec(halts=True), proven)
    passes = halted(devices, ROLLOUTS, _spec(halts=False), _passes_at_last)
    return f"| {slower - 1:.0%} | {between:.0%} | {alone:.2f} % | {whole:.2f} % | {passes:.1f} % |"


def _passes_at_last(spec: RolloutSpec, group: Group) -> bool:
    """Return whether all have answered and the measurements let the next wave open."""
    if group.measured["token_ms"].n < DEVICES:
        return False
    trials = {gates.TRIALS: Measured(n=DEVICES), **group.measured}
    done = Group(0, "x", {E.SUCCEEDED: DEVICES}, trials)
    judged = gates.advance(spec, [done], 0, 0.0, 1.0)
    return all(gate.verdict is gates.Verdict.PASS for gate in judged)


def picture() -> str:
    """Draw the bounds around one growing mean, with Student's for a fixed number beside them."""
    draw = random.Random(5)
    whole = Measured()
    ours: list[tuple[int, float, float]] = []
    fixed: list[tuple[int, float, float]] = []
    dots = []
    for n in range(1, 41):
        log = math.log(1.15) + draw.gauss(0, 0.03)
        whole = whole.merged(Measured(1, log, log * log, 0.02**2))
        dots.append((n, math.exp(log)))
        _, low, high = measured.interval(whole, measured.HALT_ERROR / 4)
        ours.append((n, low, high))
        if n >= measured.ENOUGH_FOR_SPREAD:
            fixed.append((n, *_student(whole)))
    body = [
        _area(fixed, "#9aa5b1", 0.45),
        _area(ours, "#2f6fde", 0.25),
        *(f'<circle cx="{_x(n):.1f}" cy="{_y(v):.1f}" r="2" fill="#444"/>' for n, v in dots),
        _rule(1.10, "#c0392b", "tolerated: 1.10"),
        _rule(1.15, "#444", "true: 1.15"),
        *(_text(_x(n), HEIGHT - BOTTOM + 18, str(n), "middle") for n in (1, 5, 10, 20, 30, 40)),
        *(_text(LEFT - 8, _y(v) + 4, f"{v:.2f}", "end") for v in (0.95, 1.0, 1.05, 1.2)),
        _text(WIDTH / 2, HEIGHT - 6, "devices that have answered", "middle"),
        _text(
            LEFT + 90,
            HEIGHT - BOTTOM - 8,
            "blue: may be looked at after every device; grey: only once",
            "start",
        ),
    ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
    return head + 'font-family="sans-serif" font-size="12">\n' + "\n".join(body) + "\n</svg>\n"


def _student(m: Measured) -> tuple[float, float]:
    variance = (m.sum_log2 - m.sum_log**2 / m.n) / (m.n - 1)
    error = math.sqrt(variance / m.n)
    low = m.sum_log / m.n - float(stdtrit(m.n - 1, 1 - measured.HALT_ERROR / 4)) * error
    high = m.sum_log / m.n + float(stdtrit(m.n - 1, 1 - measured.PASS_ERROR)) * error
    return math.exp(low), math.exp(high)


def _x(n: float) -> float:
    return LEFT + (n - 1) / 39 * (WIDTH - LEFT - 16)


def _y(ratio: float) -> float:
    inside = (min(HIGHEST, max(LOWEST, ratio)) - LOWEST) / (HIGHEST - LOWEST)
    return (HEIGHT - BOTTOM) * (1 - inside)


def _area(bounds: Sequence[tuple[int, float, float]], colour: str, opacity: float) -> str:
    there = [f"{_x(n):.1f},{_y(low):.1f}" for n, low, _ in bounds]
    back = [f"{_x(n):.1f},{_y(high):.1f}" for n, _, high in reversed(bounds)]
    return f'<polygon points="{" ".join(there + back)}" fill="{colour}" opacity="{opacity}"/>'


def _rule(ratio: float, colour: str, words: str) -> str:
    y = f"{_y(ratio):.1f}"
    line = f'<line x1="{LEFT}" x2="{WIDTH - 16}" y1="{y}" y2="{y}" stroke="{colour}"/>'
    return line + _text(WIDTH - 18, _y(ratio) - 4, words, "end")


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'


if __name__ == "__main__":
    main()
