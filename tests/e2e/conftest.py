"""What the stories share: one machine."""

import os
import tempfile
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def trials_in_turn() -> None:
    """Let the fleets of stories that run side by side take turns for their trials."""
    lock = Path(tempfile.gettempdir()) / f"flotilla-test-trials-{os.getuid()}.lock"
    os.environ.setdefault("FLOTILLA_AGENT_TRIAL_LOCK", str(lock))
