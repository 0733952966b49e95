"""Reading rollouts: views, pages, decisions, trials, and the explanation for people."""

from dataclasses import replace
from datetime import UTC, datetime

from agent.protocol.words import ExecutionState, Verdict
from control_plane.domain import selector
from control_plane.domain.errors import InvalidError, NotFoundError
from control_plane.domain.paging import DEFAULT_LIMIT, MAX_LIMIT, Page
from control_plane.domain.rollout import RolloutSpec, RolloutState
from control_plane.domain.rollout_machine import legal
from control_plane.domain.rollout_view import Machine
from control_plane.services import rollout_approvals, rollout_codec, rollout_document
from control_plane.services.cursors import number_cursor
from control_plane.services.rollout_views import (
    BenchView,
    DecisionView,
    ExecutionView,
    Explanation,
    MetricView,
    RolloutView,
    WaveView,
)
from control_plane.services.scope import Scope
from control_plane.store import benches, tallies
from control_plane.store import rollouts as store
from control_plane.store.executions import ExecutionRow
from control_plane.store.rollouts import DecisionRow, RolloutRow

MOST_TRIALS = 20
MISFITS_IN_LIST = 20
# Decisions that say where a rollout stands; the others say what was done on the way.
_DECISIVE = frozenset(
    {
        "halt",
        "hold",
        "open_wave",
        "await_approval",
        "succeed",
        "send_back",
        "end_revert",
        "give_way",
        "pause",
        "abort",
        "deny",
    }
)
_HEADLINES = {
    "halt": "a gate stopped it",
    "hold": "it waits for its gates",
    "open_wave": "it opened wave {wave}",
    "await_approval": "wave {wave} waits for a person",
    "succeed": "every device answered and every gate held",
    "send_back": "its devices are sent back",
    "end_revert": "its devices are back on what they ran before",
    "give_way": "a newer rollout took over the devices that were left",
    "pause": "{actor} paused it",
    "abort": "{actor} gave it up",
    "deny": "a person said no",
}


def get(scope: Scope, name: str) -> RolloutView:
    """Return a rollout."""
    return view_of(scope, find(scope, name))


def find(scope: Scope, name: str, *, lock: bool = False) -> RolloutRow:
    """Return a rollout's row, or raise `NotFoundError`."""
    row = store.find(scope.tx, name, lock=lock)
    if row is None:
        raise NotFoundError(f"no rollout {name[:128]!r}", field="name")
    return row


def list_rollouts(
    scope: Scope,
    *,
    filter: str = "",  # noqa: A002 - the word of the API and the command line
    limit: int = DEFAULT_LIMIT,
    cursor: str = "",
) -> Page[RolloutView]:
    """Return rollouts, the newest first."""
    wanted = selector.parse(filter, store.FIELDS, field="filter")
    size = max(1, min(limit, MAX_LIMIT))
    after = _created_key(cursor) if cursor else None
    rows = store.page(scope.tx, wanted, scope.now, after=after, limit=size + 1)
    more = len(rows) > size
    end = f"{rows[size - 1].created_at.isoformat()}~{rows[size - 1].name}" if more else ""
    return Page([_in_list(view_of(scope, row)) for row in rows[:size]], end)


def executions(
    scope: Scope,
    name: str,
    *,
    filter: str = "",  # noqa: A002 - the word of the API and the command line
    limit: int = DEFAULT_LIMIT,
    cursor: str = "",
) -> Page[ExecutionView]:
    """Return the devices' parts, in the order of the plan."""
    find(scope, name)
    wanted = selector.parse(filter, store.EXECUTION_FIELDS, field="filter")
    size = max(1, min(limit, MAX_LIMIT))
    after = _place_key(cursor) if cursor else None
    rows = store.executions(scope.tx, name, wanted, scope.now, after=after, limit=size + 1)
    more = len(rows) > size
    end = f"{rows[size - 1].wave}.{rows[size - 1].position}" if more else ""
    versions = benches.versions(scope.tx, [row.digest for row in rows])
    return Page([_execution(row, versions) for row in rows[:size]], end)


def decisions(
    scope: Scope, name: str, *, limit: int = DEFAULT_LIMIT, cursor: str = ""
) -> Page[DecisionView]:
    """Return decisions with their evidence, the newest first."""
    find(scope, name)
    size = max(1, min(limit, MAX_LIMIT))
    before = number_cursor(cursor)
    rows = store.decisions(scope.tx, name, before_id=before, limit=size + 1)
    end = str(rows[size - 1].id) if len(rows) > size else ""
    return Page([_decision(row) for row in rows[:size]], end)


def benchmarks(
    scope: Scope,
    *,
    rollout: str = "",
    device: str = "",
    limit: int = DEFAULT_LIMIT,
    cursor: str = "",
) -> Page[BenchView]:
    """Return trials, the newest first, of one rollout or one device if they are named."""
    size = max(1, min(limit, MAX_LIMIT))
    before = number_cursor(cursor)
    rows = benches.page(scope.tx, rollout=rollout, device=device, before_id=before, limit=size + 1)
    end = str(rows[size - 1].id) if len(rows) > size else ""
    used = [digest for row in rows for digest in (row.candidate, row.incumbent) if digest]
    versions = benches.versions(scope.tx, used)
    return Page([_bench(row, versions) for row in rows[:size]], end)


