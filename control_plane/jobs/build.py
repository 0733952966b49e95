"""Works on one build: holds its lease, lets a confined child do the risky part, stores the rest.

The child sees one private folder and none of our settings; what it answers is judged again here.
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from control_plane.blobs import Blob, BlobError
from control_plane.bootstrap import Application
from control_plane.builder import job as files
from control_plane.builder import process
from control_plane.builder.choose import Judged, binding_constraint, judge
from control_plane.builder.errors import BuildError, LeaseLostError
from control_plane.builder.job import Caps, Evaluation, Job, Progress, SourceFacts, Stored, Tried
from control_plane.builder.package import pack
from control_plane.builder.results import Basis
from control_plane.domain.errors import FlotillaError, InvalidError
from control_plane.domain.model import DESCRIPTOR, TOKENIZER
from control_plane.services import build_results, builds
from control_plane.services.builds import BuildClaim

ACTOR = "builder"
RENEWALS = 3
"""Times that a lease is renewed before it could run out."""
NEWS_S = 0.5
"""Progress is written at most this often: a row a line would keep the database busy."""
FILE_FACTOR, FILE_SPARE = 8, 1024**3
"""A tool's largest file, by the source's size."""


def run_build(app: Application, build_id: str, owner: str) -> None:
    """Claim a build, do it, and store what came of it; nothing if somebody else has it."""
    with app.scope(ACTOR) as scope:
        held = builds.claim(scope, build_id, owner, app.settings.build_lease_s)
    if held is None:
        return
    try:
        _Attempt(app, held).work()
    except LeaseLostError:
        return
    except (BuildError, BlobError, FlotillaError) as error:
        _fail(app, held, str(error))
    except Exception as error:
        _fail(app, held, f"an internal error, see the worker's log: {type(error).__name__}")
        raise


def _fail(app: Application, held: BuildClaim, error: str) -> None:
    try:
        with app.scope(ACTOR) as scope:
            builds.fail(scope, held, error)
    except LeaseLostError:
        return


class _Attempt:
    """One attempt at one build."""

    def __init__(self, app: Application, held: BuildClaim) -> None:
        settings = app.settings
        self._app = app
        self._held = held
        self._evaluation = Evaluation(settings.build_eval_windows, settings.build_eval_tokens)
        self._basis = Basis(held.origin.digest, held.blueprint.runtime, self._evaluation)

    def work(self) -> None:
        """Use what is known, make the rest, and end the build."""
        with self._app.reading(ACTOR) as scope:
            source, tried = build_results.known(scope, self._basis, self._held.recipes)
        if source is None or not self._is_settled(tried, source):
            source, tried = self._make(tried)
        judged = self._judge(tried, source)
        taken = next((one.tried for one in judged if one.accepted), None)
        with self._app.scope(ACTOR) as scope:
            build_results.keep(scope, self._basis, source, tried)
            if taken is None:
                builds.fail(scope, self._held, binding_constraint(judged), judged)
            else:
                packed = pack(self._held.origin, self._held.blueprint, taken, source)
                builds.finish(scope, self._held, judged, packed)

    def _judge(self, tried: Sequence[Tried], source: SourceFacts) -> list[Judged]:
        """Judge recipes in their order, up to the first that is taken or not tried yet."""
        by_name = {one.recipe: one for one in tried}
        origin = self._held.origin
        extra = source.golden_bytes + sum(origin.files[f].size for f in (TOKENIZER, DESCRIPTOR))
        judged: list[Judged] = []
        for recipe in self._held.recipes:
            if recipe not in by_name or (judged and judged[-1].accepted):
                break
            one = judge(
                self._held.blueprint,
                by_name[recipe],
                extra_bytes=extra,
                source_bytes=origin.bytes,
                waiver=self._held.waiver,
            )
            judged.append(one)
        return judged

    def _is_settled(self, tried: Sequence[Tried], source: SourceFacts) -> bool:
        judged = self._judge(tried, source)
        accepted = bool(judged) and judged[-1].accepted
        return accepted or len(judged) == len(self._held.recipes)

    def _make(self, known: Sequence[Tried]) -> tuple[SourceFacts, list[Tried]]:
        """Let the child try recipes; store the bytes it made."""
        settings = self._app.settings
        with self._folder() as folder:
            files.write(folder / files.JOB, self._job(known))
            result = process.run(
                "control_plane.builder.child",
                folder,
                timeout_s=settings.build_time_limit_s,
                keep_going=_Beat(self._app, self._held),
            )
            if result.error:
                raise InvalidError(result.error, field=result.field)
            if result.source is None:
                raise BuildError("the build process says nothing of the source")
            golden = self._store(folder / files.WORK / files.GOLDEN)
            source = msgspec.structs.replace(result.source, golden=golden, golden_bytes=golden.size)
            return source, self._collect(folder / files.OUT, result.tried, known)

    def _job(self, known: Sequence[Tried]) -> Job:
        settings, held = self._app.settings, self._held
        caps = Caps(
            memory_mb=settings.build_memory_limit_mb,
            cpu_s=settings.build_time_limit_s,
            file_bytes=FILE_FACTOR * held.origin.bytes + FILE_SPARE,
        )
        return Job(
            caps=caps,
            blueprint=held.blueprint,
            recipes=list(held.recipes),
            evaluation=self._evaluation,
            known=list(known),
            waiver=held.waiver,
        )

    def _collect(self, out: Path, tried: Sequence[Tried], known: Sequence[Tried]) -> list[Tried]:
        """Believe of the child's answer what we asked for; sizes and digests are our own."""
        collected = {one.recipe: one for one in known}
        for one in tried:
            if one.recipe not in self._held.recipes:
                raise BuildError(f"the build process answers for recipe {one.recipe[:80]!r}")
            if one.recipe in collected:
                continue
            if one.error:
                collected[one.recipe] = msgspec.structs.replace(one, stored=None)
                continue
            stored = self._store(out / f"{one.recipe}.onnx")
            collected[one.recipe] = msgspec.structs.replace(one, stored=stored, bytes=stored.size)
        return list(collected.values())

    def _store(self, path: Path) -> Stored:
        if path.is_symlink() or not path.is_file():
            raise BuildError(f"the build process left no file {path.name}")
        blob: Blob = self._app.blobs.put_file(path, limit=self._app.settings.upload_limit_bytes)
        return Stored(blob.digest, blob.size)

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        """Give a private folder with the source in it; one of an earlier attempt goes away."""
        folder = self._app.settings.data.resolve() / "builds" / self._held.build_id
        shutil.rmtree(folder, ignore_errors=True)
        try:
            for file in self._held.origin.files.values():
                to = folder / files.SOURCE / file.path
                to.parent.mkdir(parents=True, exist_ok=True)
                self._app.blobs.fetch(file.sha256, to)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class _Beat:
    """Keeps the lease while the child works, and passes its progress on."""

    def __init__(self, app: Application, held: BuildClaim) -> None:
        self._app = app
        self._held = held
        self._news: dict[str, Any] = {}
        self._written: dict[str, Any] = {}
        self._at = time.monotonic()

    def __call__(self, progress: Progress | None) -> None:
        if progress is not None:
            self._news = msgspec.to_builtins(progress)
        waited = time.monotonic() - self._at
        due = waited > self._app.settings.build_lease_s / RENEWALS
        if due or (self._news != self._written and waited > NEWS_S):
            with self._app.scope(ACTOR) as scope:
                builds.progress(scope, self._held, self._news, self._app.settings.build_lease_s)
            self._written, self._at = self._news, time.monotonic()
