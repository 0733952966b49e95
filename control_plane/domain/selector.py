"""The one filter grammar, for selectors, lists and searches: text to a tree, tree to yes or no.

``blueprint = "x86-64-vnni" and labels.site in ("vie", "fra") and not version = "1.0.0"``

Comparisons: ``=  !=  <  <=  >  >=  in (...)  not in (...)  :`` (a glob with ``*`` and ``?``), and
``exists``.
Values: "text", numbers, true, false, ago("7d"). The empty text means everything. A field that
a device does not have equals nothing; so ``!=``, ``not in`` and ``not ... exists`` hold for it, and
nothing else.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cache
from typing import Any, cast

from lark import Lark, Token, Transformer, v_args
from lark.exceptions import UnexpectedInput, UnexpectedToken, VisitError

from control_plane.domain.device import DeviceFacts
from control_plane.domain.errors import InvalidError

MAX_LENGTH = 4096
MAX_DEPTH = 64


class Kind(StrEnum):
    """What a field holds, and so what it can be compared with."""

    TEXT = "text"
    NUMBER = "number"
    FLAG = "flag"
    TIME = "time"
    WORDS = "words"


Fields = Mapping[str, Kind]
"""Known fields by dotted name; a name that ends in ``.*`` stands for any key below it."""

DEVICE_FIELDS: Fields = {
    "id": Kind.TEXT,
    "state": Kind.TEXT,
    "blueprint": Kind.TEXT,
    "labels.*": Kind.TEXT,
    "agent_version": Kind.TEXT,
    "online": Kind.FLAG,
    "healthy": Kind.FLAG,
    "health": Kind.TEXT,
    "last_seen": Kind.TIME,
    "enrolled": Kind.TIME,
    "generation": Kind.NUMBER,
    "digest": Kind.TEXT,
    "last_known_good": Kind.TEXT,
    "model": Kind.TEXT,
    "version": Kind.TEXT,
    "rollouts.*": Kind.TEXT,  # the state of its part in the rollout of that name
    "hardware.arch": Kind.TEXT,
    "hardware.cpu": Kind.TEXT,
    "hardware.board": Kind.TEXT,
    "hardware.os": Kind.TEXT,
    "hardware.cores": Kind.NUMBER,
    "hardware.memory_mb": Kind.NUMBER,
    "hardware.disk_free_mb": Kind.NUMBER,
    "hardware.flags": Kind.WORDS,
    "hardware.runtimes": Kind.WORDS,
}


class Operator(StrEnum):
    """How a field is compared; negations are a `Not` around one of these."""

    EQUAL = "="
    LESS = "<"
    AT_MOST = "<="
    MORE = ">"
    AT_LEAST = ">="
    GLOB = ":"
    EXISTS = "exists"


Scalar = str | float | bool | timedelta
"""A value; a timedelta means that long before now."""


@dataclass(frozen=True)
class All:
    """Everything: the empty selector."""


@dataclass(frozen=True)
class Compare:
    """One comparison of one field."""

    field: str
    operator: Operator
    value: Scalar


@dataclass(frozen=True)
class Not:
    """What the inner one does not match."""

    inner: "Selector"


@dataclass(frozen=True)
class And:
    """What every part matches."""

    parts: "tuple[Selector, ...]"


@dataclass(frozen=True)
class Or:
    """What some part matches."""

    parts: "tuple[Selector, ...]"


Selector = All | Compare | Not | And | Or

_GRAMMAR = r"""
start: either?
?either: both ("or" both)*
?both: unary ("and" unary)*
?unary: "not" unary -> negation
      | "(" either ")" -> group
      | comparison
comparison: FIELD SIGN value -> simple
          | FIELD "in" "(" value ("," value)* ")" -> inside
          | FIELD "not" "in" "(" value ("," value)* ")" -> outside
          | FIELD "exists" -> present
value: STRING -> text
     | NUMBER -> number
     | "true" -> yes
     | "false" -> no
     | "ago" "(" STRING ")" -> ago
