"""What the API's tests need: tokens, clients, devices that enrol, documents."""

from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fastapi.testclient import TestClient
from sqlalchemy import update

from control_plane.api.main import create_app
from control_plane.bootstrap import Application
from control_plane.domain.model import SourceFile
from control_plane.services import tokens
from control_plane.store import models, schema


def api_token(app: Application, name: str = "ada") -> str:
    with app.scope("test") as scope:
        return tokens.create_api_token(scope, name=name)


def client_of(app: Application, token: str = "") -> TestClient:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return TestClient(create_app(app), headers=headers, raise_server_exceptions=False)


def request_of(device: str) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM).decode()


def enrol_with(client: TestClient, device: str, **labels: str) -> dict[str, str]:
    token = client.post("/api/v1/enrollment-tokens", json={"labels": labels}).json()["token"]
    body = {"token": token, "csr": request_of(device), "hardware": {"arch": "x86_64"}}
    answer = client.post("/device/v1/enroll", json=body)
    assert answer.status_code == 201, answer.text
    reply: dict[str, str] = answer.json()
    return reply


BLUEPRINT: dict[str, Any] = {
    "apiVersion": "flotilla/v1",
    "kind": "Blueprint",
    "metadata": {"name": "plain-cpu"},
    "spec": {
        "match": {"arch": "x86_64"},
        "limits": {"memory_mb": 512.0},
        "recipes": ["int8-dynamic"],
        "quality": {
            "kl_mean_max": 0.1,
            "kl_p99_max": 1.0,
            "top1_agreement_min": 0.9,
            "perplexity_ratio_max": 1.1,
            "golden_min_agreement": 0.9,
        },
    },
}

ROLLOUT: dict[str, Any] = {
    "apiVersion": "flotilla/v1",
    "kind": "Rollout",
    "metadata": {"name": "slm-1.1.0"},
    "spec": {
        "model": "slm",
        "version": "1.1.0",
        "waves": [{"name": "canary", "count": 1}, {"name": "everyone", "percent": 100}],
    },
}


def add_version(app: Application, version: str = "1.1.0", release: int = 1) -> None:
    """Register a version whose files nobody needs."""
    row = models.ModelVersionRow(
        model="slm",
        version=version,
        release=release,
        source_digest="a" * 64,
        source_bytes=10,
        files=(SourceFile("model.onnx", 10, "b" * 64),),
        descriptor={},
        parent="",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        created_by="test",
    )
    with app.database.transaction() as tx:
        models.add(tx, row)


def add_fleet(app: Application, client: TestClient, devices: int = 3) -> list[str]:
    """Make a blueprint, a model version and devices that can get it."""
    assert client.put("/api/v1/blueprints/plain-cpu", json=BLUEPRINT).status_code == 200
    add_version(app)
    names = [f"edge-{number}" for number in range(1, devices + 1)]
    for name in names:
        enrol_with(client, name, site="vie")
    return names


def set_state(app: Application, name: str, state: str, reason: str = "") -> None:
    """Put a rollout into a state that takes a whole fleet to reach."""
    values = {"state": state, "state_reason": reason}
    with app.database.transaction() as tx:
        tx.execute(update(schema.rollout).where(schema.rollout.c.name == name).values(**values))
