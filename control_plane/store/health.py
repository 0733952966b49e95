"""How a device fares, as SQL: the same words as `health_of`."""

from sqlalchemy import ColumnElement, case, false

from control_plane.domain import device as words
from control_plane.store.schema import device


def word() -> ColumnElement[str]:
    """Return the word itself, for counting."""
    return case(
        (device.c.state != words.ACTIVE, words.QUARANTINED),
        (~device.c.online, words.OFFLINE),
        (device.c.healthy, words.HEALTHY),
        else_=words.UNHEALTHY,
    )


def is_health(wanted: str) -> ColumnElement[bool]:
    """Return the condition for one word, spelled so that the rare ones have their index."""
    active = device.c.state == words.ACTIVE
    match wanted:
        case words.QUARANTINED:
            return device.c.state != words.ACTIVE
        case words.OFFLINE:
            return active & ~device.c.online
        case words.UNHEALTHY:
            return active & device.c.online & ~device.c.healthy
        case words.HEALTHY:
            return active & device.c.online & device.c.healthy
        case _:
            return false()
