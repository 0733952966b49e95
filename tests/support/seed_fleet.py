"""A fleet with a past: 60 devices, four rollouts, artifacts; made by the services themselves.

Devices report through the same door as real ones (`reports.apply_batch`), and the machine decides
on what they say; only what a builder would have left behind is written as rows.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from agent.protocol import messages, topics
from agent.protocol.messages import Bench, Event, Heartbeat, Metric, State
from agent.protocol.words import ExecutionState, Reason, Verdict
from control_plane.bootstrap import Application
from control_plane.services import (
    blueprint_document,
    blueprints,
    documents,
    inventory,
    reports,
    rollout_document,
    rollouts,
)
from control_plane.services.reports import Incoming
from control_plane.services.rollout_views import ExecutionView
from control_plane.services.scope import Scope
from control_plane.store import rollups
from control_plane.store.schema import device
from tests.support.seed_rows import CORES, MODEL, TOKEN_MS, VERSIONS, built, enrol

DOCUMENTS = Path(__file__).parents[2] / "blueprints"
OFFLINE = ("edge-dub-003", "edge-fra-007", "edge-mil-005")
UNHEALTHY = "edge-vie-004"
QUARANTINED = "edge-waw-002"

SUCCEEDED = "support-slm-1.1.0"
HALTED = "support-slm-1.2.0"
RUNNING = "support-slm-1.1.1"
AWAITING = "support-slm-1.1.1-osl"


class Pair(NamedTuple):
    """How a candidate compares on one kind of hardware: centre and spread of the ratio."""

    ratio: float
    spread: float = 0.015


BETTER = dict.fromkeys(CORES, Pair(0.97))
# Harmless on the servers, a third slower on the boards: only a judgement per blueprint sees it.
SLOW_ON_BOARDS = {
    "x86-64-vnni": Pair(1.02),
    "x86-64-avx2": Pair(1.04),
    "arm64-board": Pair(1.33, 0.03),
}


@dataclass
class _Story:
    application: Application
    now: datetime
    random: Random
    seq: int = 0

    @contextmanager
    def ago(self, actor: str = "dana@ops", **past: float) -> Iterator[Scope]:
        """Open a scope as of some time before now."""
        with self.application.scope(actor) as scope:
            yield replace(scope, now=self.now - timedelta(**past))

    def next_seq(self) -> int:
        self.seq += 1
        return self.seq


def seed(application: Application, now: datetime) -> None:
    """Fill an empty database with the fleet."""
    story = _Story(application, now, Random(7))
    with story.ago(days=9) as scope:
        for path in sorted(DOCUMENTS.glob("*.yaml")):
            for document in documents.parse(path.read_text("utf-8"), path.name):
                blueprints.apply(scope, blueprint_document.parse(document.body))
        for days, version in enumerate(VERSIONS):
            built(replace(scope, now=scope.now + timedelta(days=days)), version)
        enrol(scope, story.random)
    _succeed(story)
    _halt(story)
    _run(story)
    _await_approval(story)
    _wear(story)


# --- the rollouts -----------------------------------------------------------------------------


def _succeed(story: _Story) -> None:
    hours = 50.0
    with story.ago(hours=hours) as scope:
        _create(scope, SUCCEEDED, "1.1.0", "", [_canary(6), _share(25), _share(100)])
        rollouts.start(scope, SUCCEEDED, reason="better answers on the support set")
    for _ in range(4):
        with story.ago(hours=hours, actor="scheduler") as scope:
            rollouts.tick(scope)
        hours -= 0.4
        with story.ago(hours=hours) as scope:
            _answer(story, scope, SUCCEEDED, BETTER)
        hours -= 0.1
    with story.ago(hours=hours, actor="scheduler") as scope:
        rollouts.tick(scope)


def _halt(story: _Story) -> None:
    with story.ago(minutes=31) as scope:
        sites = 'labels.site in ("vie", "fra", "dub")'
        _create(scope, HALTED, "1.2.0", sites, [_canary(12), _share(50), _share(100)])
        rollouts.start(scope, HALTED, reason="longer answers")
    with story.ago(minutes=30, actor="scheduler") as scope:
        rollouts.tick(scope)
    with story.ago(minutes=26) as scope:
        _answer(story, scope, HALTED, SLOW_ON_BOARDS, keep="arm64-board")
    with story.ago(minutes=25, actor="scheduler") as scope:
        rollouts.tick(scope)
    with story.ago(minutes=24) as scope:
        _answer(story, scope, HALTED, SLOW_ON_BOARDS)
    with story.ago(minutes=24, actor="scheduler") as scope:
        rollouts.tick(scope)


def _run(story: _Story) -> None:
    with story.ago(minutes=12) as scope:
        sites = 'labels.site in ("waw", "mil")'
        waves = [_canary(3), _share(60), _share(100)]
        _create(scope, RUNNING, "1.1.1", sites, waves, pace={"max_in_flight": 6, "per_minute": 60})
        rollouts.start(scope, RUNNING, reason="fixes an empty answer")
    with story.ago(minutes=12, actor="scheduler") as scope:
        rollouts.tick(scope)
    with story.ago(minutes=9) as scope:
        _answer(story, scope, RUNNING, BETTER)
    with story.ago(minutes=4, actor="scheduler") as scope:
        rollouts.tick(scope)
    with story.ago(minutes=2) as scope:
        offered = _in_state(scope, RUNNING, ExecutionState.OFFERED)
        _send(scope, _reports(story, scope, offered[:3], BETTER))
        for step, one in zip(("DOWNLOADING", "BENCHMARKING", "SOAKING"), offered[3:], strict=False):
            _send(scope, [_event(story, one, ExecutionState(step))])


def _await_approval(story: _Story) -> None:
    with story.ago(minutes=3) as scope:
        waves = [_canary(2), {"name": "everyone", "percent": 100, "approval": "required"}]
        _create(scope, AWAITING, "1.1.1", 'labels.site = "osl"', waves)
        rollouts.start(scope, AWAITING, reason="a site at a time")
    with story.ago(minutes=3, actor="scheduler") as scope:
        rollouts.tick(scope)
    with story.ago(seconds=100) as scope:
        _answer(story, scope, AWAITING, BETTER)
    with story.ago(seconds=40, actor="scheduler") as scope:
        rollouts.tick(scope)


def _create(
    scope: Scope,
    name: str,
    version: str,
    selector: str,
    waves: Sequence[dict[str, Any]],
    **more: Any,
) -> None:
    spec = {"model": MODEL, "version": version, "selector": selector, "waves": list(waves)}
    document = {
        "apiVersion": rollout_document.API_VERSION,
        "kind": "Rollout",
        "metadata": {"name": name},
        "spec": {**spec, **more},
    }
    rollouts.create(scope, rollout_document.parse(document))


def _canary(count: int) -> dict[str, Any]:
    return {"name": "canary", "count": count}


def _share(percent: int) -> dict[str, Any]:
    names = {25: "quarter", 50: "half", 60: "most", 100: "everyone"}
    return {"name": names[percent], "percent": percent}


# --- what devices say -------------------------------------------------------------------------


def _answer(
    story: _Story, scope: Scope, name: str, pairs: dict[str, Pair], *, keep: str = ""
) -> None:
    """Let every device that was offered it answer, but for one blueprint's."""
    offered = _in_state(scope, name, ExecutionState.OFFERED)
    answering = [one for one in offered if one.blueprint != keep]
    _send(scope, _reports(story, scope, answering, pairs))


