"""Which blueprint a device belongs to: what it was told to report, else its hardware."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from control_plane.domain.blueprint import Blueprint, recognise
from control_plane.services.scope import Scope
from control_plane.store import blueprints


class Recognition:
    """Recognises any number of devices with one look at the blueprints.

    Args:
        scope: the scope.
    """

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def blueprint_of(self, told: str, hardware: Mapping[str, Any] | None) -> str | None:
        """Return the blueprint `told`, if it exists, else the one that fits the hardware best."""
        if told and told in self._known:
            return told
        if hardware is None:
            return None
        found = recognise(self._known.values(), hardware)
        return None if found is None else found.name

    @cached_property
    def _known(self) -> dict[str, Blueprint]:
        return {one.name: one for one in blueprints.everything(self._scope.tx)}
