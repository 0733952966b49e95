"""Asks a child process (agent/verify.py) to check signatures and make keys."""

from typing import Literal

import msgspec

from agent import children
from agent.cancellation import Cancellation
from agent.errors import ChildError, StepError
from agent.protocol.words import Reason

TIMEOUT_S = 60.0  # a slow board imports cryptography in seconds

Kind = Literal["order", "manifest"]


class Document(msgspec.Struct, frozen=True, tag=True):
    """Check an envelope against trusted keys (PEM by key id)."""

    kind: Kind
    envelope: bytes
    keys: dict[str, str]


class CertificateRequest(msgspec.Struct, frozen=True, tag=True):
    """Make a certificate request for `name`, with `key` (PEM) or a new one."""

    name: str
    key: str = ""


Task = Document | CertificateRequest


class Found(msgspec.Struct, frozen=True):
    """The answer: the signed bytes, or why not; for a certificate request, key and CSR."""

    payload: bytes = b""
    reason: Reason = Reason.NONE
    message: str = ""
    key: str = ""
    csr: str = ""


def check(
    kind: Kind, data: bytes, keys: dict[str, str], cancel: Cancellation | None = None
) -> bytes:
    """Return the payload of an envelope that a trusted key signed.

    Raises:
        StepError: malformed or untrusted; `reason` says which.
        ChildError: the child gave no answer.
    """
    found = _ask(Document(kind, data, keys), cancel)
    if found.reason is not Reason.NONE:
        raise StepError(found.reason, found.message)
    return found.payload


def certificate_request(name: str, key: str = "") -> tuple[str, str]:
    """Return (key, certificate request), both PEM; without `key` a new one is made."""
    found = _ask(CertificateRequest(name, key), None)
    return found.key, found.csr


def _ask(task: Task, cancel: Cancellation | None) -> Found:
    ended = children.run(
        children.python("agent.verify"),
        msgspec.json.encode(task),
        timeout_s=TIMEOUT_S,
        cancel=cancel,
    )
    if ended.status != 0:
        raise ChildError(f"agent.verify ended with status {ended.status}")
    try:
        return msgspec.json.decode(ended.output, type=Found)
    except msgspec.MsgspecError as error:
        raise ChildError(f"agent.verify answered nonsense: {error}") from error
