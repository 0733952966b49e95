"""What a rollout over 1,000,000 devices costs PostgreSQL: its plan, its preview, its ticks.

Database CPU of every process of a private server, from /proc (schedstat, nanoseconds): other work
on this machine does not count. `plan_ratio` divides a whole plan, from the selector to the stored
executions with their tallies and indexes, by the bare INSERT..SELECT of as many executions, out of
the device table into a table of the same columns that has nothing but its primary key: what must
be written by anybody who writes them, unordered, unspread, for no wave. The two take turns.

A tick is one of a running rollout with 500 devices in flight, of which 10 have answered since the
tick before: it looks at everything and makes 10 offers. `tick_growth` is its cost at the largest
fleet by that at the smallest; the curve is in `tick_ms_N`, idle ticks in `tick_idle_ms`.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median

import psycopg
import yaml
from sqlalchemy import select

from agent.protocol.words import ExecutionState
from control_plane.bootstrap import Application
from control_plane.config import Settings
from control_plane.services import blueprint_document, blueprints, rollout_document
from control_plane.services import rollouts as service
from control_plane.store import executions, schema
from tests.benchmarks.million import connect, fleet
from tests.benchmarks.row import Row, row
from tests.integration.engine.conftest import Fleet
from tests.support import services

SIZES = (1_000, 10_000, 100_000, 1_000_000)
KINDS = tuple(f"bp-{i}" for i in range(1, 13))
ROUNDS = 3
TICKS = 30
IN_FLIGHT = 500
ANSWERS = 10
E = ExecutionState

BARE = """
INSERT INTO bare (id, rollout, device_id, wave, position, blueprint, digest, previous, state,
  reason, generation, revert_generation, reverted, updated_at)
SELECT left(encode(sha256(convert_to('slm-1.1.0/' || id, 'UTF8')), 'hex'), 32), 'slm-1.1.0', id,
  0, 0, blueprint, repeat('0', 64), '', 'QUEUED', '', 0, 0, false, now()
