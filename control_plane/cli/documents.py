"""apply, plan and diff: documents in files against what the control plane has."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from control_plane.cli.exits import CliError, Exit
from control_plane.cli.options import Output
from control_plane.cli.output import Column, Form, say, show, size, table

if TYPE_CHECKING:
    from control_plane.cli.client import Client
    from control_plane.services.documents import Document

Files = Annotated[
    list[str], typer.Option("-f", "--file", help="A YAML file, a folder of them, or - for stdin.")
]
PATHS = {"Blueprint": "/api/v1/blueprints", "Rollout": "/api/v1/rollouts"}

MOST_MISFITS = 20


def add_to(app: typer.Typer) -> None:
    """Add the commands to the tree."""
    app.command()(apply)
    app.command()(plan)
    app.command()(diff)


def apply(
    file: Files,
    start: Annotated[bool, typer.Option("--start", help="Start the rollouts at once.")] = False,
) -> None:
    """Make the control plane hold these documents; nothing is sent before all are checked."""
    from control_plane.cli.client import Client

    documents = read(file)
    with Client() as client:
        for document in documents:
            print(f"{document.kind} {document.name}: {_apply(client, document)}")
            if start and document.kind == "Rollout":
                begun = client.post(f"{_path(document)}:start")
                print(f"Rollout {document.name}: {begun['state']}")


def plan(file: Files, output: Output = Form.TABLE) -> None:
    """Say what rollouts would do, device by device; nothing is stored."""
    from control_plane.cli.client import Client

    wanted = [document for document in read(file) if document.kind == "Rollout"]
    if not wanted:
        raise CliError("no Rollout in these files: there is nothing to plan", Exit.USAGE)
    with Client() as client:
        plans = [client.post("/api/v1/rollouts:plan", document.body) for document in wanted]
    if output in (Form.JSON, Form.YAML):
        show(plans[0] if len(plans) == 1 else plans, output, [])
        return
    for found in plans:
        _print_plan(found)


def diff(file: Files) -> None:
    """Show what apply would change; exit code 0: nothing, 1: something."""
    from control_plane.cli.client import Client

    different = False
    with Client() as client:
        for document in read(file):
            lines = _difference(client, document)
            different = different or bool(lines)
            print("\n".join(lines), end="\n" if lines else "")
    if different:
        raise typer.Exit(Exit.FAILED)


def read(files: list[str]) -> "list[Document]":
    """Read and check every document, in the order in which to apply them."""
    from control_plane.services import documents

    found = [document for name, text in _texts(files) for document in documents.parse(text, name)]
    if not found:
        raise CliError("no documents in these files", Exit.USAGE)
    return sorted(found, key=lambda document: documents.KINDS.index(document.kind))


def text_of(name: str) -> str:
    """Return the text of one file, or of standard input for `-`."""
    found = _texts([name])
    if len(found) != 1:
        raise CliError(f"{name}: one file, not a folder", Exit.USAGE)
    return found[0][1]


def _texts(files: list[str]) -> list[tuple[str, str]]:
    texts: list[tuple[str, str]] = []
    for name in files:
        path = Path(name)
        try:
            if name == "-":
                texts.append(("stdin", sys.stdin.read()))
            elif path.is_dir():
                inside = sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
                if not inside:
                    raise CliError(f"{name}: no .yaml file in this folder", Exit.USAGE)
                texts += [(str(one), one.read_text(encoding="utf-8")) for one in inside]
            else:
                texts.append((name, path.read_text(encoding="utf-8")))
        except OSError as error:
            raise CliError(f"{name}: {error.strerror}", Exit.USAGE) from error
        except UnicodeDecodeError as error:
            raise CliError(f"{name}: not UTF-8 text: {error.reason}", Exit.USAGE) from error
    return texts


def _path(document: "Document") -> str:
    return f"{PATHS[document.kind]}/{document.name}"


def _apply(client: "Client", document: "Document") -> str:
    before = client.find(_path(document))
    after = client.put(_path(document), document.body)
    if before is None:
        return "created"
    return "unchanged" if before["revision"] == after["revision"] else "changed"


def _difference(client: "Client", document: "Document") -> list[str]:
    import difflib

    import yaml

    from control_plane.services import documents

    found = client.find(_path(document))
    title = f"{document.kind} {document.name}"
    before = yaml.safe_dump(found["spec"]) if found else ""
    after = yaml.safe_dump(documents.full_spec(document))
    return list(
        difflib.unified_diff(
            before.splitlines(),
            after.splitlines(),
            f"{title} (now)",
            f"{title} (file)",
            lineterm="",
        )
    )


def _print_plan(found: dict[str, Any]) -> None:
    print(
        f"Rollout {found['name']}: {found['model']} {found['version']} to {found['total']} "
        f"devices, {size(found['bytes'])} to send"
    )
    waves = [{**wave, "size": size(wave["bytes"])} for wave in found["waves"]]
    columns: list[Column] = [
        ("WAVE", "name"),
        ("DEVICES", "total"),
        ("BLUEPRINTS", "by_blueprint"),
        ("BYTES", "size"),
        ("SITES", "sites"),
        ("WHO", lambda wave: _first(wave["devices"], wave["total"])),
    ]
    print(table(waves, columns), end="")
    for blueprint, digest in found["bundles"].items():
        if not digest:
            say(f"note: {blueprint} has no build yet; starting the rollout requests it")
    for misfit in found["misfits"][:MOST_MISFITS]:
        say(
            f"left out: {misfit['device']} ({misfit['blueprint'] or 'no blueprint'}): "
            f"{misfit['reason']}"
        )
    if found["misfit_count"] > MOST_MISFITS:
        for reason, n in found["misfit_reasons"].items():
            say(f"left out in all: {n} devices: {reason}")


def _first(devices: list[str], total: int, most: int = 6) -> str:
    rest = total - most
    return ", ".join(devices[:most]) + (f" and {rest} more" if rest > 0 else "")
