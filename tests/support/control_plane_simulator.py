"""A small control plane for tests of the agent: signs, serves, publishes and acknowledges.

Everything on the wire is real (HTTPS with ranges, MQTT over mutual TLS, P-256 signatures); only
the decisions are the test's. A test breaks one thing (`hold`, `cut_after`, `corrupt`, `acking`).
"""

import hashlib
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

import msgspec
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from agent.protocol import manifest as manifests
from agent.protocol import messages, topics
from agent.protocol.enrollment import Broker, EnrollReply, EnrollRequest
from agent.protocol.manifest import File, Golden, Limits, Manifest, ModelIO, Runtime, Source
from agent.protocol.messages import Ack, Bench, BundleRef, Event, Order, TrialPolicy
from agent.protocol.topics import DeviceId
from agent.protocol.words import Action, ExecutionState
from control_plane.signing.keyring import Keyring
from tests.support.brokers import GATEWAY, MutualBroker

WAIT_S = 60.0
SECRET = "x" * 24
R = TypeVar("R")


def now() -> float:
    return time.time()  # noqa: TID251 - the agent under test reads the real clock


@dataclass
class Faults:
    """What the server does wrong; a test sets one of them."""

    hold: threading.Event | None = None
    """Answers of blobs wait for it."""
    hold_manifest: threading.Event | None = None
    cut_after: int = 0
    """Connections end after so many bytes of a blob, this often:"""
    cuts: int = 0
    corrupt: int = 0
    """So many blob answers have one flipped byte."""
    refuse: int = 0
    """Status of every blob answer, when set."""
    acking: bool = True


