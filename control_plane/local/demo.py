"""The demo: Flotilla's whole job on real parts, from an empty folder to a regression caught."""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from control_plane.local import demo_facts, demo_fleet
from control_plane.local.demo_client import Client, DemoError, Json
from control_plane.local.supervisor import LocalStack

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "examples" / "support-slm" / "models"
STORIES = ROOT / "examples" / "demo"
BLUEPRINTS = ("x86-64-vnni", "x86-64-avx2", "arm64-board")
EACH = 4
CANARIES = 3
MODEL = "support-slm"
BUILD_LIMIT_S = 300
ROLLOUT_LIMIT_S = 420
COMMAND_LIMIT_S = 120


class Narrator:
    """Tells the story: a line a fact, and one line that lives while something is under way."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._began = time.monotonic()
        self._said = ""

    def chapter(self, title: str) -> None:
        """Begin a chapter."""
        self._console.print(f"\n[bold]{title}[/bold]  [dim]{self._clock()}[/dim]")

    def say(self, text: str) -> None:
        """Say one finished fact."""
        self._console.print(f"  {text}")

    def command(self, words: list[str]) -> None:
        """Show the command that a person would type."""
        self._console.print(f"  [cyan]$ {' '.join(words)}[/cyan]")

    @contextmanager
    def progress(self) -> Iterator[Callable[[str], None]]:
        """Yield a function that says how far it is; without a terminal, a line a change."""
        if not self._console.is_terminal:
            yield self._plain
            return
        with self._console.status("") as status:
            yield lambda text: status.update(f"  {text}  [dim]{self._clock()}[/dim]")

    def _plain(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._console.print(f"    {text}  {self._clock()}")

    def _clock(self) -> str:
        passed = int(time.monotonic() - self._began)
        return f"{passed // 60}:{passed % 60:02d}"


class Story:
    """The chapters, over a running control plane."""

    def __init__(self, stack: demo_fleet.Stack, client: Client, narrator: Narrator) -> None:
        self._stack, self.client, self._tell = stack, client, narrator

    def all_chapters(self, folder: Path, each: int) -> int:
        """Tell every chapter, with `each` devices per blueprint in `folder`; returns how many."""
        self.blueprints_and_models()
        token = self.client.post("/api/v1/enrollment-tokens", {"uses": each * len(BLUEPRINTS)})
        plans = demo_fleet.plan(BLUEPRINTS, each)
        self.enrol(demo_fleet.Fleet(self._stack, folder, token["token"]), plans)
        self.ship("3  1.0.0 goes to everyone", "1.0.0", push=False)
        self.ship("4  1.1.0, trained longer, goes out in waves", "1.1.0")
        self.ship("5  1.2.0, twice the layers: better text, but slower on the device", "1.2.0")
        self.explain("1.2.0")
        self.ship_a_broken_build("6  1.3.0, fast but wrong")
        self.explain("1.3.0")
        return len(plans)

    def blueprints_and_models(self) -> None:
        """Load the hardware classes and the first model version."""
        self._tell.chapter("1  Blueprints and a real small language model")
        self._flotilla("apply", *(a for n in BLUEPRINTS for a in ("-f", f"blueprints/{n}.yaml")))
        self._push("1.0.0")

    def enrol(self, fleet: demo_fleet.Fleet, plans: list[demo_fleet.Plan]) -> None:
        """Enrol and start the devices."""
        self._tell.chapter(f"2  {len(plans)} devices enrol, each an agent process of its own")
        fleet.enroll(plans)
        fleet.start(plans)
        for blueprint in BLUEPRINTS:
            names = [p.name for p in plans if p.blueprint == blueprint]
            self._tell.say(f"{blueprint}: {', '.join(names)}")

    def ship(self, chapter: str, version: str, *, push: bool = True) -> Json:
        """Push a version, roll it out, wait until it settles; returns the rollout."""
        self._tell.chapter(chapter)
        if push:
            self._push(version)
        name = f"{MODEL}-{version}"
        self._flotilla("apply", "-f", f"examples/demo/rollout-{version}.yaml")
        self._flotilla("rollout", "start", name)
        with self._tell.progress() as shown:
            view = self.client.wait_for_rollout(
                name, limit_s=ROLLOUT_LIMIT_S, shown=lambda v: shown(_rollout_words(v))
            )
        self._tell.say(f"{name}: [bold]{view['state']}[/bold] {escape(view['state_reason'])}")
        return view

    def ship_a_broken_build(self, chapter: str) -> Json:
        """Wave a broken quantization past the server's check, as a person in a hurry might."""
        self._tell.chapter(chapter)
        why = "demo: a build that the server would refuse, to show the check on the device"
        self._push("1.3.0", "1.1.0", "--recipe", "static-qdq-full", "--waive-quality", why)
        return self.ship("", "1.3.0", push=False)

    def explain(self, version: str) -> None:
        """Let Flotilla say why it stopped."""
        said = self._flotilla("rollout", "explain", f"{MODEL}-{version}")
        self._tell.say(escape(said.rstrip()))

    def _push(self, version: str, folder: str = "", *options: str) -> None:
        path = f"examples/support-slm/models/{folder or version}"
        self._flotilla("model", "push", MODEL, version, path, *options)
        with self._tell.progress() as shown:
            builds = self.client.wait_for_builds(
                MODEL, version, limit_s=BUILD_LIMIT_S, shown=lambda b: shown(_build_words(b))
            )
        for build in builds:
            if build["state"] == "FAILED":
                raise DemoError(f"build for {build['blueprint']} failed: {build['error']}")
        for artifact in self.client.all("/api/v1/artifacts"):
            if artifact["version"] == version:
                self._tell.say(_artifact_words(artifact))

    def _flotilla(self, *words: str) -> str:
        self._tell.command(["flotilla", *words])
        done = subprocess.run(
            [sys.executable, "-m", "control_plane.cli.main", *words],
            cwd=ROOT,
            env=self._stack.env
            | {"FLOTILLA_URL": self._stack.url, "FLOTILLA_TOKEN": self._stack.admin_token},
            capture_output=True,
            text=True,
            timeout=COMMAND_LIMIT_S,
            check=False,
        )
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip()[-600:]
            raise DemoError(f"flotilla {' '.join(words)} exited {done.returncode}: {said}")
        return done.stdout


