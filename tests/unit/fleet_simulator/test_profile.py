"""The FleetProfile document: what it may say, and how it is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from control_plane.domain.errors import InvalidError
from control_plane.local.fleet_simulator import profile
from control_plane.local.fleet_simulator.population import populate
from tests.unit.fleet_simulator.people import profile as calm

EXAMPLES = Path(__file__).parents[3] / "examples" / "fleets"


def document(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "flotilla/v1",
        "kind": "FleetProfile",
        "metadata": {"name": "sim"},
        "spec": {"blueprints": {"board": {}}, **spec},
    }


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_is_a_profile(path: Path) -> None:
    assert populate(profile.load(path), 3, seed=1)


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({"blueprints": {}}, "spec.blueprints"),
        ({"blueprints": {"board": {"share": 0}}}, "spec.blueprints.board.share"),
        ({"colour": "blue"}, "spec.colour"),
        ({"heartbeat": "soon"}, "spec.heartbeat"),
        ({"heartbeat": "0s"}, "spec.heartbeat"),
        ({"link": {"duplicates": 1.5}}, "spec.link.duplicates"),
        ({"link": {"latency": {"median": "-1s"}}}, "spec.link.latency.median"),
        ({"failures": {"soaking": {"failed": 0.1}}}, "spec.failures.soaking.failed"),
        ({"failures": {"downloading": {"failed": float("nan")}}}, "spec.failures.downloading"),
        ({"runs": "support-slm"}, "MODEL@VERSION"),
        ({"sites": {"": 1}}, "spec.sites"),
        ({"labels": {"ring": {}}}, "label ring has no values"),
        ({"labels": {"site": {"vie": 1}}}, "a field of its own"),
        ({"download": "maybe"}, "spec.download"),
        ({"offline": {"up": 0}}, "spec.offline.up"),
        ({"versions": {"1.0.0": {"slowdown": 0}}}, "spec.versions.1.0.0.slowdown"),
        ({"reconnect": {"base": "1"}}, "spec.reconnect.base"),
    ],
)
def test_what_is_wrong_is_named(spec: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidError, match="fleet profile") as refused:
        profile.parse(document(**spec))
    assert named in str(refused.value)


def test_a_file_is_named_with_what_is_wrong_in_it(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    for text, said in (("{", "not YAML"), ("- 1", "document"), (": \x00", "not YAML")):
        path.write_text(text)
        with pytest.raises(InvalidError, match=said) as refused:
            profile.load(path)
        assert str(path) in str(refused.value)
    with pytest.raises(InvalidError, match="No such file"):
        profile.load(tmp_path / "none.yaml")


def test_a_profile_reads_back_from_yaml() -> None:
    assert profile.parse(yaml.safe_load(yaml.safe_dump(document()))).name == "sim"
    assert "spec" in profile.json_schema()["properties"]


def test_the_same_seed_makes_the_same_fleet_and_a_larger_one_begins_with_it() -> None:
    spec = {"blueprints": {"a": {"share": 3}, "b": {"share": 1}}, "sites": {"vie": 1, "fra": 1}}
    small, large = (populate(calm(**spec), n, seed=7) for n in (50, 400))
    assert _who(large[:50]) == _who(small)
    assert _who(populate(calm(**spec), 50, seed=8)) != _who(small)
    kinds = [one.traits.blueprint for one in large]
    assert 260 < kinds.count("a") < 340, "three of four, give or take"


def _who(members: list[Any]) -> list[Any]:
    return [(m.traits.name, m.traits.blueprint, m.traits.speed, m.labels) for m in members]
