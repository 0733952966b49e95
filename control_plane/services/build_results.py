"""Results that builds of the same source share; see `builder.results` for what a key covers."""

from collections.abc import Sequence
from typing import Any

import msgspec

from control_plane.builder.job import SourceFacts, Tried
from control_plane.builder.results import SOURCE, Basis
from control_plane.services.scope import Scope
from control_plane.store import builds as store


def known(
    scope: Scope, basis: Basis, recipes: Sequence[str]
) -> tuple[SourceFacts | None, list[Tried]]:
    """Return what earlier builds found out: of the source itself, and of these recipes."""
    keys = {recipe: basis.key(recipe) for recipe in (SOURCE, *recipes)}
    found = store.results(scope.tx, list(keys.values()))
    source = found.get(keys[SOURCE])
    tried = [
        msgspec.convert(found[keys[recipe]], Tried) for recipe in recipes if keys[recipe] in found
    ]
    return None if source is None else msgspec.convert(source, SourceFacts), tried


def keep(scope: Scope, basis: Basis, source: SourceFacts, tried: Sequence[Tried]) -> None:
    """Share what this build found out; recipes that failed are tried again next time."""
    results: dict[str, SourceFacts | Tried] = {SOURCE: source}
    results |= {one.recipe: one for one in tried if one.stored is not None}
    rows: list[dict[str, Any]] = [
        {
            "key": basis.key(recipe),
            "source_digest": basis.source_digest,
            "recipe": recipe,
            "result": msgspec.to_builtins(result),
            "created_at": scope.now,
        }
        for recipe, result in results.items()
    ]
    store.keep_results(scope.tx, rows)
