"""The device list in every order: each device once, as a plain sort of the whole would have it."""

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, event, insert

from control_plane.bootstrap import Application
from control_plane.domain.device import HEALTH
from control_plane.domain.errors import InvalidError
from control_plane.services import inventory
from control_plane.services.inventory import DeviceView
from control_plane.services.scope import Scope
from control_plane.store import fleet, fleet_order, schema
from tests.integration.transport.fleets import bundle

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
ORDERS = [sign + word for word in inventory.ORDERS for sign in ("", "-")]
UNKNOWN = "f" * 64
FILTERS = ["", "healthy = false", 'blueprint = "pi" and online = true', 'id = "nobody"']


def _seed(scope: Scope, digests: list[str]) -> None:
    """Store devices of every kind: several alike in everything but their id, in no order."""
    rows: list[dict[str, Any]] = []
    for number in range(40):
        mixed = number * 17 % 40
        rows.append(
            {
                "id": f"edge-{mixed:02}",
                "state": "quarantined" if number % 13 == 0 else "active",
                "blueprint": [None, "pi", "nuc"][number % 3],
                "hardware": {"arch": "x86_64"},
                "secret_sha256": str(mixed),
                "certificate_serial": "1",
                "enrolled_at": NOW,
                "online": number % 4 > 0,
                "healthy": number % 5 > 0,
                "last_seen_at": None if number % 7 == 0 else NOW - timedelta(minutes=number // 3),
                "digest": digests[number % len(digests)],
            }
        )
    scope.tx.execute(insert(schema.device), rows)


@pytest.fixture
def digests(app: Application) -> list[str]:
    """Devices in the database, and what they run: nothing, something unknown, three builds."""
    known = [bundle(app, version).digest for version in ("1.9.0", "1.10.0")]
    found = ["", UNKNOWN, *known]
    with app.scope("test") as scope:
        _seed(scope, found)
    return found


def _key(order: str, digests: list[str]) -> Callable[[DeviceView], Any]:
    """Return what a naive program would sort by."""
    word = order.removeprefix("-")
    releases = {digest: rank for rank, digest in enumerate(digests)}

    def key(view: DeviceView) -> Any:
        seen = (view.last_seen_at is not None, view.last_seen_at or NOW)
        word_of = "quarantined" if view.state != "active" else None
        if word_of is None:
            up = "healthy" if view.healthy else "unhealthy"
            word_of = up if view.online else "offline"
        first = {
            "name": (),
            "last_seen": seen,
            "version": (releases[view.digest],),
            "blueprint": (view.blueprint is not None, view.blueprint or ""),
            "health": (HEALTH.index(word_of),),
        }[word]
        return (first, view.id)

    return key


def _all(scope: Scope, order: str, filter_by: str, limit: int) -> list[DeviceView]:
    found: list[DeviceView] = []
    cursor = ""
    while True:
        page = inventory.list_devices(
            scope, filter=filter_by, sort=order, limit=limit, cursor=cursor
        )
        assert len(page.items) == limit or not page.next
        found += page.items
        if not page.next:
            return found
        cursor = page.next


def test_every_order_is_a_plain_sort_whatever_the_filter_and_the_size_of_a_page(
    app: Application, digests: list[str]
) -> None:
    with app.reading("test") as scope:
        for filter_by in FILTERS:
            whole = _all(scope, "name", filter_by, 500)
            for order in ORDERS:
                wanted = sorted(whole, key=_key(order, digests), reverse=order.startswith("-"))
                for limit in (1, 7, 40):
                    if limit == 1 and filter_by == "":
                        continue
                    found = _all(scope, order, filter_by, limit)
                    assert [one.id for one in found] == [one.id for one in wanted], order


def test_a_filter_that_most_devices_match_is_walked_and_not_sorted(
    app: Application, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # With a limit below the fleet, as if there were more devices than may be sorted at once.
    monkeypatch.setattr(fleet, "FEW", 3)
    with app.reading("test") as scope:
        for order in ("version", "-health"):
            whole = _all(scope, "name", "healthy = true", 500)
            wanted = sorted(whole, key=_key(order, digests), reverse=order.startswith("-"))
            found = _all(scope, order, "healthy = true", 7)
            assert [one.id for one in found] == [one.id for one in wanted]


def test_a_device_that_vanishes_or_comes_moves_nobody_else(
    app: Application, digests: list[str]
) -> None:
    assert digests
    with app.scope("test") as scope:
        whole = [one.id for one in _all(scope, "blueprint", "", 500)]
        first = inventory.list_devices(scope, sort="blueprint", limit=10)
        scope.tx.execute(schema.device.delete().where(schema.device.c.id == whole[9]))
        second = inventory.list_devices(scope, sort="blueprint", limit=10, cursor=first.next)
        assert [one.id for one in second.items] == whole[10:20]


@contextmanager
def _statements() -> Iterator[list[str]]:
    said: list[str] = []

    def note(_c: Any, _u: Any, statement: str, *_rest: Any) -> None:
        if not statement.startswith("BEGIN"):
            said.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield said
    finally:
        event.remove(Engine, "before_cursor_execute", note)


@pytest.mark.parametrize("order", ["name", "last_seen", "blueprint"])
def test_a_page_of_forty_costs_the_statements_of_a_page_of_two(
    app: Application, digests: list[str], order: str
) -> None:
    assert digests
    counted = []
    for limit in (2, 40):
        with app.reading("test") as scope, _statements() as said:
            inventory.list_devices(scope, filter="online = true", sort=order, limit=limit)
        counted.append(len(said))
    # One for the ids (two where some have no value), one for what they show.
    assert 2 <= counted[0] <= counted[1] <= 3


def test_the_summary_looks_at_no_device(app: Application, digests: list[str]) -> None:
    assert digests
    with app.reading("test") as scope, _statements() as said:
        inventory.fleet_summary(scope)
    assert 1 <= len(said) <= 3
    assert not [statement for statement in said if "FROM device" in statement]


@pytest.mark.parametrize("order", ["colour", "--name", "name,health", "-"])
def test_an_order_that_is_none_names_those_there_are(sqlite_app: Application, order: str) -> None:
    if order == "-":
        assert fleet_order.parse(order) == fleet_order.Order("name", descending=True)
        return
    with sqlite_app.reading("test") as scope, pytest.raises(InvalidError) as refusal:
        inventory.list_devices(scope, sort=order)
    assert refusal.value.field == "sort"
    assert "last_seen" in refusal.value.message


def test_a_cursor_of_one_order_is_refused_in_another(app: Application, digests: list[str]) -> None:
    assert digests
    with app.reading("test") as scope:
        cursors = {
            order: inventory.list_devices(scope, sort=order, limit=3).next for order in ORDERS
        }
        for order in ORDERS:
            for other, cursor in cursors.items():
                if other != order:
                    with pytest.raises(InvalidError) as refusal:
                        inventory.list_devices(scope, sort=order, cursor=cursor)
                    assert refusal.value.field == "cursor"


_parts = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
    | st.just("2026-11-21T12:00:00") | st.just("2026-11-21T12:00:00+00:00"),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@settings(max_examples=300)
@given(st.sampled_from(ORDERS), st.lists(_parts, max_size=5) | _parts, st.text(max_size=20))
def test_whatever_is_sent_as_a_cursor_is_a_place_or_refused(
    order: str, made_up: Any, text: str
) -> None:
    parsed = fleet_order.parse(order)
    said = [order, *made_up] if isinstance(made_up, list) else made_up
    sent = base64.urlsafe_b64encode(json.dumps(said).encode()).decode().rstrip("=")
    for one in (sent, text):
        try:
            found = fleet_order.place(parsed, one)
        except InvalidError:
            continue
        if found is not None:
            again = fleet_order.place(parsed, fleet_order.cursor(parsed, found))
            assert again == found
