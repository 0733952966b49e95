"""get: any kind of thing, one or all, in any form; also the tables that other commands print."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from control_plane.cli.exits import CliError, Exit
from control_plane.cli.options import FilterBy, Most, Output, SortBy
from control_plane.cli.output import Column, Form, show, size


@dataclass(frozen=True)
class Kind:
    """A kind of thing: where it is listed and found, and how it looks in a table."""

    path: str
    columns: list[Column]
    wide: list[Column] = field(default_factory=list)
    one: Callable[[str], str] | None = None
    document: str = ""
    filtered: bool = False
    sorted: bool = False

    def address(self, name: str) -> str:
        """Return the path of one of them."""
        from control_plane.cli.client import name as segment

        return self.one(name) if self.one else f"{self.path}/{segment(name)}"


def _progress(rollout: dict[str, Any]) -> str:
    waves = rollout["waves"]
    done = sum(wave["counts"].get("SUCCEEDED", 0) for wave in waves)
    return f"{done}/{sum(wave['total'] for wave in waves)}"


def _wave(rollout: dict[str, Any]) -> str:
    waves = rollout["waves"]
    at = rollout["wave"]
    return f"{waves[at]['name']} ({at + 1}/{len(waves)})" if at < len(waves) else "-"


def _worst(bench: dict[str, Any]) -> str:
    metrics = bench["metrics"]
    worst = [metric for metric in metrics if metric["verdict"] != "pass"] or metrics
    return ", ".join(_metric(metric) for metric in worst)


def _metric(metric: dict[str, Any]) -> str:
    if metric["ratio"] is None:
        return f"{metric['name']} {metric['candidate']:.4g} {metric['unit']}".rstrip()
    return (
        f"{metric['name']} x{metric['ratio']:.2f} [{metric['ci_low']:.2f}, {metric['ci_high']:.2f}]"
    )


def versions_path(model: str) -> str:
    """Return where a model's versions are listed."""
    from control_plane.cli.client import name as segment

    return f"/api/v1/models/{segment(model)}/versions"


KINDS: dict[str, Kind] = {
    "devices": Kind(
        "/api/v1/devices",
        [
            ("DEVICE", "id"),
            ("BLUEPRINT", "blueprint"),
            ("MODEL", "model"),
            ("VERSION", "version"),
            ("ONLINE", "online"),
            ("HEALTHY", "healthy"),
            ("STATE", "state"),
            ("EXECUTION", "execution_state"),
        ],
        [
            ("RECIPE", "recipe"),
            ("GENERATION", lambda d: f"{d['generation']}/{d['desired_generation']}"),
            ("AGENT", "agent_version"),
            ("LAST SEEN", "last_seen_at"),
            ("LABELS", "labels"),
        ],
        filtered=True,
        sorted=True,
    ),
    "models": Kind(
        "/api/v1/models",
        [
            ("MODEL", "model"),
            ("VERSIONS", "versions"),
            ("LATEST", "latest"),
            ("INVALID", "invalid"),
        ],
        one=versions_path,
    ),
    "blueprints": Kind(
        "/api/v1/blueprints",
        [
            ("BLUEPRINT", "name"),
            ("REVISION", "revision"),
            ("ARCH", "spec.match.arch"),
            ("RECIPES", "spec.recipes"),
        ],
        [("DIGEST", "digest"), ("UPDATED", "updated_at")],
        document="Blueprint",
    ),
    "builds": Kind(
        "/api/v1/builds",
        [
            ("BUILD", "id"),
            ("MODEL", "model"),
            ("VERSION", "version"),
            ("BLUEPRINT", "blueprint"),
            ("STATE", "state"),
            ("RECIPE", "recipe"),
            ("ERROR", "error"),
        ],
        [("DIGEST", "digest"), ("CREATED", "created_at"), ("FINISHED", "finished_at")],
    ),
    "artifacts": Kind(
        "/api/v1/artifacts",
        [
            ("ARTIFACT", "id"),
            ("MODEL", "model"),
            ("VERSION", "version"),
            ("BLUEPRINT", "blueprint"),
            ("RECIPE", "recipe"),
            ("SIZE", lambda a: size(a["bytes"])),
            ("ACCEPTED", "accepted"),
            ("WHY", "why"),
        ],
        [("SOURCE", lambda a: size(a["source_bytes"])), ("QUALITY", "quality")],
    ),
    "rollouts": Kind(
        "/api/v1/rollouts",
        [
            ("ROLLOUT", "name"),
            ("MODEL", "model"),
            ("VERSION", "version"),
            ("STATE", "state"),
            ("WAVE", _wave),
            ("DONE", _progress),
            ("WHY", "state_reason"),
        ],
        [("REVISION", "revision"), ("CREATED BY", "created_by"), ("STARTED", "started_at")],
        document="Rollout",
        filtered=True,
    ),
    "benchmarks": Kind(
        "/api/v1/benchmarks",
        [
            ("DEVICE", "device"),
            ("ROLLOUT", "rollout"),
            ("CANDIDATE", "candidate"),
            ("INCUMBENT", "incumbent"),
            ("VERDICT", "verdict"),
            ("BECAUSE", _worst),
        ],
        [("BLUEPRINT", "blueprint"), ("AT", "at")],
    ),
    "audit": Kind(
        "/api/v1/audit",
        [
            ("AT", "at"),
            ("ACTOR", "actor"),
            ("ACTION", "action"),
            ("OBJECT", lambda e: f"{e['object_kind']}/{e['object_name']}"),
            ("REASON", "reason"),
        ],
        filtered=True,
    ),
}
VERSIONS = Kind(
    "/api/v1/models",
    [
        ("VERSION", "version"),
        ("MODEL", "model"),
        ("RELEASE", "release"),
        ("SIZE", lambda v: size(v["source_bytes"])),
        ("PARENT", "parent"),
        ("CREATED", "created_at"),
        ("INVALID BECAUSE", "invalid_reason"),
    ],
    [("DIGEST", "source_digest"), ("CREATED BY", "created_by")],
)


