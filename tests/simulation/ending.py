"""Liveness: once nothing breaks any more, everything comes to its end, or waits for a person."""

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from agent.protocol import envelope, messages, topics
from agent.protocol.messages import Order
from control_plane.services import rollout_codec
from tests.simulation.errors import ViolationError
from tests.simulation.facts import ENDED, IN_FLIGHT
from tests.simulation.people import Act
from tests.simulation.policy import PEOPLE
from tests.simulation.safety import WITHDRAWN

if TYPE_CHECKING:
    from tests.simulation.world import World

QUIET_S = 205.0
"""Longer than any soak: a tick that changes nothing so long after the last change is the last."""
CLOSED_S = 3600.0
"""Longer than any window is closed."""
LONGEST_S = 40 * 3600.0
ROUNDS = 20
CLOSING = {
    "DRAFT": ("abort",),
    "AWAITING_APPROVAL": ("approve", "approve", "approve", "abort", "deny"),
    "PAUSED": ("resume", "resume", "abort", "revert"),
    "HALTED": ("resume", "resume", "abort", "revert"),
    "RUNNING": ("promote", "promote", "abort", "revert"),
    "SCHEDULED": ("abort",),
    "BUILDING": ("abort",),
}


def bring_to_an_end(world: "World") -> None:
    """Let the faults stop; check that all goes well from there."""
    world.chance.calm = True
    world.trace("calm")
    for device in world.devices.values():
        device.disk.dies_in = device.disk.full_in = 0
        device.offline_until = 0.0
    _settle(world)
    _check_quiet(world)
    for _ in range(ROUNDS):
        waiting = [r for r in world.facts.rollouts.values() if r.state not in ENDED]
        if not waiting:
            break
        for rollout in waiting:
            _close(world, rollout.name, rollout.state)
        _settle(world)
        _check_quiet(world)
    else:
        raise ViolationError("liveness: no end", world.facts.rollouts)
    _check_replays(world)
    _check_histories(world)


def _close(world: "World", name: str, state: str) -> None:
    verb = world.chance.pick("closing", CLOSING.get(state, ("abort",)))
    who = world.chance.pick("who", PEOPLE[1:])
    if not world.act(Act(0.0, verb, rollout=name, who=who)):
        world.act(Act(0.0, "abort", rollout=name))


def _settle(world: "World") -> None:
    """Go on until nothing happens any more."""
    give_up = world.agenda.now + LONGEST_S
    world.changed_at = world.agenda.now
    quiet_s = QUIET_S + (CLOSED_S if world.scenario.windows else 0.0)
    looked_for = 0.0
    while True:
        busy = _busy(world)
        ticked_at = max(scheduler.ticked_at for scheduler in world.schedulers)
        if not busy and ticked_at >= world.changed_at + quiet_s:
            return
        if world.agenda.now > give_up:
            raise ViolationError("liveness: never quiet", busy or "changes for ever")
        if not busy and looked_for != world.changed_at:
            looked_for = world.changed_at
            at = looked_for + quiet_s + 1.0 - world.agenda.now
            world.agenda.after(max(0.0, at), world.schedulers[0].poke)
        world.agenda.step()


def _busy(world: "World") -> str:
    """Say what is still under way; empty if nothing is."""
    if world.acts_left:
        return "people have plans"
    if world.broker.on_the_way or any(s.unacknowledged for s in world.broker.sessions.values()):
        return "messages are on the way"
    for device in world.devices.values():
        if device.busy or not device.connected:
            return f"{device.name} is busy or away: {device.runtime and device.runtime.state}"
    if not all(one.alive for one in (*world.gateways, *world.schedulers)):
        return "a process is down"
    for part in world.facts.parts.values():
        if part.state in IN_FLIGHT:
            return f"in flight: {part}"
    for rollout in world.facts.rollouts.values():
        if rollout.state in {"REVERTING", "BUILDING"}:
            return f"{rollout.name} is {rollout.state}"
    return "the outbox is not empty" if world.reader.count("outbox") else ""


