"""The orders of the device list: each is a row of stretches, and a stretch is read off one index.

``health`` is four stretches by id; ``last_seen`` is "never seen" by id and then the rest by time.
A page goes on in the stretch, and behind the device, at which the page before ended.
"""

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Select, literal, select, true, tuple_

from control_plane.domain import device as words
from control_plane.domain.errors import InvalidError
from control_plane.store.database import Transaction
from control_plane.store.health import is_health
from control_plane.store.schema import bundle, device

NAME = "name"
Key = list[Any]
"""Where a stretch stands among the others; compared only with keys of its own order."""


@dataclass(frozen=True)
class Stretch:
    """Devices that follow one another in one index."""

    key: Key
    which: Callable[[], ColumnElement[bool]]
    """Makes the condition: of many stretches a page needs one or two."""
    column: ColumnElement[Any] | None = None
    """What they are ordered by before their id; None: by id alone."""

    @property
    def condition(self) -> ColumnElement[bool]:
        return self.which()


@dataclass(frozen=True)
class Order:
    """An order of the list: a word of ORDERS, and its direction."""

    word: str = NAME
    descending: bool = False

    def __str__(self) -> str:
        return f"-{self.word}" if self.descending else self.word


@dataclass(frozen=True)
class Place:
    """Where a page ended: the stretch, the value of its column, the device."""

    stretch: Key
    value: Any
    id: str


def parse(text: str) -> Order:
    """Read ``last_seen`` or ``-last_seen``; empty is by name.

    Raises:
        InvalidError: no such order.
    """
    word = text.removeprefix("-") or NAME
    if word not in ORDERS:
        known = ", ".join(ORDERS)
        raise InvalidError(
            f"{text[:40]!r} is no order; there are {known}, each also with '-' in front",
            field="sort",
        )
    return Order(word, descending=text.startswith("-"))


def cursor(order: Order, place: Place) -> str:
    """Return what names a place to whoever asks for the next page."""
    value = place.value.isoformat() if isinstance(place.value, datetime) else place.value
    said = json.dumps([str(order), place.stretch, value, place.id], separators=(",", ":"))
    return base64.urlsafe_b64encode(said.encode()).decode().rstrip("=")


def place(order: Order, text: str) -> Place | None:
    """Read a cursor of this order; None for the first page.

    Raises:
        InvalidError: it is no cursor of this list in this order.
    """
    if not text:
        return None
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        said, stretch, value, device_id = json.loads(raw)
        if order.word == "last_seen" and value is not None:
            value = datetime.fromisoformat(value)
    except (ValueError, TypeError, binascii.Error) as error:
        raise _foreign() from error
    found = Place(stretch, value, device_id)
    if said != str(order) or not _is_place(order, found):
        raise _foreign()
    return found


def stretches(tx: Transaction, order: Order, after: Place | None) -> list[Stretch]:
    """Return the stretches of an order that are not yet behind a place."""
    found = ORDERS[order.word](tx)
    if order.descending:
        found.reverse()
    if after is None:
        return found
    if order.descending:
        return [one for one in found if one.key <= after.stretch]
    return [one for one in found if one.key >= after.stretch]


def behind(stretch: Stretch, order: Order, after: Place | None) -> ColumnElement[bool]:
    """Return the condition that a device of the stretch comes after a place."""
    if after is None or stretch.key != after.stretch:
        return true()
    if stretch.column is None:
        mine: ColumnElement[Any] = device.c.id
        other: ColumnElement[Any] = literal(after.id)
    else:
        mine = tuple_(stretch.column, device.c.id)
        value = literal(after.value, stretch.column.type)
        other = tuple_(value, literal(after.id))
    return mine < other if order.descending else mine > other


def columns(stretch: Stretch, order: Order) -> list[ColumnElement[Any]]:
    """Return what a stretch is ordered by."""
    by: Sequence[ColumnElement[Any]] = (device.c.id,)
    if stretch.column is not None:
        by = (stretch.column, device.c.id)
    return [column.desc() if order.descending else column.asc() for column in by]


def _by_name(_tx: Transaction) -> list[Stretch]:
    return [Stretch([], true)]


def _by_last_seen(_tx: Transaction) -> list[Stretch]:
    return _empty_first(device.c.last_seen_at)


def _by_blueprint(_tx: Transaction) -> list[Stretch]:
    return _empty_first(device.c.blueprint)


def _empty_first(column: ColumnElement[Any]) -> list[Stretch]:
    there = partial(column.is_not, None)
    return [Stretch([0], partial(column.is_, None)), Stretch([1], there, column)]


def _by_health(_tx: Transaction) -> list[Stretch]:
    return [Stretch([rank], partial(is_health, word)) for rank, word in enumerate(words.HEALTH)]


def _by_version(tx: Transaction) -> list[Stretch]:
    """By model, then the order in which its versions came, then build; unknown builds first."""
    running = tx.execute(_RUNNING).all()
    keys = sorted([model or "", release or 0, digest] for digest, model, release in running)
    return [Stretch(key, partial(device.c.digest.__eq__, key[-1])) for key in keys]


def _running() -> Select[str, str, int]:
    """Return what runs anywhere, jumping from one digest to the next in the index."""
    first = select(device.c.digest).order_by(device.c.digest).limit(1)
    found = select(first.scalar_subquery().label("digest")).cte("running", recursive=True)
    following = (
        select(device.c.digest)
        .where(device.c.digest > found.c.digest)
        .order_by(device.c.digest)
        .limit(1)
    )
    found = found.union_all(select(following.scalar_subquery()).where(found.c.digest.is_not(None)))
    return (
        select(found.c.digest, bundle.c.model, bundle.c.release)
        .join_from(found, bundle, bundle.c.digest == found.c.digest, isouter=True)
        .where(found.c.digest.is_not(None))
    )


_RUNNING = _running()
ORDERS: dict[str, Callable[[Transaction], list[Stretch]]] = {
    NAME: _by_name,
    "last_seen": _by_last_seen,
    "version": _by_version,
    "blueprint": _by_blueprint,
    "health": _by_health,
}
_KEYS: dict[str, tuple[type, ...]] = {
    NAME: (),
    "last_seen": (int,),
    "version": (str, int, str),
    "blueprint": (int,),
    "health": (int,),
}
_VALUES: dict[str, type] = {"last_seen": datetime, "blueprint": str}


def _is_place(order: Order, found: Place) -> bool:
    """Return whether a cursor's parts are what this order makes; anybody may write one."""
    stretch: Any = found.stretch
    if not (isinstance(stretch, list) and type(found.id) is str):
        return False
    if tuple(type(part) for part in stretch) != _KEYS[order.word]:
        return False
    # What cannot be printed, no id has, and some of it no database would take.
    if not f"{found.id}{found.value}".isprintable():
        return False
    if order.word not in _VALUES or found.stretch == [0]:
        return found.value is None
    if isinstance(found.value, datetime) and found.value.tzinfo is None:
        return False
    return isinstance(found.value, _VALUES[order.word])


def _foreign() -> InvalidError:
    return InvalidError(
        "not a cursor of this list in this order; use `next` of the page before", field="cursor"
    )
