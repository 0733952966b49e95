"""up and demo: a whole control plane on this machine; db: its database."""

from pathlib import Path
from typing import Annotated

import typer

from control_plane.cli.output import say
from control_plane.cli.server import settings

database = typer.Typer(help="The database.", no_args_is_help=True)


@database.callback()
def _tree() -> None:
    """What an operator does to the database itself."""


@database.command()
def upgrade() -> None:
    """Bring the database to the newest schema; does nothing when it is there."""
    from control_plane.store import migrate

    found = settings()
    if not found.database_url:
        found.data.mkdir(parents=True, exist_ok=True)
    migrate.upgrade(found.sqlalchemy_url)
    print(f"database at revision {migrate.current(found.sqlalchemy_url)}")


@database.command()
def check(
    repair: Annotated[
        bool, typer.Option("--repair", help="Also make what is wrong right, without a stop.")
    ] = False,
) -> None:
    """Count the fleet from its rows and compare the numbers that pages show; exit code 1: wrong."""
    from control_plane.bootstrap import Application
    from control_plane.services import inventory

    application = Application(settings())
    try:
        with application.rehearsing("check") as scope:
            wrong = inventory.check_counts(scope)
        for name, by in sorted(wrong.items()):
            print(f"{name}: {by:+d} devices by the rows")
        if wrong and repair:
            with application.scope("check") as scope:
                say(f"{inventory.repair_counts(scope)} numbers made right")
        elif wrong:
            say("make them right with `flotilla db check --repair`")
            raise typer.Exit(1)
        else:
            say("every number of the fleet is what its rows say")
    finally:
        application.close()


def add_to(app: typer.Typer) -> None:
    """Add the commands to the tree."""
    app.command()(up)
    app.command()(demo)


def up() -> None:
    """Run a control plane here: broker, API, gateway and worker, until Ctrl-C."""
    from control_plane.local.supervisor import LocalStack
    from control_plane.local.supervisor import up as run
    from control_plane.observability import configure_logging

    def tell(stack: LocalStack) -> None:
        say(f"Flotilla runs at {stack.url}; its data is in {stack.data}. Ctrl-C stops it.")
        if stack.notice:
            say(stack.notice)
        print(f"{stack.url}/login?token={stack.admin_token}", flush=True)

    found = settings()
    configure_logging(found.log_level, json=found.log_json, process="up")
    run(found, on_ready=tell)


def demo(
    once: Annotated[bool, typer.Option("--once", help="Run to the end without questions.")] = False,
    json: Annotated[Path | None, typer.Option("--json", help="Write the facts there.")] = None,
) -> None:
    """Run the whole story: build, roll out, measure, catch a regression, roll back."""
    from control_plane.local.demo import run
    from control_plane.observability import configure_logging

    configure_logging("WARNING", process="demo")
    raise typer.Exit(run(once=once, json_file=json))