def _in_state(scope: Scope, name: str, state: ExecutionState) -> list[ExecutionView]:
    page = rollouts.executions(scope, name, filter=f'state = "{state.value}"', limit=200)
    return page.items


def _send(scope: Scope, incoming: Sequence[Incoming]) -> None:
    refused = reports.apply_batch(scope, incoming).refused
    assert not refused, refused


def _reports(
    story: _Story, scope: Scope, parts: Sequence[ExecutionView], pairs: dict[str, Pair]
) -> list[Incoming]:
    sent: list[Incoming] = []
    for one in parts:
        incumbent = inventory.get_device(scope, one.device).digest
        metrics = _metrics(story.random, one.blueprint, pairs[one.blueprint])
        bad = [m.verdict for m in metrics if m.verdict is not Verdict.PASS]
        verdict = bad[0] if bad else Verdict.PASS
        trial = Bench(
            boot=1,
            seq=story.next_seq(),
            generation=one.generation,
            execution=one.id,
            candidate=one.digest,
            incumbent=incumbent,
            verdict=verdict,
            metrics=metrics,
            seconds=41.0,
        )
        runs = incumbent if bad else one.digest
        end = ExecutionState.ROLLED_BACK if bad else ExecutionState.SUCCEEDED
        reason = Reason.TRIAL_REGRESSION if bad else Reason.SOAKED
        sent += [
            Incoming(topics.up(topics.DeviceId(one.device), "bench"), messages.encode(trial)),
            _event(story, one, end, reason, runs),
            _state(story, one, runs),
        ]
    return sent


