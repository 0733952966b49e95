"""What people do in a simulation, and when: some by a plan, some because a wave asks for them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from control_plane.domain.errors import NotFoundError
from control_plane.services import invalidation, inventory, rollout_document, rollouts
from control_plane.services.scope import Scope
from control_plane.store import rollouts as store
from tests.simulation import bundles, seeding
from tests.simulation.chance import Chance
from tests.simulation.policy import PEOPLE
from tests.simulation.seeding import NewDevice

VERBS = (
    "pause",
    "resume",
    "promote",
    "approve",
    "abort",
    "abort_revert",
    "revert",
    "retry",
    "edit",
    "invalidate",
    "invalidate_revert",
)
AUTHOR = PEOPLE[0]


@dataclass(frozen=True)
class Act:
    """Something that a person does."""

    at: float
    """Seconds after the beginning."""
    verb: str
    rollout: str = ""
    device: str = ""
    document: dict[str, Any] = field(default_factory=dict)
    who: str = AUTHOR


NOBODY = Act(0.0, "")


def planned(
    chance: Chance,
    documents: Sequence[dict[str, Any]],
    devices: Sequence[NewDevice],
    last_s: float,
    verbs: Sequence[str] = (),
) -> tuple[Act, ...]:
    """Draw who does what: rollouts are made, and more or less wisely interfered with.

    Args:
        chance: the draws.
        documents: the rollouts.
        devices: the fleet.
        last_s: when the last of it may be, in seconds after the beginning.
        verbs: what people do, and do then; empty: anything, or nothing.
    """
    draw = chance.stream("acts")
    names = [document["metadata"]["name"] for document in documents]
    acts = [Act(5.0, "create", document=documents[0])]
    acts += [Act(draw.random() * 0.6 * last_s, "create", document=one) for one in documents[1:]]
    people = [
        Act(
            draw.random() * last_s,
            draw.choice(verbs or VERBS),
            draw.choice(names),
            who=draw.choice(PEOPLE),
        )
        for _ in range(len(verbs) + int(draw.random() * 5))
    ]
    if verbs or chance.allowed("people"):
        acts += people
    stolen = draw.choice(devices).name
    at = draw.random() * 0.5 * last_s
    if chance.allowed("quarantine"):
        acts.append(Act(at, "quarantine", device=stolen))
        acts.append(Act(at + draw.random() * 0.5 * last_s, "unquarantine", device=stolen))
    for one in devices:
        if not one.ring:
            acts.append(Act(draw.random() * last_s, "label", device=one.name))
    return tuple(sorted(acts, key=lambda act: act.at))


def asked(chance: Chance, rollout: str) -> list[Act]:
    """Draw what becomes of a wave that waits for people: some let it open, some do not."""
    draw = chance.stream("asked")
    acts = [
        Act(draw.random() * 900.0, "approve", rollout, who=draw.choice(PEOPLE))
        for _ in range(int(draw.random() * 4))
    ]
    more = draw.random()
    if more < 0.10:
        acts.append(Act(draw.random() * 900.0, "deny", rollout, who=draw.choice(PEOPLE)))
    elif more < 0.35:
        acts.append(Act(draw.random() * 900.0, "edit", rollout))
    return acts


def do(scope: Scope, act: Act) -> None:
    """Do it with the product's own services."""
    match act.verb:
        case "create":
            spec = rollout_document.parse(act.document)
            rollouts.create(scope, spec)
            rollouts.start(scope, spec.name)
        case "build":
            seeding.build(scope, **act.document)
        case "quarantine" | "unquarantine" | "label":
            _do_with_device(scope, act)
        case "abort_revert":
            rollouts.abort(scope, act.rollout, mode="revert")
        case "deny":
            rollouts.deny(scope, act.rollout, reason="not today")
        case "edit":
            _edit(scope, act.rollout)
        case "invalidate":
            _invalidate(scope, act.rollout, "keep")
        case "invalidate_revert":
            _invalidate(scope, act.rollout, "revert")
        case verb:
            getattr(rollouts, verb)(scope, act.rollout)


def _do_with_device(scope: Scope, act: Act) -> None:
    match act.verb:
        case "quarantine":
            inventory.quarantine(scope, act.device, reason="stolen")
        case "unquarantine":
            inventory.unquarantine(scope, act.device)
        case _:
            inventory.label_device(scope, act.device, {"ring": "on"})


def _edit(scope: Scope, name: str) -> None:
    """Change what a rollout says, as only a repair of the database can once it is started."""
    row = store.find(scope.tx, name, lock=True)
    if row is None:
        raise NotFoundError(f"no rollout {name}")
    store.save(scope.tx, name, spec={**row.spec, "max_tries": row.spec["max_tries"] + 1})


def _invalidate(scope: Scope, rollout: str, devices: Any) -> None:
    version = rollout.removeprefix("slm-")
    invalidation.invalidate(scope, bundles.MODEL, version, reason="poisoned", devices=devices)
