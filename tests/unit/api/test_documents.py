from contextlib import suppress

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.domain.errors import InvalidError
from control_plane.services import documents

ROLLOUT = """\
apiVersion: flotilla/v1
kind: Rollout
metadata:
  name: slm-1.1.0
spec:
  model: slm
  version: 1.10
  waves:
    - {name: canary, count: 1}
    - name: everyone
      percent: 100
"""
BLUEPRINT = """\
apiVersion: flotilla/v1
kind: Blueprint
metadata: {name: plain-cpu}
spec:
  match: {arch: x86_64}
  limits: {memory_mb: 512}
  recipes: [int8-dynamic]
  quality:
    kl_mean_max: 0.1
    kl_p99_max: 1.0
    top1_agreement_min: 0.9
    perplexity_ratio_max: 1.1
    golden_min_agreement: 0.9
"""


def refusal(text: str) -> InvalidError:
    with pytest.raises(InvalidError) as caught:
        documents.parse(text, "file.yaml")
    return caught.value


def test_a_blueprint_comes_before_the_rollout_that_may_need_it() -> None:
    found = documents.parse(f"{ROLLOUT}---\n{BLUEPRINT}", "file.yaml")
    assert [(one.kind, one.name, one.line) for one in found] == [
        ("Blueprint", "plain-cpu", 13),
        ("Rollout", "slm-1.1.0", 1),
    ]


def test_a_version_that_looks_like_a_number_is_still_text() -> None:
    (found,) = documents.parse(ROLLOUT)
    assert found.body["spec"]["version"] == "1.10"


def test_empty_documents_are_no_documents() -> None:
    assert len(documents.parse(f"---\n{ROLLOUT}---\n---\n")) == 1
    assert documents.parse("# only a comment\n") == []


@pytest.mark.parametrize(
    ("before", "after", "line", "field"),
    [
        ("  model: slm", "  model: slm\n  colour: red", 7, "spec.colour"),
        ("percent: 100", "percent: 101", 11, "spec.waves[1].percent"),
        ("percent: 100", "percent: many", 11, "spec.waves[1].percent"),
        ("count: 1", "count: 1, size: 2", 9, "spec.waves[0].size"),
        ("  model: slm\n", "", 5, "spec.model"),
        ("kind: Rollout", "kind: Rolout", 2, "kind"),
        ("kind: Rollout\n", "", 1, "kind"),
        ("apiVersion: flotilla/v1", "apiVersion: flotilla/v2", 1, "apiVersion"),
        ("  name: slm-1.1.0", "  name: ../x", 4, "metadata.name"),
        ("  model: slm", "  model: slm\n  model: other", 7, "spec.model"),
        ("  model: slm", "  model: slm\n  selector: 'site = '", 7, "spec.selector"),
        ("  model: slm", "  model: slm\n  soak: soon", 7, "spec.soak"),
    ],
)
def test_an_error_names_file_line_and_field(before: str, after: str, line: int, field: str) -> None:
    error = refusal(ROLLOUT.replace(before, after))
    assert error.field == field
    assert error.message.startswith(f"file.yaml:{line}: ")


def test_a_misspelt_kind_is_recognised() -> None:
    assert "did you mean Rollout?" in refusal(ROLLOUT.replace("Rollout", "Rolout")).message


def test_a_blueprint_without_recipes_is_refused() -> None:
    error = refusal(BLUEPRINT.replace("[int8-dynamic]", "[]"))
    assert error.field == "spec.recipes"
    assert "file.yaml:7:" in error.message


def test_the_same_document_twice_is_refused() -> None:
    assert "also in line 1" in refusal(f"{ROLLOUT}---\n{ROLLOUT}").message


@pytest.mark.parametrize(
    "text",
    [
        "a: [1, 2",
        "\tx: 1",
        "a: &x [1]\nb: *x",
        "- 1\n- 2",
        "just text",
        "? [a, b]\n: 1",
        "a: !!python/object/apply:os.system ['true']",
        "[" * 200,
        "a:\n" + "".join(f"{' ' * i}b:\n" for i in range(1, 200)),
        "\x00",
        "x: " + "y" * (1 << 20),
    ],
)
def test_what_is_no_document_is_refused(text: str) -> None:
    assert refusal(text).message.startswith("file.yaml:")


@given(st.text(max_size=300))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(InvalidError):
        assert all(one.kind in documents.KINDS for one in documents.parse(text))


def test_the_schemas_accept_what_the_parser_accepts() -> None:
    for document in documents.parse(f"{ROLLOUT}---\n{BLUEPRINT}"):
        jsonschema.validate(document.body, documents.json_schema(document.kind))


def test_a_full_spec_has_the_defaults() -> None:
    (found,) = documents.parse(ROLLOUT)
    assert documents.full_spec(found)["on_breach"] == "halt"