def explain(scope: Scope, name: str) -> Explanation:
    """Say why a rollout is where it is, with the numbers."""
    row = find(scope, name)
    newest = store.decisions(scope.tx, name, before_id=None, limit=1, kinds=_DECISIVE)
    last = _decision(newest[0]) if newest else None
    trials = benchmarks(scope, rollout=name, limit=MAX_LIMIT).items
    bad = [trial for trial in trials if trial.verdict != Verdict.PASS.value]
    return Explanation(
        name=name,
        state=row.state,
        headline=_headline(row, last),
        decision=last,
        trials=(bad or trials)[:MOST_TRIALS],
        next_steps=[_next_step(verb, name) for verb in legal(RolloutState(row.state))],
    )


def _next_step(verb: str, name: str) -> str:
    return f"flotilla rollout {verb} {name}{' --reason WHY' if verb == 'deny' else ''}"


def view_of(scope: Scope, row: RolloutRow) -> RolloutView:
    """Return a row as people and the API see it."""
    spec = rollout_document.spec_of(row.name, row.spec)
    machine = rollout_codec.read_machine(row.machine)
    counts: dict[int, dict[str, dict[str, int]]] = {}
    for wave, blueprint, state, n in tallies.read(scope.tx, row.name):
        counts.setdefault(wave, {}).setdefault(blueprint, {})[state.value] = n
    return RolloutView(
        name=row.name,
        model=row.model,
        version=row.version,
        state=row.state,
        state_reason=row.state_reason,
        revision=row.revision,
        wave=row.wave,
        waves=[_wave(spec, machine, i, counts.get(i, {})) for i in range(len(spec.waves))],
        misfits=row.plan.get("misfits", []),
        misfit_count=row.plan.get("misfit_count", 0),
        misfit_reasons=row.plan.get("misfit_reasons", {}),
        created_by=row.created_by,
        created_at=row.created_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        spec=row.spec,
        retries=row.retries,
        approval=rollout_approvals.of(scope, row),
    )


def _in_list(one: RolloutView) -> RolloutView:
    """Return a rollout as a list shows it: a page of them must not name 50,000 devices."""
    return replace(one, misfits=one.misfits[:MISFITS_IN_LIST])


def _wave(
    spec: RolloutSpec, machine: Machine, index: int, by_blueprint: dict[str, dict[str, int]]
) -> WaveView:
    counts: dict[str, int] = {}
    for states in by_blueprint.values():
        for state, n in states.items():
            counts[state] = counts.get(state, 0) + n
    opened = index <= machine.wave
    over = index < machine.wave or machine.state is RolloutState.SUCCEEDED
    at = datetime.fromtimestamp(machine.opened_at[index], UTC) if opened else None
    return WaveView(
        index=index,
        name=spec.waves[index].name,
        total=sum(counts.values()),
        counts={state.value: counts[state] for state in ExecutionState if state in counts},
        by_blueprint=by_blueprint,
        state="planned" if not opened else "done" if over else "open",
        opened_at=at,
    )


def _execution(row: ExecutionRow, versions: dict[str, str]) -> ExecutionView:
    return ExecutionView(
        id=row.id,
        device=row.device,
        blueprint=row.blueprint,
        wave=row.wave,
        state=row.state.value,
        reason=row.reason,
        digest=row.digest,
        version=versions.get(row.digest, ""),
        generation=row.generation,
        offered_at=row.offered_at,
        updated_at=row.updated_at,
        reverted=row.reverted,
    )


def _decision(row: DecisionRow) -> DecisionView:
    return DecisionView(row.at, row.wave, row.kind, row.evidence, row.actor, row.reason)


def _bench(row: benches.BenchRow, versions: dict[str, str]) -> BenchView:
    return BenchView(
        id=row.id,
        device=row.device,
        rollout=row.rollout,
        wave=row.wave,
        blueprint=row.blueprint,
        candidate=versions.get(row.candidate, ""),
        incumbent=versions.get(row.incumbent, ""),
        verdict=row.verdict,
        at=row.at,
        metrics=[MetricView(**metric) for metric in row.metrics],
    )


def _headline(row: RolloutRow, last: DecisionView | None) -> str:
    if row.state == RolloutState.BUILDING:
        return "its bundles are being built"
    if row.state == RolloutState.SCHEDULED:
        starts = row.spec.get("not_before", "")
        return f"it starts at {starts}" if starts else "it waits for its download window"
    if last is None:
        return "it has not been started"
    said = _HEADLINES[last.kind].format(wave=last.wave, actor=last.actor)
    return f"{said}: {row.state_reason}" if row.state_reason else said


def _created_key(cursor: str) -> tuple[datetime, str]:
    at, _, name = cursor.partition("~")
    try:
        moment = datetime.fromisoformat(at)
    except ValueError as error:
        raise _no_cursor() from error
    if moment.tzinfo is None or not name:
        raise _no_cursor()
    return moment, name


def _place_key(cursor: str) -> tuple[int, int]:
    wave, _, position = cursor.partition(".")
    if not (wave.isdecimal() and position.isdecimal() and len(cursor) < 20):  # noqa: PLR2004 - digits
        raise _no_cursor()
    return int(wave), int(position)


def _no_cursor() -> InvalidError:
    return InvalidError("not a cursor of this list; use `next` of the page before", field="cursor")
