"""Cursors of listings by number: the id at which the page before ended."""

from control_plane.domain.errors import InvalidError


def number_cursor(cursor: str) -> int | None:
    """Return the id in a cursor, None for the first page; `InvalidError` if it is none."""
    if not cursor:
        return None
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 18):  # noqa: PLR2004 - digits of a 64-bit id
        raise InvalidError(
            "not a cursor of this list; use `next` of the page before", field="cursor"
        )
    return int(cursor)
