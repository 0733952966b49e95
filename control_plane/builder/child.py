"""The child of a build: inspects the upload, then tries recipes best first until one is taken.

``python -m control_plane.builder.child FOLDER``. Reads FOLDER/job.json and FOLDER/source, writes
FOLDER/result.json and FOLDER/out; progress goes to standard output, a line each.
"""

import logging
import os
import subprocess
import sys
from functools import cached_property
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before anything imports onnxruntime
import msgspec

from control_plane.builder import heldout
from control_plane.builder import job as files
from control_plane.builder.choose import judge
from control_plane.builder.errors import BuildError
from control_plane.builder.inspect_upload import inspect
from control_plane.builder.job import Job, Numbers, Progress, Result, SourceFacts, Task, Tried
from control_plane.builder.process import confine, progress_stream, say
from control_plane.builder.recipes import Kitchen
from control_plane.domain import model as layout
from control_plane.domain.errors import InvalidError
from control_plane.domain.recipe import RECIPES

LAST_WORDS = 300


class Build:
    """One build in its folder; progress goes to the descriptor `stream`."""

    def __init__(self, folder: Path, job: Job, stream: int) -> None:
        self._job = job
        self._stream = stream
        self._source = folder / files.SOURCE
        self._work = folder / files.WORK
        self._out = folder / files.OUT
        say(stream, Progress(step="inspect"))
        self._descriptor = inspect(self._source)

    def run(self) -> Result:
        """Try recipes until one is taken; the parent judges the same numbers again."""
        source = self._measure_source()
        known = {one.recipe: one for one in self._job.known}
        tried: list[Tried] = []
        for index, recipe in enumerate(self._job.recipes, 1):
            news = Progress(step="recipe", recipe=recipe, index=index, of=len(self._job.recipes))
            say(self._stream, news)
            tried.append(known.get(recipe) or self._try(recipe))
            if self._is_taken(tried[-1], source):
                break
        return Result(tried=tried, source=source)

    def _measure_source(self) -> SourceFacts:
        say(self._stream, Progress(step="source"))
        numbers = self._evaluate(self._source / layout.GRAPH, is_source=True)
        if numbers.error:
            raise InvalidError(numbers.error, field=numbers.field or layout.GRAPH)
        return SourceFacts(
            perplexity=numbers.quality["perplexity"],
            measured=numbers.measured,
            golden_bytes=(self._work / files.GOLDEN).stat().st_size,
        )

    def _try(self, name: str) -> Tried:
        target = self._out / f"{name}.onnx"
        try:
            self._kitchen.cook(RECIPES[name], target)
        except Exception as error:  # whatever a tool raises refuses this recipe only
            logging.getLogger(__name__).exception("recipe %s", name)
            return Tried(recipe=name, error=f"{type(error).__name__}: {error}"[:LAST_WORDS])
        size, numbers = target.stat().st_size, self._evaluate(target)
        if numbers.error:
            return Tried(recipe=name, bytes=size, error=f"does not run: {numbers.error}")
        return Tried(recipe=name, bytes=size, quality=numbers.quality, measured=numbers.measured)

    @cached_property
    def _kitchen(self) -> Kitchen:
        windows = heldout.calibration(self._work)
        return Kitchen(
            self._source / layout.GRAPH,
            self._descriptor.vocab_size,
            [window[None, :] for window in windows],
            self._work,
        )

    def _is_taken(self, tried: Tried, source: SourceFacts) -> bool:
        extra = source.golden_bytes + sum(
            (self._source / name).stat().st_size for name in (layout.TOKENIZER, layout.DESCRIPTOR)
        )
        return judge(
            self._job.blueprint,
            tried,
            extra_bytes=extra,
            source_bytes=(self._source / layout.GRAPH).stat().st_size,
            waiver=self._job.waiver,
        ).accepted

    def _evaluate(self, model: Path, *, is_source: bool = False) -> Numbers:
        """Measure a file in a process of its own: its memory is its own, and so is its crash."""
        task, answer = self._work / "task.json", self._work / "numbers.json"
        answer.unlink(missing_ok=True)
        files.write(
            task,
            Task(
                model=str(model),
                folder=str(self._work),
                descriptor=self._descriptor,
                runtime=self._job.blueprint.runtime,
                is_source=is_source,
                evaluation=self._job.evaluation,
                upload=str(self._source),
            ),
        )
        command = [
            sys.executable,
            "-P",
            "-m",
            "control_plane.builder.evaluate",
            str(task),
            str(answer),
        ]
        done = subprocess.run(command, check=False, capture_output=True, stdin=subprocess.DEVNULL)
        if done.returncode == 0 and answer.exists():
            return msgspec.json.decode(answer.read_bytes(), type=Numbers)
        said = done.stderr.decode(errors="replace").strip().splitlines()
        sys.stderr.write("\n".join([*said, ""]))
        return Numbers(error=_last_words(done.returncode, said))


def _last_words(code: int, said: list[str]) -> str:
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{how}: {said[-1] if said else 'it said nothing'}"[:LAST_WORDS]


def main() -> None:
    """Do the job in a folder and write its result."""
    folder = Path(sys.argv[1])
    stream = progress_stream()
    job = files.read_job(folder / files.JOB, Job)
    confine(job.caps)
    logging.disable(logging.WARNING)  # the quantizers name every node that they skip
    for name in (files.WORK, files.OUT):
        (folder / name).mkdir()
    os.chdir(folder / files.WORK)
    try:
        result = Build(folder, job, stream).run()
    except (InvalidError, BuildError) as error:
        result = Result(error=str(error), field=getattr(error, "field", ""))
    files.write(folder / files.RESULT, result)


if __name__ == "__main__":
    main()
