"""From a document to an exact plan: devices from the store, bundles from the builds.

A plan is staged in the transaction that asked for it, then shown or stored; what was shown is
what is stored, and what is stored is what happens. Its cost does not depend on who looks at it:
lists of devices, sites and misfits end at the limits below, the counts are of all.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

from control_plane.domain import selector
from control_plane.domain.errors import InvalidError, NotFoundError
from control_plane.domain.rollout import RolloutSpec
from control_plane.domain.rollout_plan import BlueprintFit, Misfit, misfit_reason, needs
from control_plane.services import blueprints, builds
from control_plane.services.rollout_views import MisfitView, PlannedWave, PlanView
from control_plane.services.scope import Scope
from control_plane.store import blueprints as blueprint_store
from control_plane.store import plan_line
from control_plane.store import plans as store
from control_plane.store import rollouts as rollout_store
from control_plane.store.plans import AtSite, Part, Places

MAX_MISFITS = 1000
"""Devices named that match and cannot get it."""
MAX_DEVICES = 1000
"""Devices named of one wave; the executions of a DRAFT list the rest, page by page."""
MAX_SITES = 100
"""Sites named of one wave: those to which most bytes go."""


@dataclass(frozen=True)
class Planned:
    """A staged plan: who is in which wave, counted, and who cannot be in it."""

    places: Places
    parts: list[Part]
    fits: Mapping[str, tuple[str, BlueprintFit]]
    """By blueprint: the digest of its bundle (empty: not built), and how it fits."""
    misfits: list[Misfit]
    misfit_reasons: dict[str, int]


def make(scope: Scope, spec: RolloutSpec) -> Planned:
    """Plan a rollout; `keep`, or the end of the transaction, ends what was staged.

    Raises:
        NotFoundError: the model version does not exist.
        InvalidError: the selector matches no device, or none that could get it.
    """
    if not rollout_store.model_version_exists(scope.tx, spec.model, spec.version):
        raise NotFoundError(
            f"no model version {spec.model} {spec.version}; push it first", field="spec.version"
        )
    wanted = selector.parse(spec.selector, field="spec.selector")
    of_waves = [
        selector.parse(wave.selector, field=f"spec.waves[{i}].selector") if wave.selector else None
        for i, wave in enumerate(spec.waves)
    ]
    fits = {one.name: _fit(scope, spec, one.name) for one in blueprint_store.everything(scope.tx)}
    staged = plan_line.stage(scope.tx, spec.name, wanted, of_waves, fits=fits, now=scope.now)
    if not staged.matched:
        raise InvalidError(
            f"no device matches {spec.selector!r}" if spec.selector else "no device is enrolled",
            field="spec.selector",
        )
    misfits, reasons = _misfits(scope, spec, fits) if staged.fitting < staged.matched else ([], {})
    if not staged.fitting:
        raise InvalidError(
            f"{staged.matched} devices match and none can get it: "
            f"{misfits[0].device} {misfits[0].reason}",
            field="spec.selector",
        )
    places = store.places(scope.tx, staged, spec.waves)
    parts = store.parts(scope.tx, places)
    return Planned(places, parts, fits, misfits, reasons)


def keep(scope: Scope, spec: RolloutSpec, planned: Planned) -> None:
    """Store the staged plan as executions, all QUEUED: so that what was shown is what happens."""
    store.store(scope.tx, scope.now, spec.name, planned.places, planned.parts)
    plan_line.clear(scope.tx)


def summary(planned: Planned) -> dict[str, Any]:
    """Return what the rollout row keeps of its plan; `digest` changes with who is in which wave."""
    whole = json.dumps([asdict(part) for part in planned.parts], sort_keys=True)
    return {
        "misfits": [asdict(one) for one in planned.misfits],
        "misfit_count": sum(planned.misfit_reasons.values()),
        "misfit_reasons": planned.misfit_reasons,
        "digest": sha256(whole.encode()).hexdigest(),
        "bundles": _bundles(planned),
    }


def view(scope: Scope, spec: RolloutSpec, planned: Planned) -> PlanView:
    """Return the plan as people and the API see it, and end what was staged."""
    sites = store.at_sites(scope.tx, planned.places, MAX_SITES)
    waves = [_wave(scope, spec, planned, index, sites) for index in range(len(spec.waves))]
    plan_line.clear(scope.tx)
    return PlanView(
        name=spec.name,
        model=spec.model,
        version=spec.version,
        total=planned.places.total,
        bytes=sum(wave.bytes for wave in waves),
        waves=waves,
        misfits=[MisfitView(one.device, one.blueprint, one.reason) for one in planned.misfits],
        bundles=_bundles(planned),
        misfit_count=sum(planned.misfit_reasons.values()),
        misfit_reasons=planned.misfit_reasons,
    )


def _wave(
    scope: Scope, spec: RolloutSpec, planned: Planned, index: int, sites: list[AtSite]
) -> PlannedWave:
    mine = [part for part in planned.parts if part.wave == index]
    here = [site for site in sites if site.wave == index]
    total = sum(part.n for part in mine)
    return PlannedWave(
        index=index,
        name=spec.waves[index].name,
        total=total,
        by_blueprint={part.blueprint: part.n for part in mine},
        devices=store.first_devices(scope.tx, planned.places, index, MAX_DEVICES),
        bytes=sum((planned.fits[part.blueprint][1].size or 0) * part.n for part in mine),
        by_site={site.site: site.n for site in here},
        bytes_by_site={site.site: site.bytes for site in here},
        sites=here[0].sites if here else 0,
        truncated=total > MAX_DEVICES,
    )


def _bundles(planned: Planned) -> dict[str, str]:
    used = sorted({part.blueprint for part in planned.parts})
    return {name: planned.fits[name][0] for name in used}


def _fit(scope: Scope, spec: RolloutSpec, name: str) -> tuple[str, BlueprintFit]:
    try:
        bundle = builds.bundle_for(scope, spec.model, spec.version, name)
    except NotFoundError as error:
        return "", BlueprintFit(failed=error.message)
    if bundle is None:
        return "", BlueprintFit(failed=_failed(scope, spec, name))
    return bundle.digest, BlueprintFit(size=bundle.size)


def _failed(scope: Scope, spec: RolloutSpec, name: str) -> str:
    """Say why the blueprint's newest build failed; empty if it may still succeed."""
    digest = blueprints.get_spec(scope, name).build_digest
    newest = builds.list_builds(scope, model=spec.model, version=spec.version, blueprint=name)
    now = [build for build in newest.items if build.blueprint_digest == digest]
    if not now or any(build.state != "FAILED" for build in now):
        return ""
    return now[0].error or "its build failed"


