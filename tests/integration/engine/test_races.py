"""Ticks, reports and people at the same time: every count is right, and a halt is a halt."""

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import func, select

from agent.protocol.messages import Event
from agent.protocol.words import ExecutionState
from control_plane.domain.device import DeviceId
from control_plane.services import executions
from control_plane.store import schema
from tests.integration.engine.conftest import Fleet

E = ExecutionState
ALL = [{"name": "all", "percent": 100}]
WORKERS = 8


def _together(acts: list[Callable[[], object]]) -> None:
    """Do everything from several threads at once; the first error is raised."""
    with ThreadPoolExecutor(WORKERS) as pool:
        for done in [pool.submit(act) for act in acts]:
            done.result()


def _said(fleet: Fleet, name: str, device: str, state: E, seq: int) -> Callable[[], object]:
    part = fleet.parts(name)[device]
    digest = part.digest if state in {E.SOAKING, E.SUCCEEDED} else ""
    event = Event(
        boot=1, seq=seq, generation=part.generation, execution=part.id, state=state, digest=digest
    )

    def act() -> None:
        with fleet.scope() as scope:
            executions.apply(scope, [(DeviceId(device), event)])

    return act


def test_replayed_and_shuffled_reports_from_many_threads_count_once(fleet: Fleet) -> None:
    fleet.add_devices_more(18)
    name = fleet.start("1.1.0", waves=ALL)
    offered = fleet.in_state(name, E.OFFERED)
    assert len(offered) == 66
    acts = [
        _said(fleet, name, device, state, seq)
        for device in offered
        for seq, state in enumerate((E.DOWNLOADING, E.SOAKING, E.SUCCEEDED))
    ]
    chance = random.Random(7)
    acts += chance.sample(acts, len(acts) // 5)
    chance.shuffle(acts)
    _together(acts)
    assert fleet.view(name).waves[0].counts == {"SUCCEEDED": 66}
    with fleet.scope() as scope:
        moved = select(func.count()).select_from(schema.execution_event)
        ended = scope.tx.execute(moved.where(schema.execution_event.c.after == "SUCCEEDED"))
        assert ended.scalar_one() == 66


def test_no_offer_follows_a_halt_whatever_runs_at_the_same_time(fleet: Fleet) -> None:
    fleet.add_devices_more(18)
    name = fleet.start("1.1.0", waves=ALL, pace={"max_in_flight": 10, "per_minute": 10_000})
    halted = threading.Event()
    late: list[int] = []

    def tick() -> None:
        was_halted = halted.is_set()
        result = fleet.tick()
        if was_halted:
            late.append(result.offered)
        if fleet.view(name).state == "HALTED":
            halted.set()

    for seq in range(4):
        offered = fleet.in_state(name, E.OFFERED)
        acts = [_said(fleet, name, device, E.SUCCEEDED, seq) for device in offered[1:]]
        acts += [tick, tick]
        if seq == 2:
            acts.insert(0, _said(fleet, name, offered[0], E.ROLLED_BACK, seq))
        _together([*acts, tick, tick])
        flying = fleet.in_state(name, *(s for s in E if s in {E.OFFERED, E.SOAKING}))
        assert len(flying) <= 10
    _together([tick, tick])  # the one before may have begun before the halt was known
    assert halted.is_set()
    assert late
    assert sum(late) == 0
    assert fleet.in_state(name, E.OFFERED) == []


def test_two_people_at_once_get_one_revision_each(fleet: Fleet) -> None:
    name = fleet.start("1.1.0")
    revision = fleet.view(name).revision
    refused: list[str] = []

    def pause() -> None:
        try:
            fleet.do("pause", name, revision=revision)
        except Exception as error:  # noqa: BLE001 - which one is asserted below
            refused.append(type(error).__name__)

    _together([pause, pause, pause])
    assert refused == ["ConflictError", "ConflictError"]
    assert fleet.view(name).revision == revision + 1
