"""When a gateway asks devices to be patient, and how devices spread their return."""

from hypothesis import given
from hypothesis import strategies as st

from agent.protocol import backoff, messages
from agent.protocol.messages import BackOff, Command
from control_plane.gateway import patience
from control_plane.gateway.patience import Patience

ANY = st.floats(0, 1e6)


def test_an_inbox_that_keeps_up_asks_nobody() -> None:
    watch = Patience()
    assert [watch.note(full=False, now=t) for t in (0.0, 10.0, 20.0)] == [0, 0, 0]
    assert watch.note(full=True, now=20.1) == 0, "a gust is no storm"
    assert watch.note(full=False, now=23.0) == 0
    assert watch.note(full=True, now=23.1) == 0, "it has caught up in between"


def test_the_longer_it_lags_the_more_it_asks_for() -> None:
    watch = Patience()
    asked = [watch.note(full=True, now=float(t)) for t in range(0, 200, 2)]
    assert asked[0] == 0
    assert asked[1] == patience.FIRST_ASK_S
    assert asked == sorted(asked)
    assert asked[-1] == patience.MOST_ASK_S


def test_only_who_came_back_is_asked() -> None:
    names = [
        "flotilla/v1/d/edge-1/up/hello",
        "flotilla/v1/d/edge-1/up/hello",
        "flotilla/v1/d/edge-2/up/events",
        "flotilla/v1/d/#/up/hello",
        "elsewhere/up/hello",
    ]
    assert patience.arrivals(names) == {"edge-1"}


def test_a_device_of_before_reads_the_command_as_one_it_does_not_know() -> None:
    asked = patience.command(45, wall=1_000.0)
    assert messages.decode(asked, Command).name == "back-off"
    read = messages.decode(asked, BackOff)
    assert (read.seconds, read.expires) == (45, 1_060)


@given(st.integers(0, 10_000), ANY, ANY, ANY)
def test_a_pause_has_its_bounds(failures: int, base: float, cap: float, told: float) -> None:
    most = backoff.longest_pause_s(failures, base_s=base, cap_s=cap, told_s=told)
    assert most <= max(cap, backoff.MOST_TOLD_S)
    assert most >= min(cap, base)
    assert most >= min(told, backoff.MOST_TOLD_S)


def test_each_failure_doubles_the_window_up_to_its_cap() -> None:
    windows = [backoff.longest_pause_s(n, base_s=15, cap_s=600) for n in range(8)]
    assert windows == [15, 30, 60, 120, 240, 480, 600, 600]
