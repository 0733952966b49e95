"""What a use case works with: a transaction, the time, who asks, and the ports."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from control_plane.blobs import BlobStore
from control_plane.config import Settings
from control_plane.signing.keyring import Keyring
from control_plane.store.database import Transaction


@dataclass(frozen=True)
class Scope:
    """One request, task or batch: one transaction, one `now`, one actor.

    Services read and write through it and never commit; whoever opened it does.
    """

    tx: Transaction
    now: datetime
    actor: str
    keyring: Keyring
    blobs: BlobStore
    settings: Settings
    new_id: Callable[[], str]
