"""Bad input, as people and devices meet it: what and where is wrong, and nothing has changed."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import select

from agent.protocol.words import Action, ExecutionState, Reason
from control_plane.bootstrap import Application
from control_plane.config import Settings
from control_plane.domain.device import DeviceId
from control_plane.services import desired, enrollment, inventory
from control_plane.services.desired import Wanted
from control_plane.signing.keyring import Keyring
from control_plane.store.schema import metadata
from tests.integration.agent.conftest import Agent
from tests.integration.api.support import BLUEPRINT, ROLLOUT, add_version, api_token
from tests.integration.transport.fleets import enrol
from tests.support import control_plane_simulator, databases, services, tiny_lm
from tests.support.brokers import MutualBroker
from tests.support.control_plane_simulator import Simulator

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

WAIT_S = 60.0
UPLOAD_LIMIT = 300_000
FLOTILLA = [sys.executable, "-m", "control_plane.cli.main"]


def environment(**settings: object) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLOTILLA_")}
    return kept | {f"FLOTILLA_{name.upper()}": str(value) for name, value in settings.items()}


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for what only a look from outside can tell."""
    give_up = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < give_up, f"still not: {what}"
        time.sleep(0.02)


def files_under(folder: Path) -> dict[str, str]:
    """The digest of every file, by its path."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@contextmanager
def server(process: str, log: Path, **settings: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run `flotilla server ...` until the end of the block; its words go to `log`."""
    with log.open("ab") as out:
        child = subprocess.Popen(
            [*FLOTILLA, "server", process], env=environment(**settings), stdout=out, stderr=out
        )
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(WAIT_S)


# --- people: the flotilla command against a live API ------------------------------------------


@dataclass
class Plane:
    """A control plane that people reach, with one blueprint, one model version and one device."""

    app: Application
    url: str
    token: str

    def flotilla(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*FLOTILLA, *words],
            env=environment(url=self.url, token=self.token),
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )

    def holds(self) -> tuple[dict[str, list[Any]], dict[str, str]]:
        """Everything that is stored: every row of every table, every file of the blob store."""
        with self.app.database.reading() as tx:
            rows = {
                table.name: sorted(map(repr, tx.execute(select(table))))
                for table in metadata.sorted_tables
            }
        return rows, files_under(self.app.settings.data / "blobs")

    def refuses(self, *words: str) -> tuple[int, str]:
        """Run a command that must fail and change nothing; return exit code and message."""
        before = self.holds()
        done = self.flotilla(*words)
        assert self.holds() == before
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr


