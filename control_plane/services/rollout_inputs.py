"""What the policy needs to know of the world: windows, approvals, room, newcomers."""

import json
from dataclasses import dataclass, replace
from hashlib import sha256

from control_plane.domain import selector, windows
from control_plane.domain.device import DeviceFacts
from control_plane.domain.rollout import RolloutSpec, RolloutState
from control_plane.domain.rollout_plan import BlueprintFit, misfit_reason
from control_plane.domain.rollout_policy import room as paced
from control_plane.domain.rollout_view import Room, View
from control_plane.domain.windows import Opening
from control_plane.services import builds
from control_plane.services.scope import Scope
from control_plane.store import activation, approvals, blueprints, joining
from control_plane.store import room as store
from control_plane.store.rollouts import RolloutRow
from control_plane.store.room import Limits, Wave

S = RolloutState
MOVES = frozenset({S.RUNNING, S.AWAITING_APPROVAL})
"""States in which time alone may move a rollout."""


def load(scope: Scope, row: RolloutRow, view: View) -> View:
    """Return the view with what its policy needs; a plain rollout costs no query but one."""
    now = scope.now.timestamp()
    spec, m = view.spec, view.machine
    asked = spec.windows.download
    more = replace(view, download=None if asked is None else windows.opening(asked, now))
    if m.wave + 1 < len(spec.waves) and spec.waves[m.wave + 1].approval is not None:
        people = approvals.people(scope.tx, row.name, m.wave + 1, words_of(row))
        authors = approvals.authors(scope.tx, row.name)
        more = replace(more, approvals=tuple(people), authors=tuple(authors))
    if m.state not in MOVES:
        return more
    if spec.windows.activate is not None and view.in_flight:
        lapsed = activation.count_lapsed(scope.tx, row.name, m.wave + 1, scope.now)
        more = replace(more, lapsed=lapsed)
    if spec.dynamic:
        more = replace(more, newcomers=len(newcomers(scope, spec).joining))
    return replace(more, rooms=_rooms(scope, more))


def words_of(row: RolloutRow) -> str:
    """Return the digest of what a rollout says and whom it is for: what an approval is of."""
    whole = [row.spec, row.plan.get("digest", "")]
    return sha256(json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def activation_window(scope: Scope, spec: RolloutSpec) -> Opening | None:
    """Return the window that an order of now names; one that is open begins now.

    So a device whose clock is behind waits until it has caught up, rather than begin at an hour
    that it only believes in.
    """
    asked = spec.windows.activate
    if asked is None:
        return None
    now = scope.now.timestamp()
    found = windows.opening(asked, now)
    return Opening(max(found.opens_at, now), found.closes_at)


def limits(scope: Scope, spec: RolloutSpec) -> Limits | None:
    """Return what the rollout must leave to others; None: nothing."""
    if not spec.budgets and not store.outranked(scope.tx, spec.name, spec.priority):
        return None
    return Limits(spec.priority, spec.budgets)


# --- room -------------------------------------------------------------------------------------


def _rooms(scope: Scope, view: View) -> tuple[Room, ...] | None:
    """Return how many of each open wave may be offered it; None: as many as wait."""
    m, spec = view.machine, view.spec
    bounds = limits(scope, spec) if m.state is S.RUNNING else None
    if bounds is None:
        return None
    most = paced(view, scope.now.timestamp())
    found: list[Room] = []
    for index in range(len(spec.waves)):
        waits = index <= m.wave and most and view.queued(index, m.halted)
        found.append(_room(scope, view, index, bounds, most) if waits else Room(0))
    return tuple(found)


def _room(scope: Scope, view: View, index: int, bounds: Limits, most: int) -> Room:
    wave = Wave(view.spec.name, index, view.machine.halted)
    n = store.count(scope.tx, wave, bounds, most)
    start = 0
    if n == 0:
        start = _further_on(view, index, scope.now.timestamp())
        n = store.count(scope.tx, replace(wave, start=start), bounds, most) if start else 0
    return Room(n, start, _what_is_full(scope, view, bounds) if n < most else "")


def _further_on(view: View, wave: int, now: float) -> int:
    """Return where to look where the beginning has no room: with each second another stretch."""
    total = sum(group.total for group in view.groups if group.wave == wave)
    stretches = -(-total // store.LOOK_AHEAD)
    return int(now) % stretches * store.LOOK_AHEAD if stretches > 1 else 0


def _what_is_full(scope: Scope, view: View, bounds: Limits) -> str:
    said = [
        f"{budget.label} {value} has {n} of {budget.max} devices in flight"
        for budget in bounds.budgets
        for value, n in store.full(scope.tx, budget)
    ]
    others = store.outranked(scope.tx, view.spec.name, bounds.priority)
    if others:
        said.append(f"devices of {', '.join(others)} come first: higher priority")
    return "; ".join(said) or "no device that waits is free"


# --- newcomers --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Newcomer:
    """A device that matches since it changed, and the bundle it would get."""

    device: DeviceFacts
    blueprint: str
    digest: str


@dataclass(frozen=True)
class Newcomers:
    """Who may join a dynamic rollout now, and who may later."""

    joining: list[Newcomer]
    unbuilt: list[str]
    """Blueprints of devices that match, for which there is no bundle."""


def newcomers(scope: Scope, spec: RolloutSpec) -> Newcomers:
    """Return the devices that match since they changed; only reads."""
    names = [blueprint.name for blueprint in blueprints.everything(scope.tx)]
    wanted = selector.parse(spec.selector)
    found = joining.newcomers(scope.tx, spec.name, wanted, scope.now, names)
    made = {
        name: builds.bundle_for(scope, spec.model, spec.version, name)
        for name in sorted({facts.blueprint or "" for facts in found})
    }
    joined: list[Newcomer] = []
    for facts in found:
        name = facts.blueprint or ""
        bundle = made[name]
        if bundle is not None and not misfit_reason(facts, BlueprintFit(size=bundle.size)):
            joined.append(Newcomer(facts, name, bundle.digest))
    unbuilt = [name for name, bundle in made.items() if bundle is None]
    return Newcomers(joined, unbuilt)


def prepare_newcomers(scope: Scope, spec: RolloutSpec) -> None:
    """Ask for the bundles that newcomers need; leave behind those that can never join.

    For a tick, which holds the rollout's lock. Devices whose bundle is being built are looked at
    again until it is there, or has failed.
    """
    found = newcomers(scope, spec)
    asked = builds.request_missing(scope, spec.model, spec.version, found.unbuilt)
    waits = any(build.state not in builds.OVER for build in asked)
    if not waits and not found.joining:
        joining.pass_over(scope.tx, spec.name, scope.now)
