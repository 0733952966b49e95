"""compose.yaml cannot run here, so everything it names is looked up: it must exist as written."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml
from typer.main import get_command

from agent.__main__ import _parser
from agent.config import ENVIRONMENT, Config
from control_plane.cli.main import app as flotilla
from control_plane.config import Settings
from control_plane.local import mosquitto

ROOT = Path(__file__).resolve().parents[3]
HERE = Path(__file__).parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: one for name, one in SERVICES.items() if "build" in one}
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
IMAGE_FOLDER = "/opt/flotilla/"

each_service = pytest.mark.parametrize("name", SERVICES)
each_of_ours = pytest.mark.parametrize("name", OURS)


def test_the_file_is_of_the_compose_schema() -> None:
    schema = json.loads((HERE / "compose.schema.json").read_text())

    jsonschema.validate(COMPOSE, schema, jsonschema.Draft202012Validator)


def test_the_schema_catches_a_misspelt_key() -> None:
    schema = json.loads((HERE / "compose.schema.json").read_text())
    wrong = {"services": {"api": {**SERVICES["api"], "enviroment": {}}}}

    with pytest.raises(jsonschema.ValidationError, match="enviroment"):
        jsonschema.validate(wrong, schema, jsonschema.Draft202012Validator)


def test_the_stack_is_complete() -> None:
    assert set(SERVICES) == {
        "prepare",
        "postgres",
        "redis",
        "mosquitto",
        "init",
        "api",
        "gateway",
        "worker",
        "scheduler",
        "device",
    }


@pytest.mark.parametrize("name", ["postgres", "redis", "mosquitto", "api"])
def test_what_others_wait_for_has_a_health_check(name: str) -> None:
    assert "healthcheck" in SERVICES[name]


@each_service
def test_a_service_waits_for_services_in_a_way_that_they_can_satisfy(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        if how["condition"] == "service_healthy":
            assert "healthcheck" in SERVICES[other], other
        if how["condition"] == "service_completed_successfully":
            assert SERVICES[other]["restart"] == "no", other


@each_service
def test_every_network_and_volume_is_declared(name: str) -> None:
    assert set(SERVICES[name]["networks"]) <= set(COMPOSE["networks"])
    for volume in SERVICES[name].get("volumes", []):
        source = volume.split(":")[0]
        assert (ROOT / source).exists() if "/" in source else source in COMPOSE["volumes"], source


def test_every_declared_volume_is_used() -> None:
    used = {volume.split(":")[0] for one in SERVICES.values() for volume in one.get("volumes", [])}

    assert set(COMPOSE["volumes"]) <= used


@each_of_ours
def test_every_setting_exists_and_is_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment: dict[str, str] = OURS[name]["environment"]
    ours = {key: value for key, value in environment.items() if key.startswith("FLOTILLA_")}
    agents = {key for key in ours if key.startswith(ENVIRONMENT)}
    known = {f"FLOTILLA_{field.upper()}" for field in Settings.model_fields}
    of_agent = {f"{ENVIRONMENT}{field.upper()}" for field in Config.__struct_fields__}

    assert agents <= of_agent | {f"{ENVIRONMENT}DATA"}
    assert set(ours) - agents <= known
    for key, value in ours.items():
        monkeypatch.setenv(key, value)
    Settings()  # every value is of its kind


@each_of_ours
def test_every_other_variable_is_read_by_a_script_of_the_image(name: str) -> None:
    script = (ROOT / "deploy" / "device.sh").read_text()
    others = {key for key in OURS[name]["environment"] if not key.startswith("FLOTILLA_")}

    assert all(f"${key}" in script for key in others)


def test_the_entrypoint_sets_only_settings_that_exist() -> None:
    script = (ROOT / "deploy" / "entrypoint.sh").read_text()
    known = {f"FLOTILLA_{field.upper()}" for field in Settings.model_fields}

    assert set(re.findall(r"FLOTILLA_[A-Z_]+", script)) <= known


@each_of_ours
def test_every_command_exists(name: str) -> None:
    check_command(OURS[name]["command"])


def check_command(words: list[str]) -> None:
    """Fail unless the image has this command, with these subcommands and options."""
    program, *rest = words
    if program == "flotilla":
        command = get_command(flotilla)
        context = typer.Context(command, info_name=program)
        for word in rest:
            assert hasattr(command, "get_command"), f"{command.name} has no subcommands"
            found = command.get_command(context, word)
            assert found is not None, f"flotilla has no {' '.join(rest)}"
            command = found
    elif program == "python":
        script, *options = rest
        text = source_of(script).read_text()
        # What init.py, prepare.py and healthy.py declare, or else take by position.
        for option in options:
            if option.startswith("--"):
                assert option.split("=")[0].removeprefix("--") in text, option
    else:
        assert program == f"{IMAGE_FOLDER}device.sh"
        assert source_of(program).stat().st_mode & 0o111


def source_of(path: str) -> Path:
    """Return the file of the checkout that the image has at `path`."""
    assert path.startswith(IMAGE_FOLDER)
    source = ROOT / "deploy" / path.removeprefix(IMAGE_FOLDER)
    assert f"deploy/{source.name} " in DOCKERFILE, f"{source.name} is not copied into the image"
    return source


def test_the_health_check_of_the_api_is_in_the_image() -> None:
    _, program, script, url, ca = SERVICES["api"]["healthcheck"]["test"]
    settings = OURS["api"]["environment"]

    assert program == "python"
    assert source_of(script).exists()
    assert url == f"https://127.0.0.1:{settings['FLOTILLA_API_PORT']}/readyz"
    assert ca == f"{settings['FLOTILLA_KEYS']}/ca.pem"


def test_the_devices_script_uses_commands_and_options_that_exist() -> None:
    text = (ROOT / "deploy" / "device.sh").read_text().replace("\\\n", " ")
    lines = [line.removeprefix("exec ") for line in text.splitlines() if "flotilla-agent" in line]
    commands = [shlex.split(line)[1:] for line in lines]
    parser = _parser()

    assert [words[0] for words in commands] == ["enroll", "run"]
    for words in commands:
        parser.parse_args(words)


def test_ports_agree_with_what_listens_behind_them() -> None:
    settings = OURS["api"]["environment"]
    inside = {
        name: [port.split(":")[2] for port in one.get("ports", [])]
        for name, one in SERVICES.items()
    }
    listener = re.search(r"^listener (\d+)$", broker_configuration(), re.MULTILINE)

    assert listener is not None
    assert inside["mosquitto"] == [listener[1]] == [settings["FLOTILLA_MQTT_PORT"]]
    assert inside["api"] == [settings["FLOTILLA_API_PORT"]]
    assert settings["FLOTILLA_PUBLIC_URL"].endswith(f":{settings['FLOTILLA_API_PORT']}")
    assert SERVICES["device"]["environment"]["DEVICE_SERVER"] == settings["FLOTILLA_PUBLIC_URL"]


def test_hosts_in_settings_are_services_on_a_common_network() -> None:
    settings = OURS["gateway"]["environment"]
    redis = re.fullmatch(r"redis://([a-z]+):6379/0", settings["FLOTILLA_QUEUE_URL"])
    assert redis is not None

    for user, server in (
        ("gateway", settings["FLOTILLA_MQTT_HOST"]),
        ("device", settings["FLOTILLA_MQTT_HOST"]),
        ("device", "api"),
        ("worker", redis[1]),
        ("scheduler", redis[1]),
        ("api", "postgres"),
        ("init", "postgres"),
    ):
        assert set(SERVICES[user]["networks"]) & set(SERVICES[server]["networks"]), (user, server)


def test_a_device_reaches_neither_the_database_nor_the_queue() -> None:
    assert not set(SERVICES["device"]["networks"]) & {
        network for name in ("postgres", "redis") for network in SERVICES[name]["networks"]
    }


def test_the_devices_blueprint_is_one_that_we_ship() -> None:
    name = SERVICES["device"]["environment"]["DEVICE_BLUEPRINT"]

    assert (ROOT / "blueprints" / f"{name}.yaml").exists()


def test_the_brokers_acl_is_the_embedded_brokers() -> None:
    assert (ROOT / "deploy" / "acl").read_text() == mosquitto.ACL


def test_the_broker_is_as_strict_as_the_embedded_one() -> None:
    inside = Path("/mosquitto/fleet")
    strict = mosquitto.mutual_tls(
        inside / "ca.pem", inside / "server.pem", inside / "server.key", inside / "acl"
    )

    assert set(strict) | set(mosquitto.limits()) <= set(broker_configuration().splitlines())


def broker_configuration() -> str:
    return (ROOT / "deploy" / "mosquitto.conf").read_text()


def test_everything_that_the_image_copies_exists_and_is_not_ignored() -> None:
    allowed = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    text = DOCKERFILE.replace("\\\n", " ")
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
        *sources, _target = line.split()
        for source in sources:
            assert (ROOT / source).exists(), source
            assert source.split("/")[0] in allowed, source


def test_no_secret_is_written_down() -> None:
    for name, one in SERVICES.items():
        for key, value in one.get("environment", {}).items():
            secret = re.search(r"PASSWORD|SECRET|TOKEN", key)
            assert not secret or value.startswith("/"), f"{name}: {key}"
