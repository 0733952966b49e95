"""The flotilla-agent command: enroll, run, status, rollback, doctor."""

import argparse
import logging
import os
import queue
import random
import signal
import socket
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

import agent
from agent import config, hardware, identity, signatures, web
from agent import link as links
from agent.cancellation import Cancellation
from agent.config import Config, DataFolder
from agent.download import Downloader
from agent.errors import AgentError, ConfigError
from agent.files import Files
from agent.identity import Identity, Wish
from agent.journal import Journal
from agent.lifecycle import Idle, State
from agent.link import Link
from agent.runtime import Inbox, LookForRequests, Runtime
from agent.slots import Slots
from agent.transitions import candidate, digest_of, phase, running
from agent.work import Work

FAILED, USAGE = 1, 2
CA_PATH = "/device/v1/ca"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit code."""
    asked = _parser().parse_args(arguments)
    try:
        return int(asked.command(Files(), DataFolder(asked.data), asked))
    except AgentError as error:
        print(f"flotilla-agent: {error}", file=sys.stderr)
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flotilla-agent", description=main.__doc__)
    parser.add_argument("--version", action="version", version=agent.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    enroll = _command(commands, "enroll", "make this machine a device of a fleet", _enroll)
    enroll.add_argument("--server", required=True, help="URL of the control plane")
    enroll.add_argument("--token", required=True, help="from: flotilla device token")
    enroll.add_argument("--device", default=socket.gethostname().split(".")[0].lower())
    enroll.add_argument("--blueprint", default="", help="report this hardware class")
    enroll.add_argument("--label", action="append", default=[], metavar="KEY=VALUE")
    enroll.add_argument("--allow-plain-http", action="store_true", help="on a trusted network")
    _command(commands, "run", "run the agent until SIGTERM", _run)
    status = _command(commands, "status", "show what this device runs and does", _status)
    status.add_argument("-o", "--output", choices=["table", "json"], default="table")
    _command(commands, "rollback", "go back to the model before", _rollback)
    _command(commands, "doctor", "check what the agent needs", _doctor)
    return parser


def _command(
    commands: Any, name: str, text: str, run: Callable[..., int]
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    default = os.environ.get("FLOTILLA_AGENT_DATA", "flotilla-agent")
    parser.add_argument("--data", type=Path, default=Path(default), help="data folder")
    parser.set_defaults(command=run)
    return parser


# --- commands -------------------------------------------------------------------------------


def _enroll(files: Files, folder: DataFolder, asked: argparse.Namespace) -> int:
    files.make_folder(folder.root)
    known = identity.load(files, folder)
    wish = Wish(
        server=asked.server,
        token=asked.token,
        device=asked.device,
        blueprint=asked.blueprint,
        labels=config.labels(asked.label),
        plain_http=asked.allow_plain_http,
    )
    facts = hardware.read(folder.root)
    mine = identity.enroll(files, folder, wish, facts, signatures.certificate_request)
    if known is not None:
        print(f"{mine.device} is enrolled at {mine.server} already")
        return 0
    settings = msgspec.structs.replace(
        config.load(files, folder, {}),
        server=wish.server,
        blueprint=wish.blueprint,
        labels=wish.labels,
        allow_plain_http=wish.plain_http,
    )
    config.save(files, folder, settings)
    print(f"{mine.device} is enrolled at {mine.server}; data in {folder.root}")
    return 0


def _run(files: Files, folder: DataFolder, _asked: argparse.Namespace) -> int:
    settings, mine = config.load(files, folder), _enrolled(files, folder)
    logging.basicConfig(
        level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    with files.only_one(folder.lock) as alone:
        if not alone:
            raise ConfigError(f"{folder.root}: another agent runs on this data folder")
        inbox: Inbox = queue.SimpleQueue()
        account = links.account(mine.device, mine.broker, mine.secret, lambda: _tls(folder, mine))
        runtime = _runtime(files, folder, settings, mine, inbox)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: runtime.tell_to_stop())
        signal.signal(signal.SIGUSR1, lambda *_: inbox.put(LookForRequests()))
        link = Link(
            account,
            hand_up=inbox.put,
            boot=runtime.start(),
            reconnect_base_s=settings.reconnect_base_s,
            reconnect_cap_s=settings.reconnect_cap_s,
        )
        runtime.run(link)
    return 0


def _tls(folder: DataFolder, mine: Identity) -> ssl.SSLContext:
    context = web.trusting(mine.ca)
    context.load_cert_chain(identity.certificate_path(folder), identity.key_path(folder))
    return context


def _runtime(
    files: Files, folder: DataFolder, settings: Config, mine: Identity, inbox: Inbox
) -> Runtime:
    url = web.server_url(settings.server or mine.server, plain_http=settings.allow_plain_http)
    slots = Slots(files, folder)
    downloader = Downloader(
        files,
        web.Server(url, web.trusting(mine.ca), mine.secret),
        deadline_s=settings.download_deadline_s,
        min_rate=settings.min_rate,
        jitter=random.random,
    )
    work = Work(
        slots=slots,
        downloader=downloader,
        config=settings,
        trust=mine.trust,
        hand_up=inbox.put,
    )
    return Runtime(
        device=mine.device,
        config=settings,
        folder=folder,
        files=files,
        journal=Journal(files, folder),
        slots=slots,
        work=work,
        inbox=inbox,
    )


def _enrolled(files: Files, folder: DataFolder) -> Identity:
    mine = identity.load(files, folder)
    if mine is None:
        raise ConfigError(f"{folder.root}: not enrolled; run flotilla-agent enroll first")
    return mine


def _status(files: Files, folder: DataFolder, asked: argparse.Namespace) -> int:
    mine = _enrolled(files, folder)
    record = Journal(files, folder).load()
    facts: dict[str, Any] = {"device": mine.device, "server": mine.server}
    facts["agent"] = agent.__version__
    facts["running"] = _running_pid(files, folder)
    facts["active"] = Slots(files, folder).active()
    if record is not None:
        facts |= _facts(record.state)
        facts |= {"boot": record.boot, "unacknowledged": len(record.outbox)}
    if asked.output == "json":
        print(msgspec.json.format(msgspec.json.encode(facts)).decode())
        return 0
    for name, value in facts.items():
        print(f"{name:16} {value if value not in ('', None) else '-'}")
    return 0


def _facts(state: State) -> dict[str, Any]:
    standing, runs = state.standing, running(state)
    outcome = standing.outcome
    return {
        "state": type(state).__name__,
        "phase": phase(state),
        "generation": standing.generation,
        "model": runs.model if runs else "",
        "version": runs.version if runs else "",
        "digest": digest_of(runs),
        "candidate": digest_of(candidate(state)),
        "last_known_good": digest_of(standing.good),
        "previous": digest_of(standing.previous),
        "outcome": outcome.state if outcome else "",
        "reason": outcome.reason if outcome else "",
    }


def _running_pid(files: Files, folder: DataFolder) -> int | None:
    """Return the process id of the agent that holds the data folder, if one does."""
    if not files.exists(folder.lock):
        return None
    pid = files.read(folder.lock)
    with files.only_one(folder.lock) as free:
        return None if free or not pid else int(pid)


def _rollback(files: Files, folder: DataFolder, _asked: argparse.Namespace) -> int:
    settings, mine = config.load(files, folder), _enrolled(files, folder)
    record = Journal(files, folder).load()
    if record is None or not _can_go_back(record.state):
        raise ConfigError("there is nothing to go back to: no update is under way or on disk")
    files.write(folder.rollback_request, b"")
    pid = _running_pid(files, folder)
    if pid is not None:
        os.kill(pid, signal.SIGUSR1)
        print(f"asked the running agent (process {pid}) to go back; see flotilla-agent status")
        return 0
    with files.only_one(folder.lock):
        runtime = _runtime(files, folder, settings, mine, queue.SimpleQueue())
        runtime.start()
        runtime.run(None, until=lambda state: isinstance(state, Idle))
    print(f"active: {Slots(files, folder).active() or '-'}")
    return 0


def _can_go_back(state: State) -> bool:
    return not isinstance(state, Idle) or state.standing.previous is not None


def _doctor(files: Files, folder: DataFolder, _asked: argparse.Namespace) -> int:
    """Check everything, and say everything that is wrong."""
    wrong = 0
    checks: tuple[tuple[str, Callable[[], str]], ...] = (
        ("settings", lambda: config.load(files, folder).server),
        ("identity", lambda: _enrolled(files, folder).device),
        ("server", lambda: _reach_server(files, folder)),
        ("broker", lambda: _reach_broker(files, folder)),
        ("active slot", lambda: _check_active(files, folder)),
        ("disk", lambda: f"{hardware.read(folder.root).disk_free_mb} MiB free"),
        ("runtimes", lambda: ", ".join(hardware.read(folder.root).runtimes) or "none"),
    )
    for name, check in checks:
        try:
            found, mark = check(), "ok"
        except (AgentError, OSError) as error:
            found, mark, wrong = str(error), "FAILED", wrong + 1
        print(f"{mark:7} {name:12} {found}")
    return FAILED if wrong else 0


def _reach_server(files: Files, folder: DataFolder) -> str:
    settings, mine = config.load(files, folder), _enrolled(files, folder)
    url = web.server_url(settings.server or mine.server, plain_http=settings.allow_plain_http)
    server = web.Server(url, web.trusting(mine.ca), mine.secret)
    try:
        status = server.document("GET", CA_PATH, Cancellation(), limit=identity.MAX_REPLY).status
    except web.InterruptedTransferError as error:
        raise ConfigError(f"{url.geturl()}: {error}") from error
    if status != identity.OK:
        raise ConfigError(f"{url.geturl()}{CA_PATH}: status {status}")
    return url.geturl()


def _reach_broker(files: Files, folder: DataFolder) -> str:
    mine = _enrolled(files, folder)
    where = links.account(mine.device, mine.broker, mine.secret, lambda: _tls(folder, mine))
    address = (mine.broker.host, mine.broker.port)
    with socket.create_connection(address, timeout=web.TIMEOUT_S) as plain:
        if where.tls is not None:
            where.tls.wrap_socket(plain, server_hostname=mine.broker.host).close()
    return f"{mine.broker.host}:{mine.broker.port}{' with TLS' if mine.broker.tls else ''}"


def _check_active(files: Files, folder: DataFolder) -> str:
    slots = Slots(files, folder)
    digest = slots.active()
    if not digest:
        return "no model yet"
    manifest = slots.verify(digest)
    return f"{manifest.model} {manifest.version}, every byte as signed"


if __name__ == "__main__":
    sys.exit(main())