def _check_quiet(world: "World") -> None:
    """Check what must hold when nothing is under way."""
    for name, device in world.devices.items():
        wanted = world.facts.wanted.get(name)
        standing = device.record().state.standing
        if wanted is None:
            continue
        if standing.generation != wanted.generation:
            raise ViolationError("liveness: not converged", (name, standing.generation, wanted))
        _check_runs(world, name)
        retained = world.broker.retained.get(topics.desired(topics.DeviceId(name)))
        if retained:
            payload, _ = envelope.open_unverified(retained, envelope.ORDER_TYPE)
            told = messages.decode(payload, Order).generation
            if told != wanted.generation:
                raise ViolationError("an older order is the broker's last", (name, told, wanted))
    for rollout in world.facts.rollouts.values():
        parts = world.facts.of(rollout.name)
        queued = [p for p in parts if p.state == "QUEUED"]
        if rollout.state in ENDED and queued:
            raise ViolationError("liveness: queued for ever", queued)
        if rollout.state == "RUNNING" and rollout.spec.get("dynamic"):
            away = world.reader.joinable(rollout) - {part.device for part in parts}
            if away:
                raise ViolationError("liveness: may join and does not", (rollout.name, away))


def _check_runs(world: "World", name: str) -> None:
    """Check that a device runs what its newest order and its own answer say."""
    device, wanted = world.devices[name], world.facts.wanted[name]
    part = world.facts.parts.get(wanted.execution)
    runs = device.truth.runs
    if part is None:
        return
    good = True
    if wanted.action == "revert":
        # A return that fails on the device is said, and nobody orders it again.
        failed = (part.id, "FAILED") in device.truth.said or part.state in {"FAILED", "REJECTED"}
        good = runs == wanted.digest or failed
    elif wanted.action == "run" and part.state == "SUCCEEDED":
        good = runs == part.digest
    if not good:
        raise ViolationError("liveness: runs another bundle", (name, runs, wanted, part))
    row = world.database.raw.execute(
        "SELECT digest, last_known_good, generation FROM device WHERE id = ?", (name,)
    ).fetchone()
    stolen = any(act.device == name for act in world.scenario.acts)  # its heartbeat will tell
    if row[0] != runs and not stolen:
        raise ViolationError("liveness: the fleet page is wrong", (name, row, runs))


def _check_replays(world: "World") -> None:
    """Check that every decision follows again from what is stored with it."""
    rows = world.database.raw.execute("SELECT id, kind, inputs FROM decision ORDER BY id")
    for key, kind, inputs in rows.fetchall():
        stored = msgspec.json.decode(inputs)
        world.around.counts["decisions"] += 1
        _, decisions = rollout_codec.replay(stored)
        if stored["decision"] is not None and stored["decision"] not in decisions:
            raise ViolationError("7 replay", (key, kind, stored["decision"], decisions))


def _check_histories(world: "World") -> None:
    """Check that each execution's history is one chain, and that each trial counts once."""
    last: dict[str, str] = {}
    rows = world.database.raw.execute(
        'SELECT execution_id, "before", "after" FROM execution_event ORDER BY execution_id, id'
    )
    for key, before, after in rows:
        if before != last.get(key, "QUEUED"):
            raise ViolationError("5 history", (key, last.get(key), before, after))
        last[key] = after
    for part in world.facts.parts.values():
        if last.get(part.id, "QUEUED") != part.state:
            raise ViolationError("5 history", (part, last.get(part.id)))
    _check_trials(world)


def _check_trials(world: "World") -> None:
    """Check that each execution's trial counts once; of one withdrawn, it may count or not."""
    counted = world.database.raw.execute(
        "SELECT rollout, wave, blueprint, n FROM bench_tally WHERE metric = 'trial' AND n != 0"
    )
    conclusive = world.database.raw.execute(
        "SELECT DISTINCT execution_id FROM bench WHERE verdict != 'inconclusive'"
    )
    least: Counter[tuple[str, int, str]] = Counter()
    most: Counter[tuple[str, int, str]] = Counter()
    for (key,) in conclusive.fetchall():
        part = world.facts.parts[key]
        most[part.rollout, part.wave, part.blueprint] += 1
        least[part.rollout, part.wave, part.blueprint] += part.state not in WITHDRAWN
    kept = Counter({(row[0], row[1], row[2]): row[3] for row in counted.fetchall()})
    if not all(least[key] <= kept[key] <= most[key] for key in {*least, *kept, *most}):
        raise ViolationError("5 trials", (least, kept, most))