@pytest.fixture(scope="module")
def plane(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    data = tmp_path_factory.mktemp("plane")
    url, port = databases.sqlite_copy(sqlite_template, data), services.free_port()
    app = Application(Settings(data=data, database_url=url))
    told = {"data": data, "database_url": url, "upload_limit_bytes": UPLOAD_LIMIT}
    with server("api", data / "api.log", api_port=port, **told):
        until(lambda: services.answers(port), "the API listens")
        made = Plane(app, f"http://127.0.0.1:{port}", api_token(app))
        blueprint = data / "blueprint.yaml"
        blueprint.write_text(yaml.safe_dump(BLUEPRINT))
        done = made.flotilla("apply", "-f", str(blueprint))
        assert done.returncode == 0, done.stderr
        add_version(app)
        enrol(app, "edge-1", {"site": "vie"})
        yield made
    app.close()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_lm.write_folder(tmp_path / "model")


def written(folder: Path, document: dict[str, Any], **spec: Any) -> str:
    """Write a document with some fields of its spec changed; None takes one out."""
    changed = {**document["spec"], **spec}
    left = {name: value for name, value in changed.items() if value is not None}
    path = folder / "document.yaml"
    path.write_text(yaml.safe_dump({**document, "spec": left}, sort_keys=False))
    return str(path)


def test_a_truncated_onnx_file(plane: Plane, model: Path) -> None:
    graph = model / "model.onnx"
    graph.write_bytes(graph.read_bytes()[: graph.stat().st_size // 2])
    code, said = plane.refuses("model", "push", "tiny", "1.0.0", str(model))
    assert code == 2
    assert f"{graph}: truncated or damaged after {graph.stat().st_size} bytes" in said
    assert "push the whole file" in said


def test_a_yaml_with_an_unknown_field(plane: Plane, tmp_path: Path) -> None:
    path = written(tmp_path, ROLLOUT, wavse=[])
    code, said = plane.refuses("apply", "-f", path)
    assert code == 2
    lines = Path(path).read_text().splitlines()
    line = 1 + next(i for i, text in enumerate(lines) if "wavse" in text)
    assert f"{path}:{line}: rollout: spec.wavse: " in said
    assert "version, waves" in said  # the fields that there are


def test_a_rollout_for_a_model_version_that_does_not_exist(plane: Plane, tmp_path: Path) -> None:
    path = written(tmp_path, ROLLOUT, version="9.9.9")
    for verb in ("apply", "plan"):
        code, said = plane.refuses(verb, "-f", path)
        assert code == 5
        assert "slm 9.9.9" in said
        assert "push it first" in said


def test_a_selector_that_matches_nothing(plane: Plane, tmp_path: Path) -> None:
    path = written(tmp_path, ROLLOUT, selector='labels.site = "atlantis"')
    for verb in ("apply", "plan"):
        code, said = plane.refuses(verb, "-f", path)
        assert code == 2
        assert "spec.selector" in said
        assert "no device matches" in said
        assert "atlantis" in said


@pytest.mark.parametrize("recipes", [None, []], ids=["left out", "empty"])
def test_a_blueprint_without_recipes(
    plane: Plane, tmp_path: Path, recipes: list[str] | None
) -> None:
    path = written(tmp_path, BLUEPRINT, recipes=recipes)
    code, said = plane.refuses("apply", "-f", path)
    assert code == 2
    assert f"{path}:" in said
    assert "spec.recipes" in said


def test_an_upload_larger_than_the_limit(plane: Plane, model: Path) -> None:
    (model / "tokenizer.json").write_text("many words\n" * 100_000)
    code, said = plane.refuses("model", "push", "tiny", "1.0.0", str(model))
    assert code == 2
    assert f"{model / 'tokenizer.json'}: " in said
    assert "an upload of 1100000 bytes" in said
    assert str(UPLOAD_LIMIT) in said
    assert "FLOTILLA_UPLOAD_LIMIT_BYTES" in said


# --- devices: the real agent ------------------------------------------------------------------


@pytest.fixture
def simulator(tmp_path: Path) -> Iterator[Simulator]:
    broker = MutualBroker(Keyring.open(tmp_path / "keys"))
    broker.service.start()
    try:
        with control_plane_simulator.simulated(broker.keyring, broker) as simulator:
            yield simulator
    finally:
        broker.service.discard()


@pytest.fixture
def device(simulator: Simulator, tmp_path: Path) -> Iterator[Agent]:
    """A device that runs 1.1.0, confirmed."""
    agent = Agent(simulator, tmp_path / "device")
    done = agent.enroll()
    assert done.returncode == 0, done.stderr
    agent.start()
    try:
        simulator.order(agent.name, simulator.bundle("1.1.0", 2))
        simulator.wait_event(ExecutionState.SUCCEEDED)
        yield agent
    finally:
        agent.end()


def bundles_of(device: Agent) -> tuple[str, dict[str, str]]:
    """What the device runs, and every byte of what runs."""
    active = (device.data / "active").resolve()
    return device.status()["version"], files_under(active)


def test_a_bundle_with_one_flipped_byte(simulator: Simulator, device: Agent) -> None:
    before = bundles_of(device)
    simulator.faults.corrupt = 1000
    simulator.order(device.name, simulator.bundle("1.2.0", 3))
    event = simulator.wait_event(ExecutionState.FAILED)
    assert event.reason is Reason.DOWNLOAD_DIGEST
    assert bundles_of(device) == before
    device.wait_line("reason=download.digest")
    (said,) = [line for line in device.lines if "reason=download.digest" in line]
    assert "behaviour.json: the server sent other bytes than were signed, twice" in said


def test_an_order_with_a_wrong_signature(
    simulator: Simulator, device: Agent, tmp_path: Path
) -> None:
    before = bundles_of(device)
    asked = len(simulator.requests)
    mine, simulator.keyring = simulator.keyring, Keyring.open(tmp_path / "stranger")
    simulator.order(device.name, simulator.bundle("1.2.0", 3))
    simulator.keyring = mine
    event = simulator.wait_event(ExecutionState.REJECTED)
    assert event.reason is Reason.ORDER_SIGNATURE
    assert bundles_of(device) == before
    assert len(simulator.requests) == asked
    device.wait_line("order.refused reason=order.signature")
    (said,) = [line for line in device.lines if "order.refused" in line]
    assert "no signature by a trusted key" in said


# --- a broker that is down at start -----------------------------------------------------------


def test_a_broker_that_is_down_at_start(sqlite_url: str, tmp_path: Path) -> None:
    app = Application(Settings(data=tmp_path / "data", database_url=sqlite_url))
    broker = MutualBroker(app.keyring)
    port = services.free_port()
    told = {
        "data": app.settings.data,
        "database_url": sqlite_url,
        "mqtt_port": broker.port,
        "mqtt_tls": True,
    }
    log = tmp_path / "gateway.log"
    agent = Agent(None, tmp_path / "device")  # type: ignore[arg-type]  # asks the real API
    agent.environment["FLOTILLA_AGENT_ALLOW_PLAIN_HTTP"] = "true"
    try:
        with (
            server("api", tmp_path / "api.log", api_port=port, **told),
            server("gateway", log, **told) as gateway,
        ):
            until(lambda: services.answers(port), "the API listens")
            enrol_over_http(app, agent, port)
            agent.start()
            agent.wait_line("broker.unreachable")
            until(lambda: "gateway.broker_unreachable" in log.read_text(), "the gateway's word")
            (heard,) = [line for line in agent.lines if "broker.unreachable" in line][:1]
            (said, *_) = [x for x in log.read_text().splitlines() if "broker_unreachable" in x]
            for line in (heard, said):
                assert "127.0.0.1" in line
                assert str(broker.port) in line
                assert "refused" in line.lower()
            assert "Traceback" not in log.read_text() + "".join(agent.lines)
            assert gateway.poll() is None
            assert agent.process is not None
            assert agent.process.poll() is None

            broker.service.start()
            until(lambda: online(app, agent.name), "the device online")
            with app.scope("test") as scope:
                desired.set_desired(scope, [Wanted(DeviceId(agent.name), Action.HOLD)])
            until(lambda: generation(app, agent.name) == 1, "the order applied and reported")
            agent.end()
    finally:
        if agent.process is not None:
            agent.kill()
        broker.service.discard()
        app.close()


def enrol_over_http(app: Application, agent: Agent, port: int) -> None:
    with app.scope("test") as scope:
        token = enrollment.create_token(scope)
    asked = ["--server", f"http://127.0.0.1:{port}", "--token", token, "--device", agent.name]
    done = agent.command("enroll", *asked)
    assert done.returncode == 0, done.stderr


def online(app: Application, name: str) -> bool:
    with app.reading("test") as scope:
        return inventory.get_device(scope, name).online


def generation(app: Application, name: str) -> int:
    with app.reading("test") as scope:
        return inventory.get_device(scope, name).generation
