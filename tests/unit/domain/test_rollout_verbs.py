"""Every verb in every state: what `legal` says is what the machine does, and what the page says."""

from itertools import product
from pathlib import Path

import pytest

from control_plane.domain import rollout_verbs
from control_plane.domain.errors import IllegalTransitionError
from control_plane.domain.rollout import ENDED, RolloutState
from control_plane.domain.rollout_machine import advance
from control_plane.domain.rollout_view import (
    Abort,
    Approve,
    Deny,
    Event,
    Machine,
    Pause,
    Promote,
    Resume,
    Revert,
    Start,
    View,
    Withdraw,
)
from tests.unit.domain.rollout_model import spec

S = RolloutState
EVENTS: dict[str, Event] = {
    "start": Start(),
    "approve": Approve(),
    "deny": Deny("ada", "too risky"),
    "pause": Pause(),
    "resume": Resume(),
    "promote": Promote(),
    "abort": Abort("keep"),
    "revert": Revert(),
}
# A wave is open, unless the state comes before any.
BEFORE_ANY_WAVE = frozenset({S.DRAFT, S.BUILDING, S.SCHEDULED, S.AWAITING_APPROVAL})


def _in(state: RolloutState) -> View:
    if state in BEFORE_ANY_WAVE:
        return View(spec(), Machine(state=state))
    return View(spec(), Machine(state=state, wave=0, opened_at=(0.0,)))


@pytest.mark.parametrize(("state", "verb"), list(product(RolloutState, EVENTS)))
def test_a_verb_is_done_where_it_is_legal_and_refused_where_not(
    state: RolloutState, verb: str
) -> None:
    allowed = rollout_verbs.legal(state)
    if verb in allowed:
        machine, _ = advance(_in(state), EVENTS[verb], 0.0)
        assert machine.state is not state or verb in {"promote", "approve"}
        return
    with pytest.raises(IllegalTransitionError, match=str(state)) as refused:
        advance(_in(state), EVENTS[verb], 0.0)
    for name in set(allowed) - {"retry"}:
        assert name in refused.value.message
    if state in ENDED:
        assert "it has ended" in refused.value.message


def test_every_verb_of_people_has_an_event_or_makes_a_rollout() -> None:
    assert set(rollout_verbs.NAMES) == {*EVENTS, "retry"}
    assert all(rollout_verbs.legal(state) for state in RolloutState)


def test_a_denied_wave_ends_the_rollout_and_says_who_and_why() -> None:
    machine, decisions = advance(_in(S.AWAITING_APPROVAL), EVENTS["deny"], 0.0)
    assert (machine.state, machine.reason) == (S.ABORTED, "denied by ada: too risky")
    assert decisions == (Withdraw(for_good=True),)


def test_the_page_about_verbs_is_what_the_code_says() -> None:
    page = Path("docs/rollout-verbs.md").read_text(encoding="utf-8")
    assert rollout_verbs.table() in page, rollout_verbs.table()
    assert rollout_verbs.meanings() in page, rollout_verbs.meanings()
