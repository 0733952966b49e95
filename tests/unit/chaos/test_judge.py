"""The judge of `make chaos` can say no: each promise is broken once, by what a real fault leaves.

A rule that no test here makes fire would prove nothing by its silence.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.chaos.evidence import Evidence, Heard, Ordered, Ran, RolloutMoved, SaidKey, Step
from tests.chaos.judge import RULES, judge
from tests.unit.chaos.books import BAD, BOOT, DIGEST, GOOD, OLD, Book, book

Fault = Callable[[], Evidence]
FAULTS: list[tuple[str, str, Fault]] = []


def breaks(rule: str, words: str) -> Callable[[Fault], Fault]:
    """Note that a fault is noticed by this rule, in words that begin so."""

    def note(fault: Fault) -> Fault:
        FAULTS.append((rule, words, fault))
        return fault

    return note


def with_story(change: Callable[[Book], object]) -> Evidence:
    """Return the story with something more at its end."""
    made = book()
    change(made)
    return made.evidence()


def test_a_story_in_which_every_promise_is_kept_is_judged_so() -> None:
    assert judge(book().evidence()) == []


# --- reports ------------------------------------------------------------------------------------


@breaks("nothing_lost", "lost: ")
def acknowledged_before_the_commit() -> Evidence:
    whole = book().evidence()
    return replace(whole, seen=whole.seen - {min(whole.seen)})


@breaks("nothing_lost", "lost: ")
def a_report_that_never_arrives() -> Evidence:
    whole = book().evidence()
    gone = {min(whole.seen)}
    return replace(whole, seen=whole.seen - gone, acked=whole.acked - gone)


@breaks("nothing_lost", "doubled: ")
def a_report_that_nobody_made() -> Evidence:
    whole = book().evidence()
    return replace(whole, seen=whole.seen | {SaidKey("d0", BOOT, 999)})


@breaks("reports_have_their_effect", "lost: ")
def counted_in_one_transaction_and_applied_in_another() -> Evidence:
    made = book()
    made.opens(BAD, 0)
    made.offer(f"{BAD}/d2")
    made.say(f"{BAD}/d2", "SUCCEEDED", DIGEST)
    return made.evidence()


@breaks("rows_say_what_devices_said", "doubled: ")
def a_report_applied_to_somebody_else() -> Evidence:
    return with_story(lambda made: made.move(f"{BAD}/d1", "FAILED"))


@breaks("history_is_what_happened", "doubled: ")
def a_step_that_is_noted_twice() -> Evidence:
    return with_story(lambda made: made.steps.append(Step(f"{GOOD}/d0", "SOAKING", "SUCCEEDED")))


@breaks("history_is_what_happened", "doubled: ")
def a_move_without_its_line() -> Evidence:
    return with_story(lambda made: made.steps.pop())


@breaks("history_is_what_happened", "doubled: ")
def a_return_that_is_noted_twice() -> Evidence:
    twice = [Step(f"{GOOD}/d0", "SUCCEEDED", "SUCCEEDED")] * 2
    return with_story(lambda made: made.steps.extend(twice))


@breaks("devices_changed_once", "doubled: ")
def a_change_that_is_noted_twice() -> Evidence:
    return with_story(lambda made: made.history.append(Ran("d0", DIGEST, f"{GOOD}/d0")))


@breaks("devices_changed_once", "doubled: ")
def a_change_that_comes_back() -> Evidence:
    def overtaken(made: Book) -> None:
        made.say(f"{BAD}/d0", "SOAKING", "newer")
        newer = Ran("d0", "newer", f"{BAD}/d0")
        made.history += [newer, Ran("d0", DIGEST, f"{GOOD}/d0"), newer]

    return with_story(overtaken)


def test_a_change_told_late_may_stand_behind_the_newer_one() -> None:
    def told_late(made: Book) -> None:
        made.say(f"{BAD}/d0", "SOAKING", "newer")
        newer = Ran("d0", "newer", f"{BAD}/d0")
        made.history += [newer, Ran("d0", OLD, f"{BAD}/d0"), newer]

    assert judge(with_story(told_late)) == []


@breaks("devices_changed_once", "lost: ")
def a_change_that_is_told_too_late() -> Evidence:
    whole = book().evidence()
    return replace(whole, runs={**whole.runs, "d0": "newer"})


@breaks("devices_changed_once", "doubled: ")
def a_change_that_nobody_said() -> Evidence:
    return with_story(lambda made: made.history.append(Ran("d1", "other", f"{GOOD}/d1")))


@breaks("trials_count_once", "lost: ")
def a_trial_that_is_not_stored() -> Evidence:
    return with_story(lambda made: made.trials.pop())


@breaks("trials_count_once", "doubled: ")
def a_trial_that_is_stored_twice() -> Evidence:
    return with_story(lambda made: made.trials.append(made.trials[0]))


# --- counts -------------------------------------------------------------------------------------


@breaks("counts_are_the_rows", "tallies: ")
def tallies_in_a_transaction_of_their_own() -> Evidence:
    whole = book().evidence()
    key = (GOOD, 1, "board", "SUCCEEDED")
    return replace(whole, tallies=whole.tallies - Counter({key: 1}))


@breaks("counts_are_the_rows", "tallies: ")
def a_count_of_the_fleet_that_drifts() -> Evidence:
    return replace(book().evidence(), drift={"online yes": 1})


@breaks("counts_are_the_rows", "tallies: ")
def counts_that_were_wrong_for_a_moment() -> Evidence:
    return replace(book().evidence(), glimpses=["tallies: for a moment"])


@breaks("trials_sum_up", "tallies: ")
def a_trial_that_counts_twice() -> Evidence:
    whole = book().evidence()
    doubled = {
        key: one._replace(n=2 * one.n, sum_log=2 * one.sum_log)
        for key, one in whole.summaries.items()
    }
    return replace(whole, summaries=doubled)


# --- rollouts -----------------------------------------------------------------------------------


@breaks("parts_go_forward", "terminal: ")
def a_late_report_that_reopens() -> Evidence:
    return with_story(lambda made: made.report(f"{GOOD}/d0", "SOAKING", DIGEST))


@breaks("parts_go_forward", "terminal: ")
def two_moves_from_the_same_place() -> Evidence:
    def twice(made: Book) -> None:
        made.ledger.append(made._moved(f"{GOOD}/d0", "QUEUED", "CANCELED"))

    return with_story(twice)


@breaks("the_pace_holds", "pace: ")
def ticks_without_a_lock() -> Evidence:
    def offer_too_many(made: Book) -> None:
        made.opens(BAD, 0)
        made.plan(GOOD, 3)
        made.opens(GOOD, 0)
        for number in range(3):
            made.offer(f"{GOOD}/d{number}")

    return with_story(offer_too_many)


@breaks("the_pace_holds", "budget: ")
def two_rollouts_that_do_not_see_each_other() -> Evidence:
    whole = book().evidence()
    rules = {name: one._replace(a_site=1) for name, one in whole.rules.items()}
    return replace(whole, rules=rules)


@breaks("the_rate_holds", "pace: ")
def offers_that_nobody_counts() -> Evidence:
    whole = book().evidence()
    rules = {name: one._replace(per_minute=2) for name, one in whole.rules.items()}
    return replace(whole, rules=rules)


@breaks("waves_wait", "wave: ")
def a_wave_that_opens_early() -> Evidence:
    def open_next(made: Book) -> None:
        made.plan(GOOD, 1, 1)
        made.opens(GOOD, 0)
        made.rollout(GOOD, "RUNNING", 1)

    made = Book()
    open_next(made)
    return made.evidence()


@breaks("waves_wait", "wave: ")
def an_offer_of_a_wave_that_is_not_open() -> Evidence:
    made = Book()
    made.plan(GOOD, 1, 1)
    made.opens(GOOD, 0)
    made.offer(f"{GOOD}/d1")
    return made.evidence()


@breaks("a_stop_is_a_stop", "stop: ")
def a_halt_that_lets_offers_through() -> Evidence:
    return with_story(lambda made: made.offer(f"{BAD}/d2"))


@breaks("a_stop_is_a_stop", "stop: ")
def an_order_after_the_halt() -> Evidence:
    return with_story(lambda made: made.order("d2", "run", f"{BAD}/d2"))


@breaks("a_stop_is_a_stop", "stop: ")
def an_offer_after_the_failure_that_trips() -> Evidence:
    made = book()
    halted = made.ledger.pop()
    made.offer(f"{BAD}/d2")
    made.ledger.append(halted)
    return made.evidence()


def test_who_resumes_acknowledges_what_has_failed() -> None:
    made = book()
    made.rollout(BAD, "RUNNING", 0)
    made.offer(f"{BAD}/d2")

    assert judge(made.evidence()) == []


@breaks("devices_hear_what_was_decided", "order: ")
def an_order_published_before_its_commit() -> Evidence:
    return with_story(lambda made: made.heard.append(Heard("d0", 9, "run", f"{BAD}/d0", BAD)))


@breaks("devices_hear_what_was_decided", "order: ")
def a_generation_that_is_used_twice() -> Evidence:
    return with_story(lambda made: made.ledger.append(Ordered("d0", 1, "hold", "", BAD)))


@breaks("devices_hear_what_was_decided", "order: ")
def an_order_that_the_broker_forgot() -> Evidence:
    whole = book().evidence()
    return replace(whole, applied={**whole.applied, "d1": 1})


@breaks("decisions_are_made_once", "doubled: ")
def a_wave_that_two_schedulers_open() -> Evidence:
    def twice(made: Book) -> None:
        made.decided[GOOD, 1, "open_wave"] += 1

    return with_story(twice)


@breaks("decisions_are_made_once", "doubled: ")
def a_halt_that_is_decided_twice() -> Evidence:
    def twice(made: Book) -> None:
        made.decided[BAD, 0, "halt"] += 1

    return with_story(twice)


@breaks("decisions_are_made_once", "doubled: ")
def a_halt_that_nobody_decided() -> Evidence:
    return with_story(lambda made: made.ledger.append(RolloutMoved(GOOD, "HALTED", 1)))


@pytest.mark.parametrize(
    ("rule", "words", "fault"), [pytest.param(*one, id=one[2].__name__) for one in FAULTS]
)
def test_a_fault_is_noticed_by_its_rule(rule: str, words: str, fault: Fault) -> None:
    evidence = fault()
    said = next(one for one in RULES if one.__name__ == rule)(evidence)

    assert [line for line in said if line.startswith(words)]
    assert judge(evidence)


def test_every_rule_has_a_fault() -> None:
    assert {one.__name__ for one in RULES} == {rule for rule, _, _ in FAULTS}
