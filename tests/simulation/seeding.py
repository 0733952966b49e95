"""What is there before a simulation begins: blueprints, versions with bundles, devices."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml
from sqlalchemy import delete, insert, update

from control_plane.config import Settings
from control_plane.services import blueprint_document, blueprints
from control_plane.services.scope import Scope
from control_plane.store import builds, schema
from control_plane.store.database import Transaction
from tests.simulation import bundles

LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class NewDevice:
    """A device as enrolled."""

    name: str
    blueprint: str
    digest: str
    """What it runs; empty for nothing yet."""
    site: str
    ring: bool
    """Whether it has the label that dynamic rollouts look for, from the beginning."""


def models(tx: Transaction) -> None:
    """Store the blueprints, the versions and every bundle, as builds would have left them."""
    scope = Scope(tx, LONG_AGO, "seed", None, None, Settings(), iter(map(str, range(99))).__next__)  # type: ignore[arg-type]  # neither keys nor blobs are needed
    for name in bundles.BLUEPRINTS:
        text = Path(f"blueprints/{name}.yaml").read_text(encoding="utf-8")
        blueprints.apply(scope, blueprint_document.parse(yaml.safe_load(text)))
    for version in bundles.VERSIONS:
        row: dict[str, Any] = {"model": bundles.MODEL, "version": version, "created_by": "seed"}
        row |= {"release": bundles.release(version), "source_digest": "", "source_bytes": 1}
        row |= {"files": [], "descriptor": {}, "created_at": LONG_AGO}
        tx.execute(insert(schema.model_version).values(**row))
        for name in bundles.BLUEPRINTS:
            _built(scope, version, name)


def _built(scope: Scope, version: str, name: str) -> None:
    made = bundles.MADE[version, name]
    of = {"model": bundles.MODEL, "version": version, "blueprint": name, "created_at": LONG_AGO}
    key = f"{version}-{name}"
    scope.tx.execute(
        insert(schema.build).values(
            id=key, blueprint_digest=blueprints.get_spec(scope, name).build_digest,
            state="SUCCEEDED", progress={}, digest=made.ref.digest, **of,
        )
    )  # fmt: skip
    _bundle(scope.tx, version, name, LONG_AGO)


def _bundle(tx: Transaction, version: str, name: str, now: datetime) -> None:
    made = bundles.MADE[version, name]
    of = {"model": bundles.MODEL, "version": version, "blueprint": name, "created_at": now}
    key = f"{version}-{name}"
    tx.execute(
        insert(schema.artifact).values(
            id=key, build_id=key, recipe="int8-dynamic", bytes=made.ref.size, source_bytes=99,
            quality={}, measured={}, accepted=True, why="", **of,
        )
    )  # fmt: skip
    tx.execute(
        insert(schema.bundle).values(
            digest=made.ref.digest, artifact_id=key, release=made.ref.release,
            recipe="int8-dynamic", size=made.ref.size, envelope=made.envelope, **of,
        )
    )  # fmt: skip
    files = [
        {"digest": made.ref.digest, "path": path, "size": made.ref.size, "sha256": sha}
        for path, sha in made.names.items()
    ]
    tx.execute(insert(schema.bundle_file), files)


def devices(tx: Transaction, now: datetime, new: Sequence[NewDevice]) -> None:
    """Enrol devices."""
    rows = [
        {
            "id": one.name, "state": "active", "blueprint": one.blueprint, "hardware": {},
            "secret_sha256": sha256(one.name.encode()).hexdigest(), "certificate_serial": "1",
            "enrolled_at": now, "last_seen_at": now, "digest": one.digest,
            "last_known_good": one.digest,
        }
        for one in new
    ]  # fmt: skip
    tx.execute(insert(schema.device), rows)
    labels = [{"device_id": one.name, "key": "site", "value": one.site} for one in new]
    labels += [{"device_id": one.name, "key": "ring", "value": "on"} for one in new if one.ring]
    tx.execute(insert(schema.device_label), labels)


# --- builds that come late ------------------------------------------------------------------------


def unbuild(tx: Transaction, version: str, name: str) -> None:
    """Let a build be one that nobody has begun."""
    key, digest = f"{version}-{name}", bundles.MADE[version, name].ref.digest
    tx.execute(delete(schema.bundle_file).where(schema.bundle_file.c.digest == digest))
    tx.execute(delete(schema.bundle).where(schema.bundle.c.digest == digest))
    tx.execute(delete(schema.artifact).where(schema.artifact.c.id == key))
    tx.execute(
        update(schema.build).where(schema.build.c.id == key).values(state="QUEUED", digest="")
    )


def build(scope: Scope, *, version: str, blueprint: str, good: bool) -> None:
    """Do a build as a worker does it: under a lease, fenced; nothing if it is over already."""
    key, digest = f"{version}-{blueprint}", bundles.MADE[version, blueprint].ref.digest
    wanted = blueprints.get_spec(scope, blueprint).build_digest
    until = scope.now + timedelta(minutes=1)
    if not builds.claim(scope.tx, key, "worker", wanted, now=scope.now, until=until):
        return
    found = builds.find(scope.tx, key)
    fence = builds.Fence(key, "worker", 0 if found is None else found.attempt)
    if good:
        builds.end(scope.tx, fence, "SUCCEEDED", scope.now, digest=digest)
        _bundle(scope.tx, version, blueprint, scope.now)
    else:
        builds.end(scope.tx, fence, "FAILED", scope.now, error="no recipe is good enough")