def run(*, once: bool = False, json_file: Path | None = None, keep: bool = False) -> int:
    """Run the demo; returns the exit status: 0 only if every step ended as told.

    Args:
        once: stop everything after the story instead of leaving it running.
        json_file: where to write the facts.
        keep: do not remove the data folder at the end.
    """
    # Asked to end by another program: the same clean way out as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    narrator = Narrator()
    data = Path(tempfile.mkdtemp(prefix="flotilla-demo-"))
    held = False
    try:
        with LocalStack(data / "control-plane") as stack:
            held = tell(stack, data, narrator, json_file, once=once)
    except DemoError as error:
        narrator.say(f"[red]{escape(str(error))}[/red]")
        narrator.say(f"logs: {data}")
        keep = True
    except KeyboardInterrupt:
        narrator.say("stopped")
    finally:
        if not keep:
            shutil.rmtree(data, ignore_errors=True)
    return 0 if held else 1


def tell(
    stack: demo_fleet.Stack,
    data: Path,
    narrator: Narrator,
    json_file: Path | None,
    *,
    once: bool,
    each: int = EACH,
) -> bool:
    """Tell the whole story on a running control plane; returns whether all of it held.

    Args:
        stack: the control plane.
        data: folder for the devices.
        narrator: says it.
        json_file: where to write the facts.
        once: do not leave it running at the end.
        each: devices per blueprint, at least 2, so that some are outside the canary.
    """
    narrator.say(f"control plane and dashboard: {stack.url}/login?token={stack.admin_token}")
    with closing(Client(stack.url, stack.admin_token)) as client:
        story = Story(stack, client, narrator)
        devices = story.all_chapters(data / "devices", each)
        held = _judge(client, narrator, json_file, devices)
        if not once:
            _leave_running(stack, narrator)
    return held


def _judge(client: Client, narrator: Narrator, json_file: Path | None, devices: int) -> bool:
    facts = demo_facts.collect(client)
    if json_file is not None:
        json_file.write_text(json.dumps(facts, indent=2), "utf-8")
    narrator.chapter("What happened")
    found = demo_facts.checks(facts, devices=devices, canaries=CANARIES)
    for check in found:
        mark = "[green]✓[/green]" if check.holds else "[red]✕[/red]"
        narrator.say(f"{mark} {check.claim}" + ("" if check.holds else f": found {check.found}"))
    return all(check.holds for check in found)


def _leave_running(stack: demo_fleet.Stack, narrator: Narrator) -> None:
    narrator.chapter("Everything is still running; Ctrl-C stops it and leaves nothing behind")
    narrator.say(f"dashboard: {stack.url}/login?token={stack.admin_token}")
    with suppress(KeyboardInterrupt):  # the story has ended: this is not a failure
        threading.Event().wait()
    narrator.say("stopped")


def _rollout_words(view: Json) -> str:
    waves = "  ".join(
        f"{wave['name']} {wave['counts'].get('SUCCEEDED', 0)}/{wave['total']}"
        for wave in view["waves"]
    )
    busy: dict[str, int] = {}
    for wave in view["waves"]:
        for state, n in wave["counts"].items():
            if n and state not in ("QUEUED", "SUCCEEDED"):
                busy[state] = busy.get(state, 0) + n
    now = ", ".join(f"{n} {state.lower()}" for state, n in sorted(busy.items()))
    return f"{view['state']}  {waves}  {now}"


def _build_words(builds: list[Json]) -> str:
    return "  ".join(f"{build['blueprint']} {build['state'].lower()}" for build in builds)


def _artifact_words(artifact: Json) -> str:
    share = artifact["bytes"] / artifact["source_bytes"]
    verdict = "[green]accepted[/green]" if artifact["accepted"] else "[yellow]refused[/yellow]"
    return (
        f"{artifact['blueprint']} {artifact['recipe']}: {artifact['bytes'] / 1e6:.2f} MB "
        f"({share:.0%} of the source), {verdict}: {escape(artifact['why'])}"
    )
