"""A build child that misbehaves as the file `mode` in its folder says."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from control_plane.builder.job import Caps, Progress, Result, write
from control_plane.builder.process import confine, progress_stream, say


def main() -> None:
    """Misbehave."""
    folder = Path(sys.argv[1])
    mode = (folder / "mode").read_text()
    stream = progress_stream()
    confine(Caps(memory_mb=512, cpu_s=1 if mode == "burn" else 60, file_bytes=1000))
    say(stream, Progress(step="ready"))
    getattr(Misbehaviour(folder, stream), mode)()


class Misbehaviour:
    """What a child could do wrong; one method a mode."""

    def __init__(self, folder: Path, stream: int) -> None:
        self.folder = folder
        self.stream = stream

    def hang(self) -> None:
        """Start a helper, and neither ever ends."""
        command = [sys.executable, "-c", "import time; time.sleep(600)"]
        with subprocess.Popen(command) as helper:
            (self.folder / "pids").write_text(f"{os.getpid()} {helper.pid}")
            say(self.stream, Progress(step="hanging"))
            time.sleep(600)

    def eat(self) -> None:
        """Take more memory than allowed."""
        bytearray(4 * 1024**3)

    def burn(self) -> None:
        """Take more processor time than allowed."""
        while True:
            pass

    def crash(self) -> None:
        """Die as native code does."""
        os.kill(os.getpid(), 11)

    def fill(self) -> None:
        """Write a larger file than allowed."""
        (self.folder / "large").write_bytes(b"\0" * 2000)

    def silent(self) -> None:
        """End well without an answer."""

    def nonsense(self) -> None:
        """Answer something else, after noise on standard output."""
        print("x" * 100)
        os.write(self.stream, b"not json\n" + b"y" * 10_000 + b"\n")
        (self.folder / "result.json").write_text('{"tried": 7}')

    def link(self) -> None:
        """Answer with a link to somebody else's file."""
        (self.folder / "result.json").symlink_to("/etc/hostname")

    def look(self) -> None:
        """Tell what can be seen from here."""
        links = [name for _, name in socket.if_nameindex()]
        seen = {"names": sorted(os.environ), "home": os.environ["HOME"], "links": links}
        (self.folder / "seen").write_text(json.dumps(seen))
        write(self.folder / "result.json", Result(error="looked"))


if __name__ == "__main__":
    main()
