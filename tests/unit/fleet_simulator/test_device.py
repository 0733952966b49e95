"""What a simulated device does besides following orders: silence, patience, repeats, the line."""

from typing import Any

import pytest

from agent.protocol import messages
from agent.protocol.messages import Bench, Event
from agent.protocol.words import ExecutionState, Verdict
from control_plane.local.fleet_simulator.device import FOREVER, wake_at
from control_plane.local.fleet_simulator.states import (
    Acked,
    Came,
    Fetch,
    Fetched,
    Ordered,
    Say,
    Told,
    Vanish,
    Went,
    Woke,
)
from tests.unit.fleet_simulator.people import Life, born, bundle, order, traits

OLD, NEW = bundle("1.0.0", 1), bundle("1.1.0", 2)


def said(done: list[Any], channel: str) -> list[Say]:
    return [one for one in done if isinstance(one, Say) and one.channel == channel]


def run_on(life: Life, limit: int = 50) -> None:
    """Let time pass until nothing is under way, or it waits for somebody else."""
    for _ in range(limit):
        work = life.device.work
        if work is None or work.due is None:
            return
        life.wait(max(0.0, wake_at(life.device) - life.now.steady))
        life.take(Woke())
    raise AssertionError("it does not come to an end")


def updated(connected: bool = True, **spec: Any) -> Life:  # noqa: FBT001, FBT002 - a story's turn
    life = Life(traits(**spec), born(OLD), connected=connected)
    life.take(Ordered(order(life.traits, 1, NEW), "e1"))
    run_on(life)
    return life


def states(life: Life) -> list[ExecutionState]:
    read = [s.report for s in said(life.done, "events") if isinstance(s.report, Event)]
    return [one.state for one in read]


@pytest.mark.parametrize(
    ("failures", "end"),
    [
        ({}, ExecutionState.SUCCEEDED),
        ({"downloading": {"failed": 1}}, ExecutionState.FAILED),
        ({"benchmarking": {"rolled_back": 1}}, ExecutionState.ROLLED_BACK),
        ({"activating": {"failed": 1}}, ExecutionState.FAILED),
        ({"soaking": {"rolled_back": 1}}, ExecutionState.ROLLED_BACK),
    ],
)
def test_each_step_can_end_badly(failures: dict[str, Any], end: ExecutionState) -> None:
    life = updated(failures=failures)
    assert states(life)[-1] is end
    good = life.device.standing.good
    assert good == (NEW if end is ExecutionState.SUCCEEDED else OLD)


@pytest.mark.parametrize("step", ["downloading", "benchmarking", "activating", "soaking"])
def test_a_silent_device_does_nothing_until_it_is_back_and_then_goes_on(step: str) -> None:
    life = updated(failures={step: {"silent": 1}}, offline={"silent_for": "1h"})
    assert life.done[-1] == Vanish(3600.0)
    assert wake_at(life.device) == FOREVER
    before = len(life.done)
    life.take(Went())
    life.take(Ordered(order(life.traits, 2, OLD), "e2"))
    life.take(Told("hello"))
    assert len(life.done) == before, "nobody is there"

    life.wait(3600)
    life.take(Came())
    run_on(life)

    if step == "soaking" or life.device.standing.good == NEW:
        assert states(life)[-1] is ExecutionState.SUCCEEDED


def test_a_version_is_slow_on_every_device_and_the_trial_finds_it() -> None:
    life = updated(versions={"1.1.0": {"slowdown": 1.5}})
    bench = [s.report for s in said(life.done, "bench")][-1]
    assert isinstance(bench, Bench)
    assert bench.verdict is Verdict.REGRESSION
    token = next(one for one in bench.metrics if one.name == "token_ms")
    assert token.ratio == pytest.approx(1.5)
    assert states(life)[-1] is ExecutionState.ROLLED_BACK


