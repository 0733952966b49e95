import re
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from control_plane.dashboard.charts import Change, Segment, span, stacked_bar
from control_plane.dashboard.charts import change_chart as draw


def change(ratio: float, *, device: str = "edge-1", verdict: str = "pass") -> Change:
    return Change(device, ratio, ratio * 0.97, ratio * 1.03, verdict)


def change_chart(changes: list[Change], *, tolerance: float | None, title: str) -> str:
    return draw(changes, tolerance=tolerance, title=title, between=span(changes, tolerance))


def labels(svg: str) -> list[tuple[float, float, float]]:
    """Every label as (left, right, baseline), at seven units a character."""
    found = []
    pattern = r'<text[^>]*x="([\d.-]+)" y="([\d.-]+)" text-anchor="(\w+)"[^>]*>([^<]*)<'
    for x, y, anchor, text in re.findall(pattern, svg):
        width = 7.0 * len(text)
        left = {"start": float(x), "middle": float(x) - width / 2, "end": float(x) - width}[anchor]
        found.append((left, left + width, float(y)))
    return found


def test_nothing_measured_draws_nothing() -> None:
    assert change_chart([], tolerance=0.1, title="t") == ""


def test_a_few_devices_are_drawn_one_by_one_and_many_as_a_histogram() -> None:
    few = [change(1 + i / 100, device=f"edge-{i}") for i in range(5)]
    many = [change(1 + i / 1000, device=f"edge-{i}") for i in range(60)]
    assert change_chart(few, tolerance=0.1, title="t").count("<circle") == 5
    histogram = change_chart(many, tolerance=0.1, title="t")
    counted = sum(int(n) for n in re.findall(r": (\d+) devices</title>", histogram))
    assert "<circle" not in histogram
    assert counted == 60


def test_a_regression_is_marked_by_class_and_by_word() -> None:
    svg = change_chart([change(1.8, verdict="regression")], tolerance=0.1, title="t")
    assert '<g class="fail">' in svg
    assert "regression</title>" in svg
    assert "+80.0 %" in svg


@given(
    ratios=st.lists(st.floats(0.05, 4.0), min_size=1, max_size=80),
    tolerance=st.one_of(st.none(), st.floats(0.01, 0.9)),
)
def test_no_two_labels_ever_overlap(ratios: list[float], tolerance: float | None) -> None:
    changes = [change(ratio, device=f"edge-{i}") for i, ratio in enumerate(ratios)]
    placed = labels(change_chart(changes, tolerance=tolerance, title="t"))
    for (left_a, right_a, y_a), (left_b, right_b, y_b) in combinations(placed, 2):
        apart = right_a <= left_b or right_b <= left_a or abs(y_a - y_b) >= 11
        assert apart, (left_a, right_a, y_a, left_b, right_b, y_b)


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=6))
def test_a_bar_is_exactly_full_unless_nothing_is_counted(counts: list[int]) -> None:
    svg = stacked_bar([Segment(f"s{i}", n, "good") for i, n in enumerate(counts)], title="t")
    widths = [float(w) for w in re.findall(r'x="[\d.]+" y="0" width="([\d.]+)"', svg)]
    if sum(counts) == 0:
        assert widths == []
    else:
        assert abs(sum(widths) - 100) < 0.01 * len(widths) + 0.01


def test_text_from_outside_is_escaped() -> None:
    svg = change_chart([change(1.0, device="<script>")], tolerance=None, title='"><x')
    assert "<script>" not in svg
    assert '"><x' not in svg


def test_the_gate_line_does_not_cross_the_label_of_the_median() -> None:
    for ratio in (0.9, 0.98, 1.02, 1.09, 1.2):
        changes = [change(ratio), change(0.8, device="edge-2"), change(ratio, device="edge-3")]
        svg = change_chart([*changes, change(1.6, device="edge-4")], tolerance=0.1, title="t")
        gate = re.search(r'<line class="gate" x1="([\d.]+)"', svg)
        median = next(label for label in labels(svg) if label[2] == 28)
        assert gate
        assert not median[0] < float(gate[1]) < median[1], ratio