def _misfits(
    scope: Scope, spec: RolloutSpec, fits: Mapping[str, tuple[str, BlueprintFit]]
) -> tuple[list[Misfit], dict[str, int]]:
    """Return the first misfits with their reasons, and how many there are for each reason."""
    known = {name: fit for name, (_, fit) in fits.items()}
    counted = store.misfits(scope.tx)
    for name in {one.blueprint for one in counted} - known.keys() - {""}:
        known[name] = _fit(scope, spec, name)[1]
    reasons: dict[str, int] = {}
    for one in counted:
        reason = _counted_reason(one, known.get(one.blueprint, BlueprintFit()))
        reasons[reason] = reasons.get(reason, 0) + one.n
    named = [
        Misfit(
            facts.id,
            facts.blueprint or "",
            misfit_reason(facts, known.get(facts.blueprint or "", BlueprintFit())),
        )
        for facts in store.first_misfits(scope.tx, MAX_MISFITS)
    ]
    return named, reasons


def _counted_reason(one: store.Misfits, fit: BlueprintFit) -> str:
    """Return the reason as `misfit_reason` says it, less what differs from device to device."""
    match one.why:
        case plan_line.STATE:
            return f"is {one.state}"
        case plan_line.HARDWARE:
            return "no blueprint recognises its hardware"
        case plan_line.BUNDLE:
            return f"no bundle for {one.blueprint}: {fit.failed}"
        case _:
            return f"{needs(fit.size or 0)}, less is free"
