"""Whether a model version may be used: nobody plans, starts or builds what was called invalid."""

from control_plane.domain.errors import GoneError, InvalidatedError
from control_plane.services.scope import Scope
from control_plane.store import invalidations


def refuse_invalid(
    scope: Scope, model: str, version: str, *, field: str = "spec.version", hold: bool = False
) -> None:
    """Raise if a version was invalidated.

    Args:
        scope: the scope.
        model: the model.
        version: its version; one that does not exist is not refused here.
        field: where it was named, for the error.
        hold: keep it valid until the transaction ends; before any rollout's lock is taken.

    Raises:
        InvalidatedError: it was, by whom and why.
    """
    found = invalidations.find(scope.tx, model, version, hold=hold)
    if found is not None:
        raise InvalidatedError(
            f"{model} {version} was invalidated by {found.by}: {found.reason}; use another version",
            field=field,
        )


def refuse_bytes(scope: Scope, digest: str) -> None:
    """Raise `GoneError` if a bundle is of an invalid version: devices must not get its bytes."""
    found = invalidations.why_not_served(scope.tx, digest)
    if found is not None:
        raise GoneError(f"bundle {digest} is no longer served: {found.reason}", field="digest")
