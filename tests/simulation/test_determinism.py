"""A seed is its story: the same trace in every process, whatever the hashes of texts are."""

import os
import subprocess
import sys

SEEDS = (3, 16)


def _trace(seed: int, hash_seed: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.simulation", "--seed", str(seed)],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    return ended.stdout


def test_a_seed_gives_the_same_trace_in_two_processes() -> None:
    for seed in SEEDS:
        assert _trace(seed, "1") == _trace(seed, "2")
