import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import insert

from agent.protocol import manifest as wire
from agent.protocol import trust
from control_plane.bootstrap import Application
from control_plane.signing.keyring import Keyring
from control_plane.store import schema
from tests.integration.cli.support import Flotilla

FILES = {"model.onnx": b"not a real graph, but bytes " * 50, "golden.json": b"{}"}
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def manifest() -> wire.Manifest:
    return wire.Manifest(
        model="slm",
        version="1.1.0",
        release=2,
        blueprint="plain-cpu",
        recipe="int8-dynamic",
        files=[
            wire.File(path=name, size=len(body), sha256=hashlib.sha256(body).hexdigest())
            for name, body in FILES.items()
        ],
        runtime=wire.Runtime(),
        io=wire.ModelIO(
            kind="causal-lm",
            entry="model.onnx",
            vocab_size=100,
            context_length=64,
            eos_token_id=0,
            kv_layers=1,
            kv_heads=1,
            head_dim=8,
        ),
        limits=wire.Limits(),
        golden=wire.Golden(file="golden.json", min_agreement=0.9),
        quality={"perplexity_ratio": 1.01},
        source=wire.Source(digest="a" * 64, bytes=10, toolchain={}),
    )


@dataclass(frozen=True)
class Bundle:
    """A bundle in a folder, with the keys that a device would trust."""

    folder: Path
    keys: Path
    digest: str


@pytest.fixture
def bundle(sqlite_app: Application, tmp_path: Path) -> Bundle:
    payload = wire.encode(manifest())
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "manifest.dsse").write_bytes(sqlite_app.keyring.sign_manifest(payload))
    for name, body in FILES.items():
        (folder / name).write_bytes(body)
    keys = tmp_path / "keys.json"
    keys.write_bytes(trust.encode(sqlite_app.keyring.trusted_keys()))
    return Bundle(folder, keys, wire.digest(payload))


def stored(app: Application, bundle: Bundle) -> None:
    """Put the bundle where a build would."""
    with app.database.transaction() as tx:
        common = {"model": "slm", "version": "1.1.0", "blueprint": "plain-cpu"}
        build = {"id": "b1", "state": "SUCCEEDED", "blueprint_digest": "d", "progress": {}}
        tx.execute(insert(schema.build).values(**common, **build, created_at=NOW))
        made = {"id": "b1-00", "build_id": "b1", "recipe": "int8-dynamic", "bytes": 1}
        judged = {"source_bytes": 2, "quality": {}, "measured": {}, "accepted": True, "why": ""}
        tx.execute(insert(schema.artifact).values(**common, **made, **judged, created_at=NOW))
        envelope = (bundle.folder / "manifest.dsse").read_bytes()
        row = {"digest": bundle.digest, "artifact_id": "b1-00", "release": 2, "size": 1}
        tx.execute(
            insert(schema.bundle).values(
                **common, **row, recipe="int8-dynamic", envelope=envelope, created_at=NOW
            )
        )
    for body in FILES.values():
        app.blobs.put([body], limit=1 << 20)


def test_a_whole_bundle_verifies_against_given_keys(flotilla: Flotilla, bundle: Bundle) -> None:
    said = flotilla.ok("bundle", "verify", str(bundle.folder), "--keys", str(bundle.keys))
    assert said.startswith(bundle.digest)
    assert "2 files verified" in said


def test_a_stored_bundle_verifies_byte_by_byte(
    flotilla: Flotilla, bundle: Bundle, sqlite_app: Application
) -> None:
    stored(sqlite_app, bundle)
    assert "2 files verified" in flotilla.ok("bundle", "verify", bundle.digest)
    assert flotilla.json("bundle", "inspect", bundle.digest)["version"] == "1.1.0"
    assert "golden.json" in flotilla.ok("bundle", "inspect", bundle.digest)


@pytest.mark.parametrize("name", sorted(FILES))
def test_one_flipped_bit_is_found_and_named(flotilla: Flotilla, bundle: Bundle, name: str) -> None:
    path = bundle.folder / name
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(bytes(body))
    result = flotilla.run("bundle", "verify", str(bundle.folder), "--keys", str(bundle.keys))
    assert result.exit_code == 1
    assert f"{name}: SHA-256" in result.stderr


def test_a_file_cut_short_is_found(flotilla: Flotilla, bundle: Bundle) -> None:
    path = bundle.folder / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    result = flotilla.run("bundle", "verify", str(bundle.folder), "--keys", str(bundle.keys))
    assert (result.exit_code, "the manifest says" in result.stderr) == (1, True)


def test_a_missing_file_is_named(flotilla: Flotilla, bundle: Bundle) -> None:
    (bundle.folder / "golden.json").unlink()
    result = flotilla.run("bundle", "verify", str(bundle.folder), "--keys", str(bundle.keys))
    assert (result.exit_code, "golden.json" in result.stderr) == (1, True)


def test_a_signature_of_other_keys_is_not_trusted(
    flotilla: Flotilla, bundle: Bundle, tmp_path: Path
) -> None:
    other = tmp_path / "other.json"
    other.write_bytes(trust.encode(Keyring.open(tmp_path / "other").trusted_keys()))
    result = flotilla.run("bundle", "verify", str(bundle.folder), "--keys", str(other))
    assert (result.exit_code, "trusted key" in result.stderr) == (1, True)


def test_an_order_key_cannot_vouch_for_a_bundle(
    flotilla: Flotilla, bundle: Bundle, sqlite_app: Application
) -> None:
    payload = wire.encode(manifest())
    (bundle.folder / "manifest.dsse").write_bytes(sqlite_app.keyring.sign_order(payload))
    result = flotilla.run("bundle", "verify", str(bundle.folder), "--keys", str(bundle.keys))
    assert result.exit_code == 1


def test_a_manifest_that_is_none_is_refused(flotilla: Flotilla, bundle: Bundle) -> None:
    (bundle.folder / "manifest.dsse").write_bytes(b"{}")
    result = flotilla.run("bundle", "inspect", str(bundle.folder))
    assert (result.exit_code, result.stderr.startswith("flotilla: ")) == (1, True)
