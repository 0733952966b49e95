"""Settings, hardware facts, the account at the broker, and what the device says of itself."""

import ssl
import tomllib
from pathlib import Path

import pytest

import agent
from agent import config, hardware, telemetry, web
from agent import link as links
from agent.config import Config, DataFolder
from agent.errors import ConfigError, LinkError
from agent.files import Files
from agent.lifecycle import Soaking
from agent.protocol.enrollment import Broker
from agent.protocol.topics import DeviceId
from agent.protocol.words import ExecutionState, Reason
from tests.unit.agent import story

CPUINFO = """processor\t: 0
model name\t: Some CPU @ 2.00GHz
flags\t\t: sse4_2 avx2 avx512_vnni

processor\t: 1
model name\t: Another name
flags\t\t: none
"""


def test_the_version_is_that_of_the_distribution() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    assert agent.__version__ == project["project"]["version"]


def test_settings_are_written_and_read_back(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    told = Config(server="https://fleet", blueprint="board", labels={"site": "vie"})
    config.save(Files(), folder, told)
    assert config.load(Files(), folder, {}) == told


def test_the_environment_is_above_the_file(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    config.save(Files(), folder, Config(heartbeat_s=60))
    environ = {
        "FLOTILLA_AGENT_HEARTBEAT_S": "2.5",
        "FLOTILLA_AGENT_TRIAL_COMMAND": "python 'a b.py'",
        "FLOTILLA_AGENT_ALLOW_PLAIN_HTTP": "true",
        "FLOTILLA_AGENT_LABELS": "site=vie,rack=7",
        "FLOTILLA_AGENT_DATA": "elsewhere",
    }
    read = config.load(Files(), folder, environ)
    assert read.heartbeat_s == 2.5
    assert read.trial_command == ["python", "a b.py"]
    assert read.allow_plain_http is True
    assert read.labels == {"site": "vie", "rack": "7"}


@pytest.mark.parametrize(
    ("stored", "environ", "message"),
    [
        (b"{", {}, "agent.json"),
        (b'{"heartbeats": 1}', {}, "heartbeats"),
        (b'{"heartbeat_s": "often"}', {}, "heartbeat_s"),
        (b"{}", {"FLOTILLA_AGENT_HEARTBEAT_S": "often"}, "FLOTILLA_AGENT_HEARTBEAT_S"),
        (b"{}", {"FLOTILLA_AGENT_LOG_LEVEL": "LOUD"}, "log_level"),
    ],
)
def test_a_wrong_setting_is_named(
    tmp_path: Path, stored: bytes, environ: dict[str, str], message: str
) -> None:
    folder = DataFolder(tmp_path)
    folder.config.write_bytes(stored)
    with pytest.raises(ConfigError, match=message):
        config.load(Files(), folder, environ)


def test_a_label_without_a_value_is_named() -> None:
    with pytest.raises(ConfigError, match="'site'"):
        config.labels(["site"])


# --- hardware -------------------------------------------------------------------------------


def test_the_first_core_speaks_for_the_machine() -> None:
    assert hardware.cpu_info(CPUINFO) == (
        "Some CPU @ 2.00GHz",
        ["avx2", "avx512_vnni", "sse4_2"],
    )


def test_an_arm_core_lists_its_features() -> None:
    assert hardware.cpu_info("Features : asimd asimddp\n")[1] == ["asimd", "asimddp"]


def test_this_machine_has_an_architecture_cores_memory_and_a_disk(tmp_path: Path) -> None:
    facts = hardware.read(tmp_path)
    assert facts.arch
    assert facts.cores > 0
    assert facts.memory_mb > 0
    assert facts.disk_free_mb > 0


def test_a_runtime_that_nobody_knows_is_not_installed() -> None:
    assert not hardware.has_runtime("os")


# --- who may be talked to -------------------------------------------------------------------


def no_tls() -> ssl.SSLContext:
    raise AssertionError("no TLS context was needed")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.9.9.9"])
def test_without_tls_a_broker_on_this_machine_is_fine(host: str) -> None:
    account = links.account(DeviceId("edge-1"), Broker(host, 1883, tls=False), "s", no_tls)
    assert account.tls is None


@pytest.mark.parametrize("host", ["192.0.2.1", "broker.example", "0.0.0.0", "localhost.evil"])
def test_without_tls_a_broker_elsewhere_is_refused(host: str) -> None:
    with pytest.raises(LinkError, match="refused without TLS"):
        links.account(DeviceId("edge-1"), Broker(host, 1883, tls=False), "s", no_tls)


def test_plain_http_elsewhere_needs_a_word() -> None:
    with pytest.raises(ConfigError, match="plain HTTP"):
        web.server_url("http://fleet.example")
    assert web.server_url("http://fleet.example", plain_http=True).hostname == "fleet.example"
    assert web.server_url("http://127.0.0.1:8080/").port == 8080


@pytest.mark.parametrize("text", ["", "fleet.example", "ftp://fleet", "https://"])
def test_a_server_that_is_no_url_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="expected https"):
        web.server_url(text)


# --- what the device says of itself ---------------------------------------------------------


def test_the_reported_state_names_what_runs_and_what_comes() -> None:
    world = story.World()
    world.take(story.ordered())
    world.until(Soaking)
    told = telemetry.reported(world.state, 5, 6)
    assert (told.boot, told.seq, told.generation) == (5, 6, 0)
    assert (told.digest, told.last_known_good) == (story.NEW.digest, story.OLD.digest)
    assert (told.candidate, told.state) == (story.NEW.digest, ExecutionState.SOAKING)
    world.settle()
    told = telemetry.reported(world.state, 5, 7)
    assert (told.generation, told.digest, told.candidate) == (1, story.NEW.digest, "")
    assert (told.previous, told.state) == (story.OLD.digest, ExecutionState.SUCCEEDED)
    assert told.reason is Reason.SOAKED


def test_a_device_that_never_had_an_order_reports_no_state() -> None:
    told = telemetry.reported(story.World().state, 1, 1)
    assert told.state is None
