"""JSON Schemas of the documents, for editors."""

from typing import Any

from fastapi import APIRouter

from control_plane.services import documents

routes = APIRouter(prefix="/api/v1/schemas", tags=["schemas"])


@routes.get("/{kind}")
def schema(kind: str) -> dict[str, Any]:
    """Return the JSON Schema of a document kind: Blueprint or Rollout."""
    return documents.json_schema(kind)
