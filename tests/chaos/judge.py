"""PURE: what the evidence proves to be broken; empty when every promise was kept.

It shares no rule with the code that it judges. Whoever adds a rule adds a fault that only this
rule catches (tests/unit/chaos/test_judge.py).
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator

from control_plane.domain.gates import TRIALS
from tests.chaos.evidence import (
    Evidence,
    Ordered,
    PartMoved,
    Ran,
    RolloutMoved,
    Rules,
    Said,
    SaidKey,
    Step,
    Trial,
)

WAITING = "QUEUED"
OFFERED = "OFFERED"
STEPS = (WAITING, OFFERED, "DOWNLOADING", "STAGED", "BENCHMARKING", "ACTIVATING", "SOAKING")
FAILURES = frozenset({"FAILED", "ROLLED_BACK", "TIMED_OUT"})
FACTS = frozenset({"SUCCEEDED", "FAILED", "REJECTED", "ROLLED_BACK"})
WITHDRAWN = frozenset({"CANCELED", "SUPERSEDED"})
BY_DEVICES = FACTS | set(STEPS[2:])
"""States of which only the device can know."""
GOES_ON = "RUNNING"
HALTED = "HALTED"
MINUTE_S = 60.0
INCONCLUSIVE = "inconclusive"

Rule = Callable[[Evidence], Iterator[str]]


def judge(evidence: Evidence) -> list[str]:
    """Return what is broken, a sentence each that begins with the promise."""
    return [f"{broken}" for rule in RULES for broken in rule(evidence)]


# --- reports ------------------------------------------------------------------------------------


def nothing_lost(evidence: Evidence) -> Iterator[str]:
    """A report that was acknowledged is committed; in the end every report is."""
    for key in sorted(evidence.acked - evidence.seen):
        yield f"lost: {key} was acknowledged and is not committed"
    for key in sorted(evidence.said.keys() - evidence.seen - evidence.acked):
        yield f"lost: {key} never arrived"
    for key in sorted(evidence.seen - evidence.said.keys()):
        yield f"doubled: {key} was counted and nobody said it"


def reports_have_their_effect(evidence: Evidence) -> Iterator[str]:
    """How a device says its part ended is how it ended, unless we had taken it back before."""
    for said in evidence.said.values():
        part = evidence.parts.get(said.execution)
        if part is None or said.state not in FACTS or said.reason == "reverted":
            continue
        if part.state in STEPS:
            yield f"lost: {said.execution} is {part.state}, its device said {said.state}"


def rows_say_what_devices_said(evidence: Evidence) -> Iterator[str]:
    """No part is where only its device can have brought it unless the device said so."""
    said = {(one.execution, one.state) for one in evidence.said.values()}
    for entry in _moves(evidence):
        if entry.after in BY_DEVICES and (entry.id, entry.after) not in said:
            yield f"doubled: {entry.id} became {entry.after}, and its device never said so"


def history_is_what_happened(evidence: Evidence) -> Iterator[str]:
    """An execution's history goes through its moves, in their order; a move may be many steps."""
    moves: dict[str, list[tuple[str, str]]] = {}
    for entry in _moves(evidence):
        moves.setdefault(entry.id, []).append((entry.before, entry.after))
    steps: dict[str, list[Step]] = {}
    returns: Counter[str] = Counter()
    for step in evidence.steps:
        returns[step.execution] += step.before == step.after
        if step.before != step.after:
            steps.setdefault(step.execution, []).append(step)
    for execution in sorted(moves.keys() | steps.keys()):
        was, told = moves.get(execution, []), steps.get(execution, [])
        if not _leads_through(told, was):
            yield f"doubled: {execution} moved {was}, its history has {told}"
    for execution, n in returns.items():
        if n > 1:
            yield f"doubled: {execution} returned {n} times"


