import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import verdict
from agent.protocol.manifest import Limits
from agent.protocol.messages import Bench, Metric, TrialPolicy
from agent.protocol.words import Verdict
from agent.verdict import METRICS, Judgement, Terms

NO_LIMITS = Limits()
POLICY = TrialPolicy(min_blocks=5, max_blocks=12)
QUIET = [1.01, 0.99, 1.0, 1.005, 0.995]
# One tail of Student's t, from printed tables.
TABLE = [
    (0.05, 1, 6.314),
    (0.05, 4, 2.132),
    (0.025, 9, 2.262),
    (0.01, 11, 2.718),
    (0.005, 2, 9.925),
]


def by(
    *, limits: Limits = NO_LIMITS, agreement: float = 1.0, paired: bool = True, **tolerances: float
) -> Terms:
    policy = TrialPolicy(tolerances=tolerances)
    return verdict.terms(policy, limits, agreement=agreement, min_agreement=0.9, paired=paired)


def blocks(scale: float = 1.0, **ratios: list[float]) -> dict[str, list[float]]:
    """A trial in which every metric that is not given has quiet ratios around 1."""
    found: dict[str, list[float]] = {"looks": [5.0, 7.0, 10.0, 12.0]}
    for name in METRICS:
        series = ratios.get(name, QUIET)
        found[f"ratio.{name}"] = series
        found[f"incumbent.{name}"] = [scale] * len(series)
        found[f"candidate.{name}"] = [scale * ratio for ratio in series]
    return found


def metric(judgement: Judgement, name: str) -> Metric:
    return next(one for one in judgement.metrics if one.name == name)


def test_two_models_that_run_alike_pass() -> None:
    judgement = verdict.judge(blocks(), by())
    assert judgement.verdict is Verdict.PASS
    assert [one.name for one in judgement.metrics] == ["golden_disagreement", *METRICS]


def test_a_model_that_is_clearly_slower_is_a_regression_with_its_evidence() -> None:
    slower = [1.8 * ratio for ratio in QUIET]
    judgement = verdict.judge(blocks(token_ms=slower), by())
    found = metric(judgement, "token_ms")
    assert judgement.verdict is Verdict.REGRESSION
    assert found.ci_low is not None
    assert found.ci_high is not None
    assert found.ratio is not None
    assert 1 < found.ci_low < found.ratio < found.ci_high
    assert found.ratio == pytest.approx(1.8, rel=0.01)
    assert (found.n, found.tolerance) == (5, 0.10)


def test_a_slowdown_within_the_tolerance_is_not_a_regression() -> None:
    slower = [1.05 * ratio for ratio in QUIET]
    assert verdict.judge(blocks(token_ms=slower), by()).verdict is Verdict.PASS


def test_a_slow_mean_in_loud_noise_is_inconclusive() -> None:
    loud = [0.7, 1.9, 0.8, 1.6, 1.2]
    assert verdict.judge(blocks(token_ms=loud), by()).verdict is Verdict.INCONCLUSIVE


def test_wrong_outputs_outweigh_every_other_finding() -> None:
    slow = blocks(token_ms=[2.0] * 5)
    judgement = verdict.judge(slow, by(agreement=0.89, limits=Limits(token_ms=0.1)))
    assert judgement.verdict is Verdict.WRONG_OUTPUT


def test_wrong_outputs_need_no_measurement() -> None:
    assert verdict.judge({}, by(agreement=0.0)).verdict is Verdict.WRONG_OUTPUT


def test_agreement_at_its_limit_is_right() -> None:
    assert verdict.judge(blocks(), by(agreement=0.9)).verdict is Verdict.PASS


def test_a_limit_holds_whatever_the_comparison_says() -> None:
    judgement = verdict.judge(blocks(), by(limits=Limits(memory_mb=0.5)))
    assert judgement.verdict is Verdict.OVER_LIMIT
    assert metric(judgement, "memory_mb").verdict is Verdict.OVER_LIMIT


def test_without_an_incumbent_only_the_limits_count() -> None:
    alone = {name: values for name, values in blocks().items() if not name.startswith("ratio")}
    found = verdict.judge(alone, by(paired=False, limits=Limits(token_ms=2.0)))
    assert found.verdict is Verdict.PASS
    assert metric(found, "token_ms").ratio is None
    over = verdict.judge(alone, by(paired=False, limits=Limits(token_ms=0.5)))
    assert over.verdict is Verdict.OVER_LIMIT


def test_without_an_incumbent_too_few_blocks_are_inconclusive() -> None:
    alone = {"looks": [5.0], **{f"candidate.{name}": [1.0] * 4 for name in METRICS}}
    assert verdict.judge(alone, by(paired=False)).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("name", sorted(set(blocks()) - {"looks"}))
@pytest.mark.parametrize("missing", [[], [math.nan] * 5, [1.0, 1.0, math.inf, 1.0, 0.0]])
def test_a_missing_number_never_passes(name: str, missing: list[float]) -> None:
    if name.startswith(("candidate", "incumbent")) and any(v == 1.0 for v in missing):
        missing = []  # a side's median can spare a value, a comparison cannot
    assert verdict.judge(blocks() | {name: missing}, by()).verdict is Verdict.INCONCLUSIVE


