"""Held-out text and golden prompts as token ids: the same for every recipe of a source."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from control_plane.domain import model as layout
from control_plane.domain.errors import InvalidError
from control_plane.domain.model import Descriptor, Prompt

Ids = npt.NDArray[np.int64]

END = "<|end|>"
"""A line of its own between documents of the held-out text."""

MIN_TOKENS = 64
MAX_PROMPT_TOKENS = 256
CALIBRATION_WINDOWS = 16
CALIBRATION_TOKENS = 128


@dataclass(frozen=True)
class Windows:
    """`judged` rows hold one token more than is fed: each token's successor is known."""

    judged: Ids
    calibration: Ids


def open_tokenizer(path: Path, descriptor: Descriptor) -> Tokenizer:
    """Read a tokenizer; `InvalidError` if it is none, or makes ids that the model has not."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise InvalidError(
            f"{layout.TOKENIZER} is not a tokenizer of the tokenizers library: {error}",
            field=layout.TOKENIZER,
        ) from error
    most = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if most >= descriptor.vocab_size:
        # An int4 embedding answers with noise for such an id instead of refusing it.
        raise InvalidError(
            f"{layout.TOKENIZER} makes token id {most}, but vocab_size in {layout.DESCRIPTOR} is "
            f"{descriptor.vocab_size}",
            field=f"{layout.DESCRIPTOR}:vocab_size",
        )
    return tokenizer


def cut(tokenizer: Tokenizer, text: str, descriptor: Descriptor, count: int, most: int) -> Windows:
    """Cut held-out text into windows, some to judge by and others to calibrate on.

    Judged windows are spread evenly over the text, and never used for calibration.
    """
    stream = _stream(tokenizer, text, descriptor.eos_token_id)
    if len(stream) < MIN_TOKENS:
        raise InvalidError(
            f"{layout.HELD_OUT} has {len(stream)} tokens; at least {MIN_TOKENS} are needed",
            field=layout.HELD_OUT,
        )
    length = min(most, descriptor.context_length, len(stream) - 1)
    starts = np.arange(0, len(stream) - length, length)
    chosen = np.unique(np.linspace(0, len(starts) - 1, min(count, len(starts))).astype(int))
    rest = np.setdiff1d(np.arange(len(starts)), chosen)[:CALIBRATION_WINDOWS]
    short = min(length, CALIBRATION_TOKENS)
    return Windows(
        judged=np.stack([stream[starts[i] : starts[i] + length + 1] for i in chosen]),
        calibration=np.array([stream[starts[i] : starts[i] + short] for i in rest], np.int64),
    )


def _stream(tokenizer: Tokenizer, text: str, eos: int) -> Ids:
    ids: list[int] = []
    for encoding in tokenizer.encode_batch(text.removesuffix("\n").split(f"\n{END}\n")):
        ids += [*encoding.ids, eos]
    return np.array(ids, np.int64)


def golden_tokens(
    tokenizer: Tokenizer, prompts: list[Prompt], descriptor: Descriptor
) -> dict[str, list[int]]:
    """Return token ids of each golden prompt, cut to what the model can read."""
    most = min(MAX_PROMPT_TOKENS, descriptor.context_length)
    found = {prompt.id: tokenizer.encode(prompt.text).ids[:most] for prompt in prompts}
    for index, (name, ids) in enumerate(found.items()):
        if not ids:
            raise InvalidError(
                f"{layout.PROMPTS}: prompt {name!r} has no tokens",
                field=f"{layout.PROMPTS}:prompts[{index}].text",
            )
    return found


def save(folder: Path, windows: Windows, golden: dict[str, list[int]]) -> None:
    """Keep them for the processes that measure candidates."""
    np.save(folder / "judged.npy", windows.judged)
    np.save(folder / "calibration.npy", windows.calibration)
    (folder / "prompts.json").write_text(json.dumps(golden))


def judged(folder: Path) -> Ids:
    """Return the kept windows to judge by."""
    return np.asarray(np.load(folder / "judged.npy"), np.int64)


def calibration(folder: Path) -> Ids:
    """Return the kept windows to calibrate on."""
    return np.asarray(np.load(folder / "calibration.npy"), np.int64)


def golden(folder: Path) -> dict[str, list[int]]:
    """Return the kept golden prompts."""
    kept: dict[str, list[int]] = json.loads((folder / "prompts.json").read_text())
    return kept
