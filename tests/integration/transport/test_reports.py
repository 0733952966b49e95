"""What devices say of themselves: presence, hardware, what runs, who is silent."""

from dataclasses import replace
from datetime import timedelta

import pytest

from agent.protocol.messages import Event, Hardware, Heartbeat, Hello, Presence, State
from agent.protocol.words import ExecutionState
from control_plane.bootstrap import Application
from control_plane.domain.blueprint import Blueprint, Floors, Limits, Match, RuntimeSettings
from control_plane.domain.device import DeviceId
from control_plane.services import blueprints, inventory, presence, reports
from control_plane.services.incoming import Incoming
from control_plane.services.inventory import DeviceView
from control_plane.services.reports import Applied
from control_plane.store import tallies
from tests.integration.transport.fleets import bundle, enrol, enrol_many, offer, sha, up
from tests.integration.transport.gateways import seen


def _apply(app: Application, *said: Incoming, later: timedelta = timedelta()) -> Applied:
    with app.scope("gateway") as scope:
        return reports.apply_batch(replace(scope, now=scope.now + later), said)


def _device(app: Application, name: str = "edge-1") -> DeviceView:
    with app.reading("test") as scope:
        return inventory.get_device(scope, name)


def _hello(**changes: object) -> Incoming:
    said = {"boot": 1, "generation": 0, "agent": "0.1.0", **changes}
    return up("edge-1", "hello", Hello(**said))  # type: ignore[arg-type]  # fields by name


def test_a_hello_fills_the_row(app: Application) -> None:
    enrol(app, "edge-1")
    hardware = Hardware(arch="aarch64", cores=4, memory_mb=4096)
    _apply(app, _hello(generation=3, digest=sha("a"), last_known_good=sha("b"), hardware=hardware))
    device = _device(app)
    assert (device.agent_version, device.online, device.generation) == ("0.1.0", True, 3)
    assert (device.digest, device.last_known_good) == (sha("a"), sha("b"))
    assert device.hardware["arch"] == "aarch64"
    assert device.last_seen_at is not None


def test_a_hello_without_hardware_keeps_what_is_known(app: Application) -> None:
    enrol(app, "edge-1")
    before = _device(app).hardware
    _apply(app, _hello())
    assert _device(app).hardware == before != {}


def _blueprint(app: Application, name: str, arch: str) -> None:
    with app.scope("test") as scope:
        blueprints.apply(
            scope,
            Blueprint(
                name=name,
                match=Match(arch=arch),
                limits=Limits(),
                runtime=RuntimeSettings(),
                recipes=("int8-dynamic",),
                quality=Floors(
                    kl_mean_max=1.0,
                    kl_p99_max=9.0,
                    top1_agreement_min=0.5,
                    perplexity_ratio_max=2.0,
                    golden_min_agreement=0.5,
                ),
            ),
        )


def test_a_device_is_recognised_by_its_hardware_or_by_what_it_was_told(app: Application) -> None:
    _blueprint(app, "pi", "aarch64")
    _blueprint(app, "pc", "x86_64")
    enrol(app, "edge-1")
    assert _device(app).blueprint == "pc"
    _apply(app, _hello(hardware=Hardware(arch="aarch64")))
    assert _device(app).blueprint == "pi"
    _apply(app, _hello(hardware=Hardware(arch="aarch64"), blueprint="pc"))
    assert _device(app).blueprint == "pc"
    _apply(app, _hello(blueprint="no-such"))
    assert _device(app).blueprint == "pc"


def test_presence_in_one_batch_and_over_several(app: Application) -> None:
    enrol(app, "edge-1")

    def word(connection: int, *, online: bool) -> Incoming:
        return up("edge-1", "presence", Presence(online=online, connection=connection))

    _apply(app, word(1, online=True), word(1, online=False), word(2, online=True))
    assert _device(app).online
    _apply(app, word(1, online=False))
    assert _device(app).online
    _apply(app, word(2, online=False))
    assert not _device(app).online


def test_state_documents_out_of_order_leave_the_newest(app: Application) -> None:
    enrol(app, "edge-1")

    def state(boot: int, seq: int) -> Incoming:
        digest = sha(f"{boot}/{seq}")
        return up("edge-1", "state", State(boot=boot, seq=seq, generation=1, digest=digest))

    _apply(app, state(2, 3), state(2, 1))
    _apply(app, state(1, 9))
    assert _device(app).digest == sha("2/3")


def test_when_a_device_was_last_seen_is_written_once_a_while_and_when_it_comes_back(
    app: Application,
) -> None:
    enrol(app, "edge-1")
    hello = _hello()
    _apply(app, hello)
    first = _device(app).last_seen_at
    assert first is not None

    def state(seq: int) -> Incoming:
        return up("edge-1", "state", State(boot=1, seq=seq, generation=1, digest=sha(str(seq))))

    every = timedelta(seconds=app.settings.last_seen_s)
    _apply(app, state(1), later=every / 2)
    assert (_device(app).digest, _device(app).last_seen_at) == (sha("1"), first)
    _apply(app, state(2), later=2 * every)
    second = _device(app).last_seen_at
    assert second is not None
    assert second > first
    _apply(app, up("edge-1", "presence", Presence(online=False, connection=0)), later=2 * every)
    _apply(app, hello, later=2 * every + timedelta(seconds=1))
    third = _device(app).last_seen_at
    assert third is not None
    assert third > second