def test_without_a_plan_of_looks_nothing_passes() -> None:
    assert verdict.judge(blocks() | {"looks": []}, by()).verdict is Verdict.INCONCLUSIVE


def test_load_time_is_judged_by_its_median_and_one_stray_value_does_not_matter() -> None:
    stray = [1.0, 9.0, 1.02, 0.98, 1.0]
    assert metric(verdict.judge(blocks(load_ms=stray), by()), "load_ms").verdict is Verdict.PASS


def test_twice_the_memory_is_a_regression() -> None:
    twice = blocks(memory_mb=[2.0, 2.01, 1.99, 2.0, 2.0])
    assert verdict.judge(twice, by()).verdict is Verdict.REGRESSION


def test_the_reference_kernel_takes_the_noise_out_of_blocks_that_were_apart() -> None:
    noise = [1.3, 0.8, 1.1, 0.9, 1.2]
    apart = blocks(token_ms=[1.8 * shared * own for shared, own in zip(noise, QUIET, strict=True)])
    raw = verdict.estimate("token_ms", apart, looks=4)
    adjusted = verdict.estimate("token_ms", apart | {"ratio.reference_ms": noise}, looks=4)
    assert raw is not None
    assert adjusted is not None
    assert adjusted.ratio == pytest.approx(1.8, rel=0.02)
    assert adjusted.high / adjusted.low < (raw.high / raw.low) ** 0.2


def test_a_reference_kernel_with_a_missing_block_is_no_evidence() -> None:
    short = blocks() | {"ratio.reference_ms": [1.0] * 4}
    assert verdict.judge(short, by()).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(("alpha", "freedom", "expected"), TABLE)
def test_students_t_is_that_of_the_tables(alpha: float, freedom: int, expected: float) -> None:
    assert verdict.student_t(alpha, freedom) == pytest.approx(expected, abs=5e-4)


def test_looks_start_at_the_least_and_end_at_the_most_blocks() -> None:
    assert verdict.looks(POLICY) == [5, 7, 10, 12]
    assert verdict.looks(TrialPolicy(min_blocks=1, max_blocks=0)) == [3]


ratios = st.lists(st.floats(0.5, 2.0), min_size=5, max_size=12)


@given(ratios, st.floats(1e-3, 1e3))
def test_the_unit_of_time_does_not_matter(series: list[float], scale: float) -> None:
    one, other = (verdict.judge(blocks(s, token_ms=series), by()) for s in (1.0, scale))
    assert [m.verdict for m in one.metrics] == [m.verdict for m in other.metrics]


@given(ratios, st.floats(1.0, 3.0))
def test_a_slower_candidate_never_looks_better(series: list[float], slower: float) -> None:
    order = [Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.REGRESSION]
    before = verdict.judge(blocks(token_ms=series), by())
    after = verdict.judge(blocks(token_ms=[slower * value for value in series]), by())
    one, other = metric(before, "token_ms"), metric(after, "token_ms")
    assert one.ratio is not None
    assert other.ratio is not None
    assert other.ratio >= one.ratio * (1 - 1e-9)
    assert order.index(other.verdict) >= order.index(one.verdict)


@given(st.floats(1e-3, 1e3), st.integers(5, 12))
def test_identical_series_never_regress(value: float, n: int) -> None:
    same = blocks(value, **{name: [1.0] * n for name in METRICS})
    assert verdict.judge(same, by()).verdict is Verdict.PASS


@given(ratios)
def test_swapping_the_sides_inverts_the_ratio(series: list[float]) -> None:
    one = verdict.estimate("token_ms", blocks(token_ms=series), looks=4)
    turned = [1 / value for value in series]
    other = verdict.estimate("token_ms", blocks(token_ms=turned), looks=4)
    assert one is not None
    assert other is not None
    assert one.ratio * other.ratio == pytest.approx(1.0)


@given(ratios, st.floats(0.0, 1.0), st.floats(0.5, 2.0))
@settings(max_examples=50)
def test_a_stored_trial_replays_to_the_same_verdict(
    series: list[float], agreement: float, limit: float
) -> None:
    raw = blocks(token_ms=series)
    found = verdict.judge(raw, by(agreement=agreement, limits=Limits(token_ms=limit)))
    bench = Bench(
        boot=1,
        seq=1,
        generation=1,
        execution="x",
        candidate="a",
        incumbent="b",
        verdict=found.verdict,
        metrics=found.metrics,
        blocks=raw,
    )
    assert verdict.replay(bench) == found


def test_a_trial_that_broke_off_replays_as_inconclusive() -> None:
    bench = Bench(
        boot=1,
        seq=1,
        generation=1,
        execution="x",
        candidate="a",
        verdict=Verdict.INCONCLUSIVE,
        metrics=[],
    )
    assert verdict.replay(bench).verdict is Verdict.INCONCLUSIVE
