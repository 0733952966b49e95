"""The text: documentation that every Python carries, split by hash, and its tokenizer."""

import ast
import hashlib
import pydoc_data.topics
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|end|>"
"""End of a document: the tokenizer's only special token, and a line of its own in eval files."""

VOCABULARY = 2048
MIN_CHARACTERS = 60
HELD_OUT_SHARE = 22
"""One document in this many is held out; sized for a held-out text of 60 to 90 kB."""

MIN_PROMPT_SOURCE = 45
MAX_PROMPT = 60
"""Characters of an opening line that can give a golden prompt, and of the prompt itself."""

SKIPPED_FOLDERS = frozenset(
    ("site-packages", "test", "tests", "idlelib", "turtledemo", "__pycache__", "pydoc_data")
)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents to learn from, and documents that no training step ever sees."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]

    def digest(self) -> str:
        """SHA-256 over both halves: another Python release has other documentation."""
        whole = hashlib.sha256()
        for document in (*self.train, END, *self.held_out):
            whole.update(document.encode())
            whole.update(b"\0")
        return whole.hexdigest()


def read_corpus() -> Corpus:
    """Read, de-duplicate and split the documentation of the running Python."""
    documents = dict.fromkeys(
        text
        for raw in (*_docstrings(), *_topics())
        if len(text := raw.strip()) > MIN_CHARACTERS and END not in text
    )
    return Corpus(
        train=tuple(text for text in documents if not _is_held_out(text)),
        held_out=tuple(text for text in documents if _is_held_out(text)),
    )


def _docstrings() -> Iterator[str]:
    """Every docstring of the standard library's own Python files, in path order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if not SKIPPED_FOLDERS.isdisjoint(path.relative_to(root).parts):
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield ast.get_docstring(node) or ""


def _topics() -> Iterator[str]:
    """The language reference behind `help()`, in sections."""
    for topic in pydoc_data.topics.topics.values():
        yield from topic.split("\n\n\n")


def _is_held_out(text: str) -> bool:
    # By content, so that a document keeps its side when files around it come and go.
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) % HELD_OUT_SHARE == 0


def train_tokenizer(documents: Iterable[str]) -> Tokenizer:
    """Learn a byte-level BPE of `VOCABULARY` entries; any UTF-8 text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=2,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, documents: Iterable[str]) -> list[int]:
    """One stream of token ids, each document followed by the end token."""
    end = tokenizer.token_to_id(END)
    if end is None:
        raise LookupError(f"the tokenizer has no {END} token")
    ids: list[int] = []
    for encoding in tokenizer.encode_batch(list(documents)):
        ids += [*encoding.ids, end]
    return ids


def join_documents(documents: Iterable[str]) -> str:
    """The text of an eval file: a line with only the end token between documents."""
    return f"\n{END}\n".join(documents) + "\n"


def split_documents(text: str) -> list[str]:
    """The inverse of `join_documents`."""
    return text.removesuffix("\n").split(f"\n{END}\n")


def golden_prompts(documents: Iterable[str], count: int = 16) -> list[str]:
    """The first words of `count` documents of prose, chosen by hash, cut before they end."""
    openings = (" ".join(text.split("\n\n")[0].split()) for text in documents)
    prose = [line for line in openings if len(line) >= MIN_PROMPT_SOURCE and line[0].isalpha()]
    prose.sort(key=lambda line: hashlib.sha256(line.encode()).digest())
    return [_cut(line, min(MAX_PROMPT, len(line) * 2 // 3)) for line in prose[:count]]


def _cut(line: str, limit: int) -> str:
    return line[: line.rindex(" ", 0, limit)]
