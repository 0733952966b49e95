"""Kombu's Redis transport, without its way to fall silent for ever.

When Redis is away for the moment in which a message is acknowledged, kombu logs the failure and
goes on counting the message as taken. With a prefetch of one it then takes no other message, and
does not look at its connection either: the consumer waits until the process ends. Here the message
no longer counts; Redis hands it out again after the visibility timeout, which costs nothing, since
the database decides what is to be done.
"""

from kombu.transport import TRANSPORT_ALIASES, redis, virtual


class QoS(redis.QoS):  # type: ignore[misc]  # kombu publishes no types
    """Counts a message as done even where Redis could not be told."""

    def ack(self, delivery_tag: str) -> None:
        try:
            super().ack(delivery_tag)
        finally:
            virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002 - kombu's signature
        try:
            super().reject(delivery_tag, requeue)
        finally:
            virtual.QoS.ack(self, delivery_tag)


class Channel(redis.Channel):  # type: ignore[misc]  # kombu publishes no types
    """A channel with this counting."""

    QoS = QoS


class Transport(redis.Transport):  # type: ignore[misc]  # kombu publishes no types
    """The transport of ``redis://`` in our processes."""

    Channel = Channel


def install() -> None:
    """Make ``redis://`` and ``rediss://`` mean this transport."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:{Transport.__qualname__}"
