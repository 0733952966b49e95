"""Documents of `apply -f`: YAML text to checked documents; errors name file, line and field."""

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from control_plane.domain.errors import InvalidError
from control_plane.services import blueprint_document, rollout_document

MAX_TEXT = 1 << 20
MAX_DEPTH = 32

# In the order in which they are applied: a rollout may need a blueprint of the same file.
_READERS: dict[str, Callable[[object], object]] = {
    "Blueprint": blueprint_document.parse,
    "Rollout": rollout_document.parse,
}
_SCHEMAS: dict[str, Callable[[], dict[str, Any]]] = {
    "Blueprint": blueprint_document.json_schema,
    "Rollout": rollout_document.json_schema,
}
KINDS = tuple(_READERS)


@dataclass(frozen=True)
class Document:
    """One checked document.

    Attributes:
        kind: Blueprint or Rollout.
        name: its metadata.name.
        body: the whole document, as the API takes it.
        source: the file it came from, and its first line there.
        line: that line, from 1.
    """

    kind: str
    name: str
    body: dict[str, Any]
    source: str
    line: int


def parse(text: str, source: str = "-") -> list[Document]:
    """Read every document of a YAML text, in the order in which to apply them.

    Args:
        text: YAML or JSON.
        source: file name, for errors.

    Raises:
        InvalidError: ``file:line: field: what is wrong``.
    """
    if len(text) > MAX_TEXT:
        raise InvalidError(f"{source}: {len(text)} characters; the limit is {MAX_TEXT}")
    found = [_checked(node, source) for node in _nodes(text, source)]
    _no_twins(found)
    return sorted(found, key=lambda document: KINDS.index(document.kind))


def json_schema(kind: str) -> dict[str, Any]:
    """Return the JSON Schema of a kind of document, for editors."""
    return _SCHEMAS[_kind(kind)]()


def full_spec(document: Document) -> Any:
    """Return the document's spec as the control plane would answer it."""
    if document.kind == "Blueprint":
        blueprint = blueprint_document.parse(document.body)
        return blueprint_document.to_document(blueprint)["spec"]
    return rollout_document.to_document(rollout_document.parse(document.body))["spec"]


def check_name(body: dict[str, Any], name: str) -> None:
    """Raise `InvalidError` unless a document that is put under `name` also has that name."""
    metadata = body.get("metadata")
    found = metadata.get("name") if isinstance(metadata, dict) else None
    if found != name:
        raise InvalidError(
            f"the document is called {found!r:.80}, the address says {name[:80]!r}",
            field="metadata.name",
        )


def _checked(node: yaml.Node, source: str) -> Document:
    lines: dict[str, int] = {}
    body = _value(node, "", lines, source, 0)
    try:
        kind = _kind_of(body)
        _READERS[kind](body)
    except InvalidError as error:
        line = _line_of(error.field, lines)
        raise InvalidError(f"{source}:{line}: {error.message}", field=error.field) from error
    return Document(kind, body["metadata"]["name"], body, source, node.start_mark.line + 1)


def _kind_of(body: object) -> str:
    if not isinstance(body, dict):
        raise InvalidError("a document is a mapping with apiVersion, kind, metadata and spec")
    return _kind(body.get("kind"))


def _kind(found: object) -> str:
    if isinstance(found, str) and found in KINDS:
        return found
    close = difflib.get_close_matches(str(found), KINDS, 1, 0.5)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise InvalidError(f"unknown kind {found!r:.80}: one of {', '.join(KINDS)}{hint}", field="kind")


class _Loader(yaml.SafeLoader):
    """Plain YAML without aliases: a few of them can stand for billions of values."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(
                None, None, "aliases (*name) are not taken; write the value out", event.start_mark
            )
        return super().compose_node(parent, index)


def _nodes(text: str, source: str) -> Iterator[yaml.Node]:
    try:
        for node in yaml.compose_all(text, _Loader):
            if node.value != "":  # an empty document, such as after a last ---
                yield node
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InvalidError(f"{source}:{line}: not YAML: {error.problem}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise InvalidError(f"{source}: not YAML: {error}") from error


def _value(node: yaml.Node, path: str, lines: dict[str, int], source: str, depth: int) -> Any:
    """Return a node's plain value, and note the line of every field below `path`."""
    line = node.start_mark.line + 1
    lines.setdefault(path, line)
    if depth > MAX_DEPTH:
        raise InvalidError(f"{source}:{line}: nested deeper than {MAX_DEPTH}", field=path)
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, lines, source, depth)
    if isinstance(node, yaml.SequenceNode):
        return [
            _value(item, f"{path}[{index}]", lines, source, depth + 1)
            for index, item in enumerate(node.value)
        ]
    return _scalar(node, path, source)


def _mapping(
    node: yaml.MappingNode, path: str, lines: dict[str, int], source: str, depth: int
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = key_node.value
        if not isinstance(key, str):
            raise InvalidError(f"{source}:{line}: a field's name must be text", field=path)
        where = f"{path}.{key}" if path else key
        if key in found:
            raise InvalidError(f"{source}:{line}: {where} comes twice", field=where)
        lines[where] = line
        found[key] = _value(value_node, where, lines, source, depth + 1)
    return found


def _scalar(node: yaml.Node, path: str, source: str) -> Any:
    line = node.start_mark.line + 1
    # Versions look like numbers and dates; whoever writes 1.10 means the text.
    if path in _TEXT:
        return node.value
    try:
        value = _construct(node)
    except (ValueError, yaml.YAMLError) as error:
        raise InvalidError(f"{source}:{line}: {path}: {error}", field=path) from error
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return node.value  # dates and the like: JSON has only text for them


_TEXT = frozenset({"metadata.name", "spec.version", "spec.model"})


def _construct(node: yaml.Node) -> Any:
    return yaml.constructor.SafeConstructor().construct_object(node)


def _line_of(field: str, lines: dict[str, int]) -> int:
    """Return the line of a field, or of the nearest thing around it that is written."""
    path = field
    while path and path not in lines:
        path = re.sub(r"(\.[^.\[\]]*|\[\d+\]|^[^.\[\]]+)$", "", path)
    return lines.get(path, 1)


def _no_twins(found: list[Document]) -> None:
    seen: dict[tuple[str, str], Document] = {}
    for document in found:
        other = seen.setdefault((document.kind, document.name), document)
        if other is not document:
            raise InvalidError(
                f"{document.source}:{document.line}: {document.kind} {document.name} is also in "
                f"line {other.line}",
                field="metadata.name",
            )