@dataclass
class Simulator:
    """One fleet with its keys, HTTP server and broker."""

    keyring: Keyring
    broker: MutualBroker
    faults: Faults = field(default_factory=Faults)
    manifests: dict[str, bytes] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    """(path, Range header) of each blob request."""
    received: list[tuple[str, Any]] = field(default_factory=list)
    """(channel, message) as it came, repeats included."""
    generation: int = 0

    def __post_init__(self) -> None:
        self._changed = threading.Condition()
        self._http = _HttpServer(self)
        self._mqtt = paho.Client(CallbackAPIVersion.VERSION2, GATEWAY, protocol=paho.MQTTv311)
        self._subscribed = threading.Event()

    # --- running ----------------------------------------------------------------------------

    def start(self) -> None:
        self._http.start()
        self.connect()

    def connect(self) -> None:
        files = self.broker.gateway()
        self._mqtt.tls_set(str(files.ca), str(files.certificate), str(files.key))
        self._mqtt.on_connect = lambda client, *_: client.subscribe(topics.all_up(), 1)
        self._mqtt.on_subscribe = lambda *_: self._subscribed.set()
        self._mqtt.on_message = lambda _client, _data, message: self._receive(message)
        self._mqtt.connect("127.0.0.1", self.broker.port)
        self._mqtt.loop_start()
        assert self._subscribed.wait(WAIT_S)

    def stop(self) -> None:
        self._mqtt.disconnect()
        self._mqtt.loop_stop()
        self._mqtt._reset_sockets()
        self._http.stop()

    @property
    def url(self) -> str:
        return self._http.url

    @property
    def token(self) -> str:
        return f"flt1.{self.keyring.ca_sha256}.abcd1234.{SECRET}"

    # --- what a test asks for ---------------------------------------------------------------

    def bundle(
        self,
        version: str,
        release: int,
        *,
        blueprint: str = "board",
        files: dict[str, bytes] | None = None,
        **behaviour: Any,
    ) -> BundleRef:
        """Publish a bundle; `behaviour` tells tests/support/fake_trial.py what to do with it."""
        contents = {
            "model.onnx": hashlib.sha256(version.encode()).digest() * 2000,
            "golden.json": b'{"prompts":[]}',
            "behaviour.json": json.dumps(behaviour).encode(),
            **(files or {}),
        }
        listed = [
            File(path=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())
            for name, data in sorted(contents.items())
        ]
        for file in listed:
            self.blobs[file.sha256] = contents[file.path]
        payload = manifests.encode(_manifest(version, release, blueprint, listed))
        digest = manifests.digest(payload)
        self.manifests[digest] = self.keyring.sign_manifest(payload)
        size = sum(file.size for file in listed)
        return BundleRef(digest, "support-slm", version, release, size)

    def order(
        self,
        device: str,
        bundle: BundleRef | None,
        *,
        action: Action = Action.RUN,
        execution: str = "",
        publish: bool = True,
        **more: Any,
    ) -> bytes:
        """Sign the next desired state of a device, and publish it."""
        self.generation = more.pop("generation", self.generation + 1)
        fields: dict[str, Any] = {
            "order": f"o{self.generation}",
            "device": device,
            "generation": self.generation,
            "issued": int(now()),
            "expires": int(now()) + 3600,
            "action": action,
            "rollout": "r",
            "execution": execution or f"x{self.generation}",
            "bundle": bundle,
            "trial": TrialPolicy(retry_s=0.2),
            "soak_s": 0.0,
        }
        order = Order(**{**fields, **more})
        envelope = self.keyring.sign_order(messages.encode(order))
        if publish:
            self.publish(device, envelope)
        return envelope

    def publish(self, device: str, envelope: bytes) -> None:
        topic = topics.desired(DeviceId(device))
        self._mqtt.publish(topic, envelope, 1, retain=True).wait_for_publish(WAIT_S)

    def command(self, device: str, command: messages.Command | messages.BackOff) -> None:
        topic = topics.down(DeviceId(device), "cmd")
        self._mqtt.publish(topic, messages.encode(command), 1).wait_for_publish(WAIT_S)

    def ack_all(self, device: str) -> None:
        """Acknowledge everything that came so far."""
        reports = [(m.boot, m.seq) for _, m in self.received if isinstance(m, Event | Bench)]
        self._ack(device, reports)

    # --- what a test waits for --------------------------------------------------------------

    def wait(self, found: Callable[[], R | None], timeout_s: float = WAIT_S) -> R:
        """Return what `found` finds as soon as it finds something."""
        with self._changed:
            result = self._changed.wait_for(found, timeout_s)
        if not result:
            seen = [
                (c, getattr(m, "state", ""), getattr(m, "reason", "")) for c, m in self.received
            ]
            raise AssertionError(f"not seen in {timeout_s} s; received {seen}")
        return result

    def wait_event(self, state: ExecutionState, execution: str = "") -> Event:
        """Return the first event of this state."""
        wanted = execution or f"x{self.generation}"
        return self.wait(
            lambda: next(
                (e for e in self.events() if e.state is state and e.execution == wanted), None
            )
        )

    def events(self, execution: str = "") -> list[Event]:
        """Return the events so far, each once, as they came."""
        seen: dict[tuple[int, int], Event] = {}
        for event in self.all(Event):
            if execution in {"", event.execution}:
                seen.setdefault((event.boot, event.seq), event)
        return list(seen.values())

    def all(self, kind: type[R]) -> list[R]:
        """Return every message of one kind, repeats included."""
        return [message for _, message in self.received if isinstance(message, kind)]

    # --- inside -----------------------------------------------------------------------------

    def _receive(self, message: paho.MQTTMessage) -> None:
        topic = topics.parse(message.topic)
        kinds: dict[str, type[msgspec.Struct]] = {
            "hello": messages.Hello,
            "presence": messages.Presence,
            "state": messages.State,
            "events": Event,
            "bench": Bench,
            "heartbeat": messages.Heartbeat,
        }
        read = messages.decode(bytes(message.payload), kinds[topic.channel])
        with self._changed:
            self.received.append((topic.channel, read))
            self._changed.notify_all()
        if self.faults.acking and isinstance(read, Event | Bench):
            self._ack(topic.device, [(read.boot, read.seq)])

    def _ack(self, device: str, reports: list[tuple[int, int]]) -> None:
        payload = messages.encode(Ack(reports=reports))
        self._mqtt.publish(topics.down(DeviceId(device), "ack"), payload, 1)

    def enroll(self, request: EnrollRequest, csr_name: str) -> EnrollReply:
        issued = self.keyring.issue_device(request.csr, csr_name, datetime.now(UTC))  # noqa: TID251
        return EnrollReply(
            device=csr_name,
            certificate=issued.certificate_pem,
            ca=self.keyring.ca_pem,
            secret=SECRET,
            broker=Broker("127.0.0.1", self.broker.port, tls=True),
            trust=self.keyring.trusted_keys(),
        )


