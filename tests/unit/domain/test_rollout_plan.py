"""The plan: exact, deterministic, spread."""

from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from control_plane.domain.device import QUARANTINED, DeviceFacts, DeviceId
from control_plane.domain.rollout import RolloutSpec, WaveSpec
from control_plane.domain.rollout_plan import BlueprintFit, make_plan

WAVES = (
    WaveSpec("canary", count=3),
    WaveSpec("quarter", percent=25),
    WaveSpec("everyone", percent=100),
)


def _spec(name: str = "r", waves: tuple[WaveSpec, ...] = WAVES) -> RolloutSpec:
    return RolloutSpec(name, "m", "2", waves)


def _fleet(**per_blueprint: int) -> list[DeviceFacts]:
    return [
        DeviceFacts(DeviceId(f"{name}-{i}"), blueprint=name, labels={"site": f"s{i % 3}"})
        for name, n in per_blueprint.items()
        for i in range(n)
    ]


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
)
def test_every_device_has_one_place_in_whatever_order_they_come(
    sizes: list[int], random: Random
) -> None:
    fleet = _fleet(**{f"b{i}": n for i, n in enumerate(sizes)})
    plan = make_plan(_spec(), fleet, {})
    shuffled = list(fleet)
    random.shuffle(shuffled)
    assert make_plan(_spec(), shuffled, {}) == plan
    assert sorted(place.device for place in plan.places) == sorted(one.id for one in fleet)
    assert len({(place.wave, place.position) for place in plan.places}) == len(fleet)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=3))
def test_a_canary_with_room_holds_every_blueprint(sizes: list[int]) -> None:
    plan = make_plan(_spec(), _fleet(**{f"b{i}": n for i, n in enumerate(sizes)}), {})
    canary = {place.blueprint for place in plan.places if place.wave == 0}
    assert len(canary) == min(len(sizes), 3)


@given(st.lists(st.integers(20, 300), min_size=1, max_size=3))
def test_each_wave_takes_blueprints_and_sites_in_proportion(sizes: list[int]) -> None:
    fleet = _fleet(**{f"b{i}": n for i, n in enumerate(sizes)})
    half = (WaveSpec("half", percent=50), WaveSpec("all", percent=100))
    plan = make_plan(_spec(waves=half), fleet, {})
    sites = {one.id: one.labels["site"] for one in fleet}
    first = [place for place in plan.places if place.wave == 0]
    taken = Counter(place.blueprint for place in first)
    at_sites = Counter((place.blueprint, sites[place.device]) for place in first)
    for i, n in enumerate(sizes):
        assert abs(taken[f"b{i}"] - n / 2) <= len(sizes) + 1
        for site in ("s0", "s1", "s2"):
            assert abs(at_sites[(f"b{i}", site)] - n / 6) <= len(sizes) + 3


def test_another_rollout_takes_another_canary() -> None:
    fleet = _fleet(b=100)
    canaries = {
        tuple(place.device for place in make_plan(_spec(f"r{i}"), fleet, {}).places[:3])
        for i in range(20)
    }
    assert len(canaries) > 15


def _sizes(waves: tuple[WaveSpec, ...], total: int) -> list[int]:
    places = make_plan(_spec(waves=waves), _fleet(b=total), {}).places
    return [sum(place.wave == i for place in places) for i in range(len(waves))]


def test_percents_are_cumulative_and_counts_are_a_waves_own() -> None:
    assert _sizes(WAVES, 12) == [3, 0, 9]
    assert _sizes(WAVES, 100) == [3, 22, 75]
    assert _sizes((WaveSpec("a", percent=1), WaveSpec("b", count=5)), 10) == [1, 5]
    assert _sizes(WAVES, 2) == [2, 0, 0]


def test_a_selector_takes_all_that_are_left_and_match_and_percents_count_them() -> None:
    waves = (
        WaveSpec("two", count=2),
        WaveSpec("site", selector='labels.site = "s1"'),
        WaveSpec("half", percent=50),
        WaveSpec("again", selector='labels.site in ("s1", "s2")'),
    )
    fleet = _fleet(b=30)
    plan = make_plan(_spec(waves=waves), fleet, {})
    sites = {one.id: one.labels["site"] for one in fleet}
    by_wave = [[p.device for p in plan.places if p.wave == i] for i in range(4)]
    early = sum(sites[one] == "s1" for one in by_wave[0])
    assert {sites[one] for one in by_wave[1]} == {"s1"}
    assert [len(one) for one in by_wave[:3]] == [2, 10 - early, 15 - 2 - (10 - early)]
    assert {sites[one] for one in by_wave[3]} == {"s2"}
    left = {one.id for one in fleet} - {place.device for place in plan.places}
    assert {sites[one] for one in left} == {"s0"}
    for wave in range(4):
        positions = [place.position for place in plan.places if place.wave == wave]
        assert positions == list(range(len(positions)))


def test_the_first_device_of_a_blueprint_is_now_at_one_site_and_now_at_another() -> None:
    fleet = _fleet(b0=60, b1=60, b2=60)
    sites = {one.id: one.labels["site"] for one in fleet}
    firsts = [make_plan(_spec(f"r{i}"), fleet, {}).places[:3] for i in range(30)]
    seen = {tuple(sites[place.device] for place in three) for three in firsts}
    assert len(seen) > 10


def test_devices_that_cannot_get_it_are_misfits_with_the_reason() -> None:
    fleet = [
        DeviceFacts(DeviceId("unknown")),
        DeviceFacts(DeviceId("away"), state=QUARANTINED, blueprint="b"),
        DeviceFacts(DeviceId("full"), blueprint="b", hardware={"disk_free_mb": 5}),
        DeviceFacts(DeviceId("unbuilt"), blueprint="c"),
        DeviceFacts(DeviceId("fine"), blueprint="b", hardware={"disk_free_mb": 50}),
    ]
    fits = {"b": BlueprintFit(size=20_000_000), "c": BlueprintFit(failed="quality below 0.9")}
    plan = make_plan(_spec(), fleet, fits)
    assert [place.device for place in plan.places] == ["fine"]
    assert {one.device: one.reason for one in plan.misfits} == {
        "unknown": "no blueprint recognises its hardware",
        "away": "is quarantined",
        "full": "needs 20 MB of disk, 5 MB are free",
        "unbuilt": "no bundle for c: quality below 0.9",
    }
