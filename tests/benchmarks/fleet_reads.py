"""What a page of the device list and the fleet in numbers cost the server, of 1,000,000 devices.

CPU of the API process and of every process of its database, from /proc. The pages are asked over
HTTP, one after the other as a person or a script goes through them; `page_ms` is the median over
the questions of ASKED, `page_worst_ms` the dearest of them.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import httpx

from control_plane.bootstrap import Application
from control_plane.config import Settings
from control_plane.services import tokens
from control_plane.store.database import Database
from control_plane.store.rollups import drift
from tests.benchmarks.million import connect, fleet
from tests.benchmarks.row import Row, row
from tests.support import services

PAGE = 50
PAGES = 20
SUMMARIES = 100
# What people ask a fleet: (filter, order).
ASKED = (
    ("", "name"),
    ("", "-last_seen"),
    ("", "version"),
    ("", "blueprint"),
    ("", "health"),
    ('labels.site = "site-0017"', "-last_seen"),
    ('labels.site in ("site-0017", "site-0018") and online = true', "name"),
    ('version = "1.5.0" and online = true', "blueprint"),
    ('version != "1.4.0" and labels.ring = "ring-3"', "-last_seen"),
    ('health != "healthy" and blueprint = "bp-3"', "health"),
    ('health != "healthy"', "-last_seen"),
    ('last_seen < ago("7d")', "name"),
    ('hardware.memory_mb >= 8192 and blueprint = "bp-4"', "-last_seen"),
)
_TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")


def rows() -> list[Row]:
    with fleet() as server, _api(server) as (client, api):
        pages = [_page_ms(client, api, server, *asked) for asked in ASKED]
        for (filter_by, sort), ms in zip(ASKED, pages, strict=True):
            print(f"  {ms:6.1f} ms a page: {filter_by or 'all'} by {sort}", file=sys.stderr)
        summary = _cpu_ms(lambda: _summary(client), SUMMARIES, [api], server)
        database = Database(server.url("fleet"))
        with database.reading() as tx:
            recount = _cpu_ms(lambda: _check(drift(tx)), 1, [], server)
        database.close()
        return [
            row("page_ms", median(pages), "ms CPU", "<= 20", _bare_page_ms(server)),
            row("page_worst_ms", max(pages), "ms CPU"),
            row("summary_ms", summary, "ms CPU", "<= 20", recount),
        ]


@contextmanager
def _api(server: services.PostgreSQL) -> Iterator[tuple[httpx.Client, int]]:
    """Run the API as an operator does; yields a client and the process's id."""
    with tempfile.TemporaryDirectory() as folder:
        data, port = Path(folder), services.free_port()
        application = Application(Settings(data=data, database_url=server.url("fleet")))
        with application.scope("bench") as scope:
            token = tokens.create_api_token(scope, name="bench")
        _ = application.keyring
        application.close()
        settings = {
            "FLOTILLA_DATA": folder,
            "FLOTILLA_DATABASE_URL": server.url("fleet"),
            "FLOTILLA_API_PORT": str(port),
        }
        command = [sys.executable, "-m", "control_plane.cli.main", "server", "api"]
        child = subprocess.Popen(command, env={**os.environ, **settings})
        headers = {"Authorization": f"Bearer {token}"}
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers) as client:
                while not services.answers(port):
                    assert child.poll() is None, "the API ended at once"
                    time.sleep(0.05)  # it does not tell when it listens
                yield client, child.pid
        finally:
            child.terminate()
            child.wait()


def _page_ms(
    client: httpx.Client, api: int, server: services.PostgreSQL, filter_by: str, sort: str
) -> float:
    """Return the CPU of one page: through the list from its beginning, as far as it goes."""
    cursor = ""

    def ask() -> None:
        nonlocal cursor
        query: dict[str, str | int] = {
            "filter": filter_by,
            "sort": sort,
            "limit": PAGE,
            "cursor": cursor,
        }
        page = client.get("/api/v1/devices", params=query, timeout=60).raise_for_status().json()
        assert len(page["items"]) == PAGE or not page["next"]
        cursor = page["next"]

    ask()  # the first of its kind makes the statements
    return _cpu_ms(ask, PAGES, [api], server)


def _summary(client: httpx.Client) -> None:
    client.get("/api/v1/devices:summary").raise_for_status()


def _bare_page_ms(server: services.PostgreSQL) -> float:
    """Return the CPU of a page by primary key without anything of ours around it."""
    with connect(server) as raw:
        last = ""

        def ask() -> None:
            nonlocal last
            page = "SELECT * FROM device WHERE id > %s ORDER BY id LIMIT %s"
            last = raw.execute(page, (last, PAGE)).fetchall()[-1][0]

        ask()
        return _cpu_ms(ask, 50 * PAGES, [os.getpid()], server)


def _check(wrong: object) -> None:
    assert not wrong, wrong


def _cpu_ms(
    act: Callable[[], object], times: int, pids: list[int], server: services.PostgreSQL
) -> float:
    """Return the CPU of one act in milliseconds, over the processes and the whole database."""
    before = sum(map(used_ms, pids)) + database_ms(server)
    for _ in range(times):
        act()
    return (sum(map(used_ms, pids)) + database_ms(server) - before) / times


def database_ms(server: services.PostgreSQL) -> float:
    """Return what the database has used, with backends and workers that have ended."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    return used_ms(server.pid, ended=True) + sum(used_ms(int(child)) for child in children)


def used_ms(pid: int, *, ended: bool = False) -> float:
    """Return user and system time of a process (proc(5), fields 14 to 17 of stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11 : 15 if ended else 13]) * _TICK_MS
