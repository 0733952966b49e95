from dataclasses import replace
from typing import Any

import pytest

from control_plane.domain.blueprint import (
    Blueprint,
    Limits,
    Match,
    recognise,
    shortfalls,
    size_shortfalls,
)

PI = {
    "arch": "aarch64",
    "flags": ["fp", "asimd", "asimddp"],
    "memory_mb": 4096,
    "board": "Raspberry Pi 5 Model B Rev 1.0",
}


@pytest.mark.parametrize(
    "match",
    [
        Match(),
        Match(arch="AARCH64"),
        Match(flags_all=("asimd", "asimddp")),
        Match(flags_any=("dotprod", "asimddp")),
        Match(flags_none=("avx2",)),
        Match(board="Raspberry Pi 5*"),
        Match(min_memory_mb=4096),
    ],
)
def test_a_rule_holds_for_hardware_that_has_what_it_asks(match: Match) -> None:
    assert match.holds(PI)


@pytest.mark.parametrize(
    "match",
    [
        Match(arch="x86_64"),
        Match(os="linux"),
        Match(flags_all=("asimd", "sve")),
        Match(flags_any=("sve", "sve2")),
        Match(flags_none=("asimddp",)),
        Match(board="Raspberry Pi 4*"),
        Match(min_memory_mb=4097),
    ],
)
def test_a_rule_fails_for_hardware_that_lacks_what_it_asks(match: Match) -> None:
    assert not match.holds(PI)


def test_hardware_that_says_nothing_matches_only_a_rule_that_asks_nothing() -> None:
    assert Match().holds({})
    assert not Match(arch="aarch64").holds({"arch": None, "flags": None, "memory_mb": None})


def test_the_most_specific_blueprint_recognises_a_device(blueprint: Blueprint) -> None:
    arm = replace(blueprint, name="arm", match=Match(arch="aarch64"))
    dot = replace(blueprint, name="a-dot", match=Match(arch="aarch64", flags_all=("asimddp",)))
    assert recognise([arm, dot, blueprint], PI) == dot
    assert recognise([blueprint], PI) is None


def test_blueprints_that_are_equally_specific_are_settled_by_name(blueprint: Blueprint) -> None:
    twins = [replace(blueprint, name=name, match=Match(arch="aarch64")) for name in ("b", "a")]
    assert recognise(twins, PI) == recognise(twins[::-1], PI) == twins[1]


def test_good_quality_within_the_disk_breaks_no_bound(
    blueprint: Blueprint, good: dict[str, float]
) -> None:
    assert shortfalls(blueprint, good, 1_000_000) == []


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("kl_mean", 0.0101),
        ("kl_p99", 0.051),
        ("perplexity_ratio", 1.06),
        ("top1_agreement", 0.89),
        ("golden_agreement", 0.79),
    ],
)
def test_each_floor_refuses_alone_and_says_by_how_much(
    blueprint: Blueprint, good: dict[str, float], metric: str, value: float
) -> None:
    (found,) = shortfalls(blueprint, {**good, metric: value}, 1)
    assert (found.metric, found.value) == (metric, value)
    assert str(found).startswith(f"{metric} {value:.4g}, wanted ")


@pytest.mark.parametrize("broken", [None, float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_missing_or_not_finite_is_a_refusal(
    blueprint: Blueprint, good: dict[str, Any], broken: float | None
) -> None:
    for metric in good:
        quality = {name: value for name, value in good.items() if name != metric}
        if broken is not None:
            quality[metric] = broken
        (found,) = shortfalls(blueprint, quality, 1)
        assert str(found).startswith(f"{metric} not measured")


def test_a_bundle_one_byte_over_the_disk_limit_is_refused(blueprint: Blueprint) -> None:
    assert size_shortfalls(blueprint, 1_000_000) == []
    assert [found.metric for found in size_shortfalls(blueprint, 1_000_001)] == ["disk_mb"]
    assert size_shortfalls(replace(blueprint, limits=Limits()), 10**15) == []


def test_only_what_decides_a_build_changes_its_digest(blueprint: Blueprint) -> None:
    same = replace(blueprint, notes="new words", sources=("a page",), match=Match())
    assert same.build_digest == blueprint.build_digest
    other = replace(blueprint, recipes=("fp32",))
    assert other.build_digest != blueprint.build_digest
