"""Model versions: register an immutable source, and list what there is.

A push is three steps: `is_new`, `inspect` (slow, and without a transaction), `register`.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from control_plane.blobs import BlobError
from control_plane.builder.inspection import inspect_apart
from control_plane.domain import model as rules
from control_plane.domain.errors import ConflictError, InvalidError, NotFoundError
from control_plane.domain.model import SourceFile
from control_plane.domain.paging import DEFAULT_LIMIT, MAX_LIMIT, Page
from control_plane.services import audit
from control_plane.services.scope import Scope
from control_plane.store import models as store
from control_plane.store.models import ModelRow as ModelView
from control_plane.store.models import ModelVersionRow as ModelVersionView

__all__ = [
    "Inspected",
    "ModelVersionView",
    "ModelView",
    "SourceFile",
    "get_version",
    "inspect",
    "is_new",
    "list_models",
    "list_versions",
    "register",
]


@dataclass(frozen=True)
class Inspected:
    """A source whose bytes are known to be sound."""

    files: tuple[SourceFile, ...]
    descriptor: dict[str, Any]


def is_new(
    scope: Scope, model: str, version: str, files: Sequence[SourceFile], *, parent: str = ""
) -> bool:
    """Return whether the version has to be registered; False: it is, with these very files.

    Raises:
        InvalidError: names the file and field that is wrong.
        ConflictError: the version exists with other bytes.
    """
    rules.check_names(model, version)
    rules.check_layout(files)
    if parent and store.find(scope.tx, model, parent) is None:
        raise InvalidError(f"no version {parent[:80]!r} of {model} to come from", field="parent")
    found = store.find(scope.tx, model, version)
    if found is not None:
        _check_same(found, rules.source_digest(files))
    return found is None


def inspect(scope: Scope, files: Sequence[SourceFile]) -> Inspected:
    """Check every file's bytes, in a confined process where a parser is at risk.

    That takes seconds, so it does without a transaction: nobody waits for a lock of ours.

    Raises:
        InvalidError: names the file and field that is wrong.
    """
    rules.check_layout(files)
    with tempfile.TemporaryDirectory(prefix="flotilla-inspect-") as name:
        folder = Path(name)
        for index, file in enumerate(files):
            _fetch(scope, file, folder / "source" / file.path, f"files[{index}]")
        _, descriptor = rules.parse_descriptor((folder / "source" / rules.DESCRIPTOR).read_bytes())
        inspect_apart(folder, scope.settings.build_memory_limit_mb)
    return Inspected(tuple(sorted(files, key=lambda file: file.path)), descriptor)


def register(
    scope: Scope, model: str, version: str, source: Inspected, *, parent: str = ""
) -> ModelVersionView:
    """Register a version, unless somebody else has just done so; errors as in `is_new`."""
    digest = rules.source_digest(source.files)
    if not is_new(scope, model, version, source.files, parent=parent):
        return get_version(scope, model, version)
    row = ModelVersionView(
        model=model,
        version=version,
        release=store.next_release(scope.tx, model),
        source_digest=digest,
        source_bytes=sum(file.size for file in source.files),
        files=source.files,
        descriptor=source.descriptor,
        parent=parent,
        created_at=scope.now,
        created_by=scope.actor,
    )
    store.add(scope.tx, row)
    audit.record(
        scope,
        action="model.register",
        object_kind="model",
        object_name=f"{model} {version}",
        after={"release": row.release, "source_digest": digest, "parent": parent},
    )
    return row


def _check_same(found: ModelVersionView, digest: str) -> None:
    if found.source_digest != digest:
        raise ConflictError(
            f"{found.model} {found.version} exists with other files (source "
            f"{found.source_digest[:12]}); a version never changes: choose a new one",
            field="version",
        )


def _fetch(scope: Scope, file: SourceFile, to: Path, where: str) -> None:
    try:
        size = scope.blobs.size(file.sha256)
        if size != file.size:
            raise InvalidError(
                f"{file.path}: {size} bytes are stored, {file.size} were announced",
                field=f"{where}.size",
            )
        to.parent.mkdir(parents=True, exist_ok=True)
        scope.blobs.fetch(file.sha256, to)
    except BlobError as error:
        raise InvalidError(f"{file.path}: {error}; upload it first", field=where) from error


def get_version(scope: Scope, model: str, version: str) -> ModelVersionView:
    """Return one version."""
    found = store.find(scope.tx, model, version)
    if found is None:
        raise NotFoundError(f"no version {version[:80]!r} of model {model[:80]!r}")
    return found


def list_versions(
    scope: Scope, model: str, *, limit: int = DEFAULT_LIMIT, cursor: str = ""
) -> Page[ModelVersionView]:
    """Return versions of a model, the newest release first."""
    size = max(1, min(limit, MAX_LIMIT))
    before = _release(cursor) if cursor else None
    rows = store.page(scope.tx, model, size + 1, before)
    if not rows and before is None:
        raise NotFoundError(f"no model {model[:80]!r}; see `flotilla get models`")
    return Page(rows[:size], str(rows[size - 1].release) if len(rows) > size else "")


def list_models(scope: Scope, *, limit: int = DEFAULT_LIMIT, cursor: str = "") -> Page[ModelView]:
    """Return models in order of their names."""
    size = max(1, min(limit, MAX_LIMIT))
    rows = store.models(scope.tx, size + 1, cursor)
    return Page(rows[:size], rows[size - 1].model if len(rows) > size else "")


def _release(cursor: str) -> int:
    if not cursor.isascii() or not cursor.isdigit():
        raise InvalidError(f"{cursor[:80]!r} is not a cursor of this list", field="cursor")
    return int(cursor)
