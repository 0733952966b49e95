"""Planted bugs: mistakes that somebody could really make, each put in for a while.

A simulation that does not notice them proves nothing. Each is a context manager that changes one
function of the product; test_planted.py says within how many seeds each must be caught.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from msgspec import structs
from sqlalchemy import select

from agent import machine, transitions
from agent.protocol.words import ExecutionState, Reason
from agent.slots import Slots
from control_plane.domain import gates, rollout_machine
from control_plane.domain.gates import Group
from control_plane.domain.rollout import IN_FLIGHT, TERMINAL, moves_forward
from control_plane.gateway import inbox
from control_plane.gateway.inbox import Inbox
from control_plane.services import executions, reports, rollout_codec, rollout_orders, withdrawal
from control_plane.services.incoming import read_all
from control_plane.store import desired as desired_store
from control_plane.store import executions as execution_store
from control_plane.store import offers, outbox, tallies
from control_plane.store import reports as report_store
from control_plane.store.outbox import Due, Outgoing
from control_plane.store.reports import ReportKey
from control_plane.store.schema import execution
from tests.support.planting import instead

E = ExecutionState
Bug = Callable[[], AbstractContextManager[None]]


# --- reports ------------------------------------------------------------------------------------


def acknowledged_before_the_commit() -> AbstractContextManager[None]:
    """The gateway acknowledges what it has read, and stores it afterwards."""

    def flush(self: Inbox, link: Any) -> None:
        batch, self._waiting = self._waiting, []
        incoming = [inbox._incoming(message) for message in batch]
        for message in read_all(incoming, {}):
            seq = getattr(message.body, "seq", None)
            if seq is not None:
                inbox._acknowledge(link, message.device, [(message.body.boot, seq)])  # type: ignore[union-attr]  # whatever has a seq has a boot
        link.acknowledge(batch)
        self._note(len(batch), self._apply(incoming))

    return instead((Inbox, "flush", flush))


def a_replay_counts_again() -> AbstractContextManager[None]:
    """Nobody looks whether a report came before, and counts go up with every one."""
    real, real_claim = executions.apply, report_store.claim
    keys = (execution.c.rollout, execution.c.wave, execution.c.blueprint, execution.c.state)

    def apply(scope: Any, told: Any, *more: Any) -> Any:
        for _, report in told:
            row = scope.tx.execute(select(*keys).where(execution.c.id == report.execution)).first()
            state = getattr(report, "state", None)
            if row is not None and state is not None and row.state == state.value:
                tallies.count_up(scope.tx, {tuple(row): 1})
        return real(scope, told, *more)

    def claim(tx: Any, keys: Any, now: Any) -> set[ReportKey]:
        real_claim(tx, keys, now)
        return set(keys)

    return instead((executions, "apply", apply), (report_store, "claim", claim))


def the_boot_epoch_is_ignored() -> AbstractContextManager[None]:
    """A report is known by its number alone, which begins again with every start."""
    real = report_store.claim

    def claim(tx: Any, keys: Any, now: Any) -> set[ReportKey]:
        new = {(key.device, key.seq) for key in real(tx, {k._replace(boot=0) for k in keys}, now)}
        return {key for key in keys if (key.device, key.seq) in new}

    return instead((report_store, "claim", claim))


def a_late_report_reopens() -> AbstractContextManager[None]:
    """A device that was given up and answers after all is counted after all."""

    def forward(before: E, after: E) -> bool:
        return before is E.TIMED_OUT or moves_forward(before, after)

    ended = TERMINAL - {E.TIMED_OUT}
    return instead((executions, "TERMINAL", ended), (executions, "moves_forward", forward))


def a_report_goes_to_the_newest() -> AbstractContextManager[None]:
    """A report is taken for the device's newest execution, whatever it says itself."""
    real = executions.apply

    def newest(scope: Any, device: Any, report: Any) -> Any:
        flying = [state.value for state in IN_FLIGHT]
        mine = execution.c.device_id == device, execution.c.state.in_(flying)
        found = scope.tx.execute(select(execution.c.id).where(*mine)).scalar()
        return structs.replace(report, execution=found or report.execution)

    def apply(scope: Any, told: Any, *more: Any) -> Any:
        mine = [(device, newest(scope, device, one)) for device, one in told]
        return real(scope, mine, *more)

    return instead((executions, "apply", apply))


def success_as_soon_as_it_runs() -> AbstractContextManager[None]:
    """A device that soaks is taken for one that has succeeded."""
    real = executions._Batch.event

    def event(self: Any, now: Any, told: Any) -> bool:
        early = told.state is E.SOAKING
        return real(self, now, structs.replace(told, state=E.SUCCEEDED) if early else told)

    return instead((executions._Batch, "event", event))


# --- rollouts -----------------------------------------------------------------------------------


def offers_before_the_gates() -> AbstractContextManager[None]:
    """A tick offers first, and looks at the failures when nobody is left to offer."""

    def run(view: Any, now: float) -> Any:
        m = rollout_machine
        return (
            m._offer(view, now)
            or m._watch(view, now)
            or m._keep_up(view, now)
            or m._judge(view, now)
        )

    return instead((rollout_machine, "_run", run))


def a_trial_is_not_in_flight() -> AbstractContextManager[None]:
    """The pace forgets the devices that measure."""
    flying = property(lambda self: self.count(IN_FLIGHT - {E.BENCHMARKING}))
    return instead((Group, "in_flight", flying))


def pause_withdraws_nothing() -> AbstractContextManager[None]:
    """A pause only stops new offers."""
    return instead((rollout_orders, "_requeue", lambda *_: []))


