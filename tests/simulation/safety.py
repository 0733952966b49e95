"""Safety: what must hold after every commit, whatever came before (DESIGN section 6).

Written against rows and against what really happened on the devices; it shares no rule with the
code that it checks, and asks only for what is necessary whatever the gates' statistics are.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from agent.protocol.messages import Bench
from agent.protocol.messages import Event as EventReport
from tests.simulation import policy
from tests.simulation.device import Truth
from tests.simulation.errors import ViolationError, hold
from tests.simulation.facts import ENDED, IN_FLIGHT, STEPS, Facts, Part, Rollout
from tests.simulation.people import NOBODY, Act
from tests.simulation.promises import Promises

FAILURES = frozenset({"FAILED", "ROLLED_BACK", "TIMED_OUT"})
_BEGUN = frozenset({"ACTIVATING", "SOAKING"})
MAY_WAIT = frozenset({"OFFERED", "DOWNLOADING", "STAGED", "BENCHMARKING"})
WITHDRAWN = frozenset({"CANCELED", "SUPERSEDED"})
ANSWERS = frozenset({"SUCCEEDED", "FAILED", "REJECTED", "ROLLED_BACK"})
STOPPED = frozenset({"DRAFT", "PAUSED", "HALTED", "REVERTING"}) | ENDED
MAY_BE_ORDERED = IN_FLIGHT | ANSWERS


class Safety:
    """Compares what the database says after each commit with what it said before.

    Args:
        truths: what really happened, by device.
        sites: the site of each device.
        now: reads the clock.
    """

    def __init__(
        self, truths: Mapping[str, Truth], sites: Mapping[str, str], now: Callable[[], float]
    ) -> None:
        self._promises = Promises(sites, now)
        self._truths = truths
        self._now = now
        self._acknowledged: dict[str, Counter[str]] = {}
        self._unsure: set[str] = set()
        """Offered while the device was just confirming, or taking back, another bundle."""
        self._orders: dict[tuple[str, int], tuple[str, str, str]] = {}

    def check(
        self,
        before: Facts,
        after: Facts,
        fresh: list[tuple[str, int, int]],
        act: Act = NOBODY,
    ) -> None:
        """Check one commit.

        Args:
            before: before it.
            after: after it.
            fresh: keys of the reports that it counted.
            act: what a person did, if a person did it.
        """
        self._acknowledge(before, after, act)
        for part in after.parts.values():
            known = before.parts.get(part.id)
            if known is not part and known != part:
                self._part(known, part, after.rollouts[part.rollout])
        self._offers(before, after)
        self._promises.check(before, after, act)
        self._flying(after)
        for rollout in after.rollouts.values():
            self._rollout(before, after, rollout, act)
        self._wanted(before, after)
        counted = Counter((p.rollout, p.wave, p.blueprint, p.state) for p in after.parts.values())
        hold(
            counted == after.tallies,
            "5 tallies",
            (counted - after.tallies, after.tallies - counted),
        )
        for device, boot, seq in fresh:
            self._counted(after, device, self._truths[device].reports.get((boot, seq)))

    # --- one device's part --------------------------------------------------------------------

    def _part(self, known: Part | None, part: Part, rollout: Rollout) -> None:
        was = known.state if known is not None else "QUEUED"
        if known is not None:
            hold(part.generation >= known.generation, "4 generation shrank", part)
        if part.state == was:
            return
        # Who waits for its window may be taken back from wherever it waits.
        waits = MAY_WAIT if rollout.spec.get("windows", {}).get("activate") else {"OFFERED"}
        back = was in waits and part.state == "QUEUED"
        forward = part.state not in STEPS or (
            was in STEPS and (back or STEPS.index(part.state) > STEPS.index(was))
        )
        hold(was in STEPS, "4 terminal left", (was, part))
        hold(forward, "4 backwards", (was, part))
        self._said(part)
        if part.state == "SUCCEEDED":
            confirmed = (part.id, part.digest) in self._truths[part.device].confirmed
            hold(confirmed, "6 success without the digest", part)

    def _said(self, part: Part) -> None:
        """Check that what only a device can know was said by it, of this very execution."""
        if part.state in STEPS[:2] or part.state in WITHDRAWN or part.state == "TIMED_OUT":
            return
        said = self._truths[part.device].said
        mismatch = part.state == "FAILED" and (part.id, "SUCCEEDED") in said
        hold(mismatch or (part.id, part.state) in said, "5 nobody said so", part)

    # --- offers, pace, waves --------------------------------------------------------------------

    def _acknowledge(self, before: Facts, after: Facts, act: Act) -> None:
        name = act.rollout
        known = before.rollouts.get(name)
        if act.verb == "resume" and known is not None and after.rollouts[name] != known:
            halted = known.state == "HALTED" or bool(known.halted)
            if halted and known.machine.get("wave", -1) >= 0:
                self._acknowledged[name] = _failures(before.of(name))

    def _offers(self, before: Facts, after: Facts) -> None:
        for part in after.parts.values():
            known = before.parts.get(part.id)
            if part.offered_at is None or (known and known.offered_at == part.offered_at):
                continue
            if any(p.device == part.device and p.state in _BEGUN for p in before.parts.values()):
                self._unsure.add(part.id)
            rollout = before.rollouts[part.rollout]
            hold(rollout.state not in STOPPED, f"3 offer while {rollout.state}", part)
            gates = rollout.spec["gates"]
            failed = _failures(before.of(part.rollout))
            failed.subtract(self._acknowledged.get(part.rollout, Counter()))
            alone = gates.get("scope") == "blueprint"
            over = {b for b, n in failed.items() if n > gates["max_failures"]}
            tripped = part.blueprint in over if alone else bool(over)
            hold(not tripped, "3 offer over the failure budget", (part, over))
            wave = after.rollouts[part.rollout].machine["wave"]
            hold(part.wave <= wave, "4 offer of a closed wave", (part, wave))

    def _flying(self, after: Facts) -> None:
        flying = [part for part in after.parts.values() if part.state in IN_FLIGHT]
        by_device = Counter(part.device for part in flying)
        hold(all(n == 1 for n in by_device.values()), "4 offered two at once", by_device)
        for name, n in Counter(part.rollout for part in flying).items():
            spec = after.rollouts[name].spec
            paces = [wave.get("pace") or {} for wave in spec["waves"]]
            most = max(pace.get("max_in_flight") or 0 for pace in (spec["pace"], *paces))
            hold(n <= most, "4 pace", f"{n} in flight of at most {most}")

    def _rollout(self, before: Facts, after: Facts, now: Rollout, act: Act) -> None:
        known = before.rollouts.get(now.name)
        if known is None or known is now:
            return
        ended = known.state in ENDED and known.state != now.state
        hold(not ended, "4 rollout left its end", (known.state, now))
        if now.state in {"PAUSED", "HALTED"} and not now.pending:
            offered = [p for p in after.of(now.name) if p.state == "OFFERED"]
            hold(not offered, f"3 still offered when {now.state}", offered)
        if (act.verb, act.rollout) == ("promote", now.name):
            return
        for wave in range(max(0, known.machine.get("wave", -1)), now.machine.get("wave", -1)):
            if known.state != "AWAITING_APPROVAL":
                self._opened(after, now, wave)
        if now.state == "SUCCEEDED" and known.state != "SUCCEEDED":
            left = [p for p in after.of(now.name) if p.state in STEPS]
            hold(not left, "6 success before all have answered", left)

    def _opened(self, after: Facts, rollout: Rollout, wave: int) -> None:
        """Check the gates of the wave before the one that was opened, as the document has them."""
        parts = [p for p in after.of(rollout.name) if p.blueprint not in rollout.halted]
        if not any(part.wave <= wave for part in parts):
            return  # whoever it was for is a misfit by now: the next one is the first
        failed = _failures(parts)
        failed.subtract(self._acknowledged.get(rollout.name, Counter()))
        gates = rollout.spec["gates"]
        over = [b for b, n in failed.items() if n > gates["max_failures"]]
        hold(not over, "4 wave opened over the failure budget", over)
        judged = max((p.wave for p in parts if p.wave <= wave), default=wave)
        for blueprint in sorted({p.blueprint for p in parts if p.wave == judged}):
            mine = [p for p in parts if p.blueprint == blueprint and p.wave == judged]
            eligible = [p for p in mine if p.state not in WITHDRAWN]
            answered = [p for p in eligible if p.state not in STEPS]
            need = max(1, math.ceil(gates["min_answered"] * len(eligible) - 1e-9))
            seen = (blueprint, len(answered), need)
            hold(len(answered) >= need, "4 wave opened before its time", seen)
            so_far = [p for p in parts if p.blueprint == blueprint and p.wave <= judged]
            good = any(p.state == "SUCCEEDED" for p in so_far)
            hold(good, "4 wave opened on no success", blueprint)
        opened_at = rollout.machine["opened_at"]
        soak = policy.seconds(rollout.spec["waves"][judged].get("soak") or rollout.spec["soak"])
        soaked = self._now() + 1e-3 >= opened_at[judged] + soak
        hold(soaked, "4 wave opened before its soak", (opened_at, soak))

    # --- orders ---------------------------------------------------------------------------------

    def _wanted(self, before: Facts, after: Facts) -> None:
        for device, one in after.wanted.items():
            known = before.wanted.get(device)
            if known == one:
                continue
            if known is not None:
                hold(one.generation >= known.generation, "4 generation shrank", (known, one))
            content = (one.action, one.digest, one.execution)
            first = self._orders.setdefault((device, one.generation), content)
            hold(first == content, "4 generation reused", (first, one))
        for device, one in after.wanted.items():
            part = after.parts.get(one.execution)
            if part is None:
                continue
            if one.action == "run":
                own = part.state == "CANCELED" and part.reason == "operator"
                fine = own or part.state in MAY_BE_ORDERED
                hold(fine, "3 an order outlives its offer", (one, part))
            elif one.action == "revert":
                right = self._truths[device].before.get(part.id, part.previous)
                hold(one.digest == part.previous, "revert to the wrong digest", (one, part))
                sure = part.id not in self._unsure
                fine = one.digest == right or not sure
                hold(fine, "revert to what never ran before", (one, part, right))

    # --- reports ----------------------------------------------------------------------------------

    def _counted(self, after: Facts, device: str, report: EventReport | Bench | None) -> None:
        hold(report is not None, "5 counted what nobody said", device)
        if not isinstance(report, EventReport):
            return
        part = after.parts.get(report.execution)
        if part is None or part.device != device or part.state not in STEPS:
            return
        current = report.generation >= part.generation and part.state != "QUEUED"
        state: Any = report.state.value
        if state in ANSWERS or (current and state not in STEPS):
            if part.revert_generation and report.generation >= part.revert_generation:
                return
            raise ViolationError("5 a counted report has no effect", (report, part))
        if current and STEPS.index(state) > STEPS.index(part.state):
            raise ViolationError("5 a counted report has no effect", (report, part))


def _failures(parts: list[Part]) -> Counter[str]:
    return Counter(part.blueprint for part in parts if part.state in FAILURES)
