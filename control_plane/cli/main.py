"""The flotilla command: every command in one tree; errors become sentences and exit codes."""

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from control_plane.cli import (
    audit,
    build,
    bundle,
    device,
    documents,
    get,
    local,
    model,
    rollout,
    server,
    simulate_fleet,
    webhook,
)
from control_plane.cli.exits import CliError, Exit
from control_plane.cli.output import say
from control_plane.domain.errors import FlotillaError

_CODES = {"invalid": Exit.USAGE, "not-found": Exit.NOT_FOUND, "conflict": Exit.CONFLICT}


class _Group(TyperGroup):
    """Turns errors of commands into messages and exit codes, also under a test runner."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CliError as error:
            say(f"flotilla: {error.message}")
            if error.hint:
                say(f"hint: {error.hint}")
            raise typer.Exit(error.code) from error
        except FlotillaError as error:
            # Found here, before anything was sent: a document, a setting, a start that failed.
            where = f"{error.field}: " if error.field and error.field not in error.message else ""
            say(f"flotilla: {where}{error.message}")
            raise typer.Exit(_CODES.get(error.code, Exit.FAILED)) from error
        except KeyboardInterrupt as error:
            raise typer.Exit(Exit.INTERRUPTED) from error
        except BrokenPipeError as error:
            # The reader of a pipe has seen enough; nothing is left to flush.
            sys.stdout = None
            raise typer.Exit(Exit.OK) from error


app = typer.Typer(
    cls=_Group,
    name="flotilla",
    help="Ship small language models to a fleet of edge devices, and take them back.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
local.add_to(app)
simulate_fleet.add_to(app)
documents.add_to(app)
get.add_to(app)
app.add_typer(model.app, name="model")
app.add_typer(build.app, name="build")
app.add_typer(device.app, name="device")
app.add_typer(rollout.app, name="rollout")
app.add_typer(bundle.app, name="bundle")
app.add_typer(audit.app, name="audit")
app.add_typer(webhook.app, name="webhook")
app.add_typer(server.app, name="server")
app.add_typer(local.database, name="db")


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
