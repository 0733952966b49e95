"""Pages of a listing: a cursor, never an offset."""

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

DEFAULT_LIMIT = 50
MAX_LIMIT = 500


@dataclass(frozen=True)
class Page(Generic[T]):
    """One page; `next` is the cursor of the following one, empty at the end."""

    items: list[T]
    next: str = ""
