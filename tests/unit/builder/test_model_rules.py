import json
from typing import Any

import pytest

from control_plane.domain.errors import InvalidError
from control_plane.domain.model import (
    REQUIRED,
    SourceFile,
    check_held_out,
    check_layout,
    check_names,
    parse_descriptor,
    parse_prompts,
    source_digest,
)
from tests.support import tiny_lm

DIGEST = "0" * 64


def layout(**extra: int) -> list[SourceFile]:
    return [
        *(SourceFile(path, 10, DIGEST) for path in REQUIRED),
        *(SourceFile(path.replace("__", "."), size, DIGEST) for path, size in extra.items()),
    ]


@pytest.mark.parametrize("model", ["", "Support", "a/b", "../x", "a" * 64, ".hidden", "a b"])
def test_a_name_that_could_leave_a_path_or_topic_is_refused(model: str) -> None:
    with pytest.raises(InvalidError) as refused:
        check_names(model, "1.0.0")
    assert refused.value.field == "model"


@pytest.mark.parametrize("version", ["", "1/0", "-1", "1.0 beta", "1" * 64])
def test_a_version_that_could_leave_a_path_or_topic_is_refused(version: str) -> None:
    with pytest.raises(InvalidError) as refused:
        check_names("support-slm", version)
    assert refused.value.field == "version"


def test_a_whole_folder_is_taken_with_notes_beside_it() -> None:
    check_layout(layout(README__md=100))


@pytest.mark.parametrize("path", REQUIRED)
def test_a_missing_file_is_named(path: str) -> None:
    with pytest.raises(InvalidError, match=path):
        check_layout([file for file in layout() if file.path != path])


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("weights.pt", "run code"),
        ("model.PKL", "run code"),
        ("pytorch_model.bin", "run code"),
        ("model.onnx.data", "side file"),
        ("run.sh", "unknown kind"),
        ("noextension", "unknown kind"),
        ("../model.json", "plain relative path"),
        ("/etc/passwd.txt", "plain relative path"),
        ("a//b.txt", "plain relative path"),
        (".hidden.txt", "plain relative path"),
        ("eval/../x.txt", "plain relative path"),
        ("MODEL.json", "comes twice"),
    ],
)
def test_a_file_that_does_not_belong_in_a_model_folder_is_refused(path: str, says: str) -> None:
    with pytest.raises(InvalidError, match=says) as refused:
        check_layout([*layout(), SourceFile(path, 1, DIGEST)])
    assert refused.value.field == "files[5].path"


def test_a_text_file_too_large_to_read_whole_is_refused() -> None:
    with pytest.raises(InvalidError, match=r"notes\.txt has 99999999 bytes"):
        check_layout(layout(notes__txt=99_999_999))


def test_a_digest_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidError) as refused:
        check_layout([SourceFile("model.onnx", 1, "xyz")])
    assert refused.value.field == "files[0].sha256"


def test_the_source_digest_depends_on_content_and_not_on_order() -> None:
    files = layout()
    assert source_digest(files) == source_digest(files[::-1])
    assert source_digest(files) != source_digest([*files[:-1], SourceFile("x.txt", 10, DIGEST)])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("schema", 2),
        ("schema", True),
        ("kind", "encoder"),
        ("vocab_size", 0),
        ("vocab_size", "300"),
        ("context_length", None),
        ("eos_token_id", 300),
        ("eos_token_id", -1),
        ("kv_layers", 1.5),
        ("kv_heads", False),
        ("head_dim", 10**9),
    ],
)
def test_a_wrong_field_of_the_descriptor_is_named(name: str, value: Any) -> None:
    raw = {**tiny_lm.descriptor(), name: value}
    with pytest.raises(InvalidError) as refused:
        parse_descriptor(json.dumps(raw).encode())
    assert refused.value.field == f"model.json:{name}"


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe"])
def test_a_descriptor_that_is_not_an_object_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidError) as refused:
        parse_descriptor(data)
    assert refused.value.field == "model.json"


def test_what_a_descriptor_says_beyond_our_fields_is_kept_for_people() -> None:
    raw = {**tiny_lm.descriptor(), "licence": "MIT"}
    descriptor, kept = parse_descriptor(json.dumps(raw).encode())
    assert descriptor.vocab_size == tiny_lm.VOCABULARY
    assert kept["licence"] == "MIT"


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        ({"schema": 2, "prompts": [{"id": "a", "text": "b"}]}, ":prompts"),
        ({"schema": 1, "prompts": []}, ":prompts"),
        ({"schema": 1, "prompts": [{"id": "a", "text": ""}]}, ":prompts[0].text"),
        ({"schema": 1, "prompts": [{"id": 1, "text": "b"}]}, ":prompts[0].id"),
        ({"schema": 1, "prompts": ["b"]}, ":prompts[0]"),
        ({"schema": 1, "prompts": [{"id": "a", "text": "b"}] * 2}, ":prompts"),
        ([], ":prompts"),
    ],
)
def test_a_wrong_golden_prompt_is_named(raw: object, field: str) -> None:
    with pytest.raises(InvalidError) as refused:
        parse_prompts(json.dumps(raw).encode())
    assert refused.value.field == f"eval/prompts.json{field}"


@pytest.mark.parametrize("data", [b"", b" \n", b"\xff\xfe\x00"])
def test_held_out_text_that_is_empty_or_not_text_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidError) as refused:
        check_held_out(data)
    assert refused.value.field == "eval/heldout.txt"
