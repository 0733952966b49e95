"""A fleet for the engine: real services on a real database; the devices are answered by hand."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import insert, select, update

from agent.protocol import envelope
from agent.protocol.messages import Bench, Event, Metric, Order, decode
from agent.protocol.words import ExecutionState, Reason, Verdict
from control_plane.bootstrap import Application
from control_plane.domain import gates
from control_plane.domain.device import DeviceId
from control_plane.jobs import ticks
from control_plane.services import (
    blueprint_document,
    blueprints,
    executions,
    inventory,
    rollout_codec,
    rollout_document,
)
from control_plane.services import rollouts as service
from control_plane.services.rollout_views import (
    DecisionView,
    ExecutionView,
    Explanation,
    RolloutView,
)
from control_plane.services.scope import Scope
from control_plane.store import rollouts as rollout_store
from control_plane.store import schema, tallies

START = datetime(2026, 11, 21, 12, tzinfo=UTC)
BLUEPRINTS = ("x86-64-vnni", "x86-64-avx2", "arm64-board")
E = ExecutionState


def digest_of(version: str, blueprint: str) -> str:
    return sha256(f"{version}/{blueprint}".encode()).hexdigest()


@dataclass
class Fleet:
    """Devices, models and rollouts, and the clock."""

    app: Application
    now: datetime = START
    actor: str = "tester"
    _seq: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def scope(self) -> Iterator[Scope]:
        app = self.app
        with app.database.transaction() as tx:
            yield Scope(
                tx,
                self.now,
                self.actor,
                app.keyring,
                app.blobs,
                app.settings,
                lambda: uuid.uuid4().hex,
            )

    def later(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    # --- what is there --------------------------------------------------------------------

    def add_blueprints(self) -> None:
        with self.scope() as scope:
            for name in BLUEPRINTS:
                text = Path(f"blueprints/{name}.yaml").read_text(encoding="utf-8")
                blueprints.apply(scope, blueprint_document.parse(yaml.safe_load(text)))

    def add_version(self, version: str, *, built: tuple[str, ...] = BLUEPRINTS) -> None:
        release = int(version.replace(".", ""))
        with self.scope() as scope:
            scope.tx.execute(
                insert(schema.model_version).values(
                    model="slm", version=version, release=release, source_digest="", source_bytes=1,
                    files=[], descriptor={}, created_at=self.now, created_by="tester",
                )
            )  # fmt: skip
        for blueprint in built:
            self.build(version, blueprint)

    def build(self, version: str, blueprint: str, *, error: str = "") -> None:
        """End the blueprint's build of a version, as a worker would."""
        digest = "" if error else digest_of(version, blueprint)
        of = {"model": "slm", "version": version, "blueprint": blueprint}
        with self.scope() as scope:
            now = blueprints.get_spec(scope, blueprint).build_digest
            result: dict[str, Any] = {"state": "FAILED" if error else "SUCCEEDED", "error": error}
            result |= {"digest": digest, "finished_at": self.now}
            waiting = update(schema.build).filter_by(**of).values(**result)
            found = scope.tx.execute(waiting.returning(schema.build.c.id)).scalar()
            build = found or uuid.uuid4().hex
            if found is None:
                row: dict[str, Any] = {"id": build, "blueprint_digest": now, "progress": {}}
                row |= {**of, **result, "created_at": self.now}
                scope.tx.execute(insert(schema.build).values(**row))
            if not error:
                self._add_bundle(scope, of, build, digest)

    def _add_bundle(self, scope: Scope, of: dict[str, str], build: str, digest: str) -> None:
        common: dict[str, Any] = {**of, "recipe": "int8-dynamic", "created_at": self.now}
        artifact = uuid.uuid4().hex
        scope.tx.execute(
            insert(schema.artifact).values(
                id=artifact, build_id=build, bytes=1_000_000, source_bytes=4_000_000, quality={},
                measured={}, accepted=True, why="", **common,
            )
        )  # fmt: skip
        scope.tx.execute(
            insert(schema.bundle).values(
                digest=digest, artifact_id=artifact, envelope=b"x", size=1_000_000,
                release=int(of["version"].replace(".", "")), **common,
            )
        )  # fmt: skip

    def add_devices_more(self, per_blueprint: int) -> None:
        self.add_devices(per_blueprint, runs="1.0.0", start=100)

    def add_devices(self, per_blueprint: int, *, runs: str = "", start: int = 0) -> None:
        with self.scope() as scope:
            for blueprint in BLUEPRINTS:
                for i in range(start, start + per_blueprint):
                    name = f"{blueprint}-{i}"
                    digest = digest_of(runs, blueprint) if runs else ""
                    scope.tx.execute(
                        insert(schema.device).values(
                            id=name, state="active", blueprint=blueprint, hardware={},
                            secret_sha256=name, certificate_serial="1", enrolled_at=self.now,
                            last_seen_at=self.now, digest=digest, last_known_good=digest,
                        )
                    )  # fmt: skip

    # --- what operators do ----------------------------------------------------------------

    def create(self, version: str, *, name: str = "", **spec: Any) -> str:
        name = name or f"slm-{version}"
        document = {
            "apiVersion": "flotilla/v1",
            "kind": "Rollout",
            "metadata": {"name": name},
            "spec": {"model": "slm", "version": version, "soak": 0, "waves": WAVES, **spec},
        }
        with self.scope() as scope:
            service.create(scope, rollout_document.parse(document))
        return name

    def start(self, version: str, **spec: Any) -> str:
        name = self.create(version, **spec)
        with self.scope() as scope:
            service.start(scope, name)
        self.tick()
        return name

    def label(self, device: str, **labels: str) -> None:
        with self.scope() as scope:
            inventory.label_device(scope, device, labels)

    def do(self, verb: str, name: str, **arguments: Any) -> RolloutView:
        with self.scope() as scope:
            view: RolloutView = getattr(service, verb)(scope, name, **arguments)
        return view

    def do_as(self, person: str, verb: str, name: str, **arguments: Any) -> RolloutView:
        """Do it as somebody else than who wrote the rollout."""
        before, self.actor = self.actor, person
        try:
            return self.do(verb, name, **arguments)
        finally:
            self.actor = before

    def tick(self) -> service.TickResult:
        return ticks.tick(self.scope, self.scope)

    def view(self, name: str) -> RolloutView:
        return self.do("get", name)

    def explain(self, name: str) -> Explanation:
        with self.scope() as scope:
            return service.explain(scope, name)

    def decisions(self, name: str) -> list[DecisionView]:
        with self.scope() as scope:
            return service.decisions(scope, name, limit=500).items

    def rules(self, name: str) -> dict[str, str]:
        """Return the newest decision's evidence, rule by rule."""
        return {gate["rule"]: gate["text"] for gate in self.decisions(name)[0].evidence}

    def check_replay(self, name: str) -> None:
        """Decide everything again from what was stored, and compare."""
        with self.scope() as scope:
            stored = rollout_store.decisions(scope.tx, name, before_id=None, limit=500)
        for one in stored:
            _, decisions = rollout_codec.replay(one.inputs)
            assert one.inputs["decision"] is None or one.inputs["decision"] in decisions

    def parts(self, name: str) -> dict[str, ExecutionView]:
        with self.scope() as scope:
            page = service.executions(scope, name, limit=500)
        return {part.device: part for part in page.items}

    def in_state(self, name: str, *states: ExecutionState) -> list[str]:
        wanted = set(states)
        return sorted(d for d, part in self.parts(name).items() if E(part.state) in wanted)

    # --- what devices say -----------------------------------------------------------------

    def order(self, device: str) -> Order:
        """Return the newest order of a device, as it would read it."""
        with self.scope() as scope:
            query = select(schema.desired.c.envelope).where(schema.desired.c.device_id == device)
            signed = scope.tx.execute(query).scalar_one()
        payload, _ = envelope.open_unverified(signed, envelope.ORDER_TYPE)
        return decode(payload, Order)

    def report(
        self,
        name: str,
        device: str,
        state: ExecutionState,
        *,
        digest: str = "",
        reason: Reason = Reason.NONE,
        generation: int | None = None,
    ) -> bool:
        """Say that a device's part in a rollout is in a state now."""
        part = self.parts(name)[device]
        given = part.generation if generation is None else generation
        event = Event(
            boot=1, seq=self._next(device), generation=given, execution=part.id, state=state,
            reason=reason, digest=digest,
        )  # fmt: skip
        with self.scope() as scope:
            return executions.apply(scope, [(DeviceId(device), event)]) == 1

    def trial(
        self,
        name: str,
        device: str,
        *,
        ratio: float = 1.0,
        verdict: Verdict = Verdict.PASS,
        first: bool = False,
        seq: int | None = None,
        wrong: float = 0.02,
    ) -> bool:
        part = self.parts(name)[device]
        incumbent = "" if first else digest_of("1.0.0", part.blueprint)
        metrics = [] if first else [_metric(metric, ratio, verdict) for metric in METRICS]
        golden = Metric(
            name=gates.GOLDEN, unit="share", candidate=wrong, limit=0.1, n=1, verdict=Verdict.PASS
        )
        bench = Bench(
            boot=1, seq=self._next(device) if seq is None else seq, generation=part.generation,
            execution=part.id, candidate=part.digest, incumbent=incumbent,
            verdict=verdict, metrics=[golden, *metrics], seconds=1.0,
        )  # fmt: skip
        with self.scope() as scope:
            return executions.apply(scope, [(DeviceId(device), bench)]) == 1

    def succeed(self, name: str, device: str, *, first: bool = False) -> None:
        """Go all the way: trial passed, soaked, confirmed."""
        digest = self.parts(name)[device].digest
        self.trial(name, device, first=first)
        self.report(name, device, E.SOAKING, digest=digest)
        self.report(name, device, E.SUCCEEDED, digest=digest, reason=Reason.SOAKED)
        with self.scope() as scope:  # as its next state document would
            mine = update(schema.device).where(schema.device.c.id == device)
            scope.tx.execute(mine.values(digest=digest, last_known_good=digest))

    def fail(self, name: str, device: str, ratio: float = 1.9) -> None:
        """Measure a regression and stay with the incumbent."""
        self.trial(name, device, ratio=ratio, verdict=Verdict.REGRESSION)
        self.report(name, device, E.ROLLED_BACK, reason=Reason.TRIAL_REGRESSION)

    def finish(self, name: str, *, first: bool = False) -> None:
        """Let every offered device succeed until the rollout has ended."""
        for _ in range(20):
            self.tick()
            for device in self.in_state(name, E.OFFERED):
                self.succeed(name, device, first=first)
            if self.view(name).ended_at is not None:
                return
        raise AssertionError(self.view(name))

    def check_tallies(self) -> None:
        """Compare every count with the rows that it counts."""
        with self.scope() as scope:
            for name in scope.tx.execute(select(schema.rollout.c.name)).scalars():
                assert tallies.read(scope.tx, name) == tallies.recount(scope.tx, name), name

    def _next(self, device: str) -> int:
        self._seq[device] = self._seq.get(device, 0) + 1
        return self._seq[device]


WAVES = [
    {"name": "canary", "count": 3},
    {"name": "quarter", "percent": 50},
    {"name": "everyone", "percent": 100},
]
METRICS = ("token_ms", "first_token_ms", "memory_mb", "load_ms")


def _metric(name: str, ratio: float, verdict: Verdict) -> Metric:
    return Metric(
        name=name, unit="ms", candidate=10 * ratio, incumbent=10.0, ratio=ratio,
        ci_low=ratio * 0.98, ci_high=ratio * 1.02, tolerance=0.1, n=5, verdict=verdict,
    )  # fmt: skip


@pytest.fixture
def fleet(app: Application) -> Iterator[Fleet]:
    """Three blueprints, four devices each that run 1.0.0; 1.1.0 is built."""
    made = _made(app)
    yield made
    made.check_tallies()


@pytest.fixture
def lone_fleet(sqlite_app: Application) -> Iterator[Fleet]:
    """The same on SQLite only, where the kind of database does not matter."""
    made = _made(sqlite_app)
    yield made
    made.check_tallies()


def _made(app: Application) -> Fleet:
    made = Fleet(app)
    made.add_blueprints()
    made.add_version("1.0.0")
    made.add_version("1.1.0")
    made.add_devices(4, runs="1.0.0")
    return made
