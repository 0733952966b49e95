"""Builds: ask for one, work on one under a lease, and look up what came of it.

States: QUEUED -> RUNNING -> SUCCEEDED or FAILED. A worker that dies leaves RUNNING behind; when its
lease has run out another one takes the build, with a higher attempt, which fences the first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from control_plane.builder.choose import Judged
from control_plane.builder.errors import LeaseLostError
from control_plane.builder.package import Origin, Packed
from control_plane.domain import blueprint as blueprint_rules
from control_plane.domain import model as rules
from control_plane.domain.errors import InvalidError, NotFoundError
from control_plane.domain.paging import DEFAULT_LIMIT, MAX_LIMIT, Page
from control_plane.domain.recipe import RECIPES
from control_plane.services import audit, blueprints, models
from control_plane.services.scope import Scope
from control_plane.services.validity import refuse_invalid
from control_plane.store import artifacts
from control_plane.store import builds as store
from control_plane.store.artifacts import ArtifactRow as ArtifactView
from control_plane.store.artifacts import BundleRow
from control_plane.store.builds import BuildRow as BuildView

__all__ = [
    "ArtifactView",
    "BuildClaim",
    "BuildView",
    "BundleRow",
    "bundle_for",
    "claim",
    "due",
    "fail",
    "finish",
    "get_build",
    "list_artifacts",
    "list_builds",
    "progress",
    "request",
    "request_missing",
]

MAX_ATTEMPTS = 3
DUE_LIMIT = 100
NEVER_AGAIN = frozenset(("QUEUED", "RUNNING", "SUCCEEDED"))
OVER = frozenset(("SUCCEEDED", "FAILED"))


@dataclass(frozen=True)
class BuildClaim:
    """A held build, and all that is needed to do it."""

    fence: store.Fence
    origin: Origin
    blueprint: blueprint_rules.Blueprint
    recipes: tuple[str, ...]
    """To try, best first."""
    waiver: str

    @property
    def build_id(self) -> str:
        return self.fence.id


def request(
    scope: Scope, model: str, version: str, blueprint: str, *, recipe: str = "", waiver: str = ""
) -> BuildView:
    """Ask for a build; the same one that waits, runs or succeeded is returned instead.

    Raises `InvalidatedError` for a version that was called invalid.

    Args:
        scope: the scope.
        model: a registered model.
        version: its version.
        blueprint: for which hardware.
        recipe: only this one; empty: the blueprint's, best first.
        waiver: why `recipe` may be taken below the quality floors; goes to the audit trail. The
            golden check on the device is never waived.
    """
    _check(recipe, waiver)
    models.get_version(scope, model, version)
    refuse_invalid(scope, model, version, field="version", hold=True)
    return _request(scope, model, version, blueprint, recipe=recipe, waiver=waiver)


def _request(
    scope: Scope, model: str, version: str, blueprint: str, *, recipe: str = "", waiver: str = ""
) -> BuildView:
    digest = blueprints.get_spec(scope, blueprint).build_digest
    noted = f"{scope.actor}: {waiver}" if waiver else ""
    for found in store.newest(scope.tx, model, version, blueprint, digest):
        if (found.recipe, found.waiver) == (recipe, noted) and found.state in NEVER_AGAIN:
            return found
    row = _new(scope, (model, version, blueprint, digest), recipe, noted)
    store.add(scope.tx, row)
    audit.record(
        scope,
        action="build.waive" if waiver else "build.request",
        object_kind="build",
        object_name=row.id,
        reason=waiver,
        after={"model": model, "version": version, "blueprint": blueprint, "recipe": recipe},
    )
    return row


def _check(recipe: str, waiver: str) -> None:
    if recipe and recipe not in RECIPES:
        raise InvalidError(
            f"no recipe {recipe[:80]!r}; known: {', '.join(RECIPES)}", field="recipe"
        )
    if waiver and not recipe:
        raise InvalidError("a waiver is for one recipe; name it", field="recipe")


def _new(scope: Scope, what: tuple[str, str, str, str], recipe: str, waiver: str) -> BuildView:
    model, version, blueprint, digest = what
    return BuildView(
        id=scope.new_id(),
        model=model,
        version=version,
        blueprint=blueprint,
        blueprint_digest=digest,
        recipe=recipe,
        waiver=waiver,
        state="QUEUED",
        progress={},
        error="",
        digest="",
        attempt=0,
        created_at=scope.now,
        started_at=None,
        finished_at=None,
    )


def request_missing(
    scope: Scope, model: str, version: str, blueprints_wanted: Sequence[str]
) -> list[BuildView]:
    """Ask for a build wherever none was made, and return the newest build of each blueprint.

    One that failed is not asked for again: nothing has changed since. For a rollout whose lock is
    held: what invalidates a version ends its rollouts, and their builds with them.
    """
    found = []
    for name in blueprints_wanted:
        digest = blueprints.get_spec(scope, name).build_digest
        made = store.newest(scope.tx, model, version, name, digest)
        good = [build for build in made if build.state in NEVER_AGAIN]
        tried = [build for build in made if not build.recipe]
        found.append((good or tried or [_request(scope, model, version, name)])[0])
    return found


def due(scope: Scope) -> list[str]:
    """Return ids of builds that nobody works on, the oldest first."""
    return store.due(scope.tx, scope.now, DUE_LIMIT)


def claim(scope: Scope, build_id: str, owner: str, lease_s: float) -> BuildClaim | None:
    """Take a build to work on it; None if somebody else has it, or it is done."""
    build = store.find(scope.tx, build_id)
    if build is None:
        return None
    gave_up = f"{MAX_ATTEMPTS} workers died over it; see the worker's log"
    if store.give_up(scope.tx, build_id, MAX_ATTEMPTS, gave_up, scope.now):
        return None
    blueprint = blueprints.get_spec(scope, build.blueprint)
    until = scope.now + timedelta(seconds=lease_s)
    if not store.claim(
        scope.tx, build_id, owner, blueprint.build_digest, now=scope.now, until=until
    ):
        return None
    return BuildClaim(
        fence=store.Fence(build_id, owner, build.attempt + 1),
        origin=_origin(scope, build),
        blueprint=blueprint,
        recipes=(build.recipe,) if build.recipe else blueprint.recipes,
        waiver=build.waiver,
    )


def _origin(scope: Scope, build: BuildView) -> Origin:
    version = models.get_version(scope, build.model, build.version)
    files = {file.path: file for file in version.files}
    descriptor, _ = rules.parse_descriptor(scope.blobs.read(files[rules.DESCRIPTOR].sha256))
    return Origin(
        model=version.model,
        version=version.version,
        release=version.release,
        digest=version.source_digest,
        bytes=files[rules.GRAPH].size,
        files=files,
        descriptor=descriptor,
    )


def progress(scope: Scope, held: BuildClaim, news: dict[str, Any], lease_s: float) -> None:
    """Note progress and keep the lease; `LeaseLostError` if another worker has the build."""
    until = scope.now + timedelta(seconds=lease_s)
    if not store.renew(scope.tx, held.fence, news, until):
        raise LeaseLostError(f"build {held.build_id}: another worker has it")


def finish(scope: Scope, held: BuildClaim, judged: Sequence[Judged], packed: Packed) -> None:
    """Sign the bundle and store it with every recipe tried, all in the scope's transaction."""
    _end(scope, held, "SUCCEEDED", digest=packed.digest)
    artifacts.add(scope.tx, _artifacts(scope, held, judged))
    taken = next(index for index, one in enumerate(judged) if one.accepted)
    manifest = packed.manifest
    row = {
        "digest": packed.digest,
        "artifact_id": _artifact_id(held, taken),
        "model": manifest.model,
        "version": manifest.version,
        "release": manifest.release,
        "blueprint": manifest.blueprint,
        "recipe": manifest.recipe,
        "size": packed.size,
        "envelope": scope.keyring.sign_manifest(packed.payload),
        "created_at": scope.now,
    }
    files = [(file.path, file.size, file.sha256) for file in manifest.files]
    artifacts.add_bundle(scope.tx, row, files)


