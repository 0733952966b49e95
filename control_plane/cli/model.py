"""model: push a version's files, see what there is."""

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from control_plane.cli.exits import CliError, Exit, UnreachableError
from control_plane.cli.get import KINDS, VERSIONS, list_all
from control_plane.cli.graph_file import check_whole
from control_plane.cli.options import Most, Output
from control_plane.cli.output import Form, say, show, size

if TYPE_CHECKING:
    from control_plane.cli.client import Client

app = typer.Typer(help="Models and their versions.", no_args_is_help=True)

CHUNK = 1 << 20
GRAPH = "model.onnx"
Name = Annotated[str, typer.Argument(help="The model's name.")]


@dataclass(frozen=True)
class LocalFile:
    """A file to push; `path` is relative to the model's folder."""

    path: str
    place: Path
    size: int
    sha256: str


class Progress(Protocol):
    """Hears how far an upload is."""

    def __call__(self, sent: int) -> None: ...


@app.command()
def push(
    *,
    name: Name,
    version: Annotated[str, typer.Argument(help="The new version; a version never changes.")],
    path: Annotated[Path, typer.Argument(help="The folder with model.onnx and the rest.")],
    parent: Annotated[str, typer.Option(help="The version it was made from.")] = "",
    recipe: Annotated[str, typer.Option(help="Build with this recipe only.")] = "",
    waive_quality: Annotated[
        str, typer.Option(help="Why the quality limit is waived on purpose, for this build.")
    ] = "",
    blueprint: Annotated[
        list[str] | None, typer.Option("--blueprint", help="Build for it only; may be repeated.")
    ] = None,
    build: Annotated[bool, typer.Option(help="Ask for builds at once.")] = True,
) -> None:
    """Upload what is missing, register the version, ask for its builds."""
    from control_plane.cli.client import Client
    from control_plane.cli.client import name as segment

    files = collect(path)
    for file in files:
        if file.path == GRAPH:
            check_whole(file.place)
    with Client() as client:
        _upload(client, files)
        body = {
            "version": version,
            "parent": parent,
            "files": [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in files],
        }
        made = client.post(f"/api/v1/models/{segment(name)}/versions", body)
        print(f"{made['model']} {made['version']} {made['source_digest']}")
        if build:
            _request_builds(
                client,
                {
                    "model": name,
                    "version": version,
                    "blueprints": blueprint or [],
                    "recipe": recipe,
                    "waiver": waive_quality,
                },
            )


@app.command()
def versions(name: Name, output: Output = Form.TABLE, limit: Most = 0) -> None:
    """List the versions of a model."""
    list_all(VERSIONS, output, limit=limit, path=KINDS["models"].address(name))


@app.command()
def invalidate(
    name: Name,
    version: Annotated[str, typer.Argument(help="The version; it stays invalid for good.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; whoever is refused will read it.")],
    revert: Annotated[
        bool, typer.Option("--revert", help="Order devices that run it back to what they ran.")
    ] = False,
    output: Output = Form.TABLE,
) -> None:
    """Call a version invalid everywhere: its rollouts end, nothing uses or is served it again."""
    from control_plane.cli.client import Client
    from control_plane.cli.client import name as segment

    path = f"{KINDS['models'].address(name)}/{segment(version)}:invalidate"
    body = {"reason": reason, "devices": "revert" if revert else "keep"}
    with Client() as client:
        done = client.post(path, body)
    if output in (Form.JSON, Form.YAML):
        show(done, output, [])
        return
    print(f"{name} {version}: invalid")
    for one in done["rollouts"]:
        say(f"rollout {one['name']}: {one['state']}")
    say(f"{done['builds']} builds stopped")
    say(
        f"{done['running']} devices run it: {done['returning']} ordered back, {done['moving']} on "
        "their way to another version"
    )
    for device in done["nothing_to_go_back_to"]:
        say(f"{device}: nothing valid to go back to")


def collect(folder: Path) -> list[LocalFile]:
    """Return the files of a model's folder with their digests; hidden ones are left out."""
    if not folder.is_dir():
        raise CliError(f"{folder} is not a folder with model.onnx and the rest", Exit.USAGE)
    found = []
    for place in sorted(folder.rglob("*")):
        relative = place.relative_to(folder)
        if any(part.startswith(".") for part in relative.parts) or place.is_dir():
            continue
        if place.is_symlink() or not place.is_file():
            raise CliError(f"{place}: a link or no plain file; a model is plain files", Exit.USAGE)
        try:
            found.append(_hashed(place, relative.as_posix()))
        except OSError as error:
            raise CliError(f"{place}: {error.strerror}", Exit.USAGE) from error
    if not found:
        raise CliError(f"{folder} is empty", Exit.USAGE)
    return found


def _hashed(place: Path, path: str) -> LocalFile:
    with place.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return LocalFile(path, place, place.stat().st_size, digest)


def _upload(client: "Client", files: list[LocalFile]) -> None:
    missing = {file.sha256: file for file in files if not client.has_blob(file.sha256)}
    known = len(files) - len(missing)
    if known:
        say(f"{known} of {len(files)} files are there already")
    # The largest first: what is over the limit is refused before anything is stored.
    for file in sorted(missing.values(), key=lambda one: one.size, reverse=True):
        try:
            with _progress(file) as progress:
                client.put_blob(file.sha256, file.size, _chunks(file, progress))
        except UnreachableError:
            raise
        except CliError as error:
            raise CliError(f"{file.place}: {error.message}", error.code, hint=error.hint) from error


def _chunks(file: LocalFile, progress: Progress) -> Iterator[bytes]:
    with file.place.open("rb") as source:
        while chunk := source.read(CHUNK):
            yield chunk
            progress(len(chunk))


@contextmanager
def _progress(file: LocalFile) -> Iterator[Progress]:
    if not sys.stderr.isatty():
        say(f"uploading {file.path} ({size(file.size)})")
        yield _unheard
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    with Bar(
        "[progress.description]{task.description}",
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=Console(stderr=True),
    ) as bar:
        task = bar.add_task(file.path, total=file.size)
        yield lambda sent: bar.update(task, advance=sent)


def _unheard(sent: int) -> None:
    """Hear nothing: without a terminal one line a file is enough."""


def _request_builds(client: "Client", body: dict[str, object]) -> None:
    made = client.post("/api/v1/builds", body)["items"]
    if not made:
        say("no builds yet: there is no blueprint; `flotilla apply -f blueprints/` adds some")
    for build in made:
        print(f"build {build['id']} for {build['blueprint']}: {build['state']}")
