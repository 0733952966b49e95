"""Ten thousand connected devices live through a rollout, a revert, a tripped gate and a storm.

Real PostgreSQL, Redis and Mosquitto, the server's own processes, and `flotilla simulate-fleet` in
one process of its own. FLEET_DEVICES and FLEET_TLS=1 change what is measured.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from agent.protocol import envelope, messages, topics
from agent.protocol.messages import Order
from agent.protocol.words import Action
from control_plane.cli.client import Client
from control_plane.cli.context import Context
from control_plane.local.mosquitto import GATEWAYS
from tests.benchmarks.row import Row, row
from tests.benchmarks.stage import family_cpu_s
from tests.support import fleet_stack, services
from tests.support.fleet_record import Record
from tests.support.fleet_stack import FleetStack

DEVICES = int(os.environ.get("FLEET_DEVICES", "10000"))
TLS = os.environ.get("FLEET_TLS") == "1"
WAVE = min(1000, DEVICES // 4)
"""Of the revert; as many more are enrolled and never connect, to have offers to withdraw."""
PROFILE = Path(__file__).parents[2] / "examples" / "fleets" / "storm.yaml"
WAIT_S = 240.0
POLL_S = 0.25
WIDE = {"max_in_flight": 1_000_000, "per_minute": 1_000_000}


def rows() -> list[Row]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flotilla-fleet-")))
        postgres, redis = services.postgresql(), services.redis()
        for service in (postgres, redis):
            stack.callback(service.discard)
            service.start()
        plane = stack.enter_context(FleetStack(folder / "data", postgres.url(), redis, tls=TLS))
        bench = _Bench(plane, {"postgres": postgres.pid, "redis": redis.pid}, folder / "sim")
        with bench.running():
            return bench.measure()


class _Bench:
    """The steps, in their order, on one stack and one fleet."""

    def __init__(self, plane: FleetStack, services_: dict[str, int], folder: Path) -> None:
        self._plane = plane
        self._services = services_
        self._folder = folder
        self._client = Client(Context(plane.url, plane.admin_token))
        self._record = Record(folder / "record.jsonl", lambda: self._simulator.poll() is None)
        self._at = time.monotonic()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Enrol everyone, connect the fleet, and end it at the end."""
        cpu = self._cpu()
        words = ("--profile", str(PROFILE), "--devices")
        enrolling = self._plane.simulator(
            self._folder, *words, str(DEVICES + WAVE), "--enroll-only"
        )
        code = enrolling.wait(WAIT_S)
        assert code == 0, (self._folder / "errors").read_text()[-3000:]
        self._plane.admit(self._folder / "fleet")
        self._say(f"{DEVICES + WAVE} enrolled", cpu)
        cpu = self._cpu()
        self._simulator = self._plane.simulator(self._folder, *words, str(DEVICES))
        try:
            self._record.wait(lambda r: _ups(r, 0) >= DEVICES, "all connected", WAIT_S)
            self._say(f"{DEVICES} connected", cpu)
            yield
            found = fleet_stack.summary(self._folder, self._simulator)
            print(json.dumps(found), file=sys.stderr)
        finally:
            self._simulator.kill()
            self._simulator.wait()
            self._client._http.close()

    def measure(self) -> list[Row]:
        cpu = self._cpu()
        seconds = self._rollout("whole", "1.1.0", "online = true", [("first", 100), ("all", 0)])
        used, memory = self._used(cpu), self._rss()
        self._table(used, memory)
        self._say(f"a rollout to {DEVICES}: {seconds:.1f} s", cpu)
        found = [
            row("fleet_10k_cpu_s", sum(v for k, v in used.items() if k != "simulator"), "CPU s"),
            row("fleet_10k_rss_mb", sum(v for k, v in memory.items() if k != "simulator"), "MB"),
            row("fleet_10k_rollout_s", seconds, "s"),
            row("revert_p95_s", self._revert(), "s", "<= 10"),
            row("trip_s", self._trip(), "s", "<= 1"),
        ]
        return [*found, *self._storm()]

    # --- the stories ------------------------------------------------------------------------

    def _rollout(
        self, name: str, version: str, selector: str, waves: list[tuple[str, int]]
    ) -> float:
        self._start(name, version, selector, waves)
        began = time.monotonic()
        self._wait(name, lambda view: view["state"] == "SUCCEEDED", "SUCCEEDED")
        return time.monotonic() - began

    def _revert(self) -> float:
        """Return the 95th percentile from the command to a device's report being committed."""
        waves = [("first", WAVE), ("rest", 0)]
        self._start("returns", "1.1.1", "online = true", waves, approval=True)
        self._wait("returns", lambda view: _count(view, "SUCCEEDED") >= WAVE, "a wave is done")
        cpu, began = self._cpu(), _wall()
        self._client.post("/api/v1/rollouts/returns:revert", {"reason": "to measure it"})
        says = "ROLLED_BACK reverted"

        def back(record: Record) -> list[dict[str, Any]]:
            return record.since(began, what="acked", says=says)

        self._record.wait(lambda record: len(back(record)) >= WAVE, "everyone is back")
        times = sorted(float(line["at"]) - began for line in back(self._record))
        p95 = statistics.quantiles(times, n=20)[-1]
        self._say(f"revert of {WAVE}: median {statistics.median(times):.2f} s, p95 {p95:.2f}", cpu)
        return p95

    def _trip(self) -> float:
        """Return the time from the decision to halt to the last hold order on the broker.

        The wave holds devices that fail and devices that are away: the offers of those are what
        there is to withdraw.
        """
        selector = 'online = false or labels.site = "osl"'
        with _Eavesdropper(self._plane) as heard:
            cpu = self._cpu()
            self._start("trips", "1.2.0", selector, [("all", 0)])
            self._wait("trips", lambda view: view["state"] == "HALTED", "HALTED")
            self._wait("trips", lambda view: not _count(view, "OFFERED"), "all withdrawn")
            heard.wait(WAVE)
        decisions = self._client.pages("/api/v1/rollouts/trips/decisions")
        tripped = min(_seconds(one["at"]) for one in decisions if one["kind"] == "halt")
        self._record.wait(lambda record: bool(_failed(record)), "a failure is committed")
        failed = _failed(self._record)
        first = min(line["at"] for line in failed)
        last: float = heard.holds[-1]
        self._say(
            f"{len(heard.holds)} offers withdrawn {last - tripped:.2f} s after the decision, "
            f"{last - first:.2f} s after the first failure was committed",
            cpu,
        )
        return last - tripped

    def _storm(self) -> list[Row]:
        """Kill the broker under everyone, and see them come back while ticks go on."""
        cpu, began = self._cpu(), _wall()
        self._plane.broker.restart(crash=True)
        ticks: list[float] = []

        def all_back(record: Record) -> bool:
            ticks.append(self._offered_after(f"meanwhile-{len(ticks)}"))
            return _ups(record, began) >= DEVICES

        self._record.wait(all_back, "all are back", WAIT_S)
        first: dict[str, float] = {}
        for line in self._record.since(began, what="up"):
            first.setdefault(line["device"], float(line["at"]))
        peak = max(Counter(int(at) for at in first.values()).values())
        times = sorted(at - began for at in first.values())
        self._say(
            f"storm: 95 % back in {times[len(times) * 95 // 100]:.1f} s, all in {times[-1]:.1f} s, "
            f"peak {peak}/s, {len(ticks)} rollouts offered meanwhile, the slowest after "
            f"{max(ticks):.1f} s",
            cpu,
        )
        return [
            row("storm_back_s", times[-1], "s"),
            row("storm_peak_connects", peak, "a second"),
            row("storm_tick_s", max(ticks), "s"),
        ]

    def _offered_after(self, name: str) -> float:
        """Return how long a small rollout takes from its start to its first offers."""
        waves = [("few", 5), ("rest", 0)]
        self._start(name, "1.1.1", "online = false", waves, approval=True)
        began = time.monotonic()
        self._wait(name, lambda view: _count(view, "QUEUED") < _total(view), "offered")
        return time.monotonic() - began

    # --- the rollouts -----------------------------------------------------------------------

    def _start(
        self,
        name: str,
        version: str,
        selector: str,
        waves: list[tuple[str, int]],
        *,
        approval: bool = False,
    ) -> None:
        spec: dict[str, Any] = {
            "model": "support-slm",
            "version": version,
            "selector": selector,
            "soak": "1s",
            "waves": [
                {"name": wave, **({"count": n} if n else {"percent": 100})} for wave, n in waves
            ],
            "pace": WIDE,
            "gates": {"max_failures": 5},
        }
        if approval:
            spec["waves"][-1]["approval"] = "required"
        document = {
            "apiVersion": "flotilla/v1",
            "kind": "Rollout",
            "metadata": {"name": name},
            "spec": spec,
        }
        self._client.put(f"/api/v1/rollouts/{name}", document)
        self._client.post(f"/api/v1/rollouts/{name}:start", {"reason": "benchmark"})

    def _wait(self, name: str, done: Callable[[dict[str, Any]], bool], what: str) -> None:
        give_up = time.monotonic() + WAIT_S
        while True:
            view = self._client.get(f"/api/v1/rollouts/{name}")
            if done(view):
                return
            counts = [wave["counts"] for wave in view["waves"]]
            assert time.monotonic() < give_up, f"{name} not {what}: {view['state']} {counts}"
            time.sleep(POLL_S)  # the API has no call that waits

    # --- what it costs ----------------------------------------------------------------------

    def _pids(self) -> dict[str, int]:
        found = {**self._services, **self._plane.pids}
        simulator = getattr(self, "_simulator", None)
        return found if simulator is None else {**found, "simulator": simulator.pid}

    def _cpu(self) -> dict[str, float]:
        return {name: family_cpu_s(pid) for name, pid in self._pids().items()}

    def _used(self, before: dict[str, float]) -> dict[str, float]:
        return {name: now - before.get(name, 0.0) for name, now in self._cpu().items()}

    def _rss(self) -> dict[str, float]:
        """Return megabytes by process; what processes share counts once (Pss)."""
        return {name: sum(map(_pss_mb, _family(pid))) for name, pid in self._pids().items()}

    def _table(self, used: dict[str, float], memory: dict[str, float]) -> None:
        print(f"{'process':12}{'CPU s':>10}{'MB':>10}", file=sys.stderr)
        for name, seconds in used.items():
            print(f"{name:12}{seconds:10.2f}{memory[name]:10.1f}", file=sys.stderr)

    def _say(self, what: str, before: dict[str, float]) -> None:
        used = {name: round(seconds, 1) for name, seconds in self._used(before).items()}
        now = time.monotonic()
        print(f"[{now - self._at:6.1f} s] {what}; CPU {used}", file=sys.stderr, flush=True)
        self._at = now