def _leads_through(steps: list[Step], moves: list[tuple[str, str]]) -> bool:
    """Return whether steps, each where the last one ended, make these moves and no others."""
    left = iter(steps)
    for before, after in moves:
        now = before
        while now != after or now == before:
            step = next(left, None)
            if step is None or step.before != now:
                return False
            now = step.after
    return next(left, None) is None


def devices_changed_once(evidence: Evidence) -> Iterator[str]:
    """A device's history has a line for each change of what it runs, each said by the device.

    What comes late from an older rollout is told behind the newer line, which then comes again.
    """
    said = {(one.execution, one.digest) for one in evidence.said.values()}
    lines: dict[str, list[Ran]] = {}
    for line in evidence.history:
        mine = lines.setdefault(line.device, [])
        again, inserted = (
            line in mine,
            len(mine) > 1 and mine[-2] == line and mine.count(mine[-1]) == 1,
        )
        if (mine and mine[-1].digest == line.digest) or (again and not inserted):
            yield f"doubled: {line.device} began to run {line.digest[:12]} again: {mine}"
        if line.execution and (line.execution, line.digest) not in said:
            yield f"doubled: {line.device} never said that it runs {line.digest[:12]}"
        mine.append(line)
    for device, digest in evidence.runs.items():
        told = lines.get(device)
        if told and told[-1].digest != digest:
            yield f"lost: {device} runs {digest[:12]}, its history ends with {told[-1]}"


def trials_count_once(evidence: Evidence) -> Iterator[str]:
    """Each trial that was said is stored once, with the execution that it names."""
    wanted = {
        key: one.execution
        for key, one in evidence.said.items()
        if not one.state and _is_theirs(evidence, key, one)
    }
    stored = Counter(trial.key for trial in evidence.trials)
    for key in sorted(wanted.keys() - stored.keys()):
        yield f"lost: the trial {key} is not stored"
    for key, n in sorted(stored.items()):
        if n > 1 or key not in wanted:
            yield f"doubled: the trial {key} is stored {n} times"


# --- counts -------------------------------------------------------------------------------------


def counts_are_the_rows(evidence: Evidence) -> Iterator[str]:
    """Tallies, and counts of the fleet, are what a recount of the rows gives."""
    rows = Counter(
        (part.rollout, part.wave, part.blueprint, part.state) for part in evidence.parts.values()
    )
    for key in sorted(rows.keys() | evidence.tallies.keys()):
        if rows[key] != evidence.tallies[key]:
            yield f"tallies: {key} counts {evidence.tallies[key]}, the rows are {rows[key]}"
    for name, by in sorted(evidence.drift.items()):
        yield f"tallies: the fleet's {name} is wrong by {by}"
    yield from evidence.glimpses


def trials_sum_up(evidence: Evidence) -> Iterator[str]:
    """What gates judge is the newest conclusive trial of each execution, each counted once."""
    untouched = _never_withdrawn(evidence)
    newest: dict[str, Trial] = {}
    for trial in sorted(evidence.trials, key=lambda trial: trial.key):
        part = evidence.parts[trial.execution]
        if trial.verdict != INCONCLUSIVE and part.rollout in untouched:
            newest[trial.execution] = trial
    rows: dict[tuple[str, int, str, str], list[float]] = {}
    for execution, trial in newest.items():
        part = evidence.parts[execution]
        group = (part.rollout, part.wave, part.blueprint)
        rows.setdefault((*group, TRIALS), []).append(0.0)
        if trial.ratio is not None:
            rows.setdefault((*group, "token_ms"), []).append(math.log(trial.ratio))
    kept = {
        key: one
        for key, one in evidence.summaries.items()
        if key[0] in untouched and key[3] in {TRIALS, "token_ms"} and one.n
    }
    for key in sorted(rows.keys() | kept.keys()):
        values, found = rows.get(key, []), kept.get(key)
        n, total = (0, 0.0) if found is None else found
        if n != len(values) or (key[3] != TRIALS and abs(total - sum(values)) > 1e-6):
            yield f"tallies: {key} sums {n} trials to {total}, the rows are {values}"