def fail(scope: Scope, held: BuildClaim, error: str, judged: Sequence[Judged] = ()) -> None:
    """End a build that gives no bundle, with the reason and what was tried."""
    _end(scope, held, "FAILED", error=error)
    artifacts.add(scope.tx, _artifacts(scope, held, judged))


def _end(scope: Scope, held: BuildClaim, state: str, *, digest: str = "", error: str = "") -> None:
    if not store.end(scope.tx, held.fence, state, scope.now, digest=digest, error=error):
        raise LeaseLostError(f"build {held.build_id}: another worker has it")


def _artifact_id(held: BuildClaim, index: int) -> str:
    return f"{held.build_id}-{index:02d}"


def _artifacts(scope: Scope, held: BuildClaim, judged: Sequence[Judged]) -> list[dict[str, Any]]:
    return [
        {
            "id": _artifact_id(held, index),
            "build_id": held.build_id,
            "model": held.origin.model,
            "version": held.origin.version,
            "blueprint": held.blueprint.name,
            "recipe": one.tried.recipe,
            "bytes": one.tried.bytes,
            "source_bytes": held.origin.bytes,
            "quality": one.tried.quality,
            "measured": one.tried.measured,
            "accepted": one.accepted,
            "why": one.why,
            "created_at": scope.now,
        }
        for index, one in enumerate(judged)
    ]


