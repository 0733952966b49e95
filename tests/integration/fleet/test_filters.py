"""A selector means the same in memory, in SQLite and in PostgreSQL."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert, select

from control_plane.domain.device import (
    ACTIVE,
    HEALTH,
    QUARANTINED,
    DeviceFacts,
    DeviceId,
    HardwareValue,
)
from control_plane.domain.selector import (
    And,
    Compare,
    Not,
    Operator,
    Or,
    Selector,
    matches,
    parse,
)
from control_plane.store import schema
from control_plane.store.database import Database
from control_plane.store.filters import device_clause, resolved

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
WORDS = ["vie", "VIE", "fra", "a*b", "a?b", "a%b", "a_b", "[x]", "axb", 'q"q', "b\\s", "", "é"]
DIGESTS = {"d1": "1.0.0", "d2": "1.1.0"}

words = st.sampled_from(WORDS)
patterns = st.one_of(words, st.sampled_from(["*", "a*", "?x?", "*b", "v?e", "V*", "[*", "%", "_"]))
numbers = st.sampled_from([0.0, 1.0, 2.0, 1024.0, 4096.0])
ages = st.sampled_from([timedelta(0), timedelta(hours=1), timedelta(days=7)])
orders = st.sampled_from([Operator.LESS, Operator.AT_MOST, Operator.MORE, Operator.AT_LEAST])
TEXTS = ["id", "state", "blueprint", "labels.site", "labels.rack", "version", "model", "digest"]
TEXTS += ["hardware.arch", "hardware.cpu", "agent_version", "last_known_good"]
NUMBERS = ["generation", "hardware.memory_mb", "hardware.cores"]
PRESENT = [*TEXTS, *NUMBERS, "last_seen", "online", "health", "hardware.flags"]


def _compares() -> st.SearchStrategy[Selector]:
    text_fields = st.sampled_from(TEXTS)
    number_fields = st.sampled_from(NUMBERS)
    number_signs = st.one_of(orders, st.just(Operator.EQUAL))
    return st.one_of(
        st.builds(Compare, text_fields, st.just(Operator.EQUAL), words),
        st.builds(Compare, text_fields, st.just(Operator.GLOB), patterns),
        st.builds(Compare, number_fields, number_signs, numbers),
        st.builds(Compare, st.just("last_seen"), orders, ages),
        st.builds(
            Compare, st.sampled_from(["online", "healthy"]), st.just(Operator.EQUAL), st.booleans()
        ),
        st.builds(
            Compare, st.just("health"), st.just(Operator.EQUAL), st.sampled_from([*HEALTH, "well"])
        ),
        st.builds(
            Compare, st.just("health"), st.just(Operator.GLOB), st.sampled_from(["*healthy", "o*"])
        ),
        st.builds(Compare, st.sampled_from(PRESENT), st.just(Operator.EXISTS), st.just(value=True)),
        st.builds(Compare, st.just("hardware.flags"), st.just(Operator.EQUAL), words),
    )


def _joined(parts: st.SearchStrategy[Selector]) -> st.SearchStrategy[Selector]:
    several = st.lists(parts, min_size=1, max_size=3).map(tuple)
    return st.one_of(st.builds(Not, parts), st.builds(And, several), st.builds(Or, several))


selectors = st.recursive(_compares(), _joined, max_leaves=6)


def _hardware() -> st.SearchStrategy[dict[str, Any]]:
    known: dict[str, Any] = {
        "arch": words,
        "cpu": words,
        "memory_mb": st.sampled_from([0, 1024, 4096]),
        "cores": st.sampled_from([1, 2]),
        "flags": st.lists(words, max_size=3),
    }
    return st.fixed_dictionaries({}, optional=known)


@st.composite
def devices(draw: st.DrawFn) -> DeviceFacts:
    digest = draw(st.sampled_from(["", *DIGESTS]))
    return DeviceFacts(
        id=DeviceId(draw(words.filter(bool))),
        state=draw(st.sampled_from([ACTIVE, QUARANTINED])),
        blueprint=draw(st.none() | words),
        agent_version=draw(words),
        labels=draw(st.dictionaries(st.sampled_from(["site", "rack"]), words)),
        hardware=draw(_hardware()),
        online=draw(st.booleans()),
        healthy=draw(st.booleans()),
        last_seen=draw(st.none() | ages.map(lambda age: NOW - age)),
        enrolled=NOW,
        generation=draw(st.integers(0, 2)),
        digest=digest,
        model="a*b" if digest else None,
        version=DIGESTS.get(digest),
    )


def _rows(facts: DeviceFacts) -> dict[str, Any]:
    return {
        "id": facts.id,
        "state": facts.state,
        "blueprint": facts.blueprint,
        "hardware": dict(facts.hardware),
        "secret_sha256": facts.id,
        "certificate_serial": "1",
        "enrolled_at": NOW,
        "agent_version": facts.agent_version,
        "online": facts.online,
        "healthy": facts.healthy,
        "last_seen_at": facts.last_seen,
        "generation": facts.generation,
        "digest": facts.digest,
    }


@pytest.fixture
def bundles(database: Database) -> Database:
    common: dict[str, Any] = {"model": "a*b", "blueprint": "b", "recipe": "r", "created_at": NOW}
    with database.transaction() as tx:
        tx.execute(
            insert(schema.build).values(
                id="b",
                **{k: common[k] for k in ("model", "blueprint", "created_at")},
                version="1",
                blueprint_digest="",
                state="SUCCEEDED",
                progress={},
            )
        )
        tx.execute(
            insert(schema.artifact).values(
                id="a",
                build_id="b",
                **common,
                version="1",
                bytes=1,
                source_bytes=1,
                quality={},
                measured={},
                accepted=True,
                why="",
            )
        )
        for release, (digest, version) in enumerate(DIGESTS.items()):
            tx.execute(
                insert(schema.bundle).values(
                    digest=digest,
                    artifact_id="a",
                    version=version,
                    release=release,
                    size=1,
                    envelope=b"",
                    **common,
                )
            )
    return database


@settings(
    max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(st.lists(devices(), max_size=5, unique_by=lambda facts: facts.id), selectors)
def test_sql_and_memory_select_the_same_devices(
    bundles: Database, fleet: list[DeviceFacts], selector: Selector
) -> None:
    with bundles.transaction() as tx:
        tx.execute(delete(schema.device))
        for facts in fleet:
            tx.execute(insert(schema.device).values(**_rows(facts)))
            for key, value in facts.labels.items():
                tx.execute(
                    insert(schema.device_label).values(device_id=facts.id, key=key, value=value)
                )
        for asked in (selector, resolved(tx, selector)):
            clause = device_clause(asked, NOW)
            found = set(tx.scalars(select(schema.device.c.id).where(clause)))
            assert found == {facts.id for facts in fleet if matches(selector, facts, now=NOW)}


HARDWARE: list[dict[str, HardwareValue]] = [
    {},
    {"arch": "vie", "memory_mb": 4096},
    {"flags": ["vie"], "memory_mb": 0},
]
EVERY = [
    f'{field} {sign} "{value}"'
    for field in ("id", "blueprint", "labels.site", "hardware.arch", "version", "health")
    for sign in ("=", "!=", ":")
    for value in ("vie", "v*", "1.?.0", "healthy")
]
EVERY += [
    f"{field} {sign} {value}"
    for field in ("generation", "hardware.memory_mb")
    for sign in ("=", "!=", "<", "<=", ">", ">=")
    for value in (0, 1, 4096)
]
EVERY += [f'last_seen {sign} ago("{age}")' for sign in ("<", ">=") for age in ("0s", "1h", "7d")]
EVERY += [f"{flag} {sign} true" for flag in ("online", "healthy") for sign in ("=", "!=")]
EVERY += [f"{field} {sign} ({value})" for sign in ("in", "not in") for field, value in (
    ("labels.site", '"vie", "fra"'), ("hardware.memory_mb", "0, 4096"), ("online", "true, false"),
    ("health", '"offline", "quarantined"'), ("hardware.flags", '"vie", "b"'), ("state", '"active"'),
)]  # fmt: skip
EVERY += [f"{field} exists" for field in PRESENT]


def test_every_comparison_of_every_kind_of_field_selects_as_it_does_in_memory(
    bundles: Database,
) -> None:
    made = [
        DeviceFacts(
            DeviceId(f"{'v' if number % 2 else 'w'}{number}"),
            state=QUARANTINED if number % 7 == 0 else ACTIVE,
            blueprint=[None, "vie", "vnni"][number % 3],
            labels=[{}, {"site": "vie"}, {"site": "VIE"}, {"site": "fra"}][number % 4],
            hardware=HARDWARE[number % 3],
            online=number % 2 > 0,
            healthy=number % 3 > 0,
            last_seen=[None, NOW, NOW - timedelta(days=8)][number % 3],
            enrolled=NOW,
            generation=number % 2,
            digest=["", "d1", "d2", "unknown"][number % 4],
            model=[None, "a*b", "a*b", None][number % 4],
            version=[None, "1.0.0", "1.1.0", None][number % 4],
        )
        for number in range(24)
    ]
    with bundles.transaction() as tx:
        for facts in made:
            tx.execute(insert(schema.device).values(**_rows(facts)))
            for key, value in facts.labels.items():
                tx.execute(
                    insert(schema.device_label).values(device_id=facts.id, key=key, value=value)
                )
        for text in EVERY:
            for written in (text, f"not {text}", f'({text}) or id = "v1"'):
                selector = parse(written)
                clause = device_clause(resolved(tx, selector), NOW)
                found = set(tx.scalars(select(schema.device.c.id).where(clause)))
                assert found == {one.id for one in made if matches(selector, one, now=NOW)}, written


def test_the_example_of_the_manual_selects_by_labels_version_and_memory(bundles: Database) -> None:
    selector = parse(
        'blueprint = "x" and labels.site in ("vie","fra") and version != "1.1.0" '
        "and online = true and hardware.memory_mb >= 4096"
    )
    right = DeviceFacts(
        DeviceId("right"), blueprint="x", labels={"site": "vie"}, online=True,
        hardware={"memory_mb": 4096}, digest="d1", model="a*b", version="1.0.0",
    )  # fmt: skip
    with bundles.transaction() as tx:
        for name in ("right", "newer"):
            row = _rows(right) | {"id": name, "secret_sha256": name}
            row["digest"] = "d1" if name == "right" else "d2"
            tx.execute(insert(schema.device).values(**row))
            tx.execute(insert(schema.device_label).values(device_id=name, key="site", value="vie"))
        found = list(tx.scalars(select(schema.device.c.id).where(device_clause(selector, NOW))))
    assert found == ["right"]
    assert matches(selector, right, now=NOW)
