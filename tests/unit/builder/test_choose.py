from dataclasses import replace

from control_plane.builder.choose import binding_constraint, judge
from control_plane.builder.job import Tried
from control_plane.domain.blueprint import Blueprint, Limits


def test_a_recipe_within_every_bound_is_taken_with_its_numbers(
    blueprint: Blueprint, good: dict[str, float]
) -> None:
    tried = Tried(recipe="int8-dynamic", bytes=300, quality=good)
    found = judge(blueprint, tried, extra_bytes=10, source_bytes=1000)
    assert found.accepted
    assert "0.30 of the source's size" in found.why
    assert "top-1 agreement 0.980" in found.why


def test_a_recipe_below_a_floor_is_refused_with_the_number_and_the_bound(
    blueprint: Blueprint, good: dict[str, float]
) -> None:
    tried = Tried(recipe="int4-block32", bytes=300, quality={**good, "top1_agreement": 0.5})
    found = judge(blueprint, tried, extra_bytes=10, source_bytes=1000)
    assert not found.accepted
    assert found.why == "top1_agreement 0.5, wanted >= 0.9"


def test_a_waiver_overlooks_the_floors_and_says_who_and_what(
    blueprint: Blueprint, good: dict[str, float]
) -> None:
    tried = Tried(recipe="int4-block32", bytes=300, quality={**good, "kl_mean": 3.0})
    found = judge(blueprint, tried, extra_bytes=0, source_bytes=1000, waiver="ana: a trial")
    assert found.accepted
    assert found.why == "floors waived by ana: a trial; below: kl_mean 3, wanted <= 0.01"


def test_no_waiver_makes_room_on_a_disk(blueprint: Blueprint, good: dict[str, float]) -> None:
    small = replace(blueprint, limits=Limits(disk_mb=0.0001))
    tried = Tried(recipe="fp32", bytes=90, quality=good)
    assert judge(small, tried, extra_bytes=10, source_bytes=90).accepted
    found = judge(small, tried, extra_bytes=11, source_bytes=90, waiver="ana: please")
    assert not found.accepted
    assert "disk_mb" in found.why


def test_no_waiver_makes_a_broken_file_run(blueprint: Blueprint) -> None:
    tried = Tried(recipe="fp16", error="does not run: exit code 1")
    found = judge(blueprint, tried, extra_bytes=0, source_bytes=1, waiver="ana: please")
    assert not found.accepted
    assert "does not run" in found.why


def test_numbers_that_were_never_measured_are_a_refusal(blueprint: Blueprint) -> None:
    found = judge(blueprint, Tried(recipe="fp16", bytes=1), extra_bytes=0, source_bytes=1)
    assert not found.accepted
    assert found.why.count("not measured") == 5


def test_a_failed_build_names_every_recipe_with_the_bounds_it_broke(
    blueprint: Blueprint, good: dict[str, float]
) -> None:
    tried = [
        Tried(recipe="int4-block32", bytes=1, quality={**good, "kl_mean": 3.0}),
        Tried(recipe="fp32", bytes=2_000_000, quality=good),
    ]
    judged = [judge(blueprint, one, extra_bytes=0, source_bytes=1) for one in tried]
    words = binding_constraint(judged)
    assert "int4-block32: kl_mean 3, wanted <= 0.01" in words
    assert "fp32: disk_mb 2, wanted <= 1" in words
