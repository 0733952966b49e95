"""A replay, without a database: small stories, and rules that hold for any record."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.protocol.words import ExecutionState
from control_plane.domain.device import DeviceFacts, DeviceId
from control_plane.domain.errors import InvalidError
from control_plane.domain.measured import TRIALS, Measured
from control_plane.domain.replay_record import (
    Act,
    Answer,
    Course,
    Known,
    Record,
    Trial,
    Unknown,
    courses,
)
from control_plane.domain.rollout import (
    Approval,
    Budget,
    GatePolicy,
    OnBreach,
    Pace,
    RolloutSpec,
    Timeouts,
    WaveSpec,
    Windows,
)
from control_plane.domain.rollout_replay import Replay, Run, placed, replay
from control_plane.domain.rollout_view import Approve, BuildsReady, Pause, Resume, Start
from control_plane.domain.windows import Window
from tests.unit.domain.rollout_model import GOOD, spec

E = ExecutionState
T0 = 1_800_000_000.0
FINE = {TRIALS: Measured(n=1), "token_ms": GOOD}


def good(after_s: float = 10.0) -> Course:
    """Soaks after some seconds, and confirms as long after that."""
    steps = ((after_s, E.SOAKING), (2 * after_s, E.SUCCEEDED))
    return Course(steps, (Trial(after_s, FINE, {"token_ms": (1.0, 0.98)}),), "soaked")


def bad(after_s: float = 10.0, ratio: float = 1.5) -> Course:
    trial = Trial(after_s, FINE, {"token_ms": (ratio, ratio * 0.98)})
    return Course(((after_s, E.ROLLED_BACK),), (trial,), "trial.regression")


SILENT = Course(((5.0, E.DOWNLOADING),), sign_s=20.0)


def record(known: list[Course | None], policy: RolloutSpec | None = None, **more: Any) -> Record:
    """A rollout that began at once, over devices in the order of their courses."""
    policy = policy or spec(waves=(WaveSpec("all", percent=100),))
    devices = tuple(
        Known(f"d{i:02}", "x", 0, i, course, can_return=True) for i, course in enumerate(known)
    )
    acts = (Act(T0, Start()), Act(T0, BuildsReady()))
    plain = Record(policy, T0, devices, acts, {}, (), "RUNNING")
    return replace(plain, **more)


def told(found: Replay) -> list[tuple[float, str]]:
    return [(one.at_s, one.kind) for one in found.told.decisions if one.kind != "hold"]


def ask(kept: Record, unknown: str = "rate", **changes: Any) -> Replay:
    return replay(kept, replace(kept.spec, **changes), Unknown(unknown), 0)


def test_devices_answer_as_long_after_their_offer_as_they_did() -> None:
    found = ask(record([good(10), good(30)]), pace=Pace(max_in_flight=1))
    assert told(found) == [
        (0.0, "start"),
        (0.0, "request_builds"),
        (0.0, "open_wave"),
        (0.0, "offer"),
        (20.0, "offer"),
        (80.0, "succeed"),
    ]
    assert (found.told.duration_s, found.told.ran, found.drawn) == (80.0, ("d00", "d01"), ())


def test_a_regression_halts_it_and_spares_the_next_wave() -> None:
    kept = record([bad(), good(), good(), good()])
    found = ask(kept, waves=(WaveSpec("canary", count=2), WaveSpec("all", percent=100)))
    assert (found.told.state, found.told.halted_at_s, found.told.offered) == ("HALTED", 10.0, 2)
    assert found.told.outcomes == {"QUEUED": 2, "ROLLED_BACK": 1, "SUCCEEDED": 1}
    assert "1 ROLLED_BACK" in found.told.halted_why


def test_on_breach_revert_takes_back_who_ran_it() -> None:
    kept = record([good(5), bad(20)])
    found = ask(kept, on_breach=OnBreach.REVERT)
    assert told(found)[-2:] == [(20.0, "send_back"), (21.0, "end_revert")]
    assert found.told.state == "REVERTED"


def test_a_silent_device_is_overdue_by_the_limits_of_the_policy() -> None:
    kept = record([good(), SILENT])
    halted = ask(kept, timeouts=Timeouts(silent_s=100.0)).told.halted_at_s
    assert halted == 121.0, "silent for more than 100 s after the last sign at 20 s"
    found = ask(kept, timeouts=Timeouts(execution_s=50.0))
    assert found.told.halted_at_s == 51.0


def test_a_slow_device_is_not_known_beyond_its_old_limit() -> None:
    slow = Course(((5.0, E.DOWNLOADING),), known_s=60.0)
    found = ask(record([good(), good(), slow]), timeouts=Timeouts(execution_s=600.0))
    assert (found.drawn, found.told.state) == (("d02",), "SUCCEEDED")
    assert found.told.duration_s == 61.0, "as another did, and not before it is known to"


def test_budgets_and_windows_hold_offers_back() -> None:
    kept = record([good(), good(), good()])
    sites = [DeviceFacts(DeviceId("d"), labels={"site": name}) for name in ("a", "a", "b")]
    devices = tuple(replace(d, facts=f) for d, f in zip(kept.devices, sites, strict=True))
    one = ask(replace(kept, devices=devices), budgets=(Budget("site", 1),))
    assert [at for at, kind in told(one) if kind == "offer"] == [0.0, 20.0]
    assert one.told.duration_s == 40.0
    in_vienna = Window("0 3 * * *", 3600.0, "Europe/Vienna")
    late = ask(kept, windows=Windows(download=in_vienna))
    first = next(at for at, kind in told(late) if kind == "offer")
    assert (T0 + first) % 86_400 == 2 * 3600, "three in the morning, in winter"


def test_people_answer_as_late_as_they_did_and_act_when_they_did() -> None:
    asking = spec(waves=(WaveSpec("all", percent=100, approval=Approval()),))
    kept = record([good()], asking, answers={0: (Answer(40.0, Approve("bob")),)})
    assert [at for at, kind in told(ask(kept)) if kind == "open_wave"] == [40.0]
    acts = (*record([]).acts, Act(T0 + 3, Pause()), Act(T0 + 8, Resume()), Act(T0 + 9, Resume()))
    found = ask(record([good()], acts=acts))
    assert [(at, kind) for at, kind in told(found) if kind in {"pause", "resume"}] == [
        (3.0, "pause"),
        (8.0, "resume"),
    ]
    assert any("resume after 9 s is left out" in note for note in found.notes)


def test_a_wider_tolerance_forgets_what_came_of_the_refusal() -> None:
    kept = record([good(), good(), bad(ratio=1.5)])
    wide = GatePolicy(tolerance={"token_ms": 0.6})
    assert courses(kept, replace(kept.spec, gates=wide), Unknown.RATE, 0)["d02"].drawn
    strict = GatePolicy(tolerance={"token_ms": 0.6, "load_ms": 0.1})
    same = courses(kept, replace(kept.spec, gates=strict), Unknown.RATE, 0)
    assert not same["d00"].drawn
    regressed = replace(kept.spec, gates=GatePolicy(tolerance={"token_ms": -0.03}))
    assert courses(kept, regressed, Unknown.RATE, 0)["d00"].courses[-1].end is E.SUCCEEDED


def test_nothing_is_drawn_where_nobody_has_answered() -> None:
    with pytest.raises(InvalidError, match="succeed or fail"):
        ask(record([None, None]))


def test_other_waves_cut_the_same_order() -> None:
    kept = record([good()] * 5)
    waves = (WaveSpec("a", count=1), WaveSpec("b", percent=50), WaveSpec("c", percent=80))
    cut = placed(kept, replace(kept.spec, waves=waves))
    assert [(one.device, wave) for one, wave, _ in cut] == [
        ("d00", 0),
        ("d01", 1),
        ("d02", 1),
        ("d03", 2),
    ]


COURSES = st.one_of(
    st.none(),
    st.builds(good, st.floats(0, 90)),
    st.builds(bad, st.floats(0, 90)),
    st.just(SILENT),
    st.builds(lambda at: Course(((at, E.FAILED),), why="download.failed"), st.floats(0, 90)),
    st.builds(lambda at: Course(((at, E.STAGED),), known_s=at + 5), st.floats(0, 90)),
)
POLICIES = st.fixed_dictionaries(
    {
        "waves": st.sampled_from(
            [
                (WaveSpec("all", percent=100),),
                (WaveSpec("canary", count=2), WaveSpec("all", percent=100)),
                (WaveSpec("half", percent=50, timeout_s=60), WaveSpec("all", percent=100)),
                (WaveSpec("some", percent=70, approval=Approval(needed=2)),),
            ]
        ),
        "pace": st.builds(Pace, st.integers(1, 5), st.integers(1, 5)),
        "on_breach": st.sampled_from(OnBreach),
        "soak_s": st.sampled_from([0.0, 45.0]),
        "gates": st.builds(
            GatePolicy,
            st.sampled_from([0.5, 1.0]),
            st.integers(0, 4),
            st.just({"token_ms": 0.1}),
        ),
        "timeouts": st.builds(Timeouts, st.sampled_from([30.0, 500.0]), st.just(700.0)),
    }
)


@given(st.lists(COURSES, min_size=1, max_size=8), POLICIES, st.sampled_from(["succeed", "fail"]))
def test_any_replay_keeps_the_rules_and_gives_the_same_answer_twice(
    known: list[Course | None], policy: dict[str, Any], unknown: str
) -> None:
    kept = record(known)
    found = ask(kept, unknown, **policy)
    assert ask(kept, unknown, **policy) == found
    assert sum(found.told.outcomes.values()) == len(placed(kept, replace(kept.spec, **policy)))
    assert found.told.state not in {"DRAFT", "BUILDING", "SCHEDULED", "RUNNING"} or _waits(found)
    kinds = [one.kind for one in found.told.decisions]
    if "halt" in kinds:
        assert "offer" not in kinds[kinds.index("halt") :], "an offer after a gate tripped"
    assert set(found.drawn) <= {f"d{i:02}" for i in range(len(known))}


def _waits(found: Replay) -> bool:
    """Nothing more can come: it waits for what no device will say."""
    return found.told.decisions[-1].kind == "hold"


@given(st.lists(COURSES, min_size=1, max_size=8), POLICIES)
def test_in_flight_never_exceeds_the_pace(
    known: list[Course | None], policy: dict[str, Any]
) -> None:
    kept = record(known)
    run = Run(kept, replace(kept.spec, **policy), Unknown.FAIL, 0)
    while run.go_on():
        assert len(list(run.world.flying)) <= policy["pace"].max_in_flight
