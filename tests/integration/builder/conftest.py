from collections.abc import Callable
from pathlib import Path

import pytest

from control_plane.bootstrap import Application
from control_plane.domain.blueprint import Blueprint, Floors, Limits, Match, RuntimeSettings
from control_plane.domain.model import SourceFile
from control_plane.services import blueprints, models
from control_plane.services.models import ModelVersionView
from tests.support import tiny_lm

Push = Callable[..., ModelVersionView]


def edge(name: str = "edge", **changes: object) -> Blueprint:
    """A blueprint whose floors the tiny model passes in 8 bits and not in 4."""
    facts = {
        "match": Match(arch="x86_64"),
        "limits": Limits(disk_mb=1.0),
        "runtime": RuntimeSettings(),
        "recipes": ("int8-dynamic",),
        "quality": Floors(
            kl_mean_max=0.01,
            kl_p99_max=0.05,
            top1_agreement_min=0.9,
            perplexity_ratio_max=1.05,
            golden_min_agreement=0.8,
        ),
    }
    return Blueprint(name=name, **{**facts, **changes})  # type: ignore[arg-type] # test data


def store_files(app: Application, folder: Path) -> list[SourceFile]:
    """Upload a folder's files."""
    files = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        blob = app.blobs.put_file(path, limit=2**30)
        files.append(SourceFile(str(path.relative_to(folder)), blob.size, blob.digest))
    return files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_lm.write_folder(tmp_path / "upload")


@pytest.fixture
def push(app: Application, folder: Path) -> Push:
    """Register the tiny model."""

    def register(version: str = "1.0.0", parent: str = "") -> ModelVersionView:
        files = store_files(app, folder)
        with app.reading("ana") as scope:
            models.is_new(scope, "tiny", version, files, parent=parent)
            source = models.inspect(scope, files)
        with app.scope("ana") as scope:
            return models.register(scope, "tiny", version, source, parent=parent)

    return register


@pytest.fixture
def apply(app: Application) -> Callable[[Blueprint], None]:
    """Apply a blueprint."""

    def work(blueprint: Blueprint) -> None:
        with app.scope("ana") as scope:
            blueprints.apply(scope, blueprint)

    return work
