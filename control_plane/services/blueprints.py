"""Blueprints: apply, look up, and recognise which one a device belongs to."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from control_plane.domain import blueprint as rules
from control_plane.domain.blueprint import Blueprint
from control_plane.domain.errors import ConflictError, NotFoundError
from control_plane.domain.paging import DEFAULT_LIMIT, MAX_LIMIT, Page
from control_plane.services import audit
from control_plane.services.blueprint_document import to_document
from control_plane.services.scope import Scope
from control_plane.store import blueprints as store


@dataclass(frozen=True)
class BlueprintView:
    """A blueprint as people see it: `spec` is the document's."""

    name: str
    revision: int
    digest: str
    spec: dict[str, Any]
    created_at: datetime
    updated_at: datetime


def apply(scope: Scope, spec: Blueprint) -> BlueprintView:
    """Create or replace a blueprint; nothing happens when it is the same already."""
    found = store.find(scope.tx, spec.name)
    if found is not None and found.blueprint == spec:
        return _view(found)
    if found is None:
        store.add(scope.tx, spec, scope.now)
    elif not store.replace(scope.tx, spec, found.revision, scope.now):
        raise ConflictError(f"blueprint {spec.name} was changed meanwhile; read it again")
    before = None if found is None else to_document(found.blueprint)["spec"]
    view = get(scope, spec.name)
    audit.record(
        scope,
        action="blueprint.apply",
        object_kind="blueprint",
        object_name=spec.name,
        before=before,
        after=view.spec,
    )
    return view


def get(scope: Scope, name: str) -> BlueprintView:
    """Return one blueprint."""
    return _view(_find(scope, name))


def get_spec(scope: Scope, name: str) -> Blueprint:
    """Return one blueprint as the value the rules work with."""
    return _find(scope, name).blueprint


def list_blueprints(
    scope: Scope, *, limit: int = DEFAULT_LIMIT, cursor: str = ""
) -> Page[BlueprintView]:
    """Return blueprints in order of their names."""
    size = max(1, min(limit, MAX_LIMIT))
    rows = store.page(scope.tx, size + 1, cursor)
    more = rows[size - 1].blueprint.name if len(rows) > size else ""
    return Page([_view(row) for row in rows[:size]], more)


def match(scope: Scope, hardware: Mapping[str, Any]) -> str | None:
    """Return the name of the most specific blueprint that fits what a device reports."""
    found = rules.recognise(store.everything(scope.tx), hardware)
    return None if found is None else found.name


def _find(scope: Scope, name: str) -> store.BlueprintRow:
    found = store.find(scope.tx, name)
    if found is None:
        raise NotFoundError(f"no blueprint {name[:80]!r}; see `flotilla get blueprints`")
    return found


def _view(row: store.BlueprintRow) -> BlueprintView:
    return BlueprintView(
        name=row.blueprint.name,
        revision=row.revision,
        digest=row.digest,
        spec=to_document(row.blueprint)["spec"],
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
