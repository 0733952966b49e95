"""Runs flotilla commands in this process."""

import json
from typing import Any

from typer.testing import CliRunner, Result

from control_plane.cli.main import app


class Flotilla:
    """The command line; each call runs one command."""

    def run(self, *words: str, stdin: str = "") -> Result:
        return CliRunner().invoke(app, list(words), input=stdin)

    def ok(self, *words: str, stdin: str = "") -> str:
        """Run a command that must succeed, and return what it printed."""
        result = self.run(*words, stdin=stdin)
        assert result.exit_code == 0, (words, result.exit_code, result.output, result.exception)
        return result.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self.ok(*words, "-o", "json"))
