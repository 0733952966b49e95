from pathlib import Path
from typing import Any

import pytest

from control_plane.domain.blueprint import Blueprint, Floors, Limits, Match, RuntimeSettings
from tests.support import tiny_lm

FLOORS = Floors(
    kl_mean_max=0.01,
    kl_p99_max=0.05,
    top1_agreement_min=0.9,
    perplexity_ratio_max=1.05,
    golden_min_agreement=0.8,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole model folder."""
    return tiny_lm.write_folder(tmp_path / "source")


@pytest.fixture
def blueprint() -> Blueprint:
    return Blueprint(
        name="edge",
        match=Match(arch="x86_64"),
        limits=Limits(disk_mb=1.0, token_ms=50.0),
        runtime=RuntimeSettings(),
        recipes=("int4-block32", "int8-dynamic"),
        quality=FLOORS,
    )


@pytest.fixture
def good() -> dict[str, Any]:
    """Quality that passes every floor."""
    return {
        "kl_mean": 0.001,
        "kl_p99": 0.01,
        "perplexity_ratio": 1.001,
        "top1_agreement": 0.98,
        "golden_agreement": 0.97,
    }