class _Eavesdropper:
    """Hears hold orders as the broker hands them out; a context manager."""

    def __init__(self, plane: FleetStack) -> None:
        self.holds: list[float] = []
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, GATEWAYS[-1], protocol=paho.MQTTv311
        )
        plane.let_in(self._client, GATEWAYS[-1])
        self._port = plane.broker.port
        self._client.on_connect = lambda client, *_: client.subscribe(
            f"{topics.PREFIX}/+/down/desired", 1
        )
        self._client.on_message = lambda _client, _data, message: self._hear(message)

    def __enter__(self) -> Self:
        self._client.connect("127.0.0.1", self._port)
        self._client.loop_start()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def wait(self, number: int) -> None:
        give_up = time.monotonic() + WAIT_S
        while len(self.holds) < number:
            assert time.monotonic() < give_up, f"{len(self.holds)} of {number} offers withdrawn"
            time.sleep(POLL_S)

    def _hear(self, message: paho.MQTTMessage) -> None:
        payload, _ = envelope.open_unverified(bytes(message.payload), envelope.ORDER_TYPE)
        if not message.retain and messages.decode(payload, Order).action is Action.HOLD:
            self.holds.append(_wall())


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in _family(int(child)))]


def _pss_mb(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0  # it has just ended
    return (
        next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1024
    )


def _ups(record: Record, wall: float) -> int:
    """Return how many devices are up that came up since."""
    return len({line["device"] for line in record.since(wall, what="up")})


def _failed(record: Record) -> list[dict[str, Any]]:
    return record.since(0, what="acked", says="ROLLED_BACK soak.unhealthy")


def _count(view: dict[str, Any], state: str) -> int:
    return sum(int(wave["counts"].get(state, 0)) for wave in view["waves"])


def _total(view: dict[str, Any]) -> int:
    return sum(int(wave["total"]) for wave in view["waves"])


def _seconds(iso: str) -> float:
    return datetime.fromisoformat(iso).timestamp()


def _wall() -> float:
    return time.time()  # noqa: TID251 - compared with what other processes wrote
