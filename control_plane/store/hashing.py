"""The hash by which plans are ordered, in both databases, to the same digits."""

from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.visitors import InternalTraversal


class Hash(FunctionElement[str]):
    """The hash of a text before a column, as 64 hexadecimal digits."""

    type = Text()
    inherit_cache = True


class Bits(FunctionElement[int]):
    """The first bits of such a hash as a number; a multiple of four of them."""

    type = BigInteger()
    inherit_cache = True
    # The number of bits is written into the statement, and so belongs to what it is known by.
    _traverse_internals = [  # noqa: RUF012 - SQLAlchemy's name and type
        *FunctionElement._traverse_internals,  # noqa: SLF001 - as its documentation has it
        ("bits", InternalTraversal.dp_plain_obj),
    ]

    def __init__(self, digest: ColumnElement[str], bits: int) -> None:
        super().__init__(digest)
        self.bits = bits


class Plain(FunctionElement[str]):
    """A text to sort by its code points, whatever the database's language."""

    type = Text()
    inherit_cache = True


@compiles(Hash)
def _compile_hash(element: Hash, compiler: SQLCompiler, **options: Any) -> str:
    before, column = (compiler.process(one, **options) for one in element.clauses)
    return f"encode(sha256(convert_to({before} || {column}, 'UTF8')), 'hex')"


@compiles(Hash, "sqlite")
def _compile_hash_lite(element: Hash, compiler: SQLCompiler, **options: Any) -> str:
    before, column = (compiler.process(one, **options) for one in element.clauses)
    return f"flotilla_sha256({before} || {column})"


@compiles(Bits)
def _compile_bits(element: Bits, compiler: SQLCompiler, **options: Any) -> str:
    digest = compiler.process(next(iter(element.clauses)), **options)
    return f"('x' || left({digest}, {element.bits // 4}))::bit({element.bits})::bigint"


@compiles(Bits, "sqlite")
def _compile_bits_lite(element: Bits, compiler: SQLCompiler, **options: Any) -> str:
    digest = compiler.process(next(iter(element.clauses)), **options)
    return f"flotilla_number(substr({digest}, 1, {element.bits // 4}))"


@compiles(Plain)
def _compile_plain(element: Plain, compiler: SQLCompiler, **options: Any) -> str:
    collation = "BINARY" if compiler.dialect.name == "sqlite" else '"C"'
    return f"{compiler.process(next(iter(element.clauses)), **options)} COLLATE {collation}"
