import hashlib
from pathlib import Path

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import Response
from fastapi.testclient import TestClient

from control_plane.api import errors
from control_plane.api.bytes import give, take
from control_plane.blobs import BlobStore

BODY = bytes(range(256)) * 40
DIGEST = hashlib.sha256(BODY).hexdigest()
LIMIT = len(BODY)


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(str(tmp_path / "blobs"))


@pytest.fixture
def client(blobs: BlobStore) -> TestClient:
    app = FastAPI()
    errors.install(app)

    @app.put("/{digest}")
    def put(digest: str, request: Request) -> int:
        return take(request, blobs, digest, LIMIT).size

    @app.get("/{digest}")
    @app.head("/{digest}")
    def get(digest: str, request: Request) -> Response:
        return give(request, blobs, digest)

    return TestClient(app)


@pytest.fixture
def stored(blobs: BlobStore, client: TestClient) -> TestClient:
    blobs.put([BODY], limit=LIMIT)
    return client


def incoming(blobs: BlobStore) -> list[str]:
    folder = Path(blobs._root) / "incoming"
    return [one.name for one in folder.iterdir()] if folder.exists() else []


def test_an_upload_is_stored_under_its_digest(client: TestClient, blobs: BlobStore) -> None:
    answer = client.put(f"/{DIGEST}", content=BODY)
    assert answer.status_code == 200
    assert blobs.read(DIGEST) == BODY


def test_an_upload_with_another_digest_is_refused_and_leaves_nothing(
    client: TestClient, blobs: BlobStore
) -> None:
    flipped = bytes([BODY[0] ^ 1]) + BODY[1:]
    answer = client.put(f"/{DIGEST}", content=flipped)
    assert (answer.status_code, answer.json()["field"]) == (422, "sha256")
    assert hashlib.sha256(flipped).hexdigest() in answer.json()["detail"]
    assert not blobs.exists(DIGEST)
    assert incoming(blobs) == []


def test_an_upload_over_the_limit_is_refused_by_its_announced_length(
    client: TestClient, blobs: BlobStore
) -> None:
    answer = client.put(f"/{DIGEST}", content=BODY + b"x")
    assert (answer.status_code, answer.json()["code"]) == (413, "too-large")
    assert str(LIMIT) in answer.json()["detail"]
    assert incoming(blobs) == []


def test_an_upload_without_a_length_is_refused_once_it_is_over_the_limit(
    client: TestClient, blobs: BlobStore
) -> None:
    answer = client.put(f"/{DIGEST}", content=iter([BODY, b"x"]))
    assert answer.status_code == 413
    assert incoming(blobs) == []
    assert not blobs.exists(DIGEST)


def test_all_bytes_come_with_their_digest_as_etag(stored: TestClient) -> None:
    answer = stored.get(f"/{DIGEST}")
    assert (answer.status_code, answer.content) == (200, BODY)
    assert answer.headers["etag"] == f'"{DIGEST}"'
    assert answer.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        ("bytes=10000-", 10_000, LIMIT),
        ("bytes=-5", LIMIT - 5, LIMIT),
        ("bytes=-99999999", 0, LIMIT),
        ("bytes=10-99999999", 10, LIMIT),
    ],
)
def test_a_range_gives_just_those_bytes(
    stored: TestClient, header: str, start: int, end: int
) -> None:
    answer = stored.get(f"/{DIGEST}", headers={"Range": header})
    assert (answer.status_code, answer.content) == (206, BODY[start:end])
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{LIMIT}"
    assert answer.headers["content-length"] == str(end - start)


@pytest.mark.parametrize("header", [f"bytes={LIMIT}-", "bytes=-0", "bytes=99999999-"])
def test_a_range_behind_the_end_is_not_satisfiable(stored: TestClient, header: str) -> None:
    answer = stored.get(f"/{DIGEST}", headers={"Range": header})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{LIMIT}"


@pytest.mark.parametrize(
    "header", ["bytes=5-2", "bytes=0-1,4-5", "items=0-1", "bytes=-", "bytes=a-b"]
)
def test_a_range_that_we_do_not_know_gives_everything(stored: TestClient, header: str) -> None:
    answer = stored.get(f"/{DIGEST}", headers={"Range": header})
    assert (answer.status_code, answer.content) == (200, BODY)


def test_a_range_of_another_version_gives_everything(stored: TestClient) -> None:
    headers = {"Range": "bytes=0-1", "If-Range": '"another"'}
    assert stored.get(f"/{DIGEST}", headers=headers).content == BODY


def test_bytes_that_the_caller_has_are_not_sent_again(stored: TestClient) -> None:
    answer = stored.get(f"/{DIGEST}", headers={"If-None-Match": f'"{DIGEST}"'})
    assert (answer.status_code, answer.content) == (304, b"")


def test_head_says_the_length_and_sends_nothing(stored: TestClient) -> None:
    answer = stored.head(f"/{DIGEST}")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(LIMIT)


def test_bytes_that_are_not_stored_are_not_found(client: TestClient) -> None:
    answer = client.get(f"/{DIGEST}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not-found")
