"""Where the simulation puts its clock, its draws and its keys in place of the machine's.

Each is one module-level name of the agent's or the gateway's shell; what decides has none.
"""

import logging
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import structlog

from agent.cancellation import Cancellation
from agent.errors import StepError
from agent.protocol import envelope
from agent.protocol.messages import Hardware
from agent.protocol.words import Reason
from tests.simulation import bundles
from tests.simulation.agenda import Agenda
from tests.simulation.errors import ViolationError

_KINDS = {"order": envelope.ORDER_TYPE, "manifest": envelope.MANIFEST_TYPE}


class Clocks:
    """The clocks of whichever process runs just now: one agenda, each with its own beginning."""

    def __init__(self) -> None:
        self.agenda = Agenda()
        self.born = 0.0
        self.wall_off = 0.0

    def time(self) -> float:
        return self.agenda.now + self.wall_off

    def monotonic(self) -> float:
        return self.agenda.now - self.born

    def sleep(self, seconds: float) -> None:
        """Whoever sleeps here waits for a disk that is full once."""


class Random:
    """The agent's jitter: none, since the simulation draws its own delays."""

    @staticmethod
    def uniform(low: float, high: float) -> float:
        return (low + high) / 2


class NoHardware:
    """What a device says of its hardware: nothing."""

    @staticmethod
    def read(_folder: object) -> Hardware:
        return Hardware()

    @staticmethod
    def has_runtime(_name: str) -> bool:
        return True


class Signatures:
    """Checks the simulation's signatures, here instead of in a child process."""

    @staticmethod
    def check(
        kind: str, data: bytes, _keys: dict[str, str], _cancel: Cancellation | None = None
    ) -> bytes:
        payload, _ = envelope.open_unverified(data, _KINDS[kind])
        if bundles.sign(_KINDS[kind], payload) != data:
            raise StepError(Reason.ORDER_SIGNATURE, "not signed by this fleet")
        return payload


class _Defects(logging.Handler):
    """Turns what the agent logs as a defect of its own into a violation."""

    def emit(self, record: logging.LogRecord) -> None:
        if "defect" in str(record.msg):
            raise ViolationError("agent defect", self.format(record))


def _server_line(_logger: Any, _method: str, line: MutableMapping[str, Any]) -> Any:
    """Drop a line of the server's log, unless it tells of a defect that was survived."""
    if line["event"] in {"rollout.tick_failed", "inbox.poison"}:
        raise ViolationError("server defect", f"{line['event']}: {line.get('error')}")
    raise structlog.DropEvent


@contextmanager
def simulated(clocks: Clocks, sweep: int, offers: int) -> Iterator[None]:
    """Put the ports in place, and take them out again.

    Args:
        clocks: whose time it is.
        sweep: devices that one transaction takes back at most.
        offers: devices that one transaction offers at most.
    """
    places = {
        "agent.runtime.time": clocks,
        "agent.runtime.random": Random,
        "agent.runtime.hardware": NoHardware,
        "agent.work.signatures": Signatures,
        "agent.work.hardware": NoHardware,
        "control_plane.gateway.inbox.time": clocks,
        "control_plane.gateway.relay.time": clocks,
        # As small as a fleet of a few devices needs to be taken in several slices.
        "control_plane.services.rollout_sweep.SLICE": sweep,
        "control_plane.services.rollout_sweep.QUEUED_SLICE": sweep,
        "control_plane.domain.rollout_machine.MAX_OFFER": offers,
    }
    handler, agent = _Defects(), logging.getLogger("agent")
    level, spread = agent.level, agent.propagate
    agent.addHandler(handler)
    agent.setLevel(logging.ERROR)
    agent.propagate = False
    server = structlog.get_config()
    structlog.configure(processors=[_server_line])
    with _all(places):
        try:
            yield
        finally:
            structlog.configure(**server)
            agent.removeHandler(handler)
            agent.setLevel(level)
            agent.propagate = spread


@contextmanager
def _all(places: dict[str, Any]) -> Iterator[None]:
    # mock.patch, since these names are the modules' own: ports without a parameter.
    patches = [mock.patch(name, new) for name, new in places.items()]
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in reversed(patches):
            one.stop()
