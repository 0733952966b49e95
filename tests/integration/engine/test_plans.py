"""The plan that the database makes is the plan of the specification, device by device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert, select

from control_plane.domain import selector
from control_plane.domain.device import DeviceFacts, DeviceId
from control_plane.domain.rollout import RolloutSpec, WaveSpec
from control_plane.domain.rollout_plan import BlueprintFit, execution_id, make_plan
from control_plane.services import rollout_document, rollout_planning
from control_plane.services import rollouts as service
from control_plane.store import plan_line, plans, schema
from control_plane.store.database import Database, Transaction
from tests.integration.engine.conftest import Fleet
from tests.support import databases

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.services import PostgreSQL

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
BUILT = {
    "b0": ("d0", BlueprintFit(size=20_000_000)),
    "b1": ("d1", BlueprintFit(size=5_500_000)),
    "b2": ("", BlueprintFit()),
    "b3": ("", BlueprintFit(failed="quality below 0.9")),
}
SITES = ("", "s1", "s2", "s/3", "é")


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def planning(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    """One database of each kind for all examples; each leaves no trace."""
    if request.param == "sqlite":
        template: Path = request.getfixturevalue("sqlite_template")
        opened = Database(databases.sqlite_copy(template, tmp_path_factory.mktemp("plans")))
        yield opened
        opened.close()
        return
    server: PostgreSQL = request.getfixturevalue("postgres")
    name = databases.postgres_clone(server)
    opened = Database(server.url(name))
    yield opened
    opened.close()
    databases.postgres_drop(server, name)


_DEVICES = st.builds(
    lambda state, blueprint, site, free: (state, blueprint, site, free),
    st.sampled_from(["active"] * 8 + ["quarantined", "pending"]),
    st.sampled_from(["b0", "b0", "b1", "b1", "b2", "b3", "gone", None]),
    st.sampled_from(SITES),
    st.sampled_from([None, 0, 5, 6, 20, 21, 500]),
)
_WAVES = st.one_of(
    st.builds(lambda n: WaveSpec("w", count=n), st.integers(1, 30)),
    st.builds(lambda n: WaveSpec("w", percent=n), st.integers(1, 100)),
    st.builds(lambda s: WaveSpec("w", selector=f'labels.site = "{s}"'), st.sampled_from(SITES[1:])),
    st.just(WaveSpec("w", selector='blueprint in ("b0", "b2") and not labels.site = "s1"')),
)


@dataclass(frozen=True)
class Case:
    """A small fleet and a rollout over it."""

    name: str
    fleet: tuple[DeviceFacts, ...]
    waves: tuple[WaveSpec, ...]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    drawn = draw(st.lists(_DEVICES, max_size=60))
    fleet = tuple(
        DeviceFacts(
            DeviceId(f"d-{i:02}"),
            state=state,
            blueprint=blueprint,
            labels={"site": site} if site else {},
            hardware={} if free is None else {"disk_free_mb": free},
        )
        for i, (state, blueprint, site, free) in enumerate(drawn)
    )
    name = draw(st.sampled_from(["r", "support-slm-2.0.0", "x.y"]))
    return Case(name, fleet, tuple(draw(st.lists(_WAVES, min_size=1, max_size=5))))


@settings(max_examples=60)
@given(case=cases())
def test_the_database_plans_as_the_specification_says(planning: Database, case: Case) -> None:
    spec = RolloutSpec(case.name, "m", "2", case.waves)
    fits = {name: fit for name, (_, fit) in BUILT.items()}
    missing = BlueprintFit(failed="no such blueprint")
    expected = make_plan(spec, case.fleet, {**fits, "gone": missing}, NOW)
    with planning.engine.connect() as connection:
        tx = Transaction(connection)
        _enrol(tx, case.fleet)
        _draft(tx, spec.name)
        waves = [selector.parse(one.selector) if one.selector else None for one in case.waves]
        wanted = selector.parse("")
        staged = plan_line.stage(tx, spec.name, wanted, waves, fits=BUILT, now=NOW)
        found = plans.places(tx, staged, spec.waves)
        counted = plans.parts(tx, found)
        named = [plans.first_devices(tx, found, wave, 1000) for wave in range(len(spec.waves))]
        misfits = plans.misfits(tx)
        first = plans.first_misfits(tx, 1000)
        sites = plans.at_sites(tx, found, 3)
        plans.store(tx, NOW, spec.name, found, counted)
        stored = _stored(tx, spec.name)
        plan_line.clear(tx)
        connection.rollback()
    wanted_rows = [
        (p.wave, p.position, p.device, p.blueprint, execution_id(spec.name, p.device))
        for p in expected.places
    ]
    assert stored == wanted_rows
    assert named == [
        [p.device for p in expected.places if p.wave == wave] for wave in range(len(spec.waves))
    ]
    assert (staged.matched, staged.fitting) == (
        len(case.fleet),
        len(case.fleet) - len(expected.misfits),
    )
    assert [one.id for one in first] == [one.device for one in expected.misfits]
    assert sum(one.n for one in misfits) == len(expected.misfits)
    _check_sites(sites, case, stored)


def _enrol(tx: Transaction, fleet: Sequence[DeviceFacts]) -> None:
    tx.execute(delete(schema.device_label))
    tx.execute(delete(schema.device))
    rows = [
        {
            "id": one.id,
            "state": one.state,
            "blueprint": one.blueprint,
            "hardware": dict(one.hardware),
            "secret_sha256": one.id,
            "certificate_serial": "1",
            "enrolled_at": NOW,
        }
        for one in fleet
    ]
    labels = [
        {"device_id": one.id, "key": key, "value": value}
        for one in fleet
        for key, value in one.labels.items()
    ]
    for table, some in ((schema.device, rows), (schema.device_label, labels)):
        if some:
            tx.execute(insert(table), some)


def _draft(tx: Transaction, name: str) -> None:
    values: dict[str, Any] = {"spec": {}, "state": "DRAFT", "machine": {}, "plan": {}}
    values |= {"model": "m", "version": "2", "revision": 1, "created_by": "x", "created_at": NOW}
    tx.execute(insert(schema.rollout).values(name=name, **values))


def _stored(tx: Transaction, name: str) -> list[tuple[Any, ...]]:
    e = schema.execution.c
    query = select(e.wave, e.position, e.device_id, e.blueprint, e.id).where(e.rollout == name)
    return [tuple(row) for row in tx.execute(query.order_by(e.wave, e.position))]


def _check_sites(sites: list[plans.AtSite], case: Case, stored: list[tuple[Any, ...]]) -> None:
    at = {one.id: one.labels.get("site", "") for one in case.fleet}
    for one in sites:
        mine = [row for row in stored if row[0] == one.wave and at[row[2]] == one.site]
        sizes = [BUILT[row[3]][1].size or 0 for row in mine]
        assert (one.n, one.bytes) == (len(mine), sum(sizes))
        assert one.sites == len({at[row[2]] for row in stored if row[0] == one.wave})


def test_a_preview_names_the_first_and_counts_all(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_planning, "MAX_DEVICES", 2)
    monkeypatch.setattr(rollout_planning, "MAX_MISFITS", 1)
    name = fleet.create("1.1.0")
    with fleet.scope() as scope:
        scope.tx.execute(
            schema.device.update()
            .where(schema.device.c.id.in_(["arm64-board-0", "arm64-board-1"]))
            .values(state="quarantined")
        )
        scope.tx.execute(
            insert(schema.device_label),
            [{"device_id": f"x86-64-avx2-{i}", "key": "site", "value": "vie"} for i in range(4)],
        )
    spec = _spec_of(fleet, name)
    with fleet.scope() as scope:
        shown = service.plan(scope, spec)
        again = service.plan(scope, spec)
    assert shown == again
    assert [wave.total for wave in shown.waves] == [3, 2, 5]
    assert [len(wave.devices) for wave in shown.waves] == [2, 2, 2]
    assert [wave.truncated for wave in shown.waves] == [True, False, True]
    assert sum(wave.bytes_by_site["vie"] for wave in shown.waves) == 4_000_000
    assert sum(sum(wave.by_site.values()) for wave in shown.waves) == 10
    assert shown.misfit_reasons == {"is quarantined": 2}
    assert (shown.misfit_count, len(shown.misfits)) == (2, 1)


def test_the_same_rollout_planned_again_is_the_same_down_to_the_ids(fleet: Fleet) -> None:
    name = fleet.create("1.1.0")
    first = {device: part.id for device, part in fleet.parts(name).items()}
    assert first == {device: execution_id(name, device) for device in first}
    spec = _spec_of(fleet, name)
    with fleet.scope() as scope:
        service.replace(scope, name, replace(spec, soak_s=9.0))
    assert {device: part.id for device, part in fleet.parts(name).items()} == first


def test_an_approval_is_of_who_is_in_which_wave(fleet: Fleet) -> None:
    spec = _spec_of(fleet, fleet.create("1.1.0"))
    with fleet.scope() as scope:
        before = rollout_planning.summary(rollout_planning.make(scope, spec))["digest"]
        assert rollout_planning.summary(rollout_planning.make(scope, spec))["digest"] == before
        scope.tx.execute(
            schema.device.update()
            .where(schema.device.c.id == "arm64-board-0")
            .values(blueprint="x86-64-avx2")
        )
        assert rollout_planning.summary(rollout_planning.make(scope, spec))["digest"] != before


def _spec_of(fleet: Fleet, name: str) -> RolloutSpec:
    return rollout_document.spec_of(name, fleet.view(name).spec)
