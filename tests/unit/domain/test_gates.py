"""Gates: each rule passes for a reason, and refuses when a number is missing."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.protocol.words import ExecutionState
from control_plane.domain import gates
from control_plane.domain.gates import Gate, Group, Measured, Verdict
from tests.unit.domain.rollout_model import spec

E = ExecutionState
SPEC = spec(soak_s=30.0)


def _trial(ratio: float = 1.0, high: float = 1.02, n: int = 1) -> Measured:
    one = gates.paired(ratio, high)
    assert one is not None
    whole = Measured()
    for _ in range(n):
        whole = whole.merged(one)
    return whole


def _group(counts: dict[ExecutionState, int], **measured: Measured) -> Group:
    trials = Measured(n=counts.get(E.SUCCEEDED, 0))
    return Group(0, "x", counts, {gates.TRIALS: trials, **measured})


def _judge(group: Group, now: float = 100.0) -> dict[str, Gate]:
    judged = gates.advance(SPEC, [group], group.wave, 0.0, now)
    return {gate.metric or gate.rule: gate for gate in judged}


def test_a_measured_and_soaked_wave_passes_every_gate() -> None:
    judged = _judge(_group({E.SUCCEEDED: 2}, token_ms=_trial(n=2)))
    assert {gate.verdict for gate in judged.values()} == {Verdict.PASS}
    assert judged["token_ms"].n == 2


@pytest.mark.parametrize(
    ("group", "gate", "words"),
    [
        (_group({E.SUCCEEDED: 1, E.SOAKING: 1}, token_ms=_trial()), "answered", "1 of 2 devices"),
        (_group({E.CANCELED: 2}), "answered", "0 of 0 devices (2 withdrawn) answered, 1 needed"),
        (_group({E.REJECTED: 2}), "soak", "no device has soaked"),
        (_group({E.SUCCEEDED: 2}, token_ms=_trial()), "token_ms", "missing on 1 of 2"),
        (_group({E.SUCCEEDED: 1}), "token_ms", "missing on 1 of 1"),
        (Group(0, "x", {E.SUCCEEDED: 1}), gates.TRIALS, "1 devices confirmed, 0 sent"),
        (_group({E.SUCCEEDED: 1}, token_ms=_trial(1.05, 1.12)), "token_ms", "not shown to be"),
        (_group({E.SUCCEEDED: 1}, token_ms=_trial(1.5, 1.52)), "token_ms", "worse than 1.10"),
    ],
)
def test_a_gate_that_cannot_be_sure_holds_and_says_why(group: Group, gate: str, words: str) -> None:
    judged = _judge(group)[gate]
    assert judged.verdict is Verdict.HOLD
    assert words in judged.text


def test_the_soak_counts_from_when_the_wave_opened() -> None:
    group = _group({E.SUCCEEDED: 1}, token_ms=_trial())
    assert _judge(group, now=29.9)["soak"].verdict is Verdict.HOLD
    assert _judge(group, now=30.0)["soak"].verdict is Verdict.PASS


def test_first_installs_and_devices_that_ran_it_already_need_no_comparison() -> None:
    first = _group({E.SUCCEEDED: 1}, **{gates.FIRST_TRIALS: Measured(n=1)})
    already = Group(0, "x", {E.SUCCEEDED: 1}, {gates.ALREADY_RUNNING: Measured(n=1)})
    for group in (first, already):
        assert {gate.verdict for gate in _judge(group).values()} == {Verdict.PASS}


def test_memory_is_judged_on_its_ratio_as_on_the_device() -> None:
    tolerance = {"memory_mb": 0.2}
    loose = replace(SPEC, gates=replace(SPEC.gates, tolerance=tolerance))
    group = _group({E.SUCCEEDED: 1}, memory_mb=_trial(1.1, 1.4))
    judged = {gate.metric: gate for gate in gates.advance(loose, [group], 0, 0.0, 100.0)}
    assert judged["memory_mb"].verdict is Verdict.PASS


def test_failures_of_every_wave_count_against_one_budget_less_the_acknowledged() -> None:
    groups = [
        Group(0, "x", {E.ROLLED_BACK: 1, E.TIMED_OUT: 1}),
        Group(1, "x", {E.FAILED: 1}),
        Group(1, "y", {E.REJECTED: 5}),
    ]
    judged = {g.blueprint: g for g in gates.failures(SPEC, groups, {"x": 2}, 1)}
    assert judged["x"].verdict is Verdict.BREACH
    assert judged["x"].value == 1
    assert "1 FAILED, 1 ROLLED_BACK, 1 TIMED_OUT" in judged["x"].text
    assert judged["y"].verdict is Verdict.PASS
    allowed = gates.failures(SPEC, groups, {"x": 3}, 1)
    assert {gate.verdict for gate in allowed} == {Verdict.PASS}


def test_one_device_speaks_with_its_own_interval() -> None:
    assert gates.interval(_trial(1.04, 1.09)) == pytest.approx((1.04, 1.04**2 / 1.09, 1.09))


def test_the_spread_of_many_devices_widens_the_interval() -> None:
    alike, apart = Measured(), Measured()
    for ratio in (0.9, 1.1, 0.95, 1.05, 1.0, 1.0):
        one, same = gates.paired(ratio, ratio * 1.01), gates.paired(1.0, 1.01)
        assert one is not None
        assert same is not None
        apart, alike = apart.merged(one), alike.merged(same)
    assert gates.interval(apart)[2] > gates.interval(alike)[2]


def _spread(ratio: float, n: int, spread: float = 0.01) -> Measured:
    """n devices around a ratio, their logarithms evenly `spread` to both sides."""
    whole = Measured()
    for index in range(n):
        log = math.log(ratio) + (spread if index % 2 else -spread)
        whole = whole.merged(Measured(1, log, log * log, 1e-4))
    return whole


@given(st.lists(st.floats(0.5, 2.0), min_size=1, max_size=4), st.floats(1.0, 1.3))
def test_devices_that_each_pass_alike_pass_together(ratios: list[float], spread: float) -> None:
    whole = Measured()
    for ratio in ratios:
        one = gates.paired(ratio, ratio * spread)
        assert one is not None
        whole = whole.merged(one)
    _, _, high = gates.interval(whole)
    assert high <= max(ratios) * spread * (1 + 1e-9)


@given(st.lists(st.floats(1.0, 1.3), min_size=1, max_size=4))
def test_few_devices_reach_no_further_than_the_least_sure_of_them(spreads: list[float]) -> None:
    whole = Measured()
    for spread in spreads:
        one = gates.paired(1.0, spread)
        assert one is not None
        whole = whole.merged(one)
    assert gates.interval(whole)[2] <= max(spreads) * (1 + 1e-9)


def test_a_regression_that_no_device_could_prove_halts_when_many_agree() -> None:
    def halting(n: int) -> list[Gate]:
        group = _group({E.SUCCEEDED: n}, token_ms=_spread(1.15, n))
        return [g for g in gates.stops(SPEC, [group], {}, 0) if g.verdict is Verdict.BREACH]

    for n in range(1, 30):
        assert bool(halting(n)) == (n >= 6), n
    (gate,) = halting(20)
    assert gate.low is not None
    assert gate.low > 1.1
    assert "worse than 1.10" in gate.text
    group = _group({E.SUCCEEDED: 20}, token_ms=_spread(1.15, 20))
    assert _judge(group)["token_ms"] == gate, "both places must judge alike"


def test_few_devices_never_halt_by_their_measurements_however_bad() -> None:
    group = _group({E.SUCCEEDED: 4}, token_ms=_trial(3.0, 3.01, n=4))
    assert {g.rule for g in gates.stops(SPEC, [group], {}, 0)} == {"failures"}
    assert _judge(group)["token_ms"].verdict is Verdict.HOLD


def test_an_acknowledged_regression_halts_again_only_on_new_devices_own_evidence() -> None:
    def halts(measured: Measured) -> bool:
        group = _group({E.SUCCEEDED: measured.n}, token_ms=measured)
        found = gates.stops(SPEC, [group], {}, 0, seen=seen)
        return any(gate.verdict is Verdict.BREACH for gate in found)

    bad = _spread(1.15, 20)
    seen = gates.all_seen([_group({E.SUCCEEDED: 20}, token_ms=bad)])
    assert not halts(bad)
    assert not halts(bad.merged(_spread(1.0, 10)))
    assert halts(bad.merged(_spread(1.15, 10)))
    judged = gates.advance(SPEC, [_group({E.SUCCEEDED: 20}, token_ms=bad)], 0, 0, 100, seen=seen)
    (gate,) = [gate for gate in judged if gate.metric == "token_ms"]
    assert gate.verdict is Verdict.HOLD, "to acknowledge is not to prove"
    assert "worse than 1.10, acknowledged" in gate.text


def test_many_devices_must_be_within_by_the_interval_for_every_metric() -> None:
    tolerance = {"memory_mb": 0.2, "load_ms": 0.5}
    loose = replace(SPEC, gates=replace(SPEC.gates, tolerance=tolerance))
    for spread, verdict in ((0.001, Verdict.PASS), (0.3, Verdict.HOLD)):
        measured = _spread(1.05, 6, spread)
        group = _group({E.SUCCEEDED: 6}, memory_mb=measured, load_ms=_spread(1.0, 6))
        judged = {g.metric: g for g in gates.advance(loose, [group], 0, 0.0, 100.0)}
        assert judged["memory_mb"].verdict is verdict
        assert judged["load_ms"].verdict is Verdict.PASS


def test_a_failure_rate_breaks_its_limit_only_where_it_is_proven() -> None:
    limited = replace(SPEC, gates=replace(SPEC.gates, max_failures=100, max_failure_rate=0.1))

    def rate(failed: int, tried: int, known: int = 0) -> Gate:
        counts = {E.SUCCEEDED: tried - failed, E.TIMED_OUT: failed, E.REJECTED: 50}
        seen = {"x": gates.Seen(known)}
        judged = gates.failures(limited, [Group(0, "x", counts)], {"x": known}, 0, seen=seen)
        return {gate.rule: gate for gate in judged}["failure_rate"]

    assert rate(0, 0).verdict is Verdict.PASS
    assert rate(4, 20).verdict is Verdict.PASS, "twice the limit, and no proof yet"
    proven = rate(60, 200)
    assert proven.verdict is Verdict.BREACH
    assert proven.low is not None
    assert proven.low > 0.1
    assert (proven.value, proven.limit, proven.n) == (0.3, 0.1, 200)
    assert "60 of 200 failed" in proven.text
    assert rate(60, 200, known=60).verdict is Verdict.PASS, "what was acknowledged counts no more"


def test_rejections_are_said_and_are_no_failures() -> None:
    (gate,) = gates.failures(SPEC, [Group(0, "x", {E.REJECTED: 5})], {}, 0)
    assert gate.verdict is Verdict.PASS
    assert gate.text == "x: 0 failures, at most 0 allowed; 5 REJECTED, counted apart"


def test_the_error_of_a_false_halt_is_shared_by_all_that_may_halt() -> None:
    alone = _group({E.SUCCEEDED: 8}, token_ms=_spread(1.15, 8))
    others = [Group(0, f"y{index}", {E.QUEUED: 1}) for index in range(9)]

    def low(groups: list[Group], without: frozenset[str] = gates.NOBODY) -> float:
        judged = gates.advance(SPEC, groups, 0, 0.0, 100.0, without=without)
        (gate,) = [g for g in judged if (g.blueprint, g.metric) == ("x", "token_ms")]
        assert gate.low is not None
        return gate.low

    assert low([alone, *others]) < low([alone])
    halted = frozenset({"y1", "y2"})
    assert low([alone, *others], halted) == low([alone, *others]), "theirs stays spent"


def _golden(*shares: float, limit: float = 0.1) -> Measured:
    whole = Measured()
    for share in shares:
        one = gates.disagreed(share, limit)
        assert one is not None
        whole = whole.merged(one)
    return whole


@pytest.mark.parametrize(
    ("shares", "verdict", "words"),
    [
        ((0.0, 0.1), Verdict.PASS, "5 % (up to 5 %, 2 devices), at most 10 %"),
        ((0.05,) * 20, Verdict.PASS, "at most 10 %"),
        ((0.1,) * 7, Verdict.PASS, "10 % (up to 10 %, 7 devices), at most 10 %"),
        ((0.0, 0.4), Verdict.HOLD, "not shown to be within 10 %"),
        ((0.0, 0.1) * 3, Verdict.HOLD, "not shown to be within 10 %"),
    ],
)
def test_outputs_of_many_devices_together_must_be_right(
    shares: tuple[float, ...], verdict: Verdict, words: str
) -> None:
    n = len(shares)
    judged = _judge(
        _group({E.SUCCEEDED: n}, token_ms=_trial(n=n), golden_disagreement=_golden(*shares))
    )
    assert judged[gates.GOLDEN].verdict is verdict
    assert words in judged[gates.GOLDEN].text


def test_once_devices_tell_of_their_outputs_none_may_keep_silent() -> None:
    group = _group({E.SUCCEEDED: 2}, token_ms=_trial(n=2), golden_disagreement=_golden(0.0))
    judged = _judge(group)[gates.GOLDEN]
    assert judged.verdict is Verdict.HOLD
    assert "missing on 1 of 2" in judged.text


def test_first_installs_are_judged_by_their_outputs_too() -> None:
    first = {gates.FIRST_TRIALS: Measured(n=2), gates.GOLDEN: _golden(0.5, 0.5)}
    judged = _judge(_group({E.SUCCEEDED: 2}, **first))
    assert judged[gates.TRIALS].verdict is Verdict.PASS
    assert judged[gates.GOLDEN].verdict is Verdict.HOLD


@pytest.mark.parametrize("share", [None, -0.1, 1.1, math.nan])
def test_an_impossible_share_is_no_number(share: float | None) -> None:
    assert gates.disagreed(share, 0.1) is None
    assert gates.disagreed(0.1, share) is None


def test_absurd_numbers_of_a_lying_device_break_nothing() -> None:
    whole = Measured()
    for ratio in (1e300, 1e-300, 1e300, 1e-300, 1.0):
        one = gates.paired(ratio, 1e308)
        assert one is not None
        whole = whole.merged(one)
        assert all(math.isfinite(bound) for bound in gates.interval(whole))


@pytest.mark.parametrize(
    ("ratio", "high"),
    [(None, 1.0), (1.0, None), (0.0, 1.0), (-1.0, 1.0), (math.nan, 1.0), (1.0, math.inf)],
)
def test_a_missing_or_impossible_number_is_no_measurement(
    ratio: float | None, high: float | None
) -> None:
    assert gates.paired(ratio, high) is None
