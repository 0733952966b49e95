import json
from dataclasses import replace

import pytest

from agent.protocol import manifest as wire
from control_plane.builder.job import SourceFacts, Stored, Tried
from control_plane.builder.package import Origin, pack, toolchain
from control_plane.domain.blueprint import Blueprint
from control_plane.domain.model import REQUIRED, SourceFile, parse_descriptor
from tests.support import tiny_lm

SOURCE = SourceFacts(
    perplexity=20.0, measured={}, golden_bytes=7, golden=Stored(sha256="b" * 64, size=7)
)


@pytest.fixture
def origin() -> Origin:
    descriptor, _ = parse_descriptor(json.dumps(tiny_lm.descriptor()).encode())
    return Origin(
        model="support-slm",
        version="1.0.0",
        release=3,
        digest="d" * 64,
        bytes=1000,
        files={path: SourceFile(path, 10, "a" * 64) for path in REQUIRED},
        descriptor=descriptor,
    )


@pytest.fixture
def tried(good: dict[str, float]) -> Tried:
    return Tried(
        recipe="int8-dynamic", bytes=300, quality=good, stored=Stored(sha256="c" * 64, size=300)
    )


def test_a_bundle_has_four_flat_files_and_says_how_to_run_and_judge_them(
    origin: Origin, blueprint: Blueprint, tried: Tried
) -> None:
    packed = pack(origin, blueprint, tried, SOURCE)
    manifest = wire.decode(packed.payload)
    assert [(file.path, file.size) for file in manifest.files] == [
        ("golden.json", 7),
        ("model.json", 10),
        ("model.onnx", 300),
        ("tokenizer.json", 10),
    ]
    assert packed.size == 327
    assert (manifest.model, manifest.version, manifest.release) == ("support-slm", "1.0.0", 3)
    assert (manifest.blueprint, manifest.recipe) == ("edge", "int8-dynamic")
    assert (manifest.io.entry, manifest.golden.file) == ("model.onnx", "golden.json")
    assert manifest.io.vocab_size == tiny_lm.VOCABULARY
    assert manifest.limits.token_ms == 50.0
    assert manifest.quality == tried.quality
    assert manifest.source == wire.Source(digest="d" * 64, bytes=1000, toolchain=toolchain())


def test_the_same_artifact_has_the_same_digest_whatever_its_speed_here(
    origin: Origin, blueprint: Blueprint, tried: Tried
) -> None:
    slower = Tried(
        recipe=tried.recipe,
        bytes=tried.bytes,
        quality=tried.quality,
        stored=tried.stored,
        measured={"token_ms": 99.0},
    )
    first = pack(origin, blueprint, tried, SOURCE)
    assert first.digest == pack(origin, blueprint, slower, SOURCE).digest
    assert first.digest == wire.digest(first.payload)


def test_the_device_is_told_the_blueprints_floor_and_not_what_the_artifact_reached(
    origin: Origin, blueprint: Blueprint, tried: Tried
) -> None:
    bad = Tried(
        recipe=tried.recipe,
        bytes=tried.bytes,
        quality={"golden_agreement": 0.1},
        stored=tried.stored,
    )
    assert pack(origin, blueprint, bad, SOURCE).manifest.golden.min_agreement == 0.8
    stricter = replace(blueprint, quality=replace(blueprint.quality, golden_min_agreement=0.95))
    assert pack(origin, stricter, tried, SOURCE).manifest.golden.min_agreement == 0.95


def test_bytes_that_are_not_stored_cannot_be_packed(
    origin: Origin, blueprint: Blueprint, good: dict[str, float]
) -> None:
    with pytest.raises(ValueError, match="not stored"):
        pack(origin, blueprint, Tried(recipe="fp32", quality=good), SOURCE)
