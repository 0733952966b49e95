"""Reports in: over MQTT with mutual TLS, to committed rows and tallies on PostgreSQL.

The devices of a real, running rollout report their way through it: six events, a trial with its
metrics, two state documents. Compared in the same run with a bare paho subscriber that only
acknowledges the same messages, and with a bare batched upsert of as many rows.
"""

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import psycopg
from sqlalchemy import func, select

from agent.protocol import messages
from agent.protocol.messages import Bench, Event, Metric, State
from agent.protocol.words import ExecutionState, Reason, Verdict
from control_plane.store import schema, tallies
from tests.benchmarks.row import Row, row
from tests.benchmarks.stage import WAIT_S, Process, Stage, certify, now, stage
from tests.integration.engine.conftest import Fleet, digest_of

PER_BLUEPRINT = 700
"""Devices; three blueprints."""
REPLAYS = 0.2
BATCH = 1000
ALL = [{"name": "all", "percent": 100}]
PACE = {"max_in_flight": 100_000, "per_minute": 100_000}
METRICS = ("token_ms", "first_token_ms", "memory_mb", "load_ms")
E = ExecutionState

Said = list[tuple[str, str]]
Story = dict[str, Said]


def rows() -> list[Row]:
    with stage() as here:
        fleet = here.fleet
        _prepare(fleet)
        first = _rollout(fleet, "1.1.0", boot=1)
        folder = certify(here, list(first))
        _write(folder, "first", first)
        reporters = Process(
            ["-m", "tests.benchmarks.reporters", str(folder), str(here.broker.port)],
            {}, here.folder / "reporters.log",
        )  # fmt: skip
        try:
            reporters.ask()
            total = sum(map(len, first.values()))
            paho = _paho(here, reporters, total)
            upsert = _upsert(here, total)
            found = _one_gateway(here, reporters, total, min(paho, upsert))
            second = _rollout(fleet, "1.2.0", boot=2)
            _write(folder, "second", _replayed(second))
            found += _two_gateways(here, reporters, second)
        finally:
            reporters.stop()
    return [
        *found,
        row("ingest_paho_per_s", paho, "messages/s"),
        row("ingest_upsert_per_s", upsert, "rows/s"),
    ]


def _prepare(fleet: Fleet) -> None:
    fleet.add_blueprints()
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        fleet.add_version(version)
    fleet.add_devices(PER_BLUEPRINT, runs="1.0.0")


def _rollout(fleet: Fleet, version: str, boot: int) -> Story:
    """Start a rollout to everybody, and return what its devices will say."""
    name = fleet.start(version, waves=ALL, pace=PACE)
    table = schema.execution.c
    columns = (table.device_id, table.id, table.blueprint, table.generation, table.previous)
    with fleet.scope() as scope:
        query = select(*columns).where(table.rollout == name, table.state == E.OFFERED.value)
        offered = scope.tx.execute(query).all()
    assert len(offered) == 3 * PER_BLUEPRINT, f"{len(offered)} offered"
    return {part.device_id: _told(part, version, boot) for part in offered}


def _told(part: Any, version: str, boot: int) -> Said:
    """Return what one device says on its way to success."""
    new = digest_of(version, part.blueprint)
    common = {"boot": boot, "generation": part.generation}
    said: Said = []

    def event(state: E, digest: str, reason: Reason = Reason.NONE) -> None:
        body = Event(
            **common, seq=len(said) + 1, execution=part.id, state=state, digest=digest,
            reason=reason, at=1_700_000_000.5,
        )  # fmt: skip
        said.append(("events", _text(body)))

    def state(digest: str, phase: E) -> None:
        body = State(
            **common, seq=len(said) + 1, digest=digest, previous=part.previous,
            last_known_good=part.previous, candidate=new, state=phase,
        )  # fmt: skip
        said.append(("state", _text(body)))

    for step in (E.DOWNLOADING, E.STAGED, E.BENCHMARKING):
        event(step, part.previous)
    trial = Bench(
        **common, seq=len(said) + 1, execution=part.id, candidate=new, incumbent=part.previous,
        verdict=Verdict.PASS, metrics=[_metric(name) for name in METRICS], seconds=12.5,
        blocks={f"{side}.token_ms": [9.87, 10.12, 9.95, 10.4, 10.01] for side in ("a", "b")},
    )  # fmt: skip
    said.append(("bench", _text(trial)))
    event(E.ACTIVATING, part.previous)
    event(E.SOAKING, new)
    state(new, E.SOAKING)
    event(E.SUCCEEDED, new, Reason.SOAKED)
    state(new, E.SUCCEEDED)
    # Last of all, so that its acknowledgement says that everything before it is stored.
    said.append(said.pop(-2))
    return said


