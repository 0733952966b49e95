"""Rollouts: apply, preview, steer and explain them."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Body
from fastapi.responses import Response

from control_plane.api.call import (
    Call,
    IfMatch,
    Listing,
    Paging,
    Reading,
    Writing,
    check_revision,
    etag_of,
)
from control_plane.api.schemas import Abort, Explained, Reason, Retry, Simulate
from control_plane.domain.errors import NotFoundError
from control_plane.domain.paging import Page
from control_plane.services import documents, rollout_document, rollout_replay, rollouts
from control_plane.services.rollout_replay import Simulation
from control_plane.services.rollout_views import (
    BenchView,
    DecisionView,
    ExecutionView,
    PlanView,
    RolloutView,
)
from control_plane.services.scope import Scope

routes = APIRouter(prefix="/api/v1", tags=["rollouts"])

Document = Annotated[dict[str, Any], Body()]
Verb = Callable[..., RolloutView]


@routes.get("/rollouts")
def list_rollouts(
    call: Reading,
    page: Listing,
) -> Page[RolloutView]:
    """List rollouts, newest first."""
    return call.read(lambda scope: rollouts.list_rollouts(scope, **page.query))


@routes.post("/rollouts:plan")
def plan_rollout(document: Document, call: Reading) -> PlanView:
    """Say which device would get it in which wave, and which cannot; nothing is stored."""
    wanted = rollout_document.parse(document)
    return call.rehearse(lambda scope: rollouts.plan(scope, wanted))


@routes.get("/rollouts/{name}")
def get_rollout(name: str, call: Reading, response: Response) -> RolloutView:
    """Return one rollout with its waves."""
    view = call.read(lambda scope: rollouts.get(scope, name))
    response.headers.update(etag_of(view))
    return view


@routes.put("/rollouts/{name}", response_model=RolloutView)
def put_rollout(name: str, document: Document, call: Writing, if_match: IfMatch) -> Response:
    """Apply a Rollout document: make it, or replace one that has not started."""
    documents.check_name(document, name)
    wanted = rollout_document.parse(document)

    def work(scope: Scope) -> RolloutView:
        try:
            found = rollouts.get(scope, name)
        except NotFoundError:
            return rollouts.create(scope, wanted)
        check_revision(found.revision, if_match)
        return rollouts.replace(scope, name, wanted, revision=if_match)

    return call.write(work)


@routes.get("/rollouts/{name}/executions")
def list_executions(
    name: str,
    call: Reading,
    page: Listing,
) -> Page[ExecutionView]:
    """List the devices of a rollout, each with its state and the reason."""
    return call.read(lambda scope: rollouts.executions(scope, name, **page.query))


@routes.get("/rollouts/{name}/decisions")
def list_decisions(name: str, call: Reading, page: Paging) -> Page[DecisionView]:
    """List every decision of a rollout with its evidence."""
    return call.read(lambda scope: rollouts.decisions(scope, name, **page.query))


@routes.get("/rollouts/{name}/explain")
def explain_rollout(name: str, call: Reading) -> Explained:
    """Say why a rollout is where it is, with the numbers; `text` says it for people."""
    found = call.read(lambda scope: rollouts.explain(scope, name))
    return Explained(explanation=found, text=found.text())


@routes.post("/rollouts/{name}:simulate")
def simulate_rollout(name: str, asked: Simulate, call: Reading) -> Simulation:
    """Say what a recorded rollout would have done under another policy; changes nothing."""
    return call.read(
        lambda scope: rollout_replay.simulate(
            scope, name, policy=asked.policy, unknown=asked.unknown, seed=asked.seed
        )
    )


@routes.get("/benchmarks")
def list_benchmarks(
    call: Reading,
    page: Paging,
    rollout: str = "",
    device: str = "",
) -> Page[BenchView]:
    """List the trials that devices ran, with every metric."""
    return call.read(
        lambda scope: rollouts.benchmarks(scope, rollout=rollout, device=device, **page.query)
    )


def _steer(call: Call, name: str, if_match: int | None, verb: Verb, **how: Any) -> Response:
    def work(scope: Scope) -> RolloutView:
        if if_match is not None:
            check_revision(rollouts.get(scope, name).revision, if_match)
        return verb(scope, name, revision=if_match, **how)

    return call.write(work)


def _add(word: str, verb: Verb, what: str) -> None:
    def steer(name: str, why: Reason, call: Writing, if_match: IfMatch) -> Response:
        return _steer(call, name, if_match, verb, reason=why.reason)

    routes.add_api_route(
        f"/rollouts/{{name}}:{word}",
        steer,
        methods=["POST"],
        response_model=RolloutView,
        name=f"{word}_rollout",
        summary=f"{word.capitalize()} rollout",
        description=what,
    )


_add("start", rollouts.start, "Begin: builds what is missing, then opens the first wave.")
_add("pause", rollouts.pause, "Stop offering; what was offered and not begun is withdrawn.")
_add("resume", rollouts.resume, "Go on after a pause or a halt; failures so far are acknowledged.")
_add("approve", rollouts.approve, "Let a rollout or wave begin that waits for a person.")
_add(
    "deny", rollouts.deny, "Say no to the wave that waits: the rollout ends. A reason is required."
)
_add("promote", rollouts.promote, "Open the next wave now, without waiting for the gate.")
_add("revert", rollouts.revert, "Take every updated device back to what it ran before.")


@routes.post("/rollouts/{name}:abort", response_model=RolloutView)
def abort_rollout(name: str, why: Abort, call: Writing, if_match: IfMatch) -> Response:
    """Give up: mode keep leaves updated devices as they are, mode revert takes them back."""
    return _steer(call, name, if_match, rollouts.abort, mode=why.mode, reason=why.reason)


@routes.post("/rollouts/{name}:retry", response_model=RolloutView)
def retry_rollout(name: str, why: Retry, call: Writing, if_match: IfMatch) -> Response:
    """Make a rollout with the same policy for the devices that failed in one that has ended."""
    how = {"new_name": why.name, "include_rejected": why.include_rejected, "reason": why.reason}
    return _steer(call, name, if_match, rollouts.retry, **how)