def _manifest(version: str, release: int, blueprint: str, files: list[File]) -> Manifest:
    return Manifest(
        model="support-slm",
        version=version,
        release=release,
        blueprint=blueprint,
        recipe="int8",
        files=files,
        runtime=Runtime(),
        io=ModelIO("causal-lm", "model.onnx", 512, 256, 0, 2, 2, 16),
        limits=Limits(),
        golden=Golden("golden.json", 0.9),
        quality={},
        source=Source("0" * 64, 1, {}),
    )


class _HttpServer:
    """HTTPS with the fleet's certificate."""

    def __init__(self, simulator: Simulator) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.simulator = simulator  # type: ignore[attr-defined]  # for the handler
        files = simulator.keyring.issue_service("api", [], datetime.now(UTC))  # noqa: TID251
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.certificate, files.key)
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """The device side of the API."""

    protocol_version = "HTTP/1.1"

    @property
    def simulator(self) -> Simulator:
        simulator: Simulator = self.server.simulator  # type: ignore[attr-defined]  # set above
        return simulator

    def do_GET(self) -> None:
        _, _, _, kind, *rest = f"{self.path}/".split("/")
        if kind == "ca":
            self._answer(200, self.simulator.keyring.ca_pem.encode())
        elif self.headers["Authorization"] != f"Bearer {SECRET}":
            self._answer(401, b'{"title":"who are you"}')
        elif kind == "bundles":
            if self.simulator.faults.hold_manifest:
                self.simulator.faults.hold_manifest.wait(WAIT_S)
            self._found(self.simulator.manifests.get(rest[0]))
        else:
            self._blob(rest[0])

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        request = msgspec.json.decode(body, type=EnrollRequest)
        if request.token != self.simulator.token:
            self._answer(401, b'{"title":"Unauthorized","detail":"the token is unknown"}')
            return
        name = _csr_name(request.csr)
        self._answer(200, msgspec.json.encode(self.simulator.enroll(request, name)))

    def _found(self, data: bytes | None) -> None:
        if data is None:
            self._answer(404, b'{"title":"Not Found"}')
        else:
            self._answer(200, data)

    def _blob(self, digest: str) -> None:
        faults = self.simulator.faults
        wanted = self.headers.get("Range", "")
        self.simulator.requests.append((digest, wanted))
        if faults.hold:
            faults.hold.wait(WAIT_S)
        data = self.simulator.blobs.get(digest)
        if faults.refuse or data is None:
            self._answer(faults.refuse or 404, b"{}")
            return
        if faults.corrupt:
            faults.corrupt -= 1
            data = bytes([data[0] ^ 1]) + data[1:]
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if faults.cuts and len(data) - start > faults.cut_after:
            faults.cuts -= 1
            self.wfile.write(data[start : start + faults.cut_after])
            self.close_connection = True
            return
        self.wfile.write(data[start:])

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""


def _csr_name(pem: str) -> str:
    from cryptography import x509  # noqa: PLC0415 - only here

    subject = x509.load_pem_x509_csr(pem.encode()).subject
    return str(next(iter(subject)).value)


@contextmanager
def simulated(keyring: Keyring, broker: MutualBroker) -> Iterator[Simulator]:
    """Run a simulator."""
    simulator = Simulator(keyring, broker)
    simulator.start()
    try:
        yield simulator
    finally:
        simulator.stop()
