"""One device's open parts, over all rollouts."""

from collections.abc import Collection

from sqlalchemy import ColumnElement, and_, select

from control_plane.domain.device import DeviceId
from control_plane.domain.rollout import STEPS
from control_plane.store import executions, standing
from control_plane.store.database import Transaction
from control_plane.store.schema import execution, rollout


def lock_rollouts_of_device(tx: Transaction, device_id: DeviceId) -> list[str]:
    """Lock every rollout in which a device has an open part; return their names."""
    query = select(execution.c.rollout).where(
        execution.c.device_id == device_id,
        standing.among(STEPS),
    )
    names = sorted(tx.execute(query).scalars())
    if names:
        executions.lock_rollouts(tx, rollout.c.name.in_(names))
    return names


def parts_of_device(device_id: DeviceId, names: Collection[str]) -> ColumnElement[bool]:
    """Return the condition for a device's parts in these rollouts."""
    return and_(execution.c.device_id == device_id, execution.c.rollout.in_(sorted(names)))
