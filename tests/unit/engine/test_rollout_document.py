"""The Rollout document: what it takes, what it refuses, and that it survives the round trip."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from agent.protocol.words import ExecutionState
from control_plane.domain.errors import InvalidError
from control_plane.domain.rollout import (
    Approval,
    Budget,
    GatePolicy,
    Growth,
    Pace,
    RolloutSpec,
    WaveSpec,
    Windows,
)
from control_plane.domain.windows import Window
from control_plane.services import rollout_document, rollout_fields


def _document(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "flotilla/v1",
        "kind": "Rollout",
        "metadata": {"name": "support-slm-1.1.0"},
        "spec": {
            "model": "support-slm",
            "version": "1.1.0",
            "waves": [{"name": "canary", "count": 3}, {"name": "everyone", "percent": 100}],
            **spec,
        },
    }


def test_durations_become_seconds_and_defaults_are_filled_in() -> None:
    spec = rollout_document.parse(_document(soak="1m", timeouts={"silent": "2h"}))
    assert (spec.soak_s, spec.timeouts.silent_s, spec.timeouts.execution_s) == (60, 7200, 21600)
    assert spec.gates == GatePolicy()
    assert spec.wave_soak_s(1) == 60


def test_a_rollout_written_as_a_document_reads_as_the_same_rollout() -> None:
    spec = rollout_document.parse(
        _document(
            selector='labels.site = "vie"',
            soak="1500ms",
            approval="required",
            on_breach="revert",
            not_before="2026-11-22T08:00:00+01:00",
            gates={"tolerance": {"token_ms": 0.2}, "scope": "blueprint"},
        )
    )
    again = rollout_document.to_document(spec)
    assert rollout_document.parse(again) == spec
    assert rollout_document.spec_of(spec.name, again["spec"]) == spec
    jsonschema.validate(again, rollout_document.json_schema())


def test_approval_of_the_rollout_is_approval_of_its_first_wave() -> None:
    spec = rollout_document.parse(_document(approval="required"))
    assert [wave.approval for wave in spec.waves] == [Approval(), None]


EVERYTHING: dict[str, Any] = {
    "waves": [
        {
            "name": "lab",
            "selector": 'labels.ring = "lab"',
            "soak": "10m",
            "timeout": "1d",
            "pace": {"max_in_flight": 2},
        },
        {"name": "canary", "count": 3, "approval": {"needed": 2, "of": ["ann", "bob", "cem"]}},
        {"name": "rest", "percent": 100, "pace": {"growth": None}, "approval": "required"},
    ],
    "pace": {
        "max_in_flight": 50,
        "per_minute": 10,
        "growth": {"factor": 1.5, "every": 20, "limit": 300},
    },
    "budgets": [{"label": "site", "max": 2}, {"label": "rack", "max": 1}],
    "windows": {
        "download": {"cron": "0 18 * * *", "duration": "10h", "timezone": "Europe/Vienna"},
        "activate": {"cron": "0 2 * * SUN", "duration": "2h"},
    },
    "timeouts": {"steps": {"downloading": "1h", "benchmarking": "30m", "soaking": "20m"}},
    "gates": {"max_failures": 5, "max_failure_rate": 0.02},
    "priority": 80,
    "dynamic": True,
}


def _everything() -> RolloutSpec:
    return rollout_document.parse(_document(**EVERYTHING))


def test_every_field_of_the_policy_is_read() -> None:
    spec = _everything()
    growth = Growth(factor=1.5, every=20, limit=300)
    assert spec.pace == Pace(50, 10, growth)
    lab, canary, rest = spec.waves
    assert lab == WaveSpec(
        "lab",
        soak_s=600,
        selector='labels.ring = "lab"',
        timeout_s=86400,
        pace=Pace(2, 10, growth),
    )
    assert canary.approval == Approval(2, ("ann", "bob", "cem"))
    assert (rest.approval, rest.pace) == (Approval(), Pace(50, 10))
    assert [spec.wave_pace(wave) for wave in (-1, 0, 1, 2)] == [
        lab.pace,
        lab.pace,
        spec.pace,
        rest.pace,
    ]
    assert spec.budgets == (Budget("site", 2), Budget("rack", 1))
    assert spec.windows == Windows(
        Window("0 18 * * *", 36000, "Europe/Vienna"), Window("0 2 * * SUN", 7200, "UTC")
    )
    assert spec.timeouts.steps == {
        ExecutionState.DOWNLOADING: 3600,
        ExecutionState.BENCHMARKING: 1800,
        ExecutionState.SOAKING: 1200,
    }
    assert (spec.gates.max_failures, spec.gates.max_failure_rate) == (5, 0.02)
    assert (spec.priority, spec.dynamic) == (80, True)


def test_the_whole_policy_survives_the_round_trip_and_fits_the_published_schema() -> None:
    spec = _everything()
    again = rollout_document.to_document(spec)
    assert rollout_document.parse(again) == spec
    assert rollout_document.spec_of(spec.name, again["spec"]) == spec
    assert rollout_document.to_document(rollout_document.parse(again)) == again
    for document in (again, _document(**EVERYTHING)):
        jsonschema.validate(document, rollout_document.json_schema())


def test_the_example_of_the_whole_policy_is_one_that_can_be_applied() -> None:
    text = Path("examples/rollout-policy.yaml").read_text(encoding="utf-8")
    document = yaml.safe_load(text)
    spec = rollout_document.parse(document)
    written = rollout_document.to_document(spec)
    assert rollout_document.parse(written) == spec
    # It shows every field that there is: whoever adds one adds it there and to docs/policy.md.
    assert set(document["spec"]) >= set(written["spec"]) - {"soak", "approval"}
    page = Path("docs/policy.md").read_text(encoding="utf-8")
    named = (kind.model_fields for place, kind in rollout_fields.PLACES.items() if place)
    assert not {field for fields in named for field in fields if f"`{field}" not in page}


def test_without_a_policy_nothing_waits_and_nothing_joins() -> None:
    spec = rollout_document.parse(_document())
    assert (spec.budgets, spec.windows, spec.timeouts.steps) == ((), Windows(), {})
    assert (spec.priority, spec.dynamic, spec.gates.max_failure_rate) == (50, False, None)
    assert all(wave == WaveSpec(wave.name, wave.count, wave.percent) for wave in spec.waves)


def _wave(**fields: Any) -> dict[str, Any]:
    return {"waves": [{"name": "all", "percent": 100, **fields}]}


def _window(**fields: Any) -> dict[str, Any]:
    return {"windows": {"activate": {"cron": "0 2 * * *", "duration": "2h", **fields}}}


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        (_wave(selector="site = vie"), "spec.waves[0]", "count or percent or selector"),
        (
            {"waves": [{"name": "lab", "selector": "site = vie"}]},
            "spec.waves[0].selector",
            "column 8",
        ),
        (_wave(approval={"needed": 0}), "spec.waves[0].approval.needed", "greater than or equal"),
        (_wave(approval={"of": ["ann", "ann"]}), "spec.waves[0].approval", "named twice"),
        (_wave(approval={"needed": 3, "of": ["a", "b"]}), "spec.waves[0].approval", "only 2 may"),
        (_wave(approval={"need": 1}), "spec.waves[0].approval.need", "needed, of"),
        (_wave(approval=True), "spec.waves[0].approval", "'none' or 'required'"),
        (_wave(timeout="0s"), "spec.waves[0].timeout", "greater than 0"),
        (_wave(pace={"max": 1}), "spec.waves[0].pace.max", "max_in_flight"),
        (_wave(pace={"per_minute": 0}), "spec.waves[0].pace.per_minute", "greater than or equal"),
        (
            {"pace": {"growth": {"factor": 1, "every": 5, "limit": 9}}},
            "spec.pace.growth.factor",
            "greater than 1",
        ),
        (
            {"pace": {"per_minute": 10, "growth": {"factor": 2.0, "every": 5, "limit": 9}}},
            "spec.pace.growth.limit",
            "below per_minute",
        ),
        (
            _wave(pace={"growth": {"factor": 2.0, "every": 5, "limit": 9}}),
            "spec.waves[0].pace.growth.limit",
            "below per_minute, 600",
        ),
        ({"budgets": [{"label": "a site", "max": 1}]}, "spec.budgets[0].label", "pattern"),
        ({"budgets": [{"label": "site", "max": 0}]}, "spec.budgets[0].max", "greater than"),
        ({"budgets": [{"label": "site", "max": n} for n in (1, 2)]}, "spec", "the same label"),
        (_window(cron="0 25 * * *"), "spec.windows.activate.cron", "Bad hour"),
        (_window(cron="0 2 31 2 *"), "spec.windows.activate.cron", "Bad day-of-month"),
        (_window(cron="* 0 2 * * *"), "spec.windows.activate.cron", "five fields"),
        (_window(cron="@daily"), "spec.windows.activate.cron", "five fields"),
        (_window(duration="30s"), "spec.windows.activate.duration", "60"),
        (_window(timezone="Europe/Wien"), "spec.windows.activate.timezone", "Europe/Vienna"),
        (_window(timezone="../etc"), "spec.windows.activate.timezone", "IANA"),
        ({"windows": {"night": {}}}, "spec.windows.night", "activate, download"),
        ({"timeouts": {"steps": {"cooking": "1h"}}}, "spec.timeouts.steps.cooking", "'soaking'"),
        ({"timeouts": {"steps": {"queued": "1h"}}}, "spec.timeouts.steps.queued", "'offered'"),
        ({"timeouts": {"steps": {"staged": 0}}}, "spec.timeouts.steps.staged", "greater than 0"),
        (
            {"soak": "1h", "timeouts": {"steps": {"soaking": "1h"}}},
            "spec.timeouts.steps.soaking",
            "nobody could confirm",
        ),
        ({"gates": {"max_failure_rate": 1}}, "spec.gates.max_failure_rate", "less than 1"),
        ({"priority": 101}, "spec.priority", "100"),
        ({"priority": "high"}, "spec.priority", "integer"),
        ({"dynamic": "yes"}, "spec.dynamic", "boolean"),
        ({"wavs": []}, "spec.wavs", "waves"),
        ({"pace": {"max": 1}}, "spec.pace.max", "max_in_flight"),
        ({"waves": []}, "spec.waves", "at least 1"),
        ({"waves": [{"name": "all"}]}, "spec.waves[0]", "count or percent or selector"),
        ({"waves": [{"name": "all", "percent": 101}]}, "spec.waves[0].percent", "100"),
        ({"waves": [{"name": "all", "percent": 5, "size": 1}]}, "spec.waves[0].size", "soak"),
        ({"soak": "soon"}, "spec.soak", "such as"),
        ({"soak": -1}, "spec.soak", "greater than or equal to 0"),
        ({"soak": float("nan")}, "spec.soak", "0"),
        ({"gates": {"max_failures": 0.5}}, "spec.gates.max_failures", "integer"),
        ({"gates": {"tolerance": {}}}, "spec.gates.tolerance", "at least 1"),
        ({"gates": {"min_answered": 0}}, "spec.gates.min_answered", "greater than 0"),
        ({"approval": "yes"}, "spec.approval", "'none' or 'required'"),
        ({"trial": {"min_blocks": 9, "max_blocks": 8}}, "spec.trial", "below min_blocks"),
        ({"selector": "site = vie"}, "spec.selector", "column 8"),
        ({"version": 1.1}, "spec.version", "string"),
        ({"not_before": "2026-11-22T08:00:00"}, "spec.not_before", "timezone"),
    ],
)
def test_a_wrong_field_is_named_by_its_path(
    changes: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(InvalidError) as caught:
        rollout_document.parse(_document(**changes))
    assert caught.value.field == field
    assert words in caught.value.message


@pytest.mark.parametrize("document", [None, [], "text", {}, {"kind": "Rollout"}])
def test_what_is_no_rollout_at_all_is_refused(document: object) -> None:
    with pytest.raises(InvalidError):
        rollout_document.parse(document)