SIGN: "!=" | "<=" | ">=" | "=" | "<" | ">" | ":"
FIELD: /(?!(and|or|not|in|exists|true|false|ago)\b)[a-z][a-z_]*(\.[A-Za-z0-9][A-Za-z0-9_.\/-]*)?/
STRING: /"([^"\\\x00-\x1f]|\\["\\])*"/
NUMBER: /-?[0-9]+(\.[0-9]+)?/
%ignore /[ \t\r\n]+/
"""
_DURATION = re.compile(r"([0-9]{1,6})(s|m|h|d|w)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_NUMERIC = frozenset({Kind.NUMBER, Kind.TIME})
_ORDERING = frozenset({Operator.LESS, Operator.AT_MOST, Operator.MORE, Operator.AT_LEAST})


def parse(text: str, fields: Fields = DEVICE_FIELDS, *, field: str = "selector") -> Selector:
    """Read a selector.

    Args:
        text: the selector; empty matches everything.
        fields: what may be compared.
        field: where the text came from, for the error.

    Raises:
        InvalidError: names the column and what was expected there.
    """
    if len(text) > MAX_LENGTH:
        raise InvalidError(f"{len(text)} characters; the limit is {MAX_LENGTH}", field=field)
    if text.count("(") + text.count("not") > MAX_DEPTH:
        raise InvalidError(f"more than {MAX_DEPTH} parentheses and nots", field=field)
    try:
        tree = _parser().parse(text)
        return cast("Selector", _Builder(fields).transform(tree))
    except UnexpectedInput as error:
        raise InvalidError(_explain(text, error), field=field) from error
    except VisitError as error:
        if isinstance(error.orig_exc, _WrongError):
            raise InvalidError(str(error.orig_exc), field=field) from error
        raise


def matches(selector: Selector, facts: DeviceFacts, *, now: datetime) -> bool:
    """Return whether a device matches."""
    match selector:
        case All():
            return True
        case Compare():
            return compares(selector, _actual(selector.field, facts), now=now)
        case Not(inner):
            return not matches(inner, facts, now=now)
        case And(parts):
            return all(matches(part, facts, now=now) for part in parts)
        case Or(parts):
            return any(matches(part, facts, now=now) for part in parts)


def kind_of(name: str, fields: Fields = DEVICE_FIELDS) -> Kind | None:
    """Return what a field holds, None if there is no such field."""
    head, _, rest = name.partition(".")
    return fields.get(name) or (fields.get(f"{head}.*") if rest else None)


def glob_to_regex(pattern: str) -> re.Pattern[str]:
    """Translate `*` and `?`; everything else stands for itself."""
    parts = (".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern)
    return re.compile("".join(parts), re.DOTALL)


def compares(comparison: Compare, actual: Any, *, now: datetime | None = None) -> bool:
    """Return whether one fact compares as wanted.

    Args:
        comparison: what is wanted.
        actual: the fact; None where there is none.
        now: the time, where the fact is one.
    """
    wanted = comparison.value
    if comparison.operator is Operator.EXISTS:
        return actual not in (None, "", [])
    if actual is None:
        return False
    if isinstance(actual, list):
        return wanted in actual
    if comparison.operator is Operator.GLOB:
        return glob_to_regex(str(wanted)).fullmatch(str(actual)) is not None
    if isinstance(wanted, timedelta):
        return now is not None and _ORDER[comparison.operator](actual, now - wanted)
    return _ORDER[comparison.operator](actual, wanted)


def _actual(name: str, facts: DeviceFacts) -> Any:
    head, _, key = name.partition(".")
    if head == "labels":
        return facts.labels.get(key)
    if head == "hardware":
        return facts.hardware.get(key)
    if head == "rollouts":
        return facts.rollouts.get(key)
    return getattr(facts, name)


_ORDER: dict[Operator, Callable[[Any, Any], bool]] = {
    Operator.EQUAL: lambda a, b: bool(a == b),
    Operator.LESS: lambda a, b: bool(a < b),
    Operator.AT_MOST: lambda a, b: bool(a <= b),
    Operator.MORE: lambda a, b: bool(a > b),
    Operator.AT_LEAST: lambda a, b: bool(a >= b),
}


# --- reading ----------------------------------------------------------------------------------


class _WrongError(Exception):
    """Well-formed, but means nothing; raised inside the transformer."""


@cache
def _parser() -> Lark:
    return Lark(_GRAMMAR, parser="lalr")


@v_args(inline=True)
class _Builder(Transformer[Token, Any]):
    """Builds the tree and checks each comparison against the fields."""

    def __init__(self, fields: Fields) -> None:
        super().__init__()
        self._fields = fields

    def start(self, inner: Selector | None = None) -> Selector:
        return All() if inner is None else inner

    def either(self, *parts: Selector) -> Selector:
        return Or(parts)

    def both(self, *parts: Selector) -> Selector:
        return And(parts)

    def group(self, inner: Selector) -> Selector:
        return inner

    def negation(self, inner: Selector) -> Selector:
        return Not(inner)

    def simple(self, name: Token, sign: Token, value: Scalar) -> Selector:
        if sign == "!=":
            return Not(self._checked(name, Operator.EQUAL, value))
        return self._checked(name, Operator(str(sign)), value)

    def inside(self, name: Token, *values: Scalar) -> Selector:
        return Or(tuple(self._checked(name, Operator.EQUAL, value) for value in values))

    def outside(self, name: Token, *values: Scalar) -> Selector:
        return Not(self.inside(name, *values))

    def present(self, name: Token) -> Selector:
        self._kind(name)
        return Compare(str(name), Operator.EXISTS, value=True)

    def text(self, token: Token) -> str:
        return re.sub(r"\\(.)", r"\1", str(token)[1:-1])

    def number(self, token: Token) -> float:
        return float(token)

    def yes(self) -> bool:
        return True

    def no(self) -> bool:
        return False

    def ago(self, token: Token) -> timedelta:
        found = _DURATION.fullmatch(str(token)[1:-1])
        if found is None:
            raise _WrongError(f'column {token.column}: ago() takes a duration such as "7d"')
        return timedelta(seconds=int(found[1]) * _SECONDS[found[2]])

    def _checked(self, name: Token, operator: Operator, value: Scalar) -> Compare:
        kind, where = self._kind(name), f"column {name.column}: {name}"
        if not isinstance(value, _TYPES[kind]) or isinstance(value, bool) != (kind is Kind.FLAG):
            raise _WrongError(f"{where} is compared with {_WANTED[kind]}")
        if operator in _ORDERING and kind not in _NUMERIC:
            raise _WrongError(f"{where} has no order: use =, != or in")
        if operator is Operator.GLOB and kind is not Kind.TEXT:
            raise _WrongError(f"{where} is no text: the pattern match ':' does not apply")
        if operator is Operator.EQUAL and kind is Kind.TIME:
            raise _WrongError(f"{where} is a time: use < or >")
        return Compare(str(name), operator, value)

    def _kind(self, name: Token) -> Kind:
        kind = kind_of(str(name), self._fields)
        if kind is None:
            known = ", ".join(sorted(self._fields))
            raise _WrongError(f"column {name.column}: {name} is no field; known are {known}")
        return kind


_TYPES: dict[Kind, type | tuple[type, ...]] = {
    Kind.TEXT: str,
    Kind.WORDS: str,
    Kind.NUMBER: float,
    Kind.FLAG: bool,
    Kind.TIME: timedelta,
}
_WANTED: dict[Kind, str] = {
    Kind.TEXT: 'a text in double quotes, such as "vie"',
    Kind.WORDS: 'a text in double quotes, such as "avx2"',
    Kind.NUMBER: "a number",
    Kind.FLAG: "true or false",
    Kind.TIME: 'a time such as ago("7d")',
}


def _explain(text: str, error: UnexpectedInput) -> str:
    position = cast("int | None", error.pos_in_stream) or 0
    ended = isinstance(error, UnexpectedToken) and error.token.type == "$END"
    column = (len(text) if ended else position) + 1
    rest = text[column - 1 :].strip()
    found = f"unexpected {rest.split()[0]!r}" if rest else "ends too early"
    return f'column {column}: {found}; write for example labels.site = "vie" and online = true'
