"""Shared results: what a recipe gave for a source is made once, whichever blueprint asks first.

A key covers everything that the numbers depend on: source, recipe, tools, runtime settings, the
text judged by, and the processor (the same file can answer differently on another one).
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from control_plane.builder.job import Evaluation
from control_plane.builder.package import toolchain
from control_plane.domain.blueprint import RuntimeSettings
from control_plane.domain.recipe import REVISION

SOURCE = ""
"""In place of a recipe's name: what the source itself gave."""


@dataclass(frozen=True)
class Basis:
    """What every result of one build stands on."""

    source_digest: str
    runtime: RuntimeSettings
    evaluation: Evaluation

    def key(self, recipe: str) -> str:
        """Return the key of a recipe's result."""
        facts = {
            "source": self.source_digest,
            "recipe": recipe,
            "revision": REVISION,
            "runtime": asdict(self.runtime),
            "evaluation": msgspec.to_builtins(self.evaluation),
            "tools": toolchain(),
            "processor": processor(),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def processor() -> str:
    """Return what tells processors apart that compute differently: their instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
