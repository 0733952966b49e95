"""The process dies before and after every single change to the disk of an update."""

import hashlib
import itertools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import msgspec
import pytest

from agent.config import DataFolder
from agent.files import Files
from agent.journal import Journal, Record
from agent.lifecycle import Idle
from agent.protocol import envelope, manifest
from agent.protocol.manifest import File
from agent.slots import Slots
from tests.unit.agent import story


class KilledError(BaseException):
    """The process is gone: nothing catches this."""


class MortalFiles(Files):
    """Real files, of a process that dies at the n-th change."""

    def __init__(self, dies_at: int) -> None:
        self.changes = 0
        self._dies_at = dies_at

    def _tick(self) -> None:
        self.changes += 1
        if self.changes == self._dies_at:
            raise KilledError

    @contextmanager
    def appending(self, path: Path, offset: int, mode: int = 0o600) -> Iterator[IO[bytes]]:
        self._tick()
        with super().appending(path, offset, mode) as file:
            self._tick()
            yield file
        self._tick()

    def rename(self, old: Path, new: Path) -> None:
        self._tick()
        old.rename(new)
        self._tick()
        self.sync_folder(new.parent)

    def remove(self, path: Path) -> None:
        self._tick()
        super().remove(path)

    def remove_tree(self, folder: Path) -> None:
        self._tick()
        for path in sorted(folder.glob("*")):
            path.unlink()
            self._tick()
        super().remove_tree(folder)

    def make_folder(self, folder: Path) -> None:
        self._tick()
        super().make_folder(folder)

    def sync_folder(self, folder: Path) -> None:
        self._tick()
        super().sync_folder(folder)


def made(version: str, release: int) -> tuple[str, bytes, bytes]:
    """Return digest, envelope and the one file of a bundle."""
    data = f"model {version}".encode()
    files = [File("model.onnx", len(data), hashlib.sha256(data).hexdigest())]
    payload = manifest.encode(story.manifest(story.bundle(version, release), files=files))
    signed = envelope.seal(envelope.MANIFEST_TYPE, payload, {"k": b"s"})
    return manifest.digest(payload), signed, data


OLD, NEW = made("1.0.0", 1), made("2.0.0", 2)


def update(root: Path, files: Files, bundle: tuple[str, bytes, bytes]) -> None:
    """Do on the disk what one whole update does, from wherever the last try ended."""
    folder = DataFolder(root)
    slots, journal = Slots(files, folder), Journal(files, folder)
    digest, signed, data = bundle
    record = journal.load() or Record(state=Idle(standing=story.standing()))
    record = journal.save(msgspec.structs.replace(record, boot=record.boot + 1))
    if digest not in slots.sound():
        slots.keep_envelope(digest, signed)
        part = slots.open_part(digest, len(data))
        with files.appending(part / "model.onnx", 0) as out:
            out.write(data)
        slots.stage(digest, signed)
    record = journal.save(record)
    slots.activate(digest)
    journal.save(record)
    slots.collect((digest,))


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """A device that runs the old bundle."""
    root = tmp_path / "before"
    root.mkdir()
    update(root, Files(), OLD)
    return root


def test_at_every_instant_one_whole_bundle_is_active_and_the_update_can_be_finished(
    before: Path, tmp_path: Path
) -> None:
    mortal = MortalFiles(0)
    for dies_at in itertools.count(1):
        root = tmp_path / str(dies_at)
        shutil.copytree(before, root, symlinks=True)
        mortal = MortalFiles(dies_at)
        try:
            update(root, mortal, NEW)
        except KilledError:
            pass
        else:
            break
        after = Slots(Files(), DataFolder(root))
        assert after.active() in {OLD[0], NEW[0]}, dies_at
        after.verify(after.active())  # raises unless every byte is as signed
        assert Journal(Files(), DataFolder(root)).load() is not None, dies_at
        update(root, Files(), NEW)
        assert after.active() == NEW[0], dies_at
        assert set(after.sound()) == {NEW[0]}, dies_at
        assert sorted(path.name for path in root.rglob("*.new")) == [], dies_at
        shutil.rmtree(root)
    assert mortal.changes > 50
