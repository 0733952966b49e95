"""Turns an artifact into a bundle: flat files and the manifest that names them."""

import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import dataclass

from agent.protocol import manifest as wire
from control_plane.builder.job import GOLDEN, SourceFacts, Stored, Tried
from control_plane.domain.blueprint import Blueprint
from control_plane.domain.model import DESCRIPTOR, GRAPH, TOKENIZER, Descriptor, SourceFile

TOOLS = ("onnx", "onnxruntime", "onnx-ir", "numpy", "tokenizers")


@dataclass(frozen=True)
class Origin:
    """The model version that an artifact was made of."""

    model: str
    version: str
    release: int
    digest: str
    bytes: int
    """Of the fp32 graph."""
    files: Mapping[str, SourceFile]
    descriptor: Descriptor


@dataclass(frozen=True)
class Packed:
    """A bundle before it is signed."""

    manifest: wire.Manifest
    payload: bytes

    @property
    def digest(self) -> str:
        return wire.digest(self.payload)

    @property
    def size(self) -> int:
        return sum(file.size for file in self.manifest.files)


def toolchain() -> dict[str, str]:
    """Return what decides an artifact's bytes and its numbers: versions, and the processor."""
    versions = {name: importlib.metadata.version(name) for name in TOOLS}
    return {**versions, "python": platform.python_version(), "machine": platform.machine()}


def pack(origin: Origin, blueprint: Blueprint, tried: Tried, source: SourceFacts) -> Packed:
    """Write the manifest of an accepted artifact, all of whose bytes are stored."""
    if tried.stored is None or source.golden is None:
        raise ValueError(f"recipe {tried.recipe}: bytes are not stored yet")
    limits, runtime = blueprint.limits, blueprint.runtime
    manifest = wire.Manifest(
        model=origin.model,
        version=origin.version,
        release=origin.release,
        blueprint=blueprint.name,
        recipe=tried.recipe,
        files=_files(origin, tried.stored, source.golden),
        runtime=wire.Runtime(
            name=runtime.name,
            provider=runtime.provider,
            threads=runtime.threads,
            graph_level=runtime.graph_level,
        ),
        io=_io(origin.descriptor),
        limits=wire.Limits(
            first_token_ms=limits.first_token_ms,
            token_ms=limits.token_ms,
            memory_mb=limits.memory_mb,
            load_ms=limits.load_ms,
        ),
        # Always the blueprint's floor: what a waiver let pass here, the device still refuses.
        golden=wire.Golden(file=GOLDEN, min_agreement=blueprint.quality.golden_min_agreement),
        quality=tried.quality,
        source=wire.Source(digest=origin.digest, bytes=origin.bytes, toolchain=toolchain()),
    )
    payload = wire.encode(manifest)
    return Packed(wire.decode(payload), payload)


def _files(origin: Origin, graph: Stored, golden: Stored) -> list[wire.File]:
    copied = [origin.files[name] for name in (TOKENIZER, DESCRIPTOR)]
    files = [wire.File(file.path, file.size, file.sha256) for file in copied]
    files += [wire.File(GRAPH, graph.size, graph.sha256)]
    files += [wire.File(GOLDEN, golden.size, golden.sha256)]
    return sorted(files, key=lambda file: file.path)


def _io(descriptor: Descriptor) -> wire.ModelIO:
    return wire.ModelIO(
        kind=descriptor.kind,
        entry=GRAPH,
        vocab_size=descriptor.vocab_size,
        context_length=descriptor.context_length,
        eos_token_id=descriptor.eos_token_id,
        kv_layers=descriptor.kv_layers,
        kv_heads=descriptor.kv_heads,
        head_dim=descriptor.head_dim,
    )