def test_a_heartbeat_is_believed_about_what_runs_and_how_it_feels(app: Application) -> None:
    enrol(app, "edge-1")
    stored = bundle(app)
    beat = Heartbeat(boot=1, generation=0, digest=stored.digest, healthy=False)
    _apply(app, up("edge-1", "heartbeat", beat))
    device = _device(app)
    assert (device.version, device.recipe, device.healthy) == ("1.0.0", "int8", False)
    with app.reading("test") as scope:
        kinds = [entry.kind for entry in inventory.device_history(scope, "edge-1").items]
        summary = inventory.fleet_summary(scope)
    assert kinds == ["enrolled"]
    assert (summary.total, summary.online, summary.healthy) == (1, 1, 0)
    assert summary.by_version == {"support-slm 1.0.0": 1}


def test_the_silent_are_called_offline_and_come_back_with_a_heartbeat(app: Application) -> None:
    enrol_many(app, 2)
    for name in ("edge-000", "edge-001"):
        _apply(app, up(name, "presence", Presence(online=True, connection=1)))
    silence = timedelta(seconds=app.settings.silent_after_s)
    _apply(app, up("edge-001", "heartbeat", Heartbeat(boot=1, generation=0)), later=silence)
    with app.scope("scheduler") as scope:
        late = replace(scope, now=scope.now + silence + timedelta(seconds=5))
        assert presence.sweep(late) == 1
        assert presence.sweep(late) == 0
    assert [_device(app, name).online for name in ("edge-000", "edge-001")] == [False, True]
    # The broker's memory of "online" does not wake it; the device itself does.
    _apply(app, up("edge-000", "presence", Presence(online=True, connection=1), retained=True))
    assert not _device(app, "edge-000").online
    _apply(app, up("edge-000", "heartbeat", Heartbeat(boot=1, generation=0)))
    assert _device(app, "edge-000").online


def test_what_cannot_be_read_is_counted_by_code_and_the_rest_applies(app: Application) -> None:
    enrol(app, "edge-1")
    topic = "flotilla/v1/d/edge-1/up/"
    applied = _apply(
        app,
        Incoming(topic + "hello", b"\xff"),
        Incoming(topic + "hello", b"x" * 70_000),
        Incoming(topic + "rumour", b"{}"),
        Incoming("elsewhere", b"{}"),
        _hello(),
    )
    assert applied.refused == {
        "protocol.malformed": 1,
        "protocol.too_large": 1,
        "protocol.topic": 2,
    }
    assert _device(app).online


def test_old_reports_are_forgotten_in_portions_and_younger_ones_are_not(
    app: Application,
) -> None:
    enrol(app, "edge-1")
    execution = offer(app, [DeviceId("edge-1")], bundle(app))[DeviceId("edge-1")]

    def event(seq: int) -> Incoming:
        said = Event(
            boot=1, seq=seq, generation=1, execution=execution, state=ExecutionState.DOWNLOADING
        )
        return up("edge-1", "events", said)

    _apply(app, *(event(seq) for seq in range(3)))
    with app.scope("scheduler") as scope:
        age = timedelta(seconds=app.settings.report_memory_s)
        assert reports.forget(replace(scope, now=scope.now + age / 2)) == 0
        late = replace(scope, now=scope.now + age + timedelta(minutes=1))
        reports.apply_batch(replace(scope, now=scope.now + age), [event(3)])
        assert [reports.forget(late, limit=2) for _ in range(3)] == [2, 1, 0]
    assert seen(app.database) == 1
    again = _apply(app, event(0))
    assert (again.counted, again.acks) == (1, {"edge-1": [(1, 0)]})
    with app.database.reading() as tx:
        assert tallies.read(tx, "r1") == [(0, "x86-64", ExecutionState.DOWNLOADING, 1)]


def test_an_empty_batch_is_nothing(app: Application) -> None:
    assert _apply(app) == Applied()


@pytest.mark.parametrize("text", ["\\u0000", "\\u001b[2J", "\\ud800"])
def test_hardware_that_would_spoil_every_later_query_is_refused(
    app: Application, text: str
) -> None:
    enrol(app, "edge-1")
    said = '{"boot":1,"generation":0,"agent":"0.1.0","hardware":{"cpu":"%s"}}'
    topic = "flotilla/v1/d/edge-1/up/hello"
    applied = _apply(app, Incoming(topic, said.replace("%s", text).encode()))
    assert applied.refused == {"protocol.malformed": 1}
    with app.reading("test") as scope:
        page = inventory.list_devices(scope, filter='hardware.cpu : "*"')
    assert [device.id for device in page.items] in ([], ["edge-1"])
