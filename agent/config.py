"""Settings of one device: a file that enrolment writes, and the environment above it."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import ConfigError
from agent.files import Files
from agent.protocol import backoff

ENVIRONMENT = "FLOTILLA_AGENT_"


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every setting; each may be given as FLOTILLA_AGENT_<NAME>."""

    server: str = ""
    """URL of the control plane."""
    blueprint: str = ""
    """The hardware class that this device is told to report; empty: recognised by the server."""
    labels: dict[str, str] = {}
    allow_plain_http: bool = False
    heartbeat_s: float = 900.0
    resend_s: float = 30.0
    """Pause before reports that nobody acknowledged are sent again."""
    reconnect_base_s: float = backoff.FIRST_PAUSE_S
    """The first pause after a lost connection is a random part of this."""
    reconnect_cap_s: float = backoff.LONGEST_PAUSE_S
    download_deadline_s: float = 3600.0
    """An order fails when a file could not be had for so long."""
    min_rate: int = 1024
    """Bytes a second; a slower transfer is broken off and resumed."""
    trial_lock: str = ""
    """A file that agents on one machine lock in turn, so that their trials do not overlap."""
    trial_command: list[str] = []
    """What runs a trial; empty: agent.benchmark."""
    trial_deadline_s: float = 600.0
    log_level: str = "INFO"


class DataFolder:
    """Where everything of one device lies."""

    def __init__(self, root: Path) -> None:
        # Absolute: children and the active link must not depend on where we were started.
        self.root = root.absolute()
        self.config = self.root / "agent.json"
        self.identity = self.root / "identity"
        self.lock = self.root / "agent.lock"
        self.rollback_request = self.root / "rollback.request"


def load(files: Files, folder: DataFolder, environ: Mapping[str, str] = os.environ) -> Config:
    """Read the settings.

    Raises:
        ConfigError: names the field that is wrong.
    """
    stored: dict[str, Any] = {}
    if files.exists(folder.config):
        try:
            stored = msgspec.json.decode(files.read(folder.config), type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise ConfigError(f"{folder.config}: {error}") from error
    return _convert(stored, folder.config, environ)


def save(files: Files, folder: DataFolder, config: Config) -> None:
    """Write the settings that are not defaults."""
    default = msgspec.to_builtins(Config())
    told = {
        key: value for key, value in msgspec.to_builtins(config).items() if value != default[key]
    }
    files.write(folder.config, msgspec.json.format(msgspec.json.encode(told)) + b"\n")


def _convert(stored: dict[str, Any], path: Path, environ: Mapping[str, str]) -> Config:
    try:
        config = msgspec.convert(stored, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from error
    for field in msgspec.structs.fields(Config):
        name = f"{ENVIRONMENT}{field.name.upper()}"
        if name in environ:
            config = _override(config, field, name, environ[name])
    if config.log_level not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
        raise ConfigError(f"log_level {config.log_level!r}: use DEBUG, INFO, WARNING or ERROR")
    return config


def _override(config: Config, field: msgspec.structs.FieldInfo, name: str, text: str) -> Config:
    value: object = text
    if field.name == "trial_command":
        value = shlex.split(text)
    elif field.name == "labels":
        value = labels([part for part in text.split(",") if part])
    try:
        converted = msgspec.convert(value, field.type, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{name}={text!r}: {error}") from error
    return msgspec.structs.replace(config, **{field.name: converted})


def labels(texts: list[str]) -> dict[str, str]:
    """Read ``key=value`` texts; `ConfigError` names the one that is wrong."""
    read: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"label {text!r}: expected key=value")
        read[key.strip()] = value.strip()
    return read
