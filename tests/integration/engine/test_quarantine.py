"""A device that is shut out while a rollout has it in hand."""

import threading

from sqlalchemy import delete, select

from agent.protocol.words import Action, ExecutionState
from control_plane.services import inventory
from control_plane.store import schema
from tests.integration.engine.conftest import Fleet

E = ExecutionState
ALL = [{"name": "all", "percent": 100}]


def quarantine(fleet: Fleet, device: str) -> None:
    with fleet.scope() as scope:
        inventory.quarantine(scope, device, reason="stolen")


def test_what_a_quarantined_device_has_in_flight_is_canceled(fleet: Fleet) -> None:
    name = fleet.start("1.1.0", waves=ALL)
    states = (E.OFFERED, E.DOWNLOADING, E.BENCHMARKING, E.SOAKING)
    devices = fleet.in_state(name, E.OFFERED)[: len(states)]
    for device, state in zip(devices, states, strict=True):
        if state is not E.OFFERED:
            fleet.report(name, device, state)
        before = fleet.order(device).generation
        quarantine(fleet, device)
        part, order = fleet.parts(name)[device], fleet.order(device)
        assert (part.state, part.reason) == ("CANCELED", "quarantined")
        assert (order.action, order.generation) == (Action.HOLD, before + 1)
        assert not fleet.report(name, device, E.FAILED)
        assert fleet.parts(name)[device].state == "CANCELED"
    fleet.tick()
    assert fleet.view(name).state == "RUNNING", "it is no failure, and halts nothing"


def test_the_next_wave_waits_for_those_that_are_left_and_the_rollout_ends_well(
    fleet: Fleet,
) -> None:
    waves = [{"name": "half", "percent": 50}, {"name": "all", "percent": 100}]
    name = fleet.start("1.1.0", waves=waves)
    first = fleet.in_state(name, E.OFFERED)
    later = next(d for d, part in fleet.parts(name).items() if part.wave == 1)
    for device in (first[0], later):
        quarantine(fleet, device)
    assert fleet.parts(name)[later].state == "CANCELED"
    fleet.finish(name)
    assert fleet.view(name).state == "SUCCEEDED"
    assert fleet.in_state(name, E.CANCELED) == sorted([first[0], later])


def test_every_rollout_that_has_the_device_lets_it_go(fleet: Fleet) -> None:
    older = fleet.start("1.1.0", waves=[{"name": "none-yet", "count": 1}, *ALL])
    fleet.later(1)
    fleet.add_version("1.2.0")
    newer = fleet.create("1.2.0")
    device = next(d for d, part in fleet.parts(older).items() if part.state == "QUEUED")
    quarantine(fleet, device)
    assert [fleet.parts(name)[device].state for name in (older, newer)] == ["CANCELED"] * 2
    with fleet.scope() as scope:
        inventory.unquarantine(scope, device)
    fleet.tick()
    assert fleet.parts(older)[device].state == "CANCELED", "a terminal state is never left"


def test_a_device_that_is_shut_out_twice_is_held_once(fleet: Fleet) -> None:
    name = fleet.start("1.1.0")
    device, *_ = fleet.in_state(name, E.OFFERED)
    quarantine(fleet, device)
    held = fleet.order(device).generation
    quarantine(fleet, device)
    assert fleet.order(device).generation == held


def test_who_may_take_part_again_is_sent_what_it_missed(fleet: Fleet) -> None:
    name = fleet.start("1.1.0")
    device, *_ = fleet.in_state(name, E.OFFERED)
    quarantine(fleet, device)
    with fleet.scope() as scope:
        scope.tx.execute(delete(schema.outbox))  # published, and lost with the broker's memory
        inventory.unquarantine(scope, device)
        sent = list(scope.tx.execute(select(schema.outbox.c.topic)).scalars())
    assert sent == [f"flotilla/v1/d/{device}/down/desired"]


def test_a_tick_and_a_quarantine_at_once_never_leave_an_offer(fleet: Fleet) -> None:
    """Whichever commits first: the device ends without an open part and without an order to run."""
    name = fleet.create("1.1.0", waves=ALL, pace={"max_in_flight": 3, "per_minute": 10_000})
    fleet.do("start", name)
    devices = sorted(fleet.parts(name))
    for device in devices[:6]:
        begin = threading.Barrier(2)

        def tick(begin: threading.Barrier = begin) -> None:
            begin.wait()
            fleet.tick()

        ticking = threading.Thread(target=tick)
        ticking.start()
        begin.wait()
        quarantine(fleet, device)
        ticking.join()
    for device in devices[:6]:
        assert fleet.parts(name)[device].state == "CANCELED"
    desired = schema.desired
    run = select(desired.c.device_id).where(desired.c.action == Action.RUN.value)
    with fleet.scope() as scope:
        assert not set(scope.tx.execute(run).scalars()) & set(devices[:6])
    fleet.tick()
    assert fleet.in_state(name, E.OFFERED), "the others are offered it as before"
