"""The one seam for all file I/O of the agent: durable writes, atomic renames, an atomic link."""

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from agent.errors import DiskError
from agent.protocol.words import Reason

CHUNK = 1 << 20
FULL = {errno.ENOSPC, errno.EDQUOT}


def disk_error(error: OSError, path: Path) -> DiskError:
    """Return the fault that an operating system's error means for an update."""
    reason = Reason.DISK_FULL if error.errno in FULL else Reason.DISK_ERROR
    return DiskError(reason, f"{path}: {error.strerror or error}")


class Files:
    """Real files. Tests put a disk that loses power in its place.

    What returns has reached the disk: a rename without fsync of file and folder comes back from
    a power cut as an empty file, or not at all.
    """

    # --- reading ----------------------------------------------------------------------------

    def exists(self, path: Path) -> bool:
        return os.path.lexists(path)

    def is_plain(self, path: Path) -> bool:
        """Say whether `path` is a file of its own: no link, no second name."""
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            return False
        return stat.S_ISREG(found.st_mode) and found.st_nlink == 1

    def read(self, path: Path) -> bytes:
        return path.read_bytes()

    def chunks(self, path: Path) -> Iterator[bytes]:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk

    def size(self, path: Path) -> int:
        try:
            return path.lstat().st_size
        except FileNotFoundError:
            return 0

    def names(self, folder: Path) -> list[str]:
        try:
            return sorted(entry.name for entry in folder.iterdir())
        except FileNotFoundError:
            return []

    def link_name(self, link: Path) -> str:
        """Return the last part of where a link leads; empty if there is no link."""
        try:
            return link.readlink().name
        except FileNotFoundError:
            return ""

    def free(self, folder: Path) -> int:
        return shutil.disk_usage(folder).free

    # --- writing ----------------------------------------------------------------------------

    def make_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            self.sync_folder(folder.parent)

    def write(self, path: Path, data: bytes, mode: int = 0o600) -> None:
        """Put `data` at `path` whole or not at all, even if power fails."""
        new = path.with_name(f"{path.name}.new")
        with self.appending(new, 0, mode) as file:
            file.write(data)
        self.rename(new, path)

    @contextmanager
    def appending(self, path: Path, offset: int, mode: int = 0o600) -> Iterator[IO[bytes]]:
        """Open `path` cut to `offset` bytes; it is on the disk when the block ends."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.truncate(offset)
            file.seek(offset)
            try:
                yield file
            finally:
                # Also after a broken transfer: what came so far is kept for the next try.
                file.flush()
                os.fsync(file.fileno())

    def rename(self, old: Path, new: Path) -> None:
        old.rename(new)
        self.sync_folder(new.parent)
        if old.parent != new.parent:
            self.sync_folder(old.parent)

    def point(self, link: Path, to: str) -> None:
        """Lead `link` to the relative path `to`, in one step that nobody can see half of."""
        new = link.with_name(f"{link.name}.new")
        self.remove(new)
        new.symlink_to(to)
        self.rename(new, link)

    def remove(self, path: Path) -> None:
        """Remove a file or link, if it is there."""
        try:
            path.unlink()
        except FileNotFoundError:
            return
        self.sync_folder(path.parent)

    def remove_tree(self, folder: Path) -> None:
        """Remove a folder and what is in it, if it is there."""
        if not self.exists(folder):
            return
        shutil.rmtree(folder)
        self.sync_folder(folder.parent)

    def sync_folder(self, folder: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    # --- locks ------------------------------------------------------------------------------

    @contextmanager
    def only_one(self, path: Path) -> Iterator[bool]:
        """Hold the lock at `path` and yield true, or yield false at once if it is taken."""
        with path.open("a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            file.truncate(0)
            file.write(str(os.getpid()).encode())
            file.flush()
            yield True
