"""The bundles of a simulated fleet: real manifests around a few bytes, real envelopes."""

import hashlib
from dataclasses import dataclass

from agent.protocol import envelope, manifest
from agent.protocol.manifest import File, Golden, Limits, Manifest, ModelIO, Runtime, Source
from agent.protocol.messages import BundleRef

MODEL = "slm"
BLUEPRINTS = ("arm64-board", "x86-64-avx2")
VERSIONS = ("1.0.0", "1.1.0", "1.2.0", "1.3.0")
KEY = "simulated"


def sign(kind: str, payload: bytes) -> bytes:
    """Sign as cheaply as can be checked: keys are a port of the simulation."""
    mark = hashlib.blake2b(envelope.pae(kind, payload), digest_size=8).digest()
    return envelope.seal(kind, payload, {KEY: mark})


@dataclass(frozen=True)
class Made:
    """One bundle, as the builder would leave it."""

    ref: BundleRef
    blueprint: str
    envelope: bytes
    files: dict[str, bytes]
    """Bytes by SHA-256."""
    names: dict[str, str]
    """File name to SHA-256."""


def release(version: str) -> int:
    """Return the release number of a version."""
    return int(version.replace(".", ""))


def _make(version: str, blueprint: str) -> Made:
    data = f"model {version} for {blueprint}".encode()
    sha = hashlib.sha256(data).hexdigest()
    payload = manifest.encode(
        Manifest(
            model=MODEL,
            version=version,
            release=release(version),
            blueprint=blueprint,
            recipe="int8-dynamic",
            files=[File("model.onnx", len(data), sha)],
            runtime=Runtime(),
            io=ModelIO("causal-lm", "model.onnx", 8, 8, 0, 1, 1, 1),
            limits=Limits(),
            golden=Golden("model.onnx", 0.9),
            quality={},
            source=Source("0" * 64, 1, {}),
        )
    )
    ref = BundleRef(manifest.digest(payload), MODEL, version, release(version), len(data))
    signed = sign(envelope.MANIFEST_TYPE, payload)
    return Made(ref, blueprint, signed, {sha: data}, {"model.onnx": sha})


MADE = {(version, name): _make(version, name) for version in VERSIONS for name in BLUEPRINTS}
BY_DIGEST = {made.ref.digest: made for made in MADE.values()}
FILES = {sha: data for made in MADE.values() for sha, data in made.files.items()}
