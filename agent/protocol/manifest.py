"""The bundle manifest: names an artifact's files, how to run them and how to judge them.

A bundle's digest is the SHA-256 of the manifest payload (canonical: sorted keys, no spaces), so
the same artifact has the same digest whoever signs it. Files are plain: no links, no archives.
"""

import hashlib
import re

import msgspec

from agent.protocol.errors import MalformedError, TooLargeError

MAX_MANIFEST = 131_072  # bytes of payload
MAX_FILES = 256
SHA256 = re.compile(r"[0-9a-f]{64}")
# One flat folder: no separators, so no traversal; no leading dot, so nothing hidden.
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """One file of a bundle: its name in the bundle's folder, size in bytes, SHA-256 in hex."""

    path: str
    size: int
    sha256: str


class Runtime(msgspec.Struct, frozen=True):
    """How to load the model."""

    name: str = "onnxruntime"
    provider: str = "CPUExecutionProvider"
    threads: int = 1
    graph_level: str = "all"
    """One of disabled, basic, extended, all (onnxruntime's GraphOptimizationLevel)."""


class ModelIO(msgspec.Struct, frozen=True):
    """The model's shape, for whoever drives it."""

    kind: str
    """causal-lm is the only kind so far."""
    entry: str
    """The file to load."""
    vocab_size: int
    context_length: int
    eos_token_id: int
    kv_layers: int
    kv_heads: int
    head_dim: int


class Limits(msgspec.Struct, frozen=True):
    """Absolute limits of the blueprint; a missing one is not checked."""

    first_token_ms: float | None = None
    token_ms: float | None = None
    memory_mb: float | None = None
    load_ms: float | None = None


class Golden(msgspec.Struct, frozen=True):
    """The output check: `file` holds a `GoldenSet`; agreement below `min_agreement` is wrong."""

    file: str
    min_agreement: float
    """Share of positions, 0 to 1, whose most likely token must equal the fp32 source's."""


class GoldenPrompt(msgspec.Struct, frozen=True):
    """Token ids of a text, and the fp32 source's most likely next token after each of them."""

    id: str
    tokens: list[int]
    expected: list[int]


class GoldenSet(msgspec.Struct, frozen=True):
    """The golden prompts of a bundle."""

    prompts: list[GoldenPrompt]
    v: int = 1


class Source(msgspec.Struct, frozen=True):
    """Where the artifact came from: digest and bytes of the fp32 source, and the tools."""

    digest: str
    bytes: int
    toolchain: dict[str, str]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a bundle is. Release is a counter per model that only grows."""

    v: int = 1
    model: str
    version: str
    release: int
    blueprint: str
    recipe: str
    files: list[File]
    runtime: Runtime
    io: ModelIO
    limits: Limits
    golden: Golden
    quality: dict[str, float]
    source: Source


def encode(manifest: Manifest) -> bytes:
    """Return the canonical payload: sorted keys, no spaces, UTF-8."""
    return msgspec.json.encode(manifest, order="sorted")


def digest(payload: bytes) -> str:
    """Return the bundle digest of a manifest payload: its SHA-256 in hex."""
    return hashlib.sha256(payload).hexdigest()


def decode(payload: bytes) -> Manifest:
    """Read and check a manifest payload.

    Raises:
        TooLargeError: over `MAX_MANIFEST` bytes.
        MalformedError: names the field that is wrong.
    """
    if len(payload) > MAX_MANIFEST:
        raise TooLargeError(f"manifest of {len(payload)} bytes; the limit is {MAX_MANIFEST}")
    try:
        read = msgspec.json.decode(payload, type=Manifest)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MalformedError(f"manifest: {error}") from error
    _check_files(read)
    names = {file.path for file in read.files}
    for field, name in (("io.entry", read.io.entry), ("golden.file", read.golden.file)):
        if name not in names:
            raise MalformedError(f"manifest: {field} names {name[:80]!r}, which is not in files")
    return read


def _check_files(read: Manifest) -> None:
    if not 1 <= len(read.files) <= MAX_FILES:
        raise MalformedError(f"manifest: files has {len(read.files)} entries, 1 to {MAX_FILES}")
    seen: set[str] = set()
    for index, file in enumerate(read.files):
        where = f"manifest: files[{index}]"
        if not FILE_NAME.fullmatch(file.path):
            raise MalformedError(f"{where}.path {file.path[:80]!r} is not a plain file name")
        # Two names that one file system folds together would overwrite each other.
        if file.path.casefold() in seen:
            raise MalformedError(f"{where}.path {file.path!r} comes twice")
        seen.add(file.path.casefold())
        if file.size < 0:
            raise MalformedError(f"{where}.size is negative")
        if not SHA256.fullmatch(file.sha256):
            raise MalformedError(f"{where}.sha256 is not 64 hex digits")
