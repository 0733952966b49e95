"""The gateway's transactions, and the one fault it waits out: a database that is away."""

from collections.abc import Iterator
from contextlib import contextmanager

from control_plane.bootstrap import Application
from control_plane.services.scope import Scope
from control_plane.store.database import is_outage

ACTOR = "gateway"


class OutageError(Exception):
    """The database is away; the same work may succeed later."""


@contextmanager
def transaction(app: Application) -> Iterator[Scope]:
    """Open a transaction; `OutageError` when the database is at fault."""
    try:
        with app.scope(ACTOR) as scope:
            yield scope
    except Exception as error:
        if is_outage(error):
            raise OutageError(str(error)) from error
        raise


@contextmanager
def reading(app: Application) -> Iterator[Scope]:
    """Open a transaction for reading; errors as in `transaction`."""
    try:
        with app.reading(ACTOR) as scope:
            yield scope
    except Exception as error:
        if is_outage(error):
            raise OutageError(str(error)) from error
        raise
