"""audit: who changed what, when and why."""

import typer

from control_plane.cli.get import KINDS, list_all
from control_plane.cli.options import FilterBy, Most, Output
from control_plane.cli.output import Form

app = typer.Typer(help="The audit log.", no_args_is_help=True)


@app.callback()
def _tree() -> None:
    """Keep `audit list` a command of its own, with room for more."""


@app.command("list")
def list_(output: Output = Form.TABLE, filter: FilterBy = "", limit: Most = 50) -> None:  # noqa: A002 - the option's name
    """List changes, newest first."""
    list_all(KINDS["audit"], output, filter_by=filter, limit=limit)
