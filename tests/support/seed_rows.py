"""What a builder and an enrolment would have left behind: the rows under the seeded fleet."""

from hashlib import sha256
from random import Random
from typing import Any

from sqlalchemy import insert

from control_plane.services import blueprints
from control_plane.services.scope import Scope
from control_plane.store import artifacts, builds, rollups
from control_plane.store.schema import device, device_label, model_version

MODEL = "support-slm"
SITES = ("vie", "fra", "dub", "waw", "mil", "osl")
A_SITE = 10
SOURCE_BYTES = 15_294_464
# version: release, the order in which versions came
VERSIONS = {"1.0.0": 1, "1.1.0": 2, "1.1.1": 3, "1.2.0": 4}
CORES = {"x86-64-vnni": 8, "x86-64-avx2": 4, "arm64-board": 4}
TAKEN = {
    "x86-64-vnni": "int8-dynamic",
    "x86-64-avx2": "int8-dynamic-u8",
    "arm64-board": "int4-mixed",
}
REFUSED = {"x86-64-vnni": "int4-mixed", "arm64-board": "int4-block32"}
TOKEN_MS = {"x86-64-vnni": 3.1, "x86-64-avx2": 5.6, "arm64-board": 14.2}


def digest_of(version: str, blueprint: str) -> str:
    """Return the bundle digest of a version for a blueprint."""
    return sha256(f"{version} {blueprint}".encode()).hexdigest()


def built(scope: Scope, version: str, release: int = 0) -> None:
    """Store a model version with a bundle for each blueprint; 0: the release in `VERSIONS`."""
    release = release or VERSIONS[version]
    scope.tx.execute(
        insert(model_version).values(
            model=MODEL,
            version=version,
            release=release,
            source_digest=sha256(version.encode()).hexdigest(),
            source_bytes=SOURCE_BYTES,
            files=[],
            descriptor={},
            created_at=scope.now,
            created_by=scope.actor,
        )
    )
    for name in CORES:
        _build(scope, version, release, name)


def _build(scope: Scope, version: str, release: int, name: str) -> None:
    digest, build_id = digest_of(version, name), scope.new_id()
    done = builds.BuildRow(
        id=build_id,
        model=MODEL,
        version=version,
        blueprint=name,
        blueprint_digest=blueprints.get_spec(scope, name).build_digest,
        recipe="",
        waiver="",
        state="SUCCEEDED",
        progress={},
        error="",
        digest=digest,
        attempt=1,
        created_at=scope.now,
        started_at=scope.now,
        finished_at=scope.now,
    )
    builds.add(scope.tx, done)
    if name in REFUSED:
        artifacts.add(scope.tx, [_tried(scope, done, REFUSED[name], 0.17, 1.038)])
    taken = _tried(scope, done, TAKEN[name], 0.24 if "int4" in TAKEN[name] else 0.29, 1.004)
    artifacts.add(scope.tx, [taken])
    bundle = {
        "digest": digest,
        "artifact_id": taken["id"],
        "model": MODEL,
        "version": version,
        "release": release,
        "blueprint": name,
        "recipe": TAKEN[name],
        "size": taken["bytes"],
        "envelope": b"{}",
        "created_at": scope.now,
    }
    artifacts.add_bundle(scope.tx, bundle, [("model.onnx", taken["bytes"], digest)])


def _tried(
    scope: Scope, build: builds.BuildRow, recipe: str, part: float, perplexity: float
) -> dict[str, Any]:
    good = perplexity < 1.01
    return {
        "id": scope.new_id(),
        "build_id": build.id,
        "model": build.model,
        "version": build.version,
        "blueprint": build.blueprint,
        "recipe": recipe,
        "bytes": int(SOURCE_BYTES * part),
        "source_bytes": SOURCE_BYTES,
        "quality": {
            "perplexity_ratio": perplexity,
            "kl_mean": (perplexity - 1) * 0.6,
            "top1_agreement": 1 - (perplexity - 1) * 2.6,
        },
        "measured": {"token_ms": TOKEN_MS[build.blueprint]},
        "accepted": good,
        "why": "within every limit" if good else "perplexity_ratio 1.038 is above 1.01",
        "created_at": scope.now,
    }


def enrol(scope: Scope, random: Random) -> None:
    """Store devices that run 1.0.0."""
    rows, labels = [], []
    for site in SITES:
        for i in range(A_SITE):
            name = f"edge-{site}-{i + 1:03}"
            kind = list(CORES)[i % 3]
            rows.append(_device(scope, name, kind, random))
            labels += [
                {"device_id": name, "key": "site", "value": site},
                {"device_id": name, "key": "ring", "value": "early" if i < 3 else "late"},
            ]
    scope.tx.execute(insert(device), rows)
    scope.tx.execute(insert(device_label), labels)
    rollups.repair(scope.tx)


def _device(scope: Scope, name: str, kind: str, random: Random) -> dict[str, Any]:
    arm = kind == "arm64-board"
    runs = digest_of("1.0.0", kind)
    return {
        "id": name,
        "state": "active",
        "blueprint": kind,
        "hardware": {
            "arch": "aarch64" if arm else "x86_64",
            "cpu": "Cortex-A76" if arm else "Xeon D-2712T" if "vnni" in kind else "Core i5-8500T",
            "cores": CORES[kind],
            "memory_mb": 4096 if arm else 16_384,
            "disk_free_mb": random.randrange(9_000, 40_000),
            "os": "Debian 12",
            "runtimes": ["onnxruntime 1.24.1"],
        },
        "agent_version": "0.1.0",
        "secret_sha256": sha256(name.encode()).hexdigest(),
        "certificate_serial": sha256(name.encode()).hexdigest()[:16],
        "enrolled_at": scope.now,
        "online": True,
        "last_seen_at": scope.now,
        "boot": 1,
        "generation": 0,
        "digest": runs,
        "last_known_good": runs,
        "healthy": True,
    }
