"""What devices should run: a new generation, signed, stored, and on its way in one transaction."""

import hashlib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import msgspec

from agent.protocol import envelope, messages, topics
from agent.protocol.messages import ActivationWindow, BundleRef, Order, TrialPolicy
from agent.protocol.words import Action
from control_plane.domain.device import DeviceId
from control_plane.domain.errors import NotFoundError
from control_plane.services.scope import Scope
from control_plane.store import desired as store
from control_plane.store import outbox
from control_plane.store.bulk import chunks
from control_plane.store.outbox import FIRST, NEXT, Sending

REMIND_AFTER = timedelta(minutes=1)
"""An order that is younger may still be on its way."""
# A device must refuse an order that differs under a name it knows, so the name follows from
# what the order is: the same device and generation, the same name.
_ORDERS = uuid.UUID("6f3f4c0e-6e57-5f0a-9b1e-3a1f0c7f5d11")

SIGNED_AT_ONCE = 250
"""In one go: as many are stored in one statement while the next ones are signed."""


@dataclass(frozen=True)
class Wanted:
    """What one device should do next."""

    device: DeviceId
    action: Action
    digest: str = ""
    rollout: str = ""
    execution: str = ""
    trial: TrialPolicy = field(default_factory=TrialPolicy)
    soak_s: float = 0.0
    max_tries: int = 3
    activate: ActivationWindow | msgspec.UnsetType = msgspec.UNSET


def set_desired(scope: Scope, wanted: Sequence[Wanted]) -> dict[str, int]:
    """Give devices new orders; where a device is named twice the last one counts.

    Returns:
        The new generation of each device.

    Raises:
        NotFoundError: a bundle that does not exist.
    """
    with ordering(scope, wanted) as generations:
        return generations


@contextmanager
def ordering(scope: Scope, wanted: Sequence[Wanted]) -> Iterator[dict[str, int]]:
    """Give devices new orders, as `set_desired`, while the caller writes what goes with them.

    A signature costs as much time as a row, so many are made beside the block, which waits for the
    database most of the time. At its end they are stored, and on their way.

    Yields:
        The new generation of each device; the devices' orders are locked.

    Raises:
        NotFoundError: a bundle that does not exist.
    """
    newest = {one.device: one for one in wanted}
    bundles = _bundles(scope, newest)
    before = store.lock_generations(scope.tx, list(newest), scope.now)
    generations = {device: n + 1 for device, n in before.items()}

    def sign(some: Sequence[Wanted]) -> list[store.DesiredRow]:
        return [_row(scope, one, generations[one.device], bundles.get(one.digest)) for one in some]

    parts = list(chunks([newest[device] for device in sorted(newest)], SIGNED_AT_ONCE))
    with _signing(parts, sign) as signed:
        yield generations
        for rows in signed:
            store.save(scope.tx, rows, scope.now)
    # What takes something back does not wait behind what hands something out.
    ranks = {one.device: NEXT if one.action is Action.RUN else FIRST for one in newest.values()}
    _send(scope, ranks)


@contextmanager
def _signing(
    parts: Sequence[Sequence[Wanted]], sign: Callable[[Sequence[Wanted]], list[store.DesiredRow]]
) -> Iterator[Iterator[list[store.DesiredRow]]]:
    if len(parts) <= 1:
        yield map(sign, parts)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="signing") as pool:
        yield pool.map(sign, parts)


def send_again(scope: Scope, behind: Mapping[DeviceId, int]) -> int:
    """Publish the newest order of each device that has applied only the generation given.

    Returns:
        How many devices really were behind.
    """
    if not behind:
        return 0
    rows = [
        row
        for row in store.lock_orders(scope.tx, list(behind))
        if row.generation > behind[row.device]
    ]
    fresh = [renewed for row in rows if (renewed := _renewed(scope, row)) is not None]
    store.save(scope.tx, fresh, scope.now)
    _send(scope, {row.device: NEXT for row in rows})
    return len(rows)


def remind(scope: Scope, applied: Mapping[DeviceId, int]) -> int:
    """Publish again what devices that say they are alive have not applied for a while.

    A hello asks for that at once, unless nobody was there to hear it: a broker that has lost
    everything knows of no gateway until one comes back.

    Returns:
        How many devices were behind.
    """
    behind = store.unheard(scope.tx, applied, scope.now - REMIND_AFTER)
    return send_again(scope, {device: applied[device] for device in behind})


def _bundles(scope: Scope, newest: Mapping[DeviceId, Wanted]) -> dict[str, BundleRef]:
    digests = {one.digest for one in newest.values() if one.digest}
    found = store.bundles(scope.tx, list(digests))
    if missing := digests - found.keys():
        raise NotFoundError(f"no bundle {min(missing)}; was it built?", field="digest")
    return {
        digest: BundleRef(
            digest=facts.digest,
            model=facts.model,
            version=facts.version,
            release=facts.release,
            size=facts.size,
        )
        for digest, facts in found.items()
    }


def _row(scope: Scope, one: Wanted, generation: int, bundle: BundleRef | None) -> store.DesiredRow:
    issued = int(scope.now.timestamp())
    order = Order(
        order=_name(one.device, generation),
        device=one.device,
        generation=generation,
        issued=issued,
        expires=issued + scope.settings.order_ttl_s,
        action=one.action,
        rollout=one.rollout,
        execution=one.execution,
        bundle=bundle,
        trial=one.trial,
        soak_s=one.soak_s,
        max_tries=one.max_tries,
        activate=one.activate,
    )
    return store.DesiredRow(
        device=one.device,
        generation=generation,
        action=one.action.value,
        digest=one.digest,
        rollout=one.rollout,
        execution=one.execution,
        envelope=scope.keyring.sign_order(messages.encode(order)),
        issued_at=scope.now,
    )


def _name(device: str, generation: int) -> str:
    """Return the UUID of version 5 (RFC 9562, 5.5): `uuid.uuid5` at a third of its cost."""
    hashed = hashlib.sha1(
        _ORDERS.bytes + f"{device}/{generation}".encode(), usedforsecurity=False
    ).hexdigest()
    variant = "89ab"[int(hashed[16], 16) & 3]
    return f"{hashed[:8]}-{hashed[8:12]}-5{hashed[13:16]}-{variant}{hashed[17:20]}-{hashed[20:32]}"


def _renewed(scope: Scope, row: store.DesiredRow) -> store.DesiredRow | None:
    """Return the same order with a later end, if less than half of its life is left.

    A device that was away for longer than an order lives would refuse what it is sent.
    """
    ttl = timedelta(seconds=scope.settings.order_ttl_s)
    if scope.now - row.issued_at < ttl / 2:
        return None
    payload, _ = envelope.open_unverified(row.envelope, envelope.ORDER_TYPE)
    issued = int(scope.now.timestamp())
    order = msgspec.structs.replace(
        messages.decode(payload, Order),
        issued=issued,
        expires=issued + scope.settings.order_ttl_s,
    )
    return store.DesiredRow(
        device=row.device,
        generation=row.generation,
        action=row.action,
        digest=row.digest,
        rollout=row.rollout,
        execution=row.execution,
        envelope=scope.keyring.sign_order(messages.encode(order)),
        issued_at=scope.now,
    )


def _send(scope: Scope, ranks: Mapping[DeviceId, int]) -> None:
    """Publish the newest orders of devices; they were just stored or locked."""
    orders = [
        Sending(device, topics.desired(topics.DeviceId(device)), rank)
        for device, rank in ranks.items()
    ]
    outbox.put_orders(scope.tx, scope.now, orders)