def test_reports_are_kept_and_repeated_until_they_are_acknowledged() -> None:
    life = updated(resend="10s")
    kept = [one.seq for one in life.device.kept]
    assert len(kept) == 7, "six transitions and a trial"
    life.wait(11)
    life.done.clear()
    life.take(Woke())
    assert len(said(life.done, "events") + said(life.done, "bench")) == 7

    life.take(Acked([(life.device.boot, seq) for seq in kept[:3]] + [(99, kept[3])]))
    assert [one.seq for one in life.device.kept] == kept[3:]


def test_what_was_reported_without_a_connection_is_told_at_the_next_one() -> None:
    life = Life(traits(), born(OLD), connected=True)
    life.take(Ordered(order(life.traits, 1, NEW), "e1"))
    for _ in range(2):  # verified, downloaded
        life.wait(max(0.0, wake_at(life.device) - life.now.steady))
        life.take(Woke())
    life.take(Went())
    life.done.clear()
    run_on(life)
    assert all(one.at < 0 for one in life.done if isinstance(one, Say)), "nothing can leave"
    life.done.clear()
    life.take(Came())
    assert len(said(life.done, "events")) == 6
    assert len(said(life.done, "hello")) == 1


def test_a_download_waits_for_the_line() -> None:
    life = Life(traits(), born(OLD))
    life.take(Ordered(order(life.traits, 1, NEW), "e1"))
    life.take(Went())
    run_on(life)
    assert states(life) == []
    life.take(Came())
    run_on(life)
    assert states(life)[-1] is ExecutionState.SUCCEEDED


def test_a_patient_device_neither_beats_nor_repeats_but_tells_what_is_new() -> None:
    life = updated(heartbeat="10s", resend="10s")
    life.take(Told("back-off", 100.0))
    assert 50 <= wake_at(life.device) - life.now.steady <= 100
    life.wait(20)
    life.done.clear()
    life.take(Woke())
    life.take(Told("hello"))
    assert said(life.done, "heartbeat") == []
    assert said(life.done, "events") == []
    assert len(said(life.done, "hello")) == 1, "who asks is answered"
    life.take(Ordered(order(life.traits, 2, OLD), "e2"))
    run_on(life)
    assert said(life.done, "events"), "what is new is told at once"


def test_nobody_can_silence_a_device_for_long() -> None:
    life = Life(traits(heartbeat="10s"), born(OLD))
    life.take(Told("back-off", 1e9))
    assert wake_at(life.device) - life.now.steady <= 900


def test_real_bytes_are_asked_for_and_waited_for() -> None:
    life = updated(download="real")
    assert isinstance(life.done[-1], Fetch)
    life.take(Fetched(generation=7))
    assert states(life) == [ExecutionState.DOWNLOADING], "the answer to another order"
    life.take(Fetched(generation=1))
    run_on(life)
    assert states(life)[-1] is ExecutionState.SUCCEEDED


def test_messages_leave_in_their_order_but_for_those_that_are_overtaken() -> None:
    slow = {"latency": {"median": "100ms", "spread": 3}, "seconds_per_mb": 0}
    times = [one.at for one in updated(link=slow).done if isinstance(one, Say)]
    assert times == sorted(times)
    mixed = updated(link={**slow, "reordered": 0.5, "duplicates": 1}).done
    times = [one.at for one in mixed if isinstance(one, Say)]
    assert times != sorted(times)
    assert len(said(mixed, "events")) == 12, "each of six comes twice"


def test_the_same_life_is_lived_twice() -> None:
    rough: dict[str, Any] = {
        "link": {"latency": {"median": "100ms", "spread": 3}, "duplicates": 0.3},
        "trial": {"seconds": 20, "block_noise": 0.05},
    }
    assert updated(**rough).done == updated(**rough).done


def test_what_a_trial_says_fits_into_a_message() -> None:
    life = updated(trial={"seconds": 1, "block_noise": 0.04, "trial_noise": 0.01})
    (bench,) = said(life.done, "bench")
    assert len(bench.message) < messages.MAX_MESSAGE / 8
