"""What is in the field cannot be changed: every document of version 1 reads as it always did."""

import json
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from agent.protocol import envelope, messages, trust
from agent.protocol import manifest as manifests
from agent.protocol.errors import MalformedError, TooLargeError
from tests.unit.protocol.documents import DOCUMENTS, encoded

GOLDEN = Path(__file__).parents[2] / "data" / "protocol" / "v1"
S = TypeVar("S", bound=msgspec.Struct)


def stored(name: str) -> bytes:
    return (GOLDEN / f"{name}.json").read_bytes().removesuffix(b"\n")


def required(kind: type[msgspec.Struct]) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(kind) if field.required}


def test_every_golden_file_has_its_example_and_every_example_its_file() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == {*DOCUMENTS, "envelope"}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_golden_file_reads_as_its_example(name: str) -> None:
    assert msgspec.json.decode(stored(name), type=type(DOCUMENTS[name])) == DOCUMENTS[name]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_an_example_is_written_byte_for_byte_as_its_golden_file(name: str) -> None:
    assert encoded(name) == stored(name)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_field_of_tomorrow_is_ignored(name: str) -> None:
    tomorrow = {**json.loads(stored(name)), "added_in_v2": {"deep": [1, 2]}}
    read = msgspec.json.decode(json.dumps(tomorrow), type=type(DOCUMENTS[name]))
    assert read == DOCUMENTS[name]


@pytest.mark.parametrize("name", sorted(set(DOCUMENTS) - {"manifest"}))
def test_a_missing_or_mistyped_field_is_named(name: str) -> None:
    kind: Any = type(DOCUMENTS[name])
    for field in required(kind):
        said = json.loads(stored(name))
        with pytest.raises(MalformedError, match=field):
            messages.decode(json.dumps({**said, field: 12.5}).encode(), kind)
        del said[field]
        with pytest.raises(MalformedError, match=field):
            messages.decode(json.dumps(said).encode(), kind)


def test_a_message_over_its_limit_is_not_even_parsed() -> None:
    with pytest.raises(TooLargeError, match="Presence"):
        messages.decode(b" " * (messages.MAX_MESSAGE + 1), messages.Presence)


@pytest.mark.parametrize(
    "data", [b"[" * 40_000, b'{"x":' + b"[" * 40_000, b'{"digest":"\xe1"}', b"", b"null", b"{}"]
)
def test_hostile_json_is_malformed_and_nothing_else(data: bytes) -> None:
    """Depth and bad UTF-8 raise outside msgspec's own tree; a gateway must survive both."""
    readers: list[Any] = [
        lambda: messages.decode(data, messages.Hello),
        lambda: manifests.decode(data),
        lambda: trust.decode(data),
        lambda: envelope.open_unverified(data, envelope.ORDER_TYPE),
    ]
    for read in readers:
        with pytest.raises(MalformedError):
            read()


def test_the_envelope_reads_as_it_always_did() -> None:
    payload, signatures = envelope.open_unverified(stored("envelope"), envelope.ORDER_TYPE)
    assert payload == stored("order")
    assert signatures == {"k2": b"not a real signature"}
    assert envelope.seal(envelope.ORDER_TYPE, payload, signatures) == stored("envelope")


def test_the_signed_bytes_are_those_of_the_dsse_specification() -> None:
    # The example of protocol.md, "Protocol".
    assert envelope.pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"{}", "payloadType"),
        (b'{"payloadType":"x","payload":"","signatures":[]}', "payloadType"),
        (b'{"payloadType":"%b","payload":"","signatures":[]}', "signatures"),
        (b'{"payloadType":"%b","payload":"*","signatures":[]}', "envelope"),
        (b"\xff", "envelope"),
    ],
)
def test_what_is_no_envelope_is_refused_by_name(data: bytes, named: str) -> None:
    data = data.replace(b"%b", envelope.ORDER_TYPE.encode())
    with pytest.raises(MalformedError, match=named):
        envelope.open_unverified(data, envelope.ORDER_TYPE)


def test_an_envelope_over_its_limit_is_refused() -> None:
    with pytest.raises(TooLargeError):
        envelope.open_unverified(b" " * (envelope.MAX_ENVELOPE + 1), envelope.ORDER_TYPE)


def test_a_manifest_is_canonical_so_that_its_digest_is_one() -> None:
    said = json.loads(stored("manifest"))
    shuffled = json.dumps(dict(reversed(said.items()))).encode()
    read = manifests.decode(shuffled)
    assert manifests.digest(manifests.encode(read)) == manifests.digest(stored("manifest"))


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("files", 0, "path"), "../model.onnx", r"files\[0\].path"),
        (("files", 0, "path"), ".hidden", r"files\[0\].path"),
        (("files", 0, "path"), "a/b", r"files\[0\].path"),
        (("files", 1, "path"), "MODEL.onnx", r"files\[1\].path"),
        (("files", 0, "size"), -1, r"files\[0\].size"),
        (("files", 0, "sha256"), "D" * 64, r"files\[0\].sha256"),
        (("files",), [], "files"),
        (("io", "entry"), "other.onnx", "io.entry"),
        (("golden", "file"), "other.json", "golden.file"),
        (("release",), "2", "release"),
    ],
)
def test_a_manifest_that_could_do_harm_is_refused_by_field(
    path: tuple[str | int, ...], value: object, named: str
) -> None:
    said: Any = json.loads(stored("manifest"))
    place = said
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises(MalformedError, match=named):
        manifests.decode(json.dumps(said).encode())
