"""What each page says: read models of the services in, template context out."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from control_plane.dashboard import charts, gate_table, rollout_page, words
from control_plane.dashboard.words import look_of
from control_plane.domain.device import health_of as health_of_row
from control_plane.services import builds, inventory, rollout_reads, rollout_tick, rollouts
from control_plane.services.rollout_views import RolloutView
from control_plane.services.scope import Scope

if TYPE_CHECKING:
    from control_plane.dashboard.routes import Where
    from control_plane.domain.paging import Page

PAGE = 50
FEED = 6
MOST_DECISIONS = 30
MOST_TRIALS = 500
# Column of the device table: the order that a click on its heading asks for first.
_ORDERS = {
    "Device": "name",
    "Health": "health",
    "Runs": "version",
    "Blueprint": "blueprint",
    "Last seen": "-last_seen",
}


@dataclass(frozen=True)
class TrialLine:
    """One trial in a device's list."""

    at: object
    candidate: str
    incumbent: str
    verdict: str
    change: str


# --- loaders, one a page ----------------------------------------------------------------------


def overview(scope: Scope, where: "Where") -> dict[str, Any]:
    """The fleet at a glance: what needs a person first."""
    summary = inventory.fleet_summary(scope)
    page = rollouts.list_rollouts(scope, limit=10)
    asks = " or ".join(f'state = "{state}"' for state in words.WAITING)
    return {
        "summary": summary,
        "versions": sorted(summary.by_version.items(), key=lambda item: (-item[1], item[0])),
        "waiting": rollouts.list_rollouts(scope, filter=asks, limit=PAGE).items,
        "page": _shown(page, where, paged=False),
    }


def devices(scope: Scope, where: "Where") -> dict[str, Any]:
    """The fleet table."""
    page = inventory.list_devices(
        scope, filter=where.filter, sort=where.sort, limit=PAGE, cursor=where.cursor
    )
    return {"page": _shown(page, where), "orders": _ORDERS}


def device(scope: Scope, where: "Where") -> dict[str, Any]:
    """One device: what it runs, what it is, what it measured, what happened."""
    trials = rollouts.benchmarks(scope, device=where.name, limit=PAGE).items
    return {
        "device": inventory.get_device(scope, where.name),
        "history": inventory.device_history(scope, where.name, limit=PAGE, cursor=""),
        "trials": [
            TrialLine(t.at, t.candidate, t.incumbent, t.verdict, rollout_page.change_words(t))
            for t in trials
        ],
    }


def rollout_list(scope: Scope, where: "Where") -> dict[str, Any]:
    """Every rollout, newest first."""
    page = rollouts.list_rollouts(scope, filter=where.filter, limit=PAGE, cursor=where.cursor)
    return {"page": _shown(page, where)}


def rollout(scope: Scope, where: "Where") -> dict[str, Any]:
    """One rollout: waves, gates with their numbers, measurements, decisions, devices."""
    row = rollout_reads.find(scope, where.name)
    view = rollout_reads.view_of(scope, row)
    allowed = rollout_page.allowed(view)
    page = rollouts.executions(
        scope, where.name, filter=where.filter, limit=PAGE, cursor=where.cursor
    )
    decisions = rollouts.decisions(scope, where.name, limit=MOST_DECISIONS).items
    trials = rollouts.benchmarks(scope, rollout=where.name, limit=MOST_TRIALS).items
    failed = rollouts.executions(scope, where.name, filter=rollout_page.FAILED, limit=PAGE).items
    return {
        "rollout": view,
        "selector": view.spec.get("selector", ""),
        "incumbents": rollout_page.incumbents(trials),
        "all_verbs": rollout_page.VERBS,
        "verbs": [verb for verb in rollout_page.VERBS if verb.name in allowed],
        "figures": rollout_page.figures(view),
        "waves": [rollout_page.wave_card(wave, view.state) for wave in view.waves],
        "gates": gate_table.of(rollout_tick.load_view(scope, row), scope.now),
        "feed": rollout_page.feed(trials[:FEED], failed, FEED),
        "shares": rollout_page.SHARES,
        "charts": rollout_page.change_panels(trials, rollout_page.tolerance_of(view)),
        "decisions": [rollout_page.decision_line(view, d) for d in decisions],
        "wave_names": [wave.name for wave in view.waves],
        "page": _shown(page, where),
    }


def artifacts(scope: Scope, where: "Where") -> dict[str, Any]:
    """Every recipe tried, accepted or refused, with its numbers."""
    page = builds.list_artifacts(scope, limit=PAGE, cursor=where.cursor)
    return {"page": _shown(page, where)}


# --- pure parts -------------------------------------------------------------------------------


def health_of(view: inventory.DeviceView) -> str:
    """Return the one word that says how a device is."""
    return health_of_row(state=view.state, online=view.online, healthy=view.healthy)


def bar_of(view: RolloutView) -> str:
    """Return a rollout's progress bar."""
    total = sum(wave.total for wave in view.waves)
    title = f"{view.name}: {caption_of(view)}"
    return rollout_page.bar(rollout_page.counts_of(view), total, title)


def caption_of(view: RolloutView) -> str:
    """Return a rollout's progress in words."""
    counted = rollout_page.figures(view)
    return f"{counted.updated} of {counted.total} updated"


def share_bar(part: int, whole: int, title: str) -> str:
    """Return a bar that shows a share of the fleet."""
    rest = charts.Segment("other", max(0, whole - part), "track")
    return charts.stacked_bar([charts.Segment(title, part, "busy"), rest], title=title)


@dataclass(frozen=True)
class _Shown:
    """A page and whether it is the first."""

    items: list[Any]
    next: str
    first: bool


def _shown(page: "Page[Any]", where: "Where", *, paged: bool = True) -> _Shown:
    return _Shown(page.items, page.next if paged else "", first=not where.cursor)


TEMPLATE_GLOBALS: dict[str, Any] = {
    "look_of": look_of,
    "since": words.since,
    "query": words.query,
    "megabytes": words.megabytes,
    "share": words.share,
    "number": words.number,
    "said": words.said,
    "fact": words.fact,
    "health_of": health_of,
    "bar_of": bar_of,
    "caption_of": caption_of,
    "share_bar": share_bar,
}