# --- rollouts -----------------------------------------------------------------------------------


def parts_go_forward(evidence: Evidence) -> Iterator[str]:
    """A terminal state is never left; nobody goes back but from an offer to the queue."""
    now: dict[str, str] = {}
    for entry in _moves(evidence):
        if entry.before != now.get(entry.id, WAITING):
            yield f"terminal: {entry.id} left {entry.before}, it was {now.get(entry.id, WAITING)}"
        back = (entry.before, entry.after) == (OFFERED, WAITING)
        forward = entry.after not in STEPS or (
            entry.before in STEPS and STEPS.index(entry.after) > STEPS.index(entry.before)
        )
        if entry.before not in STEPS or not (back or forward):
            yield f"terminal: {entry.id} went from {entry.before} to {entry.after}"
        now[entry.id] = entry.after


def the_pace_holds(evidence: Evidence) -> Iterator[str]:
    """Never more in flight than the pace and a site's budget allow, after any single change."""
    flying: set[str] = set()
    by_rollout: Counter[str] = Counter()
    by_site: Counter[str] = Counter()
    for entry in _moves(evidence):
        site = evidence.sites.get(entry.device, "")
        before, after = entry.id in flying, entry.after in STEPS[1:]
        by_rollout[entry.rollout] += after - before
        by_site[site] += after - before
        (flying.add if after else flying.discard)(entry.id)
        rules = _rules(evidence, entry.rollout)
        if after and not before and by_rollout[entry.rollout] > rules.max_in_flight:
            yield f"pace: {by_rollout[entry.rollout]} in flight in {entry.rollout}"
        if after and not before and site and by_site[site] > rules.a_site:
            yield f"budget: {by_site[site]} in flight at {site}"


def the_rate_holds(evidence: Evidence) -> Iterator[str]:
    """No more offers than a minute's in any sixty seconds."""
    for name, rules in evidence.rules.items():
        offers = sorted(one.offered_at for one in _offers(evidence) if one.rollout == name)
        for first, last in zip(offers, offers[rules.per_minute :], strict=False):
            if last - first < MINUTE_S:
                n = rules.per_minute + 1
                yield f"pace: {n} offers of {name} in {last - first:.1f} s"
                break


def waves_wait(evidence: Evidence) -> Iterator[str]:
    """No offer of a wave that is not open; none opens before all of the ones before have ended."""
    open_wave: dict[str, int] = {}
    parts: dict[str, PartMoved] = {}
    for entry in evidence.ledger:
        if isinstance(entry, PartMoved):
            parts[entry.id] = entry
            if _is_offer(entry) and entry.wave > open_wave.get(entry.rollout, -1):
                yield f"wave: {entry.id} of wave {entry.wave} was offered before it opened"
        elif isinstance(entry, RolloutMoved):
            known = open_wave.get(entry.name, -1)
            open_wave[entry.name] = entry.wave
            mine = (one for one in parts.values() if one.rollout == entry.name)
            early = [one for one in mine if one.wave < entry.wave and one.after in STEPS]
            if entry.wave > known and early:
                yield f"wave: {entry.name} opened {entry.wave} with {len(early)} still to answer"


