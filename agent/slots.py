"""Two slots: bundles on disk by digest, and one link, switched atomically, to the active one.

bundles/<digest>/   files of the bundle, manifest.json (payload), manifest.dsse (envelope)
part/<digest>/      a bundle on its way in
active              -> bundles/<digest>
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.config import DataFolder
from agent.errors import DiskError, SlotError
from agent.files import Files, disk_error
from agent.protocol import envelope as envelopes
from agent.protocol import manifest as manifests
from agent.protocol.envelope import MANIFEST_TYPE
from agent.protocol.errors import ProtocolError
from agent.protocol.manifest import SHA256, File, Manifest
from agent.protocol.words import Reason

PAYLOAD = "manifest.json"
ENVELOPE = "manifest.dsse"
MARGIN = 16 << 20  # bytes of the disk that an update leaves free: journals and logs need room


class Slots:
    """The bundles of one device."""

    def __init__(self, files: Files, folder: DataFolder) -> None:
        self._files = files
        self._root = folder.root
        self._bundles = folder.root / "bundles"
        self._parts = folder.root / "part"
        self._active = folder.root / "active"

    # --- reading ----------------------------------------------------------------------------

    def folder(self, digest: str) -> Path:
        """Return the folder of a staged bundle."""
        return self._bundles / digest

    def active(self) -> str:
        """Return the digest that the active link leads to, empty if none."""
        return self._files.link_name(self._active)

    def envelope(self, digest: str) -> bytes | None:
        """Return the stored manifest envelope of a bundle, none if it is not here."""
        for folder in (self._parts / digest, self._bundles / digest):
            try:
                return self._files.read(folder / ENVELOPE)
            except OSError:
                continue
        return None

    def sound(self) -> dict[str, Manifest]:
        """Return the bundles that are whole, each read to its last byte."""
        found = {}
        for digest in self._files.names(self._bundles):
            try:
                found[digest] = self.verify(digest)
            except SlotError:
                continue
        return found

    def verify(self, digest: str) -> Manifest:
        """Read a staged bundle to its last byte.

        Raises:
            SlotError: it is not what its digest says; names the file.
        """
        folder = self.folder(digest)
        try:
            payload = self._files.read(folder / PAYLOAD)
            if manifests.digest(payload) != digest:
                raise _rotten(folder / PAYLOAD, "is not the manifest of this digest")
            manifest = manifests.decode(payload)
            for file in manifest.files:
                self._verify_file(folder / file.path, file)
        except ProtocolError as error:
            raise _rotten(folder / PAYLOAD, str(error)) from error
        except OSError as error:
            raise _rotten(folder, error.strerror or str(error)) from error
        return manifest

    def _verify_file(self, path: Path, file: File) -> None:
        if not self._files.is_plain(path):
            raise _rotten(path, "is not a file of its own")
        if self._files.size(path) != file.size:
            raise _rotten(path, f"has {self._files.size(path)} bytes, not {file.size}")
        if self.sha256(path) != file.sha256:
            raise _rotten(path, "has other bytes than were signed")

    def sha256(self, path: Path) -> str:
        """Return a file's SHA-256 in hex."""
        digest = hashlib.sha256()
        for chunk in self._files.chunks(path):
            digest.update(chunk)
        return digest.hexdigest()

    # --- writing ----------------------------------------------------------------------------

    def keep_envelope(self, digest: str, envelope: bytes) -> None:
        """Remember a verified manifest, so that its files can be fetched after a restart.

        Raises:
            DiskError: the disk is full, or fails.
        """
        if self.envelope(digest) == envelope:
            return
        part = self._parts / digest
        with _disk(part):
            self._files.make_folder(part)
            self._files.write(part / ENVELOPE, envelope)

    def open_part(self, digest: str, size: int) -> Path:
        """Return the folder for a bundle on its way in, if the disk has room for the rest.

        Raises:
            DiskError: the disk is full, or fails.
        """
        part = self._parts / digest
        with _disk(part):
            self._files.make_folder(part)
            here = sum(self._files.size(part / name) for name in self._files.names(part))
            missing, free = max(0, size - here) + MARGIN, self._files.free(part)
        if free < missing:
            raise DiskError(Reason.DISK_FULL, f"{part}: {free} bytes free, {missing} needed")
        return part

    def take_part(self, name: Path, file: File) -> bool:
        """Say whether a finished download is the file that was signed; remove it if it is not."""
        with _disk(name):
            if self._files.size(name) == file.size and self.sha256(name) == file.sha256:
                return True
            self._files.remove(name)
            return False

    def stage(self, digest: str, envelope: bytes) -> None:
        """Turn a complete part folder into a staged bundle, in one step.

        Raises:
            DiskError: the disk is full, or fails.
        """
        part, folder = self._parts / digest, self.folder(digest)
        payload, _ = envelopes.open_unverified(envelope, MANIFEST_TYPE)
        with _disk(folder):
            self._files.write(part / PAYLOAD, payload)
            self._files.write(part / ENVELOPE, envelope)
            self._files.make_folder(self._bundles)
            self._files.remove_tree(folder)  # only ever a rotten one: a whole one is not fetched
            self._files.rename(part, folder)

    def activate(self, digest: str) -> None:
        """Read a bundle back and lead the active link to it; an empty digest removes the link.

        Raises:
            SlotError: the bundle is not whole; the link leads where it led.
            DiskError: the disk is full, or fails.
        """
        if digest:
            self.verify(digest)
        if self.active() == digest:
            return
        with _disk(self._active):
            if digest:
                self._files.point(self._active, f"bundles/{digest}")
            else:
                self._files.remove(self._active)

    def collect(self, keep: tuple[str, ...]) -> None:
        """Remove every bundle and partial download but these, and never what is active."""
        kept = {*keep, self.active()}
        with _disk(self._root):
            for folder in (self._bundles, self._parts):
                for name in self._files.names(folder):
                    if name not in kept:
                        self._files.remove_tree(folder / name)
            for name in self._files.names(self._parts):
                if SHA256.fullmatch(name) and self._files.exists(self.folder(name)):
                    self._files.remove_tree(self._parts / name)


def _rotten(path: Path, why: str) -> SlotError:
    return SlotError(Reason.BUNDLE_DIGEST, f"{path}: {why}")


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise disk_error(error, path) from error
