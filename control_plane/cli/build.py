"""build: what workers made of model versions, recipe by recipe."""

from typing import Annotated

import typer

from control_plane.cli.get import KINDS, list_all
from control_plane.cli.options import Most, Output
from control_plane.cli.output import Form
from control_plane.cli.output import show as print_it

app = typer.Typer(help="Builds of model versions.", no_args_is_help=True)


@app.command("list")
def list_(
    output: Output = Form.TABLE,
    model: Annotated[str, typer.Option(help="Only of this model.")] = "",
    version: Annotated[str, typer.Option(help="Only of this version.")] = "",
    limit: Most = 0,
) -> None:
    """List builds, newest first."""
    list_all(KINDS["builds"], output, limit=limit, model=model, version=version)


@app.command()
def show(
    build: Annotated[str, typer.Argument(help="The build's id.")], output: Output = Form.TABLE
) -> None:
    """Show a build, and every recipe that it tried."""
    from control_plane.cli.client import Client

    builds, artifacts = KINDS["builds"], KINDS["artifacts"]
    with Client() as client:
        found = client.get(builds.address(build))
        tried = [
            artifact
            for artifact in client.pages(
                artifacts.path,
                model=found["model"],
                version=found["version"],
                blueprint=found["blueprint"],
            )
            if artifact["id"].startswith(build)
        ]
    if output in (Form.JSON, Form.YAML):
        print_it({**found, "artifacts": tried}, output, [])
        return
    print_it(found, output, builds.columns, builds.wide)
    print()
    print_it(tried, output, artifacts.columns, artifacts.wide)