def a_wave_opens_on_answers_alone() -> AbstractContextManager[None]:
    """Whether a wave was good is not asked, only whether it has answered."""
    real = gates.advance

    def advance(*args: Any, **more: Any) -> Any:
        return tuple(gate for gate in real(*args, **more) if gate.rule == "answered")

    return instead((gates, "advance", advance))


def resume_acknowledges_everybody() -> AbstractContextManager[None]:
    """Resuming acknowledges as many failures as there are devices."""
    real = rollout_machine._acknowledge

    def acknowledge(view: Any) -> Any:
        after = real(view)
        return replace(after, acknowledged=dict.fromkeys(after.acknowledged, 1000))

    return instead((rollout_machine, "_acknowledge", acknowledge))


def a_timed_out_device_may_begin() -> AbstractContextManager[None]:
    """Who is given up keeps its order."""
    real = execution_store.time_out

    def time_out(*args: Any, **more: Any) -> list[Any]:
        real(*args, **more)
        return []

    return instead((execution_store, "time_out", time_out))


def abort_leaves_the_orders() -> AbstractContextManager[None]:
    """Giving up a rollout changes rows, and tells no device."""

    def cancel(scope: Any, ids: Any, _states: Any = None) -> None:
        which = execution_store.among(ids)
        execution_store.move(scope.tx, scope.now, which, IN_FLIGHT, E.CANCELED, reason="withdrawn")

    return instead((rollout_orders, "cancel", cancel))


def a_quarantine_is_a_failure() -> AbstractContextManager[None]:
    """Who is put in quarantine counts against the model."""
    real = execution_store.move

    def move(*args: Any, **more: Any) -> Any:
        if more.get("reason") == "quarantined":
            args = (*args[:4], E.FAILED)
        return real(*args, **more)

    return instead((execution_store, "move", move))


def a_decision_forgets_its_time() -> AbstractContextManager[None]:
    """What a decision was made from is kept without the time at which it was made."""
    real = rollout_codec.inputs

    def inputs(*args: Any, **more: Any) -> dict[str, Any]:
        return {**real(*args, **more), "now": 0.0}

    return instead((rollout_codec, "inputs", inputs))


# --- orders -------------------------------------------------------------------------------------


def a_generation_is_used_twice() -> AbstractContextManager[None]:
    """The next generation is counted from what was read before the last order was stored."""
    real = desired_store.lock_generations

    def lock(*args: Any) -> dict[str, int]:
        return {device: max(0, n - 1) for device, n in real(*args).items()}

    return instead((desired_store, "lock_generations", lock))


def a_revert_names_the_wrong_bundle() -> AbstractContextManager[None]:
    """A device is sent back to what it is to leave."""
    real = withdrawal.order_back

    def order_back(scope: Any, parts: Any) -> None:
        real(scope, [replace(one, previous=getattr(one, "digest", one.previous)) for one in parts])

    return instead((withdrawal, "order_back", order_back))


def two_rollouts_at_once() -> AbstractContextManager[None]:
    """A newer rollout offers its model to a device that is busy with an older one's."""
    return instead((offers, "supersede", lambda *_: []))


def the_older_order_goes_last() -> AbstractContextManager[None]:
    """Orders are sent as they were when stored; of several for a device, the newest goes first."""
    real = outbox.take

    def put(tx: Any, now: Any, orders: Any) -> None:
        rows = {
            row.device: row.envelope
            for row in desired_store.lock_orders(tx, [one.device for one in orders])
        }
        outbox.put_all(tx, now, [Outgoing(one.topic, rows[one.device], True) for one in orders])  # noqa: FBT003

    def take(*args: Any, **more: Any) -> Any:
        batch = real(*args, **more)
        return replace(batch, messages=batch.messages[::-1])

    def all_of_them(rows: Any) -> Any:
        return [Due(row.id, row.topic, row.payload, row.retain) for row in rows], []

    return instead(
        (outbox, "put_orders", put), (outbox, "take", take), (outbox, "_apart", all_of_them)
    )


def nobody_answers_a_hello() -> AbstractContextManager[None]:
    """Who missed an order is not sent it again."""
    return instead((reports, "_send_again", lambda *_: None))


# --- devices ------------------------------------------------------------------------------------


def the_soak_is_skipped() -> AbstractContextManager[None]:
    """A device confirms at its first healthy probe."""

    def judge(state: Any, event: Any, now: Any) -> Any:
        if not event.healthy:
            return transitions.turn_back(state, Reason.SOAK_UNHEALTHY)
        return transitions.confirm(state, E.SUCCEEDED, Reason.SOAKED, now)

    return instead((machine, "judge_probe", judge))


def the_switch_is_not_atomic() -> AbstractContextManager[None]:
    """The active link is removed, and then made anew."""
    real = Slots.activate

    def activate(self: Slots, digest: str) -> None:
        self.verify(digest)
        self._files.remove(self._active)
        real(self, digest)

    return instead((Slots, "activate", activate))


PLANTED: dict[str, Bug] = {
    bug.__name__: bug
    for bug in (
        acknowledged_before_the_commit,
        a_replay_counts_again,
        the_boot_epoch_is_ignored,
        a_late_report_reopens,
        a_report_goes_to_the_newest,
        success_as_soon_as_it_runs,
        offers_before_the_gates,
        a_trial_is_not_in_flight,
        pause_withdraws_nothing,
        a_wave_opens_on_answers_alone,
        resume_acknowledges_everybody,
        a_timed_out_device_may_begin,
        abort_leaves_the_orders,
        a_quarantine_is_a_failure,
        a_decision_forgets_its_time,
        a_generation_is_used_twice,
        a_revert_names_the_wrong_bundle,
        two_rollouts_at_once,
        the_older_order_goes_last,
        nobody_answers_a_hello,
        the_soak_is_skipped,
        the_switch_is_not_atomic,
    )
}