def _event(
    story: _Story,
    one: ExecutionView,
    state: ExecutionState,
    reason: Reason = Reason.NONE,
    digest: str = "",
) -> Incoming:
    event = Event(
        boot=1,
        seq=story.next_seq(),
        generation=one.generation,
        execution=one.id,
        state=state,
        reason=reason,
        digest=digest,
    )
    return Incoming(topics.up(topics.DeviceId(one.device), "events"), messages.encode(event))


def _state(story: _Story, one: ExecutionView, digest: str) -> Incoming:
    document = State(
        boot=1,
        seq=story.next_seq(),
        generation=one.generation,
        digest=digest,
        last_known_good=digest,
    )
    return Incoming(topics.up(topics.DeviceId(one.device), "state"), messages.encode(document))


def _metrics(random: Random, blueprint: str, pair: Pair) -> list[Metric]:
    base = TOKEN_MS[blueprint]
    slower = random.gauss(pair.ratio, pair.spread)
    return [
        _metric("token_ms", "ms", base, slower, (0.10, 0.012)),
        _metric("first_token_ms", "ms", base * 6, random.gauss(slower, 0.02), (0.15, 0.03)),
        _metric("load_ms", "ms", base * 22, random.gauss(1.0, 0.03), (0.50, 0.05)),
        _metric("memory_mb", "MB", 61.0, random.gauss(1.01, 0.005), (0.20, 0.01)),
    ]


def _metric(
    name: str, unit: str, incumbent: float, ratio: float, gate: tuple[float, float]
) -> Metric:
    tolerance, reach = gate
    worse = ratio - reach > 1 + tolerance
    return Metric(
        name=name,
        unit=unit,
        candidate=round(incumbent * ratio, 4),
        incumbent=incumbent,
        ratio=round(ratio, 5),
        ci_low=round(ratio - reach, 5),
        ci_high=round(ratio + reach, 5),
        tolerance=tolerance,
        n=6,
        verdict=Verdict.REGRESSION if worse else Verdict.PASS,
    )


def _wear(story: _Story) -> None:
    """What a real fleet looks like: some away, one ill, one put aside."""
    everyone: list[str] = []
    with story.ago(seconds=12) as scope:
        cursor = ""
        while True:
            page = inventory.list_devices(scope, limit=200, cursor=cursor)
            for one in page.items:
                everyone.append(one.id)
                beat = Heartbeat(
                    boot=1,
                    generation=one.generation,
                    digest=one.digest,
                    uptime_s=86_400,
                    healthy=one.id != UNHEALTHY,
                )
                topic = topics.up(topics.DeviceId(one.id), "heartbeat")
                if one.id not in OFFLINE:
                    _send(scope, [Incoming(topic, messages.encode(beat))])
            cursor = page.next
            if not cursor:
                break
        inventory.quarantine(scope, QUARANTINED, reason="stolen from its rack")
    with story.ago(hours=40) as scope:
        scope.tx.execute(
            device.update()
            .where(device.c.id.in_(OFFLINE))
            .values(online=False, last_seen_at=scope.now)
        )
        rollups.repair(scope.tx)
