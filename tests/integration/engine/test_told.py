"""A webhook is told each decision of a rollout, with the evidence that the API shows."""

import json
from typing import Any

from pydantic_core import to_json

from agent.protocol.words import ExecutionState
from control_plane.services import rollouts as service
from control_plane.services import webhooks
from tests.integration.engine.conftest import Fleet

OFFER = "dev.flotilla.rollout.offer"


def decided(fleet: Fleet, name: str) -> list[Any]:
    with fleet.scope() as scope:
        page = service.decisions(scope, name, limit=100)
    return list(reversed(json.loads(to_json(page.items))))


def test_a_halt_is_told_with_its_evidence_as_the_api_shows_it(fleet: Fleet) -> None:
    with fleet.scope() as scope:
        webhooks.create(scope, url="http://all.example/", events=[])
        webhooks.create(scope, url="http://offers.example/", events=[OFFER])
    name = fleet.start("1.1.0")
    fleet.fail(name, fleet.in_state(name, ExecutionState.OFFERED)[0])
    fleet.tick()
    everything = decided(fleet, name)
    with fleet.scope() as scope:
        letters = webhooks.take_due(scope, limit=100)
    events = {
        url: [json.loads(one.delivery.body) for one in letters if one.url == url]
        for url in ("http://all.example/", "http://offers.example/")
    }
    rare = [event["data"] for event in events["http://all.example/"]]
    assert rare == [one for one in everything if one["kind"] not in ("offer", "hold", "withdraw")]
    assert [one["kind"] for one in rare][-1] == "halt"
    assert any(gate["rule"] == "failures" for gate in rare[-1]["evidence"])
    offers = events["http://offers.example/"]
    assert offers
    assert {event["type"] for event in offers} == {OFFER}
    assert {event["subject"] for event in (*offers, *events["http://all.example/"])} == {
        f"rollouts/{name}"
    }
