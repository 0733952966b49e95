"""Selectors as SQL: the same answer as `matches`, on SQLite and PostgreSQL."""

import json
import operator
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Row,
    String,
    Text,
    and_,
    cast,
    exists,
    false,
    literal,
    not_,
    or_,
    select,
    true,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import Boolean

from control_plane.domain.selector import (
    All,
    And,
    Compare,
    Kind,
    Not,
    Operator,
    Or,
    Scalar,
    Selector,
    compares,
    kind_of,
)
from control_plane.store import health
from control_plane.store.database import Transaction
from control_plane.store.schema import bundle, device, device_label, execution

_DEVICE_COLUMNS: Mapping[str, ColumnElement[Any]] = {
    "id": device.c.id,
    "state": device.c.state,
    "blueprint": device.c.blueprint,
    "agent_version": device.c.agent_version,
    "online": device.c.online,
    "healthy": device.c.healthy,
    "last_seen": device.c.last_seen_at,
    "enrolled": device.c.enrolled_at,
    "generation": device.c.generation,
    "digest": device.c.digest,
    "last_known_good": device.c.last_known_good,
    "health": health.word(),
}
_OF_A_BUNDLE = frozenset({"model", "version"})

_BUILDS = select(bundle.c.digest, bundle.c.model, bundle.c.version)

Value = Scalar | tuple[Scalar, ...]
"""What a field is compared with; several: it equals one of them."""
_Atom = Callable[[str, Operator, Any], ColumnElement[bool]]


def device_clause(selector: Selector, now: datetime) -> ColumnElement[bool]:
    """Return the condition on `device` for a selector over DEVICE_FIELDS."""
    return _clause(selector, lambda field, sign, value: _device_compare(field, sign, value, now))


def clause(
    selector: Selector, columns: Mapping[str, ColumnElement[Any]], now: datetime
) -> ColumnElement[bool]:
    """Return the condition for a list whose fields are plain columns."""
    return _clause(selector, lambda field, sign, value: _compare(columns[field], sign, value, now))


def resolved(tx: Transaction, selector: Selector) -> Selector:
    """Return the same selector with its models and versions named by the builds they are.

    The databases know how many devices run a digest, and so which index to take.
    """
    if not _names_versions(selector):
        return selector
    builds = tx.execute(_BUILDS).all()
    return _resolved(selector, builds)


def _names_versions(selector: Selector) -> bool:
    match selector:
        case Compare(field):
            return field in _OF_A_BUNDLE
        case Not(inner):
            return _names_versions(inner)
        case And(parts) | Or(parts):
            return any(_names_versions(part) for part in parts)
        case All():
            return False


def _resolved(selector: Selector, builds: Sequence[Row[str, str, str]]) -> Selector:
    match selector:
        case Compare(field) if field in _OF_A_BUNDLE:
            facts = ((row.digest, getattr(row, field)) for row in builds)
            same = sorted(digest for digest, fact in facts if compares(selector, fact))
            return Or(tuple(Compare("digest", Operator.EQUAL, digest) for digest in same))
        case Not(inner):
            return Not(_resolved(inner, builds))
        case And(parts):
            return And(tuple(_resolved(part, builds) for part in parts))
        case Or(parts):
            return Or(tuple(_resolved(part, builds) for part in parts))
        case _:
            return selector


def _clause(selector: Selector, atom: _Atom) -> ColumnElement[bool]:
    match selector:
        case All():
            return true()
        case Compare():
            return atom(selector.field, selector.operator, selector.value)
        case Not(inner):
            return not_(_clause(inner, atom))
        case And(parts):
            return and_(*(_clause(part, atom) for part in parts))
        case Or(parts):
            return _either(parts, atom)


def _either(parts: Sequence[Selector], atom: _Atom) -> ColumnElement[bool]:
    """Return the condition of an `or`; what it says of one field's equality is one IN list."""
    equal: dict[str, list[Scalar]] = {}
    others: list[ColumnElement[bool]] = []
    for part in parts:
        if isinstance(part, Compare) and part.operator is Operator.EQUAL:
            equal.setdefault(part.field, []).append(part.value)
        else:
            others.append(_clause(part, atom))
    for field, values in equal.items():
        if len(values) > 1 and kind_of(field) is not Kind.WORDS:
            others.append(atom(field, Operator.EQUAL, tuple(values)))
        else:
            others += [atom(field, Operator.EQUAL, value) for value in values]
    return or_(false(), *others)


