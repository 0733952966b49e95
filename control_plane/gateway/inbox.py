"""The inbox: device messages in batches, each batch one transaction, acknowledged after it."""

import time
from collections import Counter

from agent.protocol import messages, topics
from agent.protocol.messages import Ack
from control_plane.bootstrap import Application, utc_now
from control_plane.domain.device import DeviceId
from control_plane.gateway import patience
from control_plane.gateway.link import Link, Publish
from control_plane.gateway.outage import OutageError, transaction
from control_plane.gateway.patience import Patience
from control_plane.observability import logger
from control_plane.services import reports
from control_plane.services.reports import Applied, Incoming

MAX_BATCH = 2000
"""What is read ahead, at most `link.MOST_READ` more; some 0.3 s of two busy cores."""
MAX_WAIT_S = 0.25
ACK_REPORTS = 500  # to a message: some 15 kB
POISON = "poison"

log = logger(__name__)


class Inbox:
    """Messages that wait for their transaction.

    Nothing reads from the broker while a full batch waits, so the buffer is bounded by little more.

    Args:
        app: the application.
    """

    def __init__(self, app: Application) -> None:
        self._app = app
        self._waiting: list[Publish] = []
        self._since = 0.0
        self._patience = Patience()
        self.refused: Counter[str] = Counter()
        self.received = 0
        self.counted = 0

    def take(self, message: Publish) -> None:
        """Add a message to the batch."""
        if not self._waiting:
            self._since = time.monotonic()
        self._waiting.append(message)

    @property
    def full(self) -> bool:
        return len(self._waiting) >= MAX_BATCH

    @property
    def due(self) -> bool:
        """Whether the batch should be applied now."""
        waited = time.monotonic() - self._since
        return bool(self._waiting) and (self.full or waited >= MAX_WAIT_S)

    def __len__(self) -> int:
        return len(self._waiting)

    def forget(self) -> None:
        """Drop the batch: its connection is lost, the broker will deliver it again."""
        self._waiting = []

    def flush(self, link: Link) -> None:
        """Apply the batch, commit, and only then acknowledge.

        Raises:
            OutageError: the database is down; the batch is kept.
        """
        batch, full = self._waiting, self.full
        incoming = [_incoming(message) for message in batch]
        applied = self._apply(incoming)
        self._waiting = []
        for device, pairs in applied.acks.items():
            _acknowledge(link, device, pairs)
        link.acknowledge(batch)
        self._note(len(batch), applied)
        if seconds := self._patience.note(full=full, now=time.monotonic()):
            self._ask_for_patience(link, incoming, seconds)

    def _apply(self, batch: list[Incoming]) -> Applied:
        """Apply messages; halve a batch that fails until the one at fault is alone."""
        try:
            with transaction(self._app) as scope:
                return reports.apply_batch(scope, batch)
        except OutageError:
            raise
        except Exception as error:
            if len(batch) == 1:
                # Unacknowledged to the device, which keeps the report until somebody can read it.
                log.exception("inbox.poison", topic=batch[0].topic[:120], error=str(error)[:500])
                return Applied(refused={POISON: 1})
        middle = len(batch) // 2
        return _joined(self._apply(batch[:middle]), self._apply(batch[middle:]))

    def _ask_for_patience(self, link: Link, incoming: list[Incoming], seconds: int) -> None:
        """Ask who has just come back for less: no signs of life, no repeats, for a while."""
        asked = patience.command(seconds, utc_now().timestamp())
        devices = patience.arrivals(one.topic for one in incoming)
        for device in devices:
            link.tell(topics.down(device, "cmd"), asked)
        if devices:
            log.warning("inbox.lags", asked=len(devices), seconds=seconds)

    def _note(self, received: int, applied: Applied) -> None:
        self.received += received
        self.counted += applied.counted
        self.refused.update(applied.refused)
        if applied.refused:
            log.warning("inbox.refused", messages=received, **_fields(applied.refused))


def _incoming(message: Publish) -> Incoming:
    try:
        topic = message.topic.decode()
    except UnicodeDecodeError:
        topic = ""  # outside the contract, as every topic that is not UTF-8
    return Incoming(topic, message.payload, message.retain)


def _acknowledge(link: Link, device: DeviceId, pairs: list[tuple[int, int]]) -> None:
    topic = topics.down(topics.DeviceId(device), "ack")
    for start in range(0, len(pairs), ACK_REPORTS):
        ack = Ack(reports=pairs[start : start + ACK_REPORTS])
        # QoS 0: a device that misses it repeats the report.
        link.tell(topic, messages.encode(ack))


def _joined(first: Applied, second: Applied) -> Applied:
    acks = {device: list(pairs) for device, pairs in first.acks.items()}
    for device, pairs in second.acks.items():
        acks.setdefault(device, []).extend(pairs)
    refused = dict(Counter(first.refused) + Counter(second.refused))
    return Applied(acks, refused, first.counted + second.counted)


def _fields(refused: dict[str, int]) -> dict[str, int]:
    return {code.replace(".", "_"): count for code, count in refused.items()}