FROM device WHERE state = 'active' AND blueprint IS NOT NULL
"""


def rows() -> list[Row]:
    found: list[Row] = []
    ticks: dict[int, tuple[float, float]] = {}
    for size in SIZES:
        with fleet(size) as server, _on(server) as large:
            if size == SIZES[-1]:
                found += _plans(large, server)
            else:
                _create(large)
            ticks[size] = _ticks(large, server)
            print(f"  {size:9,} devices: {ticks[size][0]:.2f} ms a tick", file=sys.stderr)
    smallest, largest = ticks[SIZES[0]][0], ticks[SIZES[-1]][0]
    found.append(row("tick_ms", largest, "ms CPU", "<= 50"))
    found.append(row("tick_growth", largest / smallest, "x", "<= 1.5", 1.0))
    found += [row(f"tick_ms_{size}", ms, "ms CPU") for size, (ms, _) in ticks.items()]
    found.append(row("tick_idle_ms", ticks[SIZES[-1]][1], "ms CPU"))
    return found


def _plans(large: Fleet, server: services.PostgreSQL) -> list[Row]:
    bare: list[float] = []
    planned: list[float] = []
    walls: list[float] = []
    with connect(server) as raw:
        raw.execute("CREATE TABLE bare (LIKE execution INCLUDING DEFAULTS INCLUDING GENERATED)")
        raw.execute("ALTER TABLE bare ADD PRIMARY KEY (id)")
        preview = _cpu_s(server, lambda: _preview(large))
        for _ in range(ROUNDS):  # the last one's plan stays, for the ticks
            raw.execute("TRUNCATE bare, execution, rollout CASCADE")
            bare.append(_cpu_s(server, lambda: raw.execute(BARE)))
            began = time.monotonic()
            planned.append(_cpu_s(server, lambda: _create(large)))
            walls.append(time.monotonic() - began)
            _check_counts(raw)
        raw.execute("DROP TABLE bare")
    ratio = median(plan / copy for plan, copy in zip(planned, bare, strict=True))
    return [
        row("plan_ratio", ratio, "x", "<= 3", 1.0),
        row("plan_s", median(planned), "s CPU", "", median(bare)),
        row("plan_wall_s", median(walls), "s"),
        row("plan_preview_s", preview, "s CPU"),
    ]


def _check_counts(raw: psycopg.Connection) -> None:
    counts = raw.execute(
        "SELECT (SELECT count(*) FROM bare), (SELECT count(*) FROM execution),"
        " (SELECT sum(n) FROM tally)"
    ).fetchone()
    assert counts is not None
    assert counts[0] == counts[1] == counts[2], counts


def _create(large: Fleet) -> str:
    pace = {"max_in_flight": IN_FLIGHT, "per_minute": 100_000}
    return large.create("1.1.0", waves=[{"name": "all", "percent": 100}], pace=pace)


def _preview(large: Fleet) -> None:
    waves = [
        {"name": "canary", "count": 12},
        {"name": "a-site", "selector": 'labels.site = "site-0017"'},
        {"name": "a-tenth", "percent": 10},
        {"name": "all", "percent": 100},
    ]
    document = {
        "apiVersion": "flotilla/v1",
        "kind": "Rollout",
        "metadata": {"name": "preview"},
        "spec": {"model": "slm", "version": "1.1.0", "waves": waves},
    }
    with large.scope() as scope:
        service.plan(scope, rollout_document.parse(document))


def _ticks(large: Fleet, server: services.PostgreSQL) -> tuple[float, float]:
    """Return the milliseconds of a tick with ten answers, and of one with none."""
    name = "slm-1.1.0"
    large.do("start", name)
    large.tick()
    spent = 0.0
    for _ in range(TICKS):
        large.later(1)
        _answer(large, name)
        spent += _cpu_s(server, large.tick)
    idle = 0.0
    for _ in range(TICKS):
        large.later(1)
        idle += _cpu_s(server, large.tick)
    return 1000 * spent / TICKS, 1000 * idle / TICKS


def _answer(large: Fleet, name: str) -> None:
    offered = (
        select(schema.execution.c.id)
        .where(schema.execution.c.rollout == name, schema.execution.c.state == E.OFFERED.value)
        .limit(ANSWERS)
    )
    with large.scope() as scope:
        ids = list(scope.tx.execute(offered).scalars())
        assert len(ids) == ANSWERS
        executions.move(scope.tx, scope.now, executions.among(ids), [E.OFFERED], E.SUCCEEDED)


@contextmanager
def _on(server: services.PostgreSQL) -> Iterator[Fleet]:
    """Open the fleet's application, with a bundle for every blueprint."""
    with tempfile.TemporaryDirectory() as folder:
        app = Application(Settings(data=Path(folder), database_url=server.url("fleet")))
        large = Fleet(app)
        build_all(large)
        yield large
        app.close()


def build_all(large: Fleet) -> None:
    """Let a version have a bundle for each blueprint of the fleet."""
    document = yaml.safe_load(Path("blueprints/x86-64-vnni.yaml").read_text(encoding="utf-8"))
    with large.scope() as scope:
        for name in KINDS:
            named = {**document, "metadata": {"name": name}}
            blueprints.apply(scope, blueprint_document.parse(named))
    large.add_version("1.1.0", built=KINDS)


def _cpu_s(server: services.PostgreSQL, act: Callable[[], object]) -> float:
    """Return the seconds of CPU that every process of the server spends on an act."""
    before = _spent(server)
    act()
    after = _spent(server)
    return sum(ns - before.get(pid, 0) for pid, ns in after.items()) / 1e9


def _spent(server: services.PostgreSQL) -> dict[int, int]:
    listed = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text(encoding="ascii")
    spent: dict[int, int] = {}
    for pid in map(int, listed.split()):
        with suppress(FileNotFoundError, ProcessLookupError):  # one that has just ended
            said = Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii")
            spent[pid] = int(said.split()[0])
    return spent
