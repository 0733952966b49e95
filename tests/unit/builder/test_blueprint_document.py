from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from control_plane.domain.blueprint import recognise
from control_plane.domain.errors import InvalidError
from control_plane.domain.recipe import RECIPES
from control_plane.services.blueprint_document import json_schema, parse, to_document

SHIPPED = sorted((Path(__file__).parents[3] / "blueprints").glob("*.yaml"))


def document() -> dict[str, Any]:
    return {
        "apiVersion": "flotilla/v1",
        "kind": "Blueprint",
        "metadata": {"name": "edge"},
        "spec": {
            "match": {"arch": "x86_64"},
            "limits": {"disk_mb": 100},
            "recipes": ["int8-dynamic", "fp32"],
            "quality": {
                "kl_mean_max": 0.01,
                "kl_p99_max": 0.05,
                "top1_agreement_min": 0.9,
                "perplexity_ratio_max": 1.05,
                "golden_min_agreement": 0.8,
            },
        },
    }


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_blueprint_is_read_fits_the_schema_and_is_written_back_the_same(
    path: Path,
) -> None:
    raw = yaml.safe_load(path.read_text())
    blueprint = parse(raw)
    assert blueprint.name == path.stem
    jsonschema.validate(raw, json_schema())
    assert parse(to_document(blueprint)) == blueprint


@pytest.mark.parametrize(
    ("hardware", "name"),
    [
        ({"arch": "x86_64", "flags": ["avx2", "avx512f", "avx512_vnni"]}, "x86-64-vnni"),
        ({"arch": "x86_64", "flags": ["avx2", "avx_vnni"]}, "x86-64-vnni"),
        ({"arch": "x86_64", "flags": ["avx2", "fma"]}, "x86-64-avx2"),
        ({"arch": "aarch64", "flags": ["asimd", "asimddp"]}, "arm64-board"),
        ({"arch": "x86_64", "flags": ["sse4_2"]}, None),
        ({"arch": "aarch64", "flags": ["asimd"]}, None),
    ],
)
def test_the_shipped_blueprints_recognise_their_hardware(
    hardware: dict[str, Any], name: str | None
) -> None:
    shipped = [parse(yaml.safe_load(path.read_text())) for path in SHIPPED]
    found = recognise(shipped, hardware)
    assert (None if found is None else found.name) == name


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("spec", "limits", "disc_mb"), 5, "spec.limits.disc_mb"),
        (("spec", "limits", "disk_mb"), -5, "spec.limits.disk_mb"),
        (("spec", "limits", "disk_mb"), "5", "spec.limits.disk_mb"),
        (("spec", "limits", "token_ms"), float("nan"), "spec.limits.token_ms"),
        (("spec", "colour"), "red", "spec.colour"),
        (("spec", "recipes"), [], "spec.recipes"),
        (("spec", "recipes"), ["int3"], "spec.recipes"),
        (("spec", "recipes"), ["fp32", "fp32"], "spec.recipes"),
        (("spec", "match", "flags_all"), ["AVX 2"], "spec.match.flags_all[0]"),
        (("spec", "quality", "top1_agreement_min"), 1.5, "spec.quality.top1_agreement_min"),
        (("spec", "runtime"), {"threads": 0}, "spec.runtime.threads"),
        (("spec", "runtime"), {"provider": "CUDAExecutionProvider"}, "spec.runtime.provider"),
        (("metadata", "name"), "Edge Box", "metadata.name"),
        (("kind",), "Rollout", "kind"),
        (("apiVersion",), "flotilla/v2", "apiVersion"),
    ],
)
def test_a_wrong_field_is_named_by_its_path(path: tuple[str, ...], value: Any, field: str) -> None:
    raw = document()
    inner = raw
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    with pytest.raises(InvalidError) as refused:
        parse(raw)
    assert refused.value.field == field
    assert field in refused.value.message


@pytest.mark.parametrize("missing", ["match", "limits", "recipes", "quality"])
def test_a_missing_part_is_named(missing: str) -> None:
    raw = document()
    del raw["spec"][missing]
    with pytest.raises(InvalidError) as refused:
        parse(raw)
    assert refused.value.field == f"spec.{missing}"


def test_an_unknown_recipe_is_refused_with_the_list_of_known_ones() -> None:
    raw = document()
    raw["spec"]["recipes"] = ["int3"]
    with pytest.raises(InvalidError) as refused:
        parse(raw)
    assert all(name in refused.value.message for name in ("int3", *RECIPES))


@pytest.mark.parametrize("raw", [None, [], "text", 7])
def test_what_is_not_an_object_is_refused(raw: object) -> None:
    with pytest.raises(InvalidError):
        parse(raw)
