"""A model version: an immutable source of files, its descriptor, and what both must look like."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NewType

from control_plane.domain.errors import InvalidError

ModelName = NewType("ModelName", str)
Version = NewType("Version", str)

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,62}")
SHA256 = re.compile(r"[0-9a-f]{64}")
PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*){0,3}")

GRAPH, TOKENIZER, DESCRIPTOR = "model.onnx", "tokenizer.json", "model.json"
HELD_OUT, PROMPTS = "eval/heldout.txt", "eval/prompts.json"
REQUIRED = (GRAPH, TOKENIZER, DESCRIPTOR, HELD_OUT, PROMPTS)

MAX_FILES = 64
MAX_TEXT_BYTES = 16 * 1024**2
"""Largest tokenizer, descriptor or evaluation file: they are read whole."""

# Formats that run code when they are opened (Python pickles and archives of them).
EXECUTABLE = frozenset(
    (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5", ".keras")
)
ALLOWED = frozenset((".onnx", ".json", ".txt", ".md", ".model"))


@dataclass(frozen=True)
class SourceFile:
    """One file of a source: relative path, bytes, SHA-256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Descriptor:
    """model.json: how the graph is driven."""

    vocab_size: int
    context_length: int
    eos_token_id: int
    kv_layers: int
    kv_heads: int
    head_dim: int
    kind: str = "causal-lm"


def source_digest(files: Sequence[SourceFile]) -> str:
    """Return the digest of a source: over its paths, sizes and digests, in path order."""
    rows = sorted((file.path, file.size, file.sha256) for file in files)
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


def check_names(model: str, version: str) -> None:
    """Raise `InvalidError` unless both can be names in paths, topics and file systems."""
    if not NAME.fullmatch(model):
        raise InvalidError(
            f"{model[:80]!r} is not a model name: lower-case letters, digits, . _ -, at most 63",
            field="model",
        )
    if not VERSION.fullmatch(version):
        raise InvalidError(
            f"{version[:80]!r} is not a version: letters, digits, . + _ -, at most 63",
            field="version",
        )


def check_layout(files: Sequence[SourceFile]) -> None:
    """Raise `InvalidError` unless the list of files is one that the builder takes."""
    if len(files) > MAX_FILES:
        raise InvalidError(f"{len(files)} files; at most {MAX_FILES}", field="files")
    seen: set[str] = set()
    for index, file in enumerate(files):
        where = f"files[{index}]"
        _check_path(file.path, where)
        if file.path.casefold() in seen:
            raise InvalidError(f"{file.path} comes twice", field=f"{where}.path")
        seen.add(file.path.casefold())
        if not SHA256.fullmatch(file.sha256):
            raise InvalidError(f"{file.path}: not 64 hex digits", field=f"{where}.sha256")
        if file.path != GRAPH and not 0 <= file.size <= MAX_TEXT_BYTES:
            raise InvalidError(
                f"{file.path} has {file.size} bytes; at most {MAX_TEXT_BYTES}",
                field=f"{where}.size",
            )
    missing = [path for path in REQUIRED if path not in {file.path for file in files}]
    if missing:
        raise InvalidError(
            f"missing {', '.join(missing)}; a model folder has {', '.join(REQUIRED)}",
            field="files",
        )


def _check_path(path: str, where: str) -> None:
    if not PATH.fullmatch(path):
        raise InvalidError(f"{path[:80]!r} is not a plain relative path", field=f"{where}.path")
    suffix = "." + path.rpartition(".")[2].lower()
    if suffix in EXECUTABLE:
        raise InvalidError(
            f"{path}: {suffix} files can run code when opened; export the model to ONNX",
            field=f"{where}.path",
        )
    if suffix == ".data" or path.endswith(".onnx.data"):
        raise InvalidError(
            f"{path}: weights in a side file are not taken; save the model as one {GRAPH}",
            field=f"{where}.path",
        )
    if suffix not in ALLOWED:
        raise InvalidError(
            f"{path}: unknown kind of file; allowed: {', '.join(sorted(ALLOWED))}",
            field=f"{where}.path",
        )


_BOUNDS = {
    "vocab_size": (2, 4_000_000),
    "context_length": (8, 4_000_000),
    "eos_token_id": (0, 4_000_000),
    "kv_layers": (1, 4096),
    "kv_heads": (1, 4096),
    "head_dim": (1, 65_536),
}


