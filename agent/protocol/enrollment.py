"""Enrolment over HTTP: a token and a certificate request in, an identity out.

A token is ``flt1.<ca>.<id>.<secret>``: `ca` is the SHA-256 (hex) of the fleet CA's DER
certificate, so that the device trusts the right server on first contact.
"""

import re
from typing import NamedTuple

import msgspec

from agent.protocol.errors import MalformedError
from agent.protocol.messages import Hardware
from agent.protocol.trust import TrustedKeys

TOKEN = re.compile(r"flt1\.([0-9a-f]{64})\.([0-9a-z]{4,32})\.([A-Za-z0-9_-]{20,64})")


class Token(NamedTuple):
    """A parsed enrolment token."""

    ca_sha256: str
    id: str
    secret: str


class EnrollRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /device/v1/enroll."""

    v: int = 1
    token: str
    csr: str
    """PEM; the key never leaves the device. Its common name is the wanted device id."""
    hardware: Hardware = Hardware()
    blueprint: str = ""
    labels: dict[str, str] = {}


class Broker(msgspec.Struct, frozen=True):
    """Where the broker is; without TLS only on a loopback address."""

    host: str
    port: int
    tls: bool = True


class EnrollReply(msgspec.Struct, frozen=True, kw_only=True):
    """The identity of a device."""

    v: int = 1
    device: str
    certificate: str
    ca: str
    secret: str
    """Bearer secret for /device/v1/; also the MQTT password where the broker has no TLS."""
    broker: Broker
    trust: TrustedKeys


def parse_token(text: str) -> Token:
    """Parse an enrolment token; `MalformedError` if it is not one."""
    match = TOKEN.fullmatch(text.strip())
    if match is None:
        raise MalformedError("enrolment token: expected flt1.<ca>.<id>.<secret>")
    return Token(*match.groups())
