"""The state that survives power loss: two checksummed generations of one record, written in turn.

The record is on disk before the state it holds is entered, and before any report leaves. A torn
or rotten generation leaves the one before; a device that lost both finds its footing from the
slots (agent/work.py).
"""

import hashlib
from pathlib import Path

import msgspec

from agent.config import DataFolder
from agent.files import Files, disk_error
from agent.lifecycle import Idle, Standing, State

MAX_OUTBOX = 512  # a device that nobody ever answers must not fill its disk


class Entry(msgspec.Struct, frozen=True):
    """One report that nobody has acknowledged yet."""

    channel: str
    boot: int
    seq: int
    message: str
    """The encoded message, as it was first sent."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What the journal holds."""

    number: int = 0
    """Counts the writes; the larger of two generations is the newer."""
    boot: int = 0
    """Boot epoch: grows with every start, so that (boot, seq) never repeats."""
    seq: int = 0
    state: State = Idle(standing=Standing())
    outbox: tuple[Entry, ...] = ()


class Journal:
    """Reads and writes the record."""

    def __init__(self, files: Files, folder: DataFolder) -> None:
        self._files = files
        self._paths = (folder.root / "journal.0", folder.root / "journal.1")

    def load(self) -> Record | None:
        """Return the newest whole generation, none if there is none."""
        found = [record for path in self._paths if (record := self._read(path)) is not None]
        return max(found, key=lambda record: record.number, default=None)

    def save(self, record: Record) -> Record:
        """Write a record in place of the older generation, and return it as it was written.

        Raises:
            DiskError: nothing was written; the generation before still holds.
        """
        record = msgspec.structs.replace(
            record, number=record.number + 1, outbox=record.outbox[-MAX_OUTBOX:]
        )
        path = self._paths[record.number % 2]
        body = msgspec.json.encode(record)
        digest = hashlib.sha256(body).hexdigest().encode()
        try:
            self._files.write(path, digest + b"\n" + body + b"\n")
        except OSError as error:
            raise disk_error(error, path) from error
        return record

    def _read(self, path: Path) -> Record | None:
        try:
            digest, _, body = self._files.read(path).partition(b"\n")
        except OSError:
            return None
        body = body.removesuffix(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != digest:
            return None
        try:
            return msgspec.json.decode(body, type=Record)
        except msgspec.MsgspecError:
            return None