def _metric(name: str) -> Metric:
    return Metric(
        name=name, unit="ms", candidate=10.0, incumbent=10.1, ratio=0.99, ci_low=0.97,
        ci_high=1.01, tolerance=0.1, n=5, verdict=Verdict.PASS,
    )  # fmt: skip


def _text(body: msgspec.Struct) -> str:
    return messages.encode(body).decode()


def _replayed(story: Story) -> Story:
    """Return the story with a fifth of it told twice: now and again an earlier message."""
    draw = random.Random(20)
    told: Story = {}
    for name, said in story.items():
        found: Said = []
        for index, one in enumerate(said):
            found.append(one)
            if draw.random() < REPLAYS:
                found.append(said[draw.randrange(index + 1)])
        told[name] = found
    return told


def _write(folder: Path, name: str, story: Story) -> None:
    (folder / f"{name}.json").write_text(json.dumps(story))


# --- ours -------------------------------------------------------------------------------------


def _one_gateway(here: Stage, reporters: Process, total: int, reference: float) -> list[Row]:
    with here.gateway("flotilla-gateway"):
        _orders_gone(here)
        before = here.cpu_s()
        done = reporters.ask("first ack")
        used = {part: after - before[part] for part, after in here.cpu_s().items()}
    _check(here, "slm-1.1.0", total)
    rate = total / done["done_s"]
    each = 1000 / total
    return [
        row("reports_cpu_s_per_1000", sum(used.values()) * each, "CPU s", "<= 0.15"),
        *(row(f"ingest_{part}_cpu_s_per_1000", s * each, "CPU s") for part, s in used.items()),
        row("ingest_share", rate / reference, "share", ">= 0.5", 1.0),
        row("ingest_reports_per_s", rate, "reports/s", "", reference),
    ]


def _two_gateways(here: Stage, reporters: Process, story: Story) -> list[Row]:
    """A fifth of the reports comes twice, to two gateways that share the subscription."""
    total = sum(map(len, story.values()))
    with here.gateway("flotilla-gateway-1", "flotilla-gateway-2"):
        _orders_gone(here)
        done = reporters.ask("second ack")
    lost, doubled = _check(here, "slm-1.2.0", 2 * total)
    return [
        row("ingest_two_gateways_per_s", done["messages"] / done["done_s"], "messages/s"),
        row("ingest_lost", lost, "reports", "<= 0"),
        row("ingest_doubled", doubled, "reports", "<= 0"),
    ]


def _orders_gone(here: Stage) -> None:
    """Wait until the broker has the rollout's orders: their way out is another number."""
    give_up = time.monotonic() + WAIT_S
    waiting = select(func.count()).select_from(schema.outbox)
    while True:
        with here.app.database.reading() as tx:
            left = tx.execute(waiting).scalar_one()
        if left == 0:
            return
        assert time.monotonic() < give_up, f"{left} orders have not left"
        time.sleep(0.05)  # a table tells nobody that it shrinks


