"""Empty, migrated databases: a template once, then a cheap copy for each test."""

import shutil
import uuid
from pathlib import Path

import psycopg
from psycopg import sql

from control_plane.store import migrate
from tests.support.services import PostgreSQL

TEMPLATE = "flotilla_template"


def create_schema(url: str) -> None:
    """Bring an empty database to the newest schema, as an operator does."""
    migrate.upgrade(url)


def sqlite_template(folder: Path) -> Path:
    """Make the file that tests copy."""
    path = folder / "template.db"
    create_schema(f"sqlite:///{path}")
    return path


def sqlite_copy(template: Path, folder: Path) -> str:
    """Return the URL of a fresh database in `folder`."""
    path = folder / "flotilla.db"
    shutil.copy(template, path)
    return f"sqlite:///{path}"


def postgres_template(server: PostgreSQL) -> None:
    """Make the database that tests clone."""
    _statement(server, sql.SQL("CREATE DATABASE {}").format(sql.Identifier(TEMPLATE)))
    create_schema(server.url(TEMPLATE))


def postgres_clone(server: PostgreSQL) -> str:
    """Make a fresh database and return its name."""
    name = f"test_{uuid.uuid4().hex}"
    _statement(
        server,
        sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
            sql.Identifier(name), sql.Identifier(TEMPLATE)
        ),
    )
    return name


def postgres_drop(server: PostgreSQL, name: str) -> None:
    """Remove a database, with whoever is still connected."""
    _statement(server, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def _statement(server: PostgreSQL, statement: sql.Composed) -> None:
    url = server.url().replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)
