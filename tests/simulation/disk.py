"""A disk in memory behind the agent's one seam for files; its process may die at any change."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO

from agent.files import Files
from tests.simulation.errors import KilledError

PLENTY = 1 << 40


class MemoryFiles(Files):
    """What has returned is on the disk; a kill comes between two changes, or in the middle of one.

    Args:
        switched: told where the active link leads, whenever that changes.
    """

    def __init__(self, switched: Callable[[str], None]) -> None:
        self._files: dict[str, bytes] = {}
        self._links: dict[str, str] = {}
        self._folders: set[str] = set()
        self._switched = switched
        self.dies_in = 0
        """Changes until the process dies; 0: it does not."""
        self.full_in = 0
        """Changes until the disk is full, once; 0: it is not."""
        self.changes = 0
        self.slots_changed = 0
        """Changes that touched more than the journal."""

    def _change(self, path: str) -> None:
        self.changes += 1
        if "/journal." not in path:
            self.slots_changed += 1
        if self.dies_in:
            self.dies_in -= 1
            if self.dies_in == 0:
                raise KilledError
        if self.full_in:
            self.full_in -= 1
            if self.full_in == 0:
                raise OSError(errno.ENOSPC, "No space left on device")

    # --- reading ----------------------------------------------------------------------------

    def exists(self, path: Path) -> bool:
        name = str(path)
        return name in self._files or name in self._folders or name in self._links

    def is_plain(self, path: Path) -> bool:
        return str(path) in self._files

    def read(self, path: Path) -> bytes:
        found = self._files.get(str(path))
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "No such file", str(path))
        return found

    def chunks(self, path: Path) -> Iterator[bytes]:
        yield self.read(path)

    def size(self, path: Path) -> int:
        return len(self._files.get(str(path), b""))

    def names(self, folder: Path) -> list[str]:
        start = f"{folder}/"
        everything = (*self._files, *self._folders, *self._links)
        below = {
            name[len(start) :].split("/", 1)[0] for name in everything if name.startswith(start)
        }
        return sorted(below)

    def link_name(self, link: Path) -> str:
        return self._links.get(str(link), "").rpartition("/")[2]

    def free(self, folder: Path) -> int:  # noqa: ARG002 - the seam's
        return PLENTY

    # --- writing ----------------------------------------------------------------------------

    def make_folder(self, folder: Path) -> None:
        if str(folder) not in self._folders:
            self._change(str(folder))
            self._folders.add(str(folder))

    def write(self, path: Path, data: bytes, mode: int = 0o600) -> None:  # noqa: ARG002 - the seam's
        name = str(path)
        self._change(name)
        self._files[f"{name}.new"] = data[: len(data) // 2]  # a kill leaves half of it
        self._change(name)
        del self._files[f"{name}.new"]
        self._files[name] = data

    @contextmanager
    def appending(
        self,
        path: Path,
        offset: int,
        mode: int = 0o600,  # noqa: ARG002 - the seam's
    ) -> Iterator[IO[bytes]]:
        self._change(str(path))
        file = BytesIO()
        try:
            yield file
        finally:
            kept = self._files.get(str(path), b"")[:offset]
            self._files[str(path)] = kept + file.getvalue()
            self._change(str(path))

    def rename(self, old: Path, new: Path) -> None:
        self._change(str(new))
        start, end = str(old), str(new)
        for store in (self._files, self._links):
            for name in [n for n in store if n == start or n.startswith(f"{start}/")]:
                store[end + name[len(start) :]] = store.pop(name)  # type: ignore[assignment]  # two dicts of one shape
        moved = {n for n in self._folders if n == start or n.startswith(f"{start}/")}
        self._folders -= moved
        self._folders |= {end + name[len(start) :] for name in moved}

    def point(self, link: Path, to: str) -> None:
        self._change(str(link))
        self._links[str(link)] = to
        self._switched(self.link_name(link))
        self._change(str(link))

    def remove(self, path: Path) -> None:
        name = str(path)
        if name in self._files or name in self._links:
            self._change(name)
            self._files.pop(name, None)
            if self._links.pop(name, None) is not None:
                self._switched("")

    def remove_tree(self, folder: Path) -> None:
        start = f"{folder}/"
        for name in [n for n in self._files if n.startswith(start)]:
            self._change(name)
            del self._files[name]
        gone = {n for n in self._folders if n == str(folder) or n.startswith(start)}
        if gone:
            self._change(str(folder))
            self._folders -= gone

    def sync_folder(self, folder: Path) -> None:
        """What returns is on this disk already."""
