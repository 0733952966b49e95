"""The inventory: which devices there are, how they fare, and what people do to them."""

from collections.abc import Mapping

from control_plane.domain import selector
from control_plane.domain.device import ACTIVE, QUARANTINED, DeviceId
from control_plane.domain.errors import NotFoundError
from control_plane.domain.paging import DEFAULT_LIMIT, MAX_LIMIT, Page
from control_plane.services import audit, desired, withdrawal
from control_plane.services.cursors import number_cursor
from control_plane.services.device_facts import check_labels
from control_plane.services.scope import Scope
from control_plane.store import devices, fleet, fleet_order, joining, rollups
from control_plane.store.fleet import DeviceView, FleetSummary, HistoryEntry

__all__ = [
    "ORDERS",
    "DeviceView",
    "FleetSummary",
    "HistoryEntry",
    "check_counts",
    "device_history",
    "fleet_summary",
    "fold_counts",
    "get_device",
    "label_device",
    "list_devices",
    "quarantine",
    "repair_counts",
    "unquarantine",
]

FOLD_LIMIT = 20_000
"""Changes folded in one transaction: some tenths of a second."""
ORDERS = tuple(fleet_order.ORDERS)
"""How the device list can be sorted."""


def list_devices(
    scope: Scope,
    *,
    filter: str = "",  # noqa: A002 - the word of the API and the command line
    sort: str = "",
    limit: int = DEFAULT_LIMIT,
    cursor: str = "",
) -> Page[DeviceView]:
    """Return devices, in an order whose ties are broken by their ids.

    Args:
        scope: the scope.
        filter: in the one filter grammar; empty for all.
        sort: a word of ORDERS, with '-' in front for the other direction; empty: by name.
        limit: most devices of the page.
        cursor: `next` of the page before.
    """
    wanted = selector.parse(filter, field="filter")
    order = fleet_order.parse(sort)
    after = fleet_order.place(order, cursor)
    size = max(1, min(limit, MAX_LIMIT))
    rows, end = fleet.page(scope.tx, wanted, scope.now, order=order, after=after, limit=size)
    return Page(rows, "" if end is None else fleet_order.cursor(order, end))


def get_device(scope: Scope, device_id: str) -> DeviceView:
    """Return one device."""
    found = fleet.one(scope.tx, device_id)
    if found is None:
        raise NotFoundError(f"no device {device_id[:80]!r}; see `flotilla device list`")
    return found


def device_history(
    scope: Scope, device_id: str, *, limit: int = DEFAULT_LIMIT, cursor: str = ""
) -> Page[HistoryEntry]:
    """Return what happened to a device, the newest first."""
    device = get_device(scope, device_id).id
    size = max(1, min(limit, MAX_LIMIT))
    before_id = number_cursor(cursor)
    rows = fleet.history(scope.tx, device, before_id=before_id, limit=size + 1)
    return Page(rows[:size], str(rows[size - 1].id) if len(rows) > size else "")


def label_device(
    scope: Scope, device_id: str, labels: Mapping[str, str | None], *, reason: str = ""
) -> DeviceView:
    """Set a device's labels; None removes one."""
    before = get_device(scope, device_id)
    check_labels(labels)
    kept = {key: value for key, value in before.labels.items() if key not in labels}
    after = {**kept, **{key: value for key, value in labels.items() if value is not None}}
    check_labels(after)
    devices.set_labels(scope.tx, before.id, labels)
    joining.touched(scope.tx, [before.id], scope.now)
    audit.record(
        scope,
        action="device.label",
        object_kind="device",
        object_name=before.id,
        reason=reason,
        before=before.labels,
        after=after,
    )
    return get_device(scope, before.id)


def quarantine(scope: Scope, device_id: str, *, reason: str) -> DeviceView:
    """Refuse a device's reports and requests until `unquarantine`; what it had open is canceled.

    That is no failure and halts nothing; the device is ordered to stay with what it runs.
    """
    return _set_state(scope, device_id, QUARANTINED, "device.quarantine", reason)


def unquarantine(scope: Scope, device_id: str, *, reason: str = "") -> DeviceView:
    """Let a device take part again; it is sent its newest order, should it have missed it."""
    return _set_state(scope, device_id, ACTIVE, "device.unquarantine", reason)


def fleet_summary(scope: Scope) -> FleetSummary:
    """Return the fleet in numbers."""
    return fleet.summary(scope.tx)


def fold_counts(scope: Scope, *, limit: int = FOLD_LIMIT) -> int:
    """Fold the newest changes of the fleet's numbers into them; return how many."""
    return rollups.fold(scope.tx, limit)


def check_counts(scope: Scope) -> dict[str, int]:
    """Return by how much each of the fleet's numbers is wrong, counted from the rows.

    Named as ``health=offline``; empty when all are right. Looks at every device once.
    """
    return {f"{facet}={value}": n for (facet, value), n in rollups.drift(scope.tx).items()}


def repair_counts(scope: Scope) -> int:
    """Make the fleet's numbers right again; return how many were wrong."""
    return rollups.repair(scope.tx)


def _set_state(scope: Scope, device_id: str, state: str, action: str, reason: str) -> DeviceView:
    before = get_device(scope, device_id)
    device = DeviceId(before.id)
    if state == QUARANTINED:
        # In the order that everybody keeps: the device, its rollouts, its order, then the counts.
        devices.lock(scope.tx, [device])
        withdrawal.cancel_open(scope, device, QUARANTINED)
    if devices.set_state(scope.tx, device, state):
        joining.touched(scope.tx, [device], scope.now)
        if state == ACTIVE:
            desired.send_again(scope, {device: before.generation})
        # In a history the kind "active" says which bundle became the running one.
        kind = QUARANTINED if state == QUARANTINED else "state"
        happening = devices.Happening(device, kind, reason[:128] or action)
        devices.add_history(scope.tx, [happening], scope.now)
        audit.record(
            scope,
            action=action,
            object_kind="device",
            object_name=device,
            reason=reason,
            before={"state": before.state},
            after={"state": state},
        )
    return get_device(scope, device)