def parse_descriptor(data: bytes) -> tuple[Descriptor, dict[str, Any]]:
    """Read model.json: the fields the builder needs, and the whole document for people.

    Raises:
        InvalidError: names the field of the descriptor that is wrong.
    """
    try:
        raw = json.loads(data)
    except ValueError as error:
        raise InvalidError(f"{DESCRIPTOR} is not JSON: {error}", field=DESCRIPTOR) from error
    if not isinstance(raw, dict):
        raise InvalidError(f"{DESCRIPTOR}: expected an object", field=DESCRIPTOR)
    _expect(raw, "schema", 1)
    _expect(raw, "kind", "causal-lm")
    numbers = {name: _whole(raw, name, *bounds) for name, bounds in _BOUNDS.items()}
    if numbers["eos_token_id"] >= numbers["vocab_size"]:
        raise InvalidError(
            f"{DESCRIPTOR}: eos_token_id {numbers['eos_token_id']} is outside the vocabulary of "
            f"{numbers['vocab_size']}",
            field=f"{DESCRIPTOR}:eos_token_id",
        )
    descriptor = Descriptor(
        vocab_size=numbers["vocab_size"],
        context_length=numbers["context_length"],
        eos_token_id=numbers["eos_token_id"],
        kv_layers=numbers["kv_layers"],
        kv_heads=numbers["kv_heads"],
        head_dim=numbers["head_dim"],
    )
    return descriptor, raw


def _expect(raw: Mapping[str, Any], name: str, wanted: object) -> None:
    found = raw.get(name)
    if found != wanted or isinstance(found, bool):
        raise InvalidError(
            f"{DESCRIPTOR}: {name} is {found!r:.80}, expected {wanted!r}",
            field=f"{DESCRIPTOR}:{name}",
        )


def _whole(raw: Mapping[str, Any], name: str, low: int, high: int) -> int:
    found = raw.get(name)
    if not isinstance(found, int) or isinstance(found, bool) or not low <= found <= high:
        raise InvalidError(
            f"{DESCRIPTOR}: {name} is {found!r:.80}, expected a whole number {low} to {high}",
            field=f"{DESCRIPTOR}:{name}",
        )
    return found


@dataclass(frozen=True)
class Prompt:
    """One golden prompt: its outputs on a device must agree with the source's."""

    id: str
    text: str


MAX_PROMPTS, MAX_PROMPT_CHARACTERS = 64, 4096


def parse_prompts(data: bytes) -> list[Prompt]:
    """Read eval/prompts.json; `InvalidError` names the field that is wrong."""
    try:
        raw = json.loads(data)
    except ValueError as error:
        raise InvalidError(f"{PROMPTS} is not JSON: {error}", field=PROMPTS) from error
    rows = raw.get("prompts") if isinstance(raw, dict) and raw.get("schema") == 1 else None
    if not isinstance(rows, list) or not 1 <= len(rows) <= MAX_PROMPTS:
        raise InvalidError(
            f'{PROMPTS}: expected {{"schema": 1, "prompts": [1 to {MAX_PROMPTS} of them]}}',
            field=f"{PROMPTS}:prompts",
        )
    prompts = [_prompt(row, f"{PROMPTS}:prompts[{index}]") for index, row in enumerate(rows)]
    if len({prompt.id for prompt in prompts}) != len(prompts):
        raise InvalidError(f"{PROMPTS}: an id comes twice", field=f"{PROMPTS}:prompts")
    return prompts


def _prompt(row: object, where: str) -> Prompt:
    if not isinstance(row, dict):
        raise InvalidError(f"{where}: expected an object", field=where)
    for name, most in (("id", 64), ("text", MAX_PROMPT_CHARACTERS)):
        value = row.get(name)
        if not isinstance(value, str) or not 1 <= len(value) <= most:
            raise InvalidError(
                f"{where}.{name}: expected text of 1 to {most} characters", field=f"{where}.{name}"
            )
    return Prompt(row["id"], row["text"])


def check_held_out(data: bytes) -> str:
    """Return the held-out text; `InvalidError` unless it is UTF-8 and not empty."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InvalidError(f"{HELD_OUT} is not UTF-8: {error}", field=HELD_OUT) from error
    if not text.strip():
        raise InvalidError(f"{HELD_OUT} is empty", field=HELD_OUT)
    return text