def a_stop_is_a_stop(evidence: Evidence) -> Iterator[str]:
    """From the commit of a halt or a pause on, and over the failure budget: no offer, no order."""
    state: dict[str, str] = {}
    failed: Counter[tuple[str, str]] = Counter()
    known: Counter[tuple[str, str]] = Counter()
    for entry in evidence.ledger:
        match entry:
            case RolloutMoved(name, now, _):
                if state.get(name) == HALTED and now == GOES_ON:
                    known.update(
                        {key: failed[key] - known[key] for key in failed if key[0] == name}
                    )
                state[name] = now
            case Ordered(device, generation, "run", _, name) if state.get(name) != GOES_ON:
                yield f"stop: {device} was ordered {generation} while {name} was {state.get(name)}"
            case PartMoved() as part:
                key = part.rollout, part.blueprint
                failed[key] += part.after in FAILURES
                if _is_offer(part):
                    if state.get(part.rollout) != GOES_ON:
                        yield f"stop: {part.id} was offered while {state.get(part.rollout)}"
                    if failed[key] - known[key] > _rules(evidence, part.rollout).max_failures:
                        yield f"stop: {part.id} was offered over the failure budget"
            case _:
                pass


def devices_hear_what_was_decided(evidence: Evidence) -> Iterator[str]:
    """Every order that a device hears was committed; a generation is one order and only grows."""
    orders: dict[tuple[str, int], Ordered] = {}
    newest: dict[str, int] = {}
    for entry in evidence.ledger:
        if isinstance(entry, Ordered):
            if entry.generation <= newest.get(entry.device, 0):
                yield f"order: {entry} does not follow {newest[entry.device]}"
            newest[entry.device] = entry.generation
            orders[entry.device, entry.generation] = entry
    for heard in evidence.heard:
        order = orders.get((heard.device, heard.generation))
        if order is None or tuple(order) != tuple(heard):
            yield f"order: a device heard {heard}, committed was {order}"
    for device, generation in evidence.wanted.items():
        if generation != evidence.applied.get(device, 0):
            yield f"order: {device} is at {evidence.applied.get(device)}, wanted is {generation}"


def decisions_are_made_once(evidence: Evidence) -> Iterator[str]:
    """A wave is opened once; each halt is one decision."""
    halts: Counter[str] = Counter()
    state: dict[str, str] = {}
    for entry in evidence.ledger:
        if isinstance(entry, RolloutMoved):
            halts[entry.name] += entry.state == HALTED != state.get(entry.name)
            state[entry.name] = entry.state
    decided: Counter[str] = Counter()
    for (name, wave, kind), n in evidence.decided.items():
        if kind == "open_wave" and n > 1:
            yield f"doubled: wave {wave} of {name} was opened {n} times"
        if kind == "halt":
            decided[name] += n
    for name in sorted(halts.keys() | decided.keys()):
        if halts[name] != decided[name]:
            yield f"doubled: {name} was halted {halts[name]} times by {decided[name]} decisions"


RULES: tuple[Rule, ...] = (
    nothing_lost,
    reports_have_their_effect,
    rows_say_what_devices_said,
    history_is_what_happened,
    devices_changed_once,
    trials_count_once,
    counts_are_the_rows,
    trials_sum_up,
    parts_go_forward,
    the_pace_holds,
    the_rate_holds,
    waves_wait,
    a_stop_is_a_stop,
    devices_hear_what_was_decided,
    decisions_are_made_once,
)


# --- reading the evidence -----------------------------------------------------------------------


def _moves(evidence: Evidence) -> Iterator[PartMoved]:
    return (one for one in evidence.ledger if isinstance(one, PartMoved) and one.before)


def _offers(evidence: Evidence) -> Iterator[PartMoved]:
    return (one for one in _moves(evidence) if _is_offer(one))


def _is_offer(entry: PartMoved) -> bool:
    return entry.after == OFFERED and bool(entry.before)


def _rules(evidence: Evidence, rollout: str) -> Rules:
    return evidence.rules[rollout]


def _is_theirs(evidence: Evidence, key: SaidKey, said: Said) -> bool:
    part = evidence.parts.get(said.execution)
    return part is not None and part.device == key.device


def _never_withdrawn(evidence: Evidence) -> set[str]:
    """Return the rollouts of which every trial counts, whenever it came."""
    touched = {part.rollout for part in evidence.parts.values() if part.state in WITHDRAWN}
    return evidence.rules.keys() - touched