def add_to(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command("get")(get)


def get(
    kind: Annotated[str, typer.Argument(help=f"One of: {', '.join(KINDS)}.")],
    name: Annotated[str, typer.Argument(help="One of them; without it, all.")] = "",
    output: Output = Form.TABLE,
    *,
    filter: FilterBy = "",  # noqa: A002 - the option's name
    sort: SortBy = "",
    limit: Most = 0,
) -> None:
    """Show things of a kind; `-o yaml` of a blueprint or rollout can be applied again."""
    found = kind_of(kind)
    if name:
        show_one(found, name, output)
    else:
        list_all(found, output, filter_by=filter, sort=sort, limit=limit)


def kind_of(word: str) -> Kind:
    """Return the kind that a word, singular or plural, names."""
    found = KINDS.get(word) or KINDS.get(f"{word}s")
    if found is None:
        raise CliError(f"unknown kind {word!r}: one of {', '.join(KINDS)}", Exit.USAGE)
    return found


def list_all(
    kind: Kind,
    output: Form,
    *,
    filter_by: str = "",
    sort: str = "",
    limit: int = 0,
    path: str = "",
    **query: str,
) -> None:
    """Print every page of a listing."""
    from control_plane.cli.client import Client

    if filter_by and not kind.filtered:
        raise CliError("--filter works for devices, rollouts and audit", Exit.USAGE)
    if sort and not kind.sorted:
        raise CliError("--sort works for devices", Exit.USAGE)
    asked = {"filter": filter_by, "sort": sort, **query}
    with Client() as client:
        items = list(client.pages(path or kind.path, most=limit, **asked))
    show([_written(kind, item, output) for item in items], output, kind.columns, kind.wide)


def show_one(kind: Kind, name: str, output: Form) -> None:
    """Print one thing."""
    from control_plane.cli.client import Client

    if kind is KINDS["models"]:
        list_all(VERSIONS, output, path=kind.address(name))
        return
    if kind.path in ("/api/v1/artifacts", "/api/v1/benchmarks", "/api/v1/audit"):
        raise CliError("this kind is only listed: leave out the name", Exit.USAGE)
    with Client() as client:
        item = client.get(kind.address(name))
    show(_written(kind, item, output), output, kind.columns, kind.wide)


def _written(kind: Kind, item: dict[str, Any], output: Form) -> dict[str, Any]:
    """Return the thing as its document where YAML is asked for: it can be applied again."""
    if output is not Form.YAML or not kind.document:
        return item
    return {
        "apiVersion": "flotilla/v1",
        "kind": kind.document,
        "metadata": {"name": item["name"]},
        "spec": item["spec"],
    }