def _check(here: Stage, name: str, said: int) -> tuple[int, int]:
    """Return how many reports left no trace, and how many left two."""
    states = 2  # of a device's messages are no reports
    devices = 3 * PER_BLUEPRINT
    reports = said - states * devices * (said // (9 * devices))
    of_rollout = select(schema.execution.c.id).where(schema.execution.c.rollout == name)
    history = schema.execution_event.c
    moves = (
        select(func.count()).where(history.execution_id.in_(of_rollout)).where(history.before != "")
    )
    trials = select(func.count()).where(schema.bench.c.rollout == name)
    with here.app.database.reading() as tx:
        counted = tx.execute(select(func.count()).select_from(schema.report_seen)).scalar_one()
        assert tallies.read(tx, name) == tallies.recount(tx, name), "the tallies are wrong"
        ended = sum(n for *_, state, n in tallies.read(tx, name) if state is E.SUCCEEDED)
        steps = tx.execute(moves).scalar_one() - devices  # the offer is ours
        benches = tx.execute(trials).scalar_one()
    wanted = {"counted": reports, "ended": devices, "steps": 6 * devices, "benches": devices}
    found = {"counted": counted, "ended": ended, "steps": steps, "benches": benches}
    if found != wanted:
        print(f"{name}: {found}, not {wanted}", file=sys.stderr)
    more = sum(max(0, found[key] - wanted[key]) for key in wanted)
    # Between two gateways a later step may overtake an earlier one, which then changes nothing.
    return sum(max(0, wanted[key] - found[key]) for key in wanted if key != "steps"), more


# --- references -------------------------------------------------------------------------------

_PAHO = """
import json, ssl, sys
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
ca, cert, key, port, total, topic = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
context.load_cert_chain(cert, key)
client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="flotilla-gateway-9",
                     protocol=mqtt.MQTTv311, manual_ack=True)
client.tls_set_context(context)
client.on_connect = lambda c, *_: c.subscribe(topic, qos=1)
client.on_subscribe = lambda *_: print(json.dumps({"ready": 1}), flush=True)
count = 0
def take(c, _, message):
    global count
    count += 1
    c.ack(message.mid, message.qos)
client.on_message = take
client.connect("localhost", int(port))
while count < int(total):
    client.loop(0.1)
print(json.dumps({"count": count}), flush=True)
sys.stdin.readline()
"""


def _paho(here: Stage, reporters: Process, total: int) -> float:
    """Return how many of the same messages a bare paho subscriber acknowledges in a second."""
    keyring = here.app.keyring
    files = keyring.issue_service("flotilla-gateway-9", [], now())
    argv = [str(keyring.ca_path), str(files.certificate), str(files.key)]
    argv += [str(here.broker.port), str(total), "flotilla/v1/d/+/up/#"]
    subscriber = Process(["-c", _PAHO, *argv], {}, here.folder / "paho.log")
    try:
        subscriber.ask()
        began = time.monotonic()
        reporters.ask("first pub")
        assert subscriber.ask()["count"] == total
        return total / (time.monotonic() - began)
    finally:
        subscriber.stop()


def _upsert(here: Stage, total: int) -> float:
    """Return how many rows of ten columns a bare COPY and upsert stores in a second."""
    url = here.postgres.url().replace("+psycopg", "")
    columns = ", ".join(f"c{n} bigint" for n in range(6))
    with psycopg.connect(url) as connection:
        connection.execute(
            f"CREATE TABLE bare (id text PRIMARY KEY, digest text, state text, at text, {columns})"
        )
        connection.execute("CREATE TEMP TABLE fresh (LIKE bare)")
        connection.execute("CREATE INDEX ON bare (at)")
        connection.commit()
        took = 0.0
        for _ in range(2):  # the first round makes the rows, the second is measured
            began = time.monotonic()
            for start in range(0, total, BATCH):
                many = [_bare(n) for n in range(start, min(start + BATCH, total))]
                with connection.cursor().copy("COPY fresh FROM STDIN") as copy:
                    for one in many:
                        copy.write_row(one)
                names = ["digest", "state", "at", *(f"c{n}" for n in range(6))]
                sets = ", ".join(f"{name} = excluded.{name}" for name in names)
                connection.execute(
                    "INSERT INTO bare SELECT * FROM fresh"  # noqa: S608 - our own words
                    f" ON CONFLICT (id) DO UPDATE SET {sets}"
                )
                connection.execute("TRUNCATE fresh")
                connection.commit()
            took = time.monotonic() - began
        connection.execute("DROP TABLE bare")
        connection.commit()
    return total / took


def _bare(n: int) -> tuple[object, ...]:
    return (f"device-{n:07}", "d" * 64, "SOAKING", f"{n % 1000}", *range(6))


def main() -> None:
    """Profile: ``python -m tests.benchmarks.ingest`` prints the rows alone."""
    for one in rows():
        print(one)


if __name__ == "__main__":
    main()
