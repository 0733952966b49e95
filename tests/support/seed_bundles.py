"""A control plane to simulate fleets on: blueprints and built bundles, as a builder leaves them."""

from pathlib import Path

from control_plane.bootstrap import Application
from control_plane.services import blueprint_document, blueprints, documents
from tests.support.seed_rows import VERSIONS, built

DOCUMENTS = Path(__file__).parents[2] / "blueprints"


def seed(application: Application) -> None:
    """Store the example blueprints, and a bundle of every version for each."""
    with application.scope("seed") as scope:
        for path in sorted(DOCUMENTS.glob("*.yaml")):
            for document in documents.parse(path.read_text("utf-8"), path.name):
                blueprints.apply(scope, blueprint_document.parse(document.body))
    for version in VERSIONS:
        with application.scope("seed") as scope:
            built(scope, version)
