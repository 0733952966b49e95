"""The known recipes: how a source becomes an artifact, as plain values; `builder` carries them out.

Each was measured on causal language models with ONNX Runtime; `about` says what it is good for.
"""

from dataclasses import dataclass
from typing import TypeAlias

REVISION = 1
"""Raise when a recipe's bytes change for the same name: results of the old one are not reused."""


@dataclass(frozen=True)
class Copy:
    """The source as it is."""


@dataclass(frozen=True)
class Half:
    """Every weight in 16-bit floating point; inputs and outputs stay 32-bit."""


@dataclass(frozen=True)
class Dynamic:
    """Weights in 8-bit integers with a scale per channel; activations scaled as they come."""

    signed: bool


@dataclass(frozen=True)
class Blocks:
    """Weights in few bits with a scale per block of values, the embedding table too.

    `head_bits` is for the output matrix, where rounding costs most.
    """

    bits: int
    block_size: int
    head_bits: int


@dataclass(frozen=True)
class Static:
    """Weights and activations in 8-bit integers, scales fixed by running calibration text.

    `operators` empty: every operator that has an integer form.
    """

    operators: tuple[str, ...]


Method: TypeAlias = Copy | Half | Dynamic | Blocks | Static


@dataclass(frozen=True)
class Recipe:
    """One way to make an artifact."""

    name: str
    method: Method
    about: str


_ALL = (
    Recipe("fp32", Copy(), "the source itself: the largest, and exact"),
    Recipe("fp16", Half(), "half the download, practically exact; on a CPU no faster"),
    Recipe(
        "int8-dynamic",
        Dynamic(signed=True),
        "a third of the size and of the time where the CPU has VNNI or an ARM dot product",
    ),
    Recipe(
        "int8-dynamic-u8",
        Dynamic(signed=False),
        "as int8-dynamic with unsigned weights: exact sums on AVX2, which saturates signed ones",
    ),
    Recipe("int4-block32", Blocks(4, 32, 4), "a fifth of the size; quick to decode, slow to read"),
    Recipe("int4-block64", Blocks(4, 64, 4), "the smallest; a little less faithful than blocks 32"),
    Recipe("int4-mixed", Blocks(4, 32, 8), "int4-block32 with the output matrix in 8 bits"),
    Recipe(
        "static-qdq-matmul",
        Static(("MatMul", "Gather")),
        "static 8-bit matrices and embedding: for runtimes that cannot scale on the fly",
    ),
    Recipe(
        "static-qdq-full",
        Static(()),
        "static 8-bit everywhere: for convolutional networks. It breaks a language model, because "
        "one scale cannot span the attention mask's huge negative numbers and the scores",
    ),
)

RECIPES = {recipe.name: recipe for recipe in _ALL}
