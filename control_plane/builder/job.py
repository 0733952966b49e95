"""What parent and child processes of a build tell each other: files in one private folder.

The child runs a stranger's model in native code, so what it writes is read as strictly as an
upload.
"""

from pathlib import Path
from typing import Final, TypeVar

import msgspec

from control_plane.domain.blueprint import Blueprint, RuntimeSettings
from control_plane.domain.model import Descriptor

JOB, RESULT, LOG = "job.json", "result.json", "child.log"
SOURCE, WORK, OUT = "source", "work", "out"
GOLDEN = "golden.json"

MAX_RESULT: Final = 1024 * 1024


class Caps(msgspec.Struct, frozen=True):
    """Resource limits that the child puts on itself before it reads anything."""

    memory_mb: int
    cpu_s: int
    file_bytes: int


class Evaluation(msgspec.Struct, frozen=True):
    """How much held-out text judges a recipe."""

    windows: int = 24
    tokens: int = 256


class Stored(msgspec.Struct, frozen=True):
    """Bytes in the blob store."""

    sha256: str
    size: int


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """One recipe's numbers; `error` if it gave no file, or one that does not run."""

    recipe: str
    bytes: int = 0
    quality: dict[str, float] = {}
    measured: dict[str, float] = {}
    error: str = ""
    stored: Stored | None = None
    """Where its bytes are; the child leaves it out and puts a file in its folder instead."""


class SourceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the source itself gave: its golden set, and its own numbers."""

    perplexity: float
    measured: dict[str, float]
    golden_bytes: int
    golden: Stored | None = None


class Inspection(msgspec.Struct, frozen=True):
    """What the inspecting child is to do."""

    caps: Caps


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What the building child is to do."""

    caps: Caps
    blueprint: Blueprint
    recipes: list[str]
    """Best first."""
    evaluation: Evaluation = Evaluation()
    known: list[Tried] = []
    """Results that need not be made again."""
    waiver: str = ""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What the child found; `error` with `field`: the upload was refused."""

    error: str = ""
    field: str = ""
    tried: list[Tried] = []
    source: SourceFacts | None = None


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the child's standard output."""

    step: str
    recipe: str = ""
    index: int = 0
    of: int = 0


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What one evaluation process measures; without `reference` it is the source itself."""

    model: str
    folder: str
    """Where windows, golden prompts and the source's log-probabilities lie."""
    descriptor: Descriptor
    runtime: RuntimeSettings
    is_source: bool = False
    evaluation: Evaluation = Evaluation()
    upload: str = ""


class Numbers(msgspec.Struct, frozen=True, kw_only=True):
    """What an evaluation process measured, or which field of the upload stopped it."""

    quality: dict[str, float] = {}
    measured: dict[str, float] = {}
    error: str = ""
    field: str = ""


def write(path: Path, value: msgspec.Struct) -> None:
    """Write a value as JSON."""
    path.write_bytes(msgspec.json.encode(value))


J = TypeVar("J", Job, Inspection)


def read_job(path: Path, kind: type[J]) -> J:
    """Read what the parent wrote."""
    return msgspec.json.decode(path.read_bytes(), type=kind)


def read_result(path: Path) -> Result:
    """Read the child's answer; `ValueError` or `OSError` if there is none that can be read."""
    if path.is_symlink() or path.stat().st_size > MAX_RESULT:
        raise ValueError(f"{path.name} is a link or longer than {MAX_RESULT} bytes")
    return msgspec.json.decode(path.read_bytes(), type=Result)
