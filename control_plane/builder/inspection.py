"""The parent's side of an inspection: a short confined process over a folder of uploaded files."""

from pathlib import Path

from control_plane.builder import job as files
from control_plane.builder import process
from control_plane.builder.errors import BuildError
from control_plane.builder.job import Caps, Inspection, Progress
from control_plane.domain.errors import InvalidError
from control_plane.domain.model import GRAPH

TIMEOUT_S = 60.0
FILE_BYTES = 1024**2


def inspect_apart(folder: Path, memory_mb: int) -> None:
    """Inspect the upload in ``folder/source``; raise `InvalidError` naming file and field."""
    caps = Caps(memory_mb=memory_mb, cpu_s=int(TIMEOUT_S), file_bytes=FILE_BYTES)
    files.write(folder / files.JOB, Inspection(caps))
    try:
        result = process.run(
            "control_plane.builder.inspect_upload",
            folder,
            timeout_s=TIMEOUT_S,
            keep_going=_no_news,
        )
    except BuildError as error:
        # What kills the parser would kill the builder and the devices as well.
        raise InvalidError(f"{GRAPH} cannot be inspected: {error}", field=GRAPH) from error
    if result.error:
        raise InvalidError(result.error, field=result.field)


def _no_news(_progress: Progress | None) -> None:
    return None
