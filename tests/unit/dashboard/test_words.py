from datetime import UTC, datetime, timedelta

import pytest

from agent.protocol.words import ExecutionState, Verdict
from control_plane.dashboard import words
from control_plane.domain.rollout import RolloutState

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.mark.parametrize("state", sorted({*ExecutionState, *RolloutState, *Verdict}))
def test_every_state_has_an_icon_a_word_and_a_look(state: str) -> None:
    look = words.look_of(state)
    assert look.icon
    assert look.word == look.word.lower().strip() != ""
    assert look.css in {"pass", "fail", "hold", "busy"}


@pytest.mark.parametrize(
    ("passed", "said"),
    [
        (timedelta(seconds=3), "3 s"),
        (timedelta(seconds=61), "1 min"),
        (timedelta(hours=1, minutes=59), "1 h"),
        (timedelta(days=1, hours=1), "25 h"),
        (timedelta(days=9), "9 d"),
        (timedelta(seconds=-5), "0 s"),
    ],
)
def test_times_are_said_in_the_largest_unit_that_fits(passed: timedelta, said: str) -> None:
    assert words.since(NOW - passed, NOW) == said


def test_an_empty_filter_leaves_no_trace_in_a_link() -> None:
    assert words.query(filter="", cursor="abc") == "cursor=abc"


def test_a_missing_number_is_a_dash_and_never_a_zero() -> None:
    assert words.number(None) == "-"
    assert words.number(0.0) == "0"
