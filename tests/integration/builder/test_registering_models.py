import sqlite3
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from control_plane.blobs import BlobStore
from control_plane.bootstrap import Application
from control_plane.domain.errors import ConflictError, InvalidError, NotFoundError
from control_plane.services import audit, models
from tests.integration.api.support import api_token, client_of
from tests.integration.builder.conftest import Push, store_files

pytestmark = pytest.mark.integration


def test_a_registered_version_is_found_with_its_source_and_descriptor(
    app: Application, push: Push
) -> None:
    view = push()
    assert (view.release, view.created_by) == (1, "ana")
    assert view.descriptor["vocab_size"] == 300
    assert view.source_bytes == sum(file.size for file in view.files)
    with app.reading("ana") as scope:
        assert models.get_version(scope, "tiny", "1.0.0") == view
        assert [entry.action for entry in audit.list_audit(scope).items] == ["model.register"]


def test_the_same_files_again_change_nothing(app: Application, push: Push) -> None:
    assert push() == push()
    with app.reading("ana") as scope:
        assert len(models.list_versions(scope, "tiny").items) == 1


def test_other_files_under_the_same_version_are_refused(folder: Path, push: Push) -> None:
    push()
    (folder / "README.md").write_text("one more")
    with pytest.raises(ConflictError, match="a version never changes") as refused:
        push()
    assert refused.value.field == "version"


def test_releases_count_up_and_listings_page_from_the_newest(
    app: Application, folder: Path, push: Push
) -> None:
    push("1.0.0")
    for version in ("1.1.0", "1.2.0"):
        (folder / "README.md").write_text(version)
        push(version, parent="1.0.0")
    with app.reading("ana") as scope:
        first = models.list_versions(scope, "tiny", limit=2)
        assert [(one.version, one.release) for one in first.items] == [("1.2.0", 3), ("1.1.0", 2)]
        second = models.list_versions(scope, "tiny", limit=2, cursor=first.next)
        assert ([one.version for one in second.items], second.next) == (["1.0.0"], "")
        (model,) = models.list_models(scope).items
        assert (model.model, model.versions, model.latest) == ("tiny", 3, "1.2.0")


def test_a_parent_that_does_not_exist_is_refused(push: Push) -> None:
    with pytest.raises(InvalidError) as refused:
        push(parent="0.9.0")
    assert refused.value.field == "parent"


@pytest.mark.parametrize(
    ("path", "data", "field"),
    [
        ("model.onnx", b"\x08\x0a", "model.onnx"),
        ("model.json", b"{}", "model.json:schema"),
        ("tokenizer.json", b"{}", "tokenizer.json"),
        ("eval/prompts.json", b"{}", "eval/prompts.json:prompts"),
        ("eval/heldout.txt", b"", "eval/heldout.txt"),
    ],
)
def test_a_broken_file_is_refused_by_name_and_changes_nothing(
    app: Application, folder: Path, push: Push, *, path: str, data: bytes, field: str
) -> None:
    (folder / path).write_bytes(data)
    with pytest.raises(InvalidError) as refused:
        push()
    assert refused.value.field == field
    with app.reading("ana") as scope:
        assert models.list_models(scope).items == []
        assert audit.list_audit(scope).items == []


def test_a_truncated_graph_is_refused_and_changes_nothing(
    app: Application, folder: Path, push: Push
) -> None:
    whole = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidError, match="truncated or damaged"):
        push()
    with app.reading("ana") as scope, pytest.raises(NotFoundError):
        models.get_version(scope, "tiny", "1.0.0")


def test_bytes_that_were_never_uploaded_are_refused(app: Application, folder: Path) -> None:
    files = store_files(app, folder)
    files[0] = replace(files[0], sha256="0" * 64)
    with app.reading("ana") as scope, pytest.raises(InvalidError, match="upload it") as refused:
        models.inspect(scope, files)
    assert refused.value.field == "files[0]"


def test_a_size_that_is_not_the_stored_one_is_refused(app: Application, folder: Path) -> None:
    files = store_files(app, folder)
    files[1] = replace(files[1], size=1)
    with app.reading("ana") as scope, pytest.raises(InvalidError, match="1 were announced"):
        models.inspect(scope, files)


class Watching(BlobStore):
    """Blobs that ask for the database's write lock whenever a file is read from them."""

    database: Path
    asked = 0

    def fetch(self, digest: str, to: Path) -> None:
        with closing(sqlite3.connect(self.database, timeout=0.1)) as other:
            other.execute("BEGIN IMMEDIATE")
            other.rollback()
        self.asked += 1
        super().fetch(digest, to)


def test_nobody_waits_for_a_lock_while_a_push_is_inspected(
    sqlite_app: Application, folder: Path
) -> None:
    files = store_files(sqlite_app, folder)
    watching = Watching(sqlite_app.settings.blobs)
    watching.database = Path(sqlite_app.database.url.removeprefix("sqlite:///"))
    sqlite_app.blobs = watching
    body = {"version": "1.0.0", "files": [asdict(file) for file in files]}
    with client_of(sqlite_app, api_token(sqlite_app)) as client:
        for _ in range(2):
            answer = client.post("/api/v1/models/tiny/versions", json=body)
            assert (answer.status_code, answer.json()["release"]) == (201, 1)
    assert watching.asked == len(files)  # the second time nothing is inspected
