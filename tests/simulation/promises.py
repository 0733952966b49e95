"""What documents promise, checked after every commit: windows, budgets, pace, approvals, priority.

The simulation's own arithmetic: it shares no rule with the code that it checks.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from tests.simulation import bundles, policy
from tests.simulation.errors import hold
from tests.simulation.facts import ENDED, IN_FLIGHT, STEPS, Facts, Part, Rollout
from tests.simulation.people import Act

MINUTE_S = 60.0
SLACK_S = 1e-3


class Promises:
    """Remembers offers and approvals, and compares each commit with what was promised.

    Args:
        sites: the site of each device.
        now: reads the clock.
    """

    def __init__(self, sites: Mapping[str, str], now: Callable[[], float]) -> None:
        self._sites = sites
        self._now = now
        self._offers: dict[str, list[float]] = {}
        self._approvals: dict[tuple[str, int], dict[str, str]] = {}
        self._invalid: set[str] = set()

    def check(self, before: Facts, after: Facts, act: Act) -> None:
        """Check one commit."""
        self._note(before, after, act)
        offered = [p for p in after.parts.values() if _is_offered(before.parts.get(p.id), p)]
        for part in offered:
            self._offered(after, part)
        for name in sorted({part.rollout for part in offered}):
            self._paced(after, name, [p for p in offered if p.rollout == name])
        for rollout in after.rollouts.values():
            known = before.rollouts.get(rollout.name)
            if known is not None and known is not rollout:
                for wave in range(known.wave + 1, rollout.wave + 1):
                    self._opened(known, rollout, wave)
        for part in after.parts.values():
            was = before.parts.get(part.id)
            if was is None and part.rollout in before.rollouts:
                _joined(before.rollouts[part.rollout], part)
            elif was is not None and was.state != part.state and part.reason == "wave_timeout":
                self._waited(after, part)
        self._valid(before, after)

    def _note(self, before: Facts, after: Facts, act: Act) -> None:
        known = before.rollouts.get(act.rollout)
        if act.verb == "approve" and known is not None and known.state == "AWAITING_APPROVAL":
            given = self._approvals.setdefault((known.name, known.wave + 1), {})
            given[act.who] = _words(after.rollouts[known.name])
        if act.verb.startswith("invalidate"):
            self._invalid.add(act.rollout.removeprefix("slm-"))

    # --- offers -----------------------------------------------------------------------------------

    def _offered(self, after: Facts, part: Part) -> None:
        rollout = after.rollouts[part.rollout]
        self._offers.setdefault(part.rollout, []).append(self._now())
        window = rollout.spec.get("windows", {}).get("download")
        hold(policy.is_open(window, self._now()), "4 offer outside the download window", part)
        hold(part.digest in bundles.BY_DIGEST, "4 offer of a bundle that is not built", part)
        for other in after.parts.values():
            if other.device == part.device and other.state in STEPS:
                its = after.rollouts[other.rollout]
                above = its.begun and its.priority > rollout.priority
                hold(not above, "4 offer past a higher priority", (part, other))

    def _paced(self, after: Facts, name: str, offered: list[Part]) -> None:
        rollout = after.rollouts[name]
        pace, own = rollout.pace()
        flying = [part for part in after.parts.values() if part.state in IN_FLIGHT]
        mine = sum(part.rollout == name for part in flying)
        most = pace["max_in_flight"]
        hold(mine <= most, "4 pace", f"{name}: {mine} in flight of at most {most}")
        for budget in rollout.spec.get("budgets", []):
            busy = Counter(self._sites[device] for device in {part.device for part in flying})
            for site in {self._sites[part.device] for part in offered}:
                hold(busy[site] <= budget["max"], "4 budget", (site, busy[site], budget))
        n = sum(at > self._now() - MINUTE_S for at in self._offers[name])
        done = [p for p in after.of(name) if p.state == "SUCCEEDED"]
        done = [p for p in done if p.wave == rollout.wave] if own else done
        hold(n <= _per_minute(pace, len(done)), "4 pace per minute", (name, n, pace, len(done)))

    # --- waves ------------------------------------------------------------------------------------

    def _opened(self, known: Rollout, now: Rollout, wave: int) -> None:
        window = now.spec.get("windows", {}).get("download")
        hold(policy.is_open(window, self._now()), "4 wave opened outside its window", wave)
        start = now.spec.get("not_before")
        if start:
            hold(self._now() + SLACK_S >= policy.seconds_of(start), "4 begun too early", start)
        asked = now.spec["waves"][wave].get("approval", "none")
        if wave == 0 and asked == "none":
            asked = now.spec.get("approval", "none")
        if asked == "none":
            return
        asked = {} if asked == "required" else asked
        words = _words(known)
        given = {
            person
            for person, read in self._approvals.get((now.name, wave), {}).items()
            if read == words and person not in now.authors
        }
        may = asked.get("of") or given
        enough = len(given & set(may)) >= asked.get("needed", 1)
        hold(enough, "4 wave opened without its approvals", (now.name, wave, given, asked))

    def _waited(self, after: Facts, part: Part) -> None:
        rollout = after.rollouts[part.rollout]
        limit = policy.seconds(rollout.spec["waves"][part.wave]["timeout"])
        opened = rollout.machine["opened_at"][part.wave]
        hold(self._now() + SLACK_S >= opened + limit, "4 wave ended before its time", part)

    # --- versions ---------------------------------------------------------------------------------

    def _valid(self, before: Facts, after: Facts) -> None:
        for rollout in after.rollouts.values():
            if rollout.spec["version"] in self._invalid:
                over = rollout.state in ENDED or rollout.state == "REVERTING"
                hold(over, "3 a rollout of an invalid version", rollout)
        for device, wanted in after.wanted.items():
            if before.wanted.get(device) != wanted and wanted.digest in bundles.BY_DIGEST:
                version = bundles.BY_DIGEST[wanted.digest].ref.version
                hold(version not in self._invalid, "3 an order of an invalid version", wanted)


def _is_offered(known: Part | None, part: Part) -> bool:
    new = known is None or known.offered_at != part.offered_at
    return part.offered_at is not None and new


def _joined(known: Rollout, part: Part) -> None:
    if known.state != "DRAFT":
        hold(bool(known.spec.get("dynamic")), "7 joined what is not dynamic", part)
        hold(part.wave == len(known.spec["waves"]) - 1, "7 joined another wave", part)


def _per_minute(pace: Mapping[str, Any], successes: int) -> int:
    growth = pace.get("growth")
    n = int(pace["per_minute"])
    if growth:
        for _ in range(successes // growth["every"]):
            n = min(n * int(growth["factor"]), int(growth["limit"]))
    return n


def _words(rollout: Rollout) -> str:
    return json.dumps(rollout.spec, sort_keys=True)
