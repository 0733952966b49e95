"""Builders: enrolled devices, a stored bundle, a rollout with executions that were offered."""

import hashlib
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import insert

from agent.protocol import messages, topics
from agent.protocol.enrollment import EnrollReply, EnrollRequest
from agent.protocol.messages import Hardware
from agent.protocol.words import Action, ExecutionState
from control_plane.bootstrap import Application
from control_plane.domain.device import DeviceId
from control_plane.services import desired, enrollment
from control_plane.services.desired import Wanted
from control_plane.services.incoming import Incoming
from control_plane.store import schema
from tests.support.brokers import request_for

HARDWARE = Hardware(arch="x86_64", cores=4, memory_mb=8192)
_KEY = ec.generate_private_key(ec.SECP256R1())
_ENROLLING = threading.Lock()


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def enrol(app: Application, name: str, labels: dict[str, str] | None = None) -> EnrollReply:
    """Enrol one device."""
    with app.scope("test") as scope:
        token = enrollment.create_token(scope, labels=labels)
        request = EnrollRequest(token=token, csr=request_for(_KEY, name), hardware=HARDWARE)
        return enrollment.enroll(scope, request)


def enrol_many(app: Application, count: int) -> list[DeviceId]:
    """Enrol devices edge-000, edge-001 and so on."""
    names = [DeviceId(f"edge-{number:03}") for number in range(count)]
    with app.scope("test") as scope:
        token = enrollment.create_token(scope, uses=count)
        for name in names:
            enrollment.enroll(scope, EnrollRequest(token=token, csr=request_for(_KEY, name)))
    return names


@dataclass(frozen=True)
class StoredBundle:
    """A bundle that is in the database."""

    digest: str
    files: tuple[str, ...]
    version: str


def bundle(app: Application, version: str = "1.0.0") -> StoredBundle:
    """Store a bundle of two files, as a build would."""
    now_rows = {"model": "support-slm", "version": version, "blueprint": "x86-64"}
    digest, files = sha(f"bundle {version}"), (sha(f"a {version}"), sha(f"b {version}"))
    build_id, artifact_id = str(uuid.uuid4()), str(uuid.uuid4())
    with app.scope("test") as scope:
        tx, now = scope.tx, scope.now
        tx.execute(
            insert(schema.build).values(
                id=build_id,
                blueprint_digest=sha("blueprint"),
                state="SUCCEEDED",
                progress={},
                created_at=now,
                **now_rows,
            )
        )
        tx.execute(
            insert(schema.artifact).values(
                id=artifact_id,
                build_id=build_id,
                recipe="int8",
                bytes=30,
                source_bytes=90,
                quality={},
                measured={},
                accepted=True,
                why="first",
                created_at=now,
                **now_rows,
            )
        )
        tx.execute(
            insert(schema.bundle).values(
                digest=digest,
                artifact_id=artifact_id,
                release=int(version.replace(".", "")),
                recipe="int8",
                size=30,
                envelope=f"signed {version}".encode(),
                created_at=now,
                **now_rows,
            )
        )
        rows = [
            {"digest": digest, "path": f"file-{n}", "size": 15, "sha256": one}
            for n, one in enumerate(files)
        ]
        tx.execute(insert(schema.bundle_file), rows)
    return StoredBundle(digest, files, version)


def offer(
    app: Application, devices: Sequence[DeviceId], stored: StoredBundle, rollout: str = "r1"
) -> dict[DeviceId, str]:
    """Store a running rollout whose devices were all offered the bundle; return execution ids."""
    executions = {device: str(uuid.uuid4()) for device in devices}
    with app.scope("test") as scope:
        tx, now = scope.tx, scope.now
        tx.execute(
            insert(schema.rollout).values(
                name=rollout,
                model="support-slm",
                version=stored.version,
                spec={},
                state="RUNNING",
                revision=1,
                machine={},
                plan={},
                created_by="test",
                created_at=now,
            )
        )
        wanted = [
            Wanted(device, Action.RUN, stored.digest, rollout, execution)
            for device, execution in executions.items()
        ]
        generations = desired.set_desired(scope, wanted)
        rows = [
            {
                "id": execution,
                "rollout": rollout,
                "device_id": device,
                "wave": 0,
                "position": position,
                "blueprint": "x86-64",
                "digest": stored.digest,
                "state": ExecutionState.OFFERED.value,
                "generation": generations[device],
                "offered_at": now,
                "updated_at": now,
            }
            for position, (device, execution) in enumerate(executions.items())
        ]
        tx.execute(insert(schema.execution), rows)
        tx.execute(
            insert(schema.tally).values(
                rollout=rollout, wave=0, blueprint="x86-64", state="OFFERED", n=len(rows)
            )
        )
    return executions


def up(device: str, channel: str, body: msgspec.Struct, *, retained: bool = False) -> Incoming:
    """Return a device's message."""
    topic = topics.up(topics.DeviceId(device), channel)
    return Incoming(topic, messages.encode(body), retained)
