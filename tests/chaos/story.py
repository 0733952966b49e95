"""One round: a good rollout to its end, then a bad one to its halt and back, under kills."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

from control_plane.domain.errors import ConflictError, FlotillaError
from control_plane.domain.rollout import IN_FLIGHT
from control_plane.services import rollout_document, rollouts
from control_plane.services.scope import Scope
from control_plane.store.database import is_outage
from tests.chaos import ledger
from tests.chaos.cast import Cast, cast
from tests.chaos.evidence import Evidence, Rules
from tests.chaos.fleet import ChaosFleet
from tests.chaos.judge import judge
from tests.chaos.killer import Killer
from tests.support.seed_rows import MODEL, built

PATIENCE_S = 120.0
"""A rollout under kills gets to its end in this time; else the kills stop, and it has as much."""
LOOK_S = 0.05
MAX_FAILURES = 2
LATELY = 3
"""Rollouts whose counts are looked at again and again."""
RELEASES = 3
"""Model versions of a round, at most."""


@dataclass(frozen=True)
class Wish:
    """What a run is to be.

    Args:
        database: sqlite or postgresql.
        seed: of every choice.
        devices: each with its own connection, all reporting at once.
        kills: at least so many; rounds go on until then.
        rounds: at most so many.
        first: the number of the first one, to live through one of them again.
        shares: of the devices that have it at the end of each wave after the canary, in percent.
        patience_s: what does not come in this time does not come.
        plant: a planted fault (planted.py); empty for none.
    """

    database: str
    seed: int = 1
    devices: int = 64
    kills: int = 100
    rounds: int = 400
    first: int = 0
    shares: tuple[int, ...] = (50, 100)
    patience_s: float = PATIENCE_S
    plant: str = ""


@dataclass
class Outcome:
    """What came of a run."""

    wish: Wish
    rounds: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    frozen: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    reports: int = 0
    """Different ones, each of which counted once."""
    sent: int = 0
    replays: int = 0
    acknowledged: int = 0
    offers: int = 0
    looks: int = 0
    """How often counts were compared with rows while everything went on."""
    seconds: float = 0.0
    broken: list[str] = field(default_factory=list)

    @property
    def killed(self) -> int:
        return sum(self.kills.values())


def live(wish: Wish, tell: Callable[[str], None] = lambda _line: None) -> Outcome:
    """Live through rounds until there were enough kills, or a promise is broken."""
    outcome, began = Outcome(wish), time.monotonic()
    with cast(wish.database, wish.plant) as whole:
        fleet = ChaosFleet(whole.app, whole.port, wish.devices, wish.seed)
        whole.admit(fleet.passwords)
        ledger.install(whole.app)
        whole.revive()
        whole.wait_ready()
        with fleet:
            _Run(wish, whole, fleet, outcome, tell).live()
    outcome.seconds = time.monotonic() - began
    return outcome


class _Run:
    """A run that goes on."""

    def __init__(
        self,
        wish: Wish,
        whole: Cast,
        fleet: ChaosFleet,
        outcome: Outcome,
        tell: Callable[[str], None],
    ) -> None:
        self._wish, self._cast, self._fleet = wish, whole, fleet
        self._outcome, self._tell = outcome, tell
        self._rules: dict[str, Rules] = {}
        self._glimpses: list[str] = []
        self._chance = Random(f"{wish.seed}/story")

    def live(self) -> None:
        wish, outcome = self._wish, self._outcome
        self._until("the fleet is connected", self._connected)
        while outcome.rounds < wish.rounds and outcome.killed < wish.kills and not outcome.broken:
            number = wish.first + outcome.rounds
            began = time.monotonic()
            killer = Killer(
                self._cast,
                f"{wish.seed}/{number}",
                wish.kills - outcome.killed,
                first=outcome.rounds == 0,
            )
            try:
                with self._watching():
                    killer.start()
                    self._round(number, killer)
                    self._until("everything is quiet", self._quiet)
            except _StuckError as stuck:
                outcome.broken.append(f"liveness: {stuck}")
            finally:
                killer.stop()
            outcome.rounds += 1
            outcome.kills.update(killer.kills)
            outcome.frozen.update(killer.frozen)
            outcome.ended = Counter(self._cast.ended)
            outcome.broken += self._judge()
            self._say(number, killer, time.monotonic() - began)

    def _round(self, number: int, killer: Killer) -> None:
        good, bad = f"good-{number}", f"bad-{number}"
        devices = self._wish.devices
        slow = {"pace": {"max_in_flight": devices // 3, "per_minute": devices * 2 // 3}}
        self._begin(
            good, f"2.{number}.0", RELEASES * number + 10, **slow if number % 8 == 6 else {}
        )
        if number % 2:
            self._interrupt(good)
        if number % 4 == 3:
            self._overtake(number, killer)
        self._reach(good, killer, {"SUCCEEDED"})
        # One wave at a small pace: when the gate trips, many wait and there is room for them.
        small = {"max_in_flight": devices // 6, "per_minute": 100 * devices}
        everybody = [{"name": "all", "percent": 100}]
        self._begin(bad, f"2.{number}.1", RELEASES * number + 12, waves=everybody, pace=small)
        self._halt(bad, killer)
        if number % 3 == 1:
            self._do(rollouts.resume, bad, {"RUNNING", "HALTED"})
            self._halt(bad, killer)
        self._do(rollouts.revert, bad, {"REVERTING", "REVERTED"})
        self._reach(bad, killer, {"REVERTED"})
        self._until("each kind was killed", lambda: not killer.owes)
        killer.stop()

    def _halt(self, name: str, killer: Killer) -> None:
        """Wait until a gate has tripped, and whoever was under way has come to an end."""
        self._reach(name, killer, {"HALTED"})
        flying = [state.value for state in IN_FLIGHT]
        self._until(
            f"nobody of {name} is under way", lambda: not sum(self._count(name, s) for s in flying)
        )

    def _overtake(self, number: int, killer: Killer) -> None:
        """Let a newer rollout take the devices that an older one has not finished with."""
        name = f"newer-{number}"
        self._begin(name, f"2.{number}.2", RELEASES * number + 11)
        self._reach(name, killer, {"SUCCEEDED"})

    # --- what an operator does --------------------------------------------------------------

    def _begin(self, name: str, version: str, release: int, **policy: Any) -> None:
        """Make a version, and start a rollout of it."""
        devices = self._wish.devices
        spec: dict[str, Any] = {
            "model": MODEL,
            "version": version,
            "soak": 0.2,
            "waves": [
                {"name": "canary", "count": max(8, devices // 6)},
                *({"name": f"to-{n}", "percent": n} for n in self._wish.shares),
            ],
            "pace": {"max_in_flight": devices // 3, "per_minute": 100 * devices},
            "budgets": [{"label": "site", "max": max(3, devices // 8)}],
            "gates": {"max_failures": MAX_FAILURES},
            **policy,
        }
        pace, budget = spec["pace"], spec["budgets"][0]
        self._rules[name] = Rules(
            pace["max_in_flight"], pace["per_minute"], MAX_FAILURES, budget["max"]
        )
        document = {"apiVersion": "flotilla/v1", "kind": "Rollout", "metadata": {"name": name}}
        parsed = rollout_document.parse({**document, "spec": spec})
        self._retry(lambda scope: built(scope, version, release), done=self._is_built(version))
        self._retry(
            lambda scope: rollouts.create(scope, parsed), done=lambda: self._state(name) != ""
        )
        self._do(rollouts.start, name, {"BUILDING", "RUNNING"})

    def _interrupt(self, name: str) -> None:
        """Pause somewhere in the middle, and go on."""
        some = self._chance.randrange(self._wish.devices // 2)
        self._until("some have it", lambda: self._count(name, "SUCCEEDED") > some)
        self._do(rollouts.pause, name, {"PAUSED", "SUCCEEDED"})
        with suppress(ConflictError):
            self._do(rollouts.resume, name, {"RUNNING", "SUCCEEDED"})

    def _do(self, verb: Callable[..., object], name: str, leads: set[str]) -> None:
        """Use a verb until it was done, which a lost answer may hide."""
        self._retry(lambda scope: verb(scope, name), done=lambda: self._state(name) in leads)

    def _retry(self, act: Callable[[Scope], object], *, done: Callable[[], bool]) -> None:
        give_up = time.monotonic() + self._wish.patience_s
        while True:
            try:
                with self._cast.app.scope("operator") as scope:
                    act(scope)
            except FlotillaError:
                if self._asked(done):
                    return
                raise
            except Exception as error:
                if not is_outage(error) or time.monotonic() > give_up:
                    raise
                if self._asked(done):
                    return
            else:
                return
            time.sleep(LOOK_S)

    def _is_built(self, version: str) -> Callable[[], bool]:
        query = "SELECT count(*) FROM model_version WHERE version = :version"
        return lambda: self._value(query, version=version) > 0

    # --- looking ----------------------------------------------------------------------------

    def _reach(self, name: str, killer: Killer, ends: set[str]) -> None:
        """Wait until a rollout is there; without kills, if it does not come under them."""

        def there() -> bool:
            return self._state(name) in ends

        try:
            self._until(f"{name} is {ends}", there)
        except _StuckError:
            killer.stop()
            self._until(f"{name} is {ends}", there)

    def _state(self, name: str) -> str:
        with self._cast.app.database.reading() as tx:
            return ledger.state(tx, name)

    def _count(self, name: str, state: str) -> int:
        query = "SELECT coalesce(sum(n), 0) FROM tally WHERE rollout = :name AND state = :state"
        return self._value(query, name=name, state=state)

    def _value(self, query: str, **facts: str) -> int:
        with self._cast.app.database.reading() as tx:
            return ledger.value(tx, query, facts)

    def _connected(self) -> bool:
        return self._fleet.simulation.connected == self._wish.devices

    def _quiet(self) -> bool:
        """Whether nothing is under way anywhere."""
        fleet, app = self._fleet, self._cast.app
        if not self._connected() or fleet.unacknowledged or fleet.simulation.in_flight:
            return False
        with app.database.reading() as tx:
            return not ledger.waiting(tx) and ledger.wanted(tx) == fleet.generations

    def _until(self, what: str, done: Callable[[], bool]) -> None:
        within_s = self._wish.patience_s
        give_up = time.monotonic() + within_s
        while not self._asked(done):
            if time.monotonic() > give_up:
                raise _StuckError(f"{within_s:g} s were not enough until {what}")
            if not self._fleet.alive:
                raise _StuckError("the fleet has ended")
            time.sleep(LOOK_S)  # what many processes do together tells nobody that it is done

    @staticmethod
    def _asked(done: Callable[[], bool]) -> bool:
        try:
            return done()
        except Exception as error:
            if is_outage(error):
                return False
            raise

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Compare counts with rows again and again meanwhile."""
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(2 * LOOK_S):
                try:
                    wrong = ledger.glimpse(self._cast.app, list(self._rules)[-LATELY:])
                except Exception as error:
                    if not is_outage(error):
                        self._glimpses.append(f"the judge could not look: {error}")
                        raise
                else:
                    self._glimpses += wrong
                    self._outcome.looks += 1

        thread = threading.Thread(target=watch, name="glimpse", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _judge(self) -> list[str]:
        fleet, outcome = self._fleet, self._outcome
        witness = fleet.witness
        evidence = Evidence(
            rules=self._rules,
            said=witness.said,
            acked=frozenset(witness.acked),
            heard=witness.heard,
            applied=fleet.generations,
            runs=fleet.runs,
            glimpses=self._glimpses,
            **ledger.rows(self._cast.app),
        )
        outcome.reports, outcome.acknowledged = len(evidence.seen), len(evidence.acked)
        outcome.sent, outcome.replays = fleet.sent()
        outcome.offers = sum(
            getattr(one, "before", "") == "QUEUED" and getattr(one, "after", "") == "OFFERED"
            for one in evidence.ledger
        )
        return judge(evidence)

    def _say(self, number: int, killer: Killer, seconds: float) -> None:
        outcome = self._outcome
        kills = ", ".join(f"{n} {kind}" for kind, n in sorted(killer.kills.items())) or "none"
        verdict = f"BROKEN ({len(outcome.broken)})" if outcome.broken else "all kept"
        self._tell(
            f"{self._wish.database} round {number}: {seconds:.1f} s, kills: {kills};"
            f" {outcome.killed} of {self._wish.kills} in all; {outcome.reports} reports,"
            f" {outcome.replays} replays, {outcome.offers} offers: {verdict}"
        )


class _StuckError(Exception):
    """Something did not come to its end."""
