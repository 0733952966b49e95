"""The fleet from the command line: sorted, in numbers, and checked against its rows."""

from pathlib import Path

from sqlalchemy import update

from control_plane.bootstrap import Application
from control_plane.config import Settings
from control_plane.store import schema
from tests.integration.cli.test_server import flotilla
from tests.integration.transport.fleets import enrol_many


def test_wrong_numbers_of_the_fleet_are_found_told_and_put_right(tmp_path: Path) -> None:
    assert flotilla(tmp_path, "db", "upgrade").returncode == 0
    app = Application(Settings(data=tmp_path))
    enrol_many(app, 2)
    assert flotilla(tmp_path, "db", "check").returncode == 0
    with app.scope("test") as scope:
        behind = update(schema.device).where(schema.device.c.id == "edge-001")
        scope.tx.execute(behind.values(blueprint="pi"))
    app.close()
    found = flotilla(tmp_path, "db", "check")
    assert found.returncode == 1
    assert found.stdout.splitlines() == [
        "blueprint=: -1 devices by the rows",
        "blueprint=pi: +1 devices by the rows",
    ]
    assert flotilla(tmp_path, "db", "check", "--repair").returncode == 0
    assert flotilla(tmp_path, "db", "check").returncode == 0
