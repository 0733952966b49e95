"""A wave of 100,000 offers: decided, signed, stored and on the broker, by a tick and its relays.

Compared in the same run with one bare paho publisher that sends as many bytes to as many topics.
"""

import subprocess
import sys
import time

from sqlalchemy import func, insert, select, text

from control_plane.bootstrap import utc_now
from control_plane.services import rollouts as service
from control_plane.store import schema
from tests.benchmarks.row import Row, row
from tests.benchmarks.stage import Stage, now, stage
from tests.integration.engine.conftest import BLUEPRINTS, Fleet, digest_of

DEVICES = 100_000
BARE = 20_000
"""Messages of the bare publisher, whose rate does not depend on their number."""
ALL = [{"name": "all", "percent": 100}]
PACE = {"max_in_flight": 1_000_000, "per_minute": 1_000_000}
WAIT_S = 120.0


def rows() -> list[Row]:
    with stage() as here:
        fleet = here.fleet
        fleet.add_blueprints()
        for version in ("1.0.0", "1.1.0", "1.2.0"):
            fleet.add_version(version)
        _add_devices(fleet)
        one = _wave(here, fleet, "1.1.0", "flotilla-gateway")
        size = _payload(here)
        bare = _bare(here, size)
        two = _wave(here, fleet, "1.2.0", "flotilla-gateway-1", "flotilla-gateway-2")
        bare = max(bare, _bare(here, size))
    _table(one, two)
    return [
        row("offers_share", one["rate"] / bare, "share", ">= 0.5", 1.0),
        row("offers_per_s", one["rate"], "offers/s", "", bare),
        row("offers_two_relays_per_s", two["rate"], "offers/s", "", one["rate"]),
        row("offers_tick_s", one["tick_s"], "s"),
        row("offers_last_on_broker_s", one["done_s"], "s"),
        row("offers_cpu_s_per_1000", one["cpu_s"] * 1000 / DEVICES, "CPU s"),
    ]


def _add_devices(fleet: Fleet) -> None:
    at = fleet.now
    with fleet.scope() as scope:
        for start in range(0, DEVICES, 10_000):
            devices = []
            for n in range(start, start + 10_000):
                blueprint = BLUEPRINTS[n % len(BLUEPRINTS)]
                digest = digest_of("1.0.0", blueprint)
                devices.append(
                    {
                        "id": f"edge-{n:06}", "state": "active", "blueprint": blueprint,
                        "hardware": {}, "agent_version": "0.1.0", "secret_sha256": f"{n}",
                        "certificate_serial": "1", "enrolled_at": at, "online": True,
                        "connection": 1, "last_seen_at": at, "boot": 1, "state_seq": 0,
                        "generation": 0, "digest": digest, "last_known_good": digest,
                        "healthy": True,
                    }
                )  # fmt: skip
            scope.tx.execute(insert(schema.device), devices)
        scope.tx.execute(text("ANALYZE"))


def _wave(here: Stage, fleet: Fleet, version: str, *gateways: str) -> dict[str, float]:
    """Offer a version to everybody at once; return the times from the tick's beginning."""
    name = fleet.create(version, waves=ALL, pace=PACE)
    with fleet.scope() as scope:
        service.start(scope, name)
    with here.gateway(*gateways):
        before = _cpu(here)
        began = time.monotonic()
        while _offered(here, name) < DEVICES:
            assert time.monotonic() - began < WAIT_S, "not offered"
            fleet.now = utc_now()
            fleet.tick()
        ticked = time.monotonic() - began
        while _waiting(here):
            assert time.monotonic() - began < WAIT_S, "not published"
            time.sleep(0.05)  # the broker tells only the relay
        done = time.monotonic() - began
        used = {part: seconds - before[part] for part, seconds in _cpu(here).items()}
    return {
        "rate": DEVICES / done,
        "tick_s": ticked,
        "done_s": done,
        "cpu_s": sum(used.values()),
        **used,
    }


def _cpu(here: Stage) -> dict[str, float]:
    """Return the CPU seconds of each part so far; this process is the one that ticks."""
    return {"tick": time.process_time(), **here.cpu_s()}


def _table(*waves: dict[str, float]) -> None:
    """Show where the CPU of a thousand offers goes, with one relay and with two."""
    for part in ("tick", "database", "gateway", "broker"):
        used = "".join(f"{wave[part] * 1000 / DEVICES:12.3f}" for wave in waves)
        print(f"CPU s per 1,000 offers: {part:10}{used}", file=sys.stderr)


def _offered(here: Stage, name: str) -> int:
    table = schema.tally.c
    query = select(table.n).where(table.rollout == name, table.state == "OFFERED")
    with here.app.database.reading() as tx:
        return sum(tx.execute(query).scalars())


def _waiting(here: Stage) -> bool:
    with here.app.database.reading() as tx:
        return tx.execute(select(schema.outbox.c.id).limit(1)).first() is not None


def _payload(here: Stage) -> int:
    """Return the bytes of an order, signed."""
    with here.app.database.reading() as tx:
        return int(
            tx.execute(select(func.max(func.length(schema.desired.c.envelope)))).scalar_one()
        )


_PAHO = """
import ssl, sys, time
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
ca, cert, key, port, total, size = sys.argv[1:]
total, payload = int(total), b"x" * int(size)
context = ssl.create_default_context(cafile=ca)
context.load_cert_chain(cert, key)
client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="flotilla-gateway-9",
                     protocol=mqtt.MQTTv311)
client.tls_set_context(context)
client.max_inflight_messages_set(100)
sent = acknowledged = 0
def done(*_):
    global acknowledged
    acknowledged += 1
client.on_publish = done
client.connect("localhost", int(port))
while not client.is_connected():
    client.loop(0.1)
began = time.monotonic()
while acknowledged < total:
    while sent < total and sent - acknowledged < 100:
        client.publish(f"flotilla/v1/d/bare-{sent:06}/down/desired", payload, qos=1, retain=True)
        sent += 1
    client.loop(0.1)
print(total / (time.monotonic() - began))
"""


def _bare(here: Stage, size: int) -> float:
    """Return how many retained messages a second one bare paho publisher gets acknowledged."""
    keyring = here.app.keyring
    files = keyring.issue_service("flotilla-gateway-9", [], now())
    argv = [str(keyring.ca_path), str(files.certificate), str(files.key)]
    argv += [str(here.broker.port), str(BARE), str(size)]
    command = [sys.executable, "-c", _PAHO, *argv]
    return float(subprocess.run(command, check=True, capture_output=True, timeout=WAIT_S).stdout)