def _device_compare(field: str, sign: Operator, value: Value, now: datetime) -> ColumnElement[bool]:
    head, _, key = field.partition(".")
    if head == "labels":
        return exists().where(
            device_label.c.device_id == device.c.id,
            device_label.c.key == key,
            _compare(device_label.c.value, sign, value, now),
        )
    if head in _OF_A_BUNDLE:
        return exists().where(
            bundle.c.digest == device.c.digest, _compare(bundle.c[head], sign, value, now)
        )
    if head == "rollouts":
        return exists().where(
            execution.c.device_id == device.c.id,
            execution.c.rollout == key,
            _compare(execution.c.state, sign, value, now),
        )
    if head == "hardware":
        return _hardware_compare(field, sign, value, now)
    if head == "health" and sign is Operator.EQUAL:
        words = value if isinstance(value, tuple) else (value,)
        return or_(false(), *(health.is_health(str(word)) for word in words))
    return _compare(_DEVICE_COLUMNS[field], sign, value, now)


def _hardware_compare(
    field: str, sign: Operator, value: Value, now: datetime
) -> ColumnElement[bool]:
    fact = device.c.hardware[field.partition(".")[2]]
    match kind_of(field):
        case Kind.NUMBER:
            return _compare(fact.as_float(), sign, value, now)
        case Kind.WORDS if sign is Operator.EXISTS:
            # SQLite's JSON writes a missing list as "null".
            words = cast(fact, Text)
            return and_(words.is_not(None), words.not_in(["[]", "null"]))
        case Kind.WORDS:
            # The list's JSON text; quotes inside a word are escaped there, so a quoted word
            # can only match a whole one.
            return _holds(cast(fact, Text), json.dumps(value))
        case _:
            return _compare(fact.as_string(), sign, value, now)


def _compare(column: Any, sign: Operator, value: Value, now: datetime) -> ColumnElement[bool]:
    """Compare so that an absent value (NULL) answers no, never unknown: `not` must flip it."""
    present: ColumnElement[bool] = column.is_not(None)
    if sign is Operator.EXISTS:
        return and_(present, column != "") if isinstance(column.type, String) else present
    if sign is Operator.GLOB:
        return _glob(column, str(value))
    if isinstance(value, tuple):
        return and_(present, column.in_(value))
    if isinstance(value, timedelta):
        return and_(present, _ORDER[sign](column, now - value))
    if isinstance(value, bool):
        # So spelled, the databases know it in the condition of an index.
        return and_(present, column if value else ~column)
    return and_(present, _ORDER[sign](column, value))


_ORDER: dict[Operator, Callable[[Any, Any], Any]] = {
    Operator.EQUAL: operator.eq,
    Operator.LESS: operator.lt,
    Operator.AT_MOST: operator.le,
    Operator.MORE: operator.gt,
    Operator.AT_LEAST: operator.ge,
}


class _Glob(FunctionElement[bool]):
    """`column`, the pattern for LIKE, the pattern for SQLite's GLOB (its LIKE ignores case)."""

    type = Boolean()
    inherit_cache = True


def _glob(column: Any, pattern: str) -> ColumnElement[bool]:
    like = pattern.translate(_LIKE_PLAIN).replace("*", "%").replace("?", "_")
    matched = _Glob(column, literal(like), literal(pattern.replace("[", "[[]")))
    return and_(column.is_not(None), matched)


def _holds(column: Any, text: str) -> ColumnElement[bool]:
    like, glob = text.translate(_LIKE_PLAIN), text.translate(_GLOB_PLAIN)
    return and_(column.is_not(None), _Glob(column, literal(f"%{like}%"), literal(f"*{glob}*")))


_LIKE_PLAIN = str.maketrans({"\\": "\\\\", "%": "\\%", "_": "\\_"})
_GLOB_PLAIN = str.maketrans({"[": "[[]", "*": "[*]", "?": "[?]"})


@compiles(_Glob)
def _compile_like(element: _Glob, compiler: SQLCompiler, **options: Any) -> str:
    column, like, _ = element.clauses
    return f"{compiler.process(column, **options)} LIKE {compiler.process(like, **options)}"


@compiles(_Glob, "sqlite")
def _compile_glob(element: _Glob, compiler: SQLCompiler, **options: Any) -> str:
    column, _, glob = element.clauses
    return f"{compiler.process(column, **options)} GLOB {compiler.process(glob, **options)}"