def get_build(scope: Scope, build_id: str) -> BuildView:
    """Return one build."""
    found = store.find(scope.tx, build_id)
    if found is None:
        raise NotFoundError(f"no build {build_id[:80]!r}; see `flotilla build list`")
    return found


def list_builds(
    scope: Scope,
    *,
    model: str = "",
    version: str = "",
    blueprint: str = "",
    state: str = "",
    limit: int = DEFAULT_LIMIT,
    cursor: str = "",
) -> Page[BuildView]:
    """Return builds, the newest first."""
    wanted = {"model": model, "version": version, "blueprint": blueprint, "state": state}
    size = max(1, min(limit, MAX_LIMIT))
    rows = store.page(scope.tx, wanted, size + 1, _key(cursor))
    return Page(rows[:size], _cursor(rows[size - 1]) if len(rows) > size else "")


def list_artifacts(
    scope: Scope,
    *,
    model: str = "",
    version: str = "",
    blueprint: str = "",
    recipe: str = "",
    limit: int = DEFAULT_LIMIT,
    cursor: str = "",
) -> Page[ArtifactView]:
    """Return every recipe tried, the newest build first."""
    wanted = {"model": model, "version": version, "blueprint": blueprint, "recipe": recipe}
    size = max(1, min(limit, MAX_LIMIT))
    rows = artifacts.page(scope.tx, wanted, size + 1, _key(cursor))
    return Page(rows[:size], _cursor(rows[size - 1]) if len(rows) > size else "")


def bundle_for(scope: Scope, model: str, version: str, blueprint: str) -> BundleRow | None:
    """Return the bundle for devices of a blueprint as it is now; None if none is built."""
    digest = blueprints.get_spec(scope, blueprint).build_digest
    return artifacts.bundle_for(scope.tx, model, version, blueprint, digest)


def _cursor(row: BuildView | ArtifactView) -> str:
    return f"{row.created_at.isoformat()}~{row.id}"


def _key(cursor: str) -> store.Key | None:
    if not cursor:
        return None
    at, _, key = cursor.partition("~")
    try:
        return datetime.fromisoformat(at).astimezone(UTC), key
    except (ValueError, OverflowError) as error:
        raise InvalidError(
            "not a cursor of this list; use `next` of the page before", field="cursor"
        ) from error
