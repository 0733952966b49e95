"""The demo's story on PostgreSQL, Redis and a Mosquitto with mutual TLS, as compose.yaml has it."""

import json
from pathlib import Path

import pytest

from control_plane.local import demo
from control_plane.local.demo import Narrator
from tests.support import services
from tests.support.real_stack import RealStack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def test_the_real_stack_tells_the_same_story(
    tmp_path: Path, postgres_url: str, redis_server: services.Redis
) -> None:
    facts_file = tmp_path / "facts.json"
    with RealStack(tmp_path / "control-plane", postgres_url, redis_server) as stack:
        held = demo.tell(stack, tmp_path, Narrator(), facts_file, once=True, each=2)
    facts = json.loads(facts_file.read_text())
    assert held, {entry["name"]: entry["state"] for entry in facts["rollouts"]}
    assert len(facts["devices"]) == 6
