"""The stand-in broker: amqtt on loopback, held to mutual TLS and the fleet's ACL; for trying out.

amqtt loses acknowledged messages in a crash and forgets retained ones; Flotilla's own
acknowledgements and its level-triggered desired state bear that. What its plugins cannot prevent
(clients without a certificate, another's client id, retained messages past the ACL, wills into
another's topic) is refused here, in the methods where each of them happens.
"""

import argparse
import asyncio
import signal
import ssl
from typing import Any

from amqtt.broker import Broker
from amqtt.contexts import Action
from amqtt.errors import AMQTTError

from agent.protocol import topics
from control_plane.local.mosquitto import is_gateway
from control_plane.observability import configure_logging, logger

log = logger(__name__)


def allowed(name: str, action: str, topic: str) -> bool:
    """Return whether the client `name` may publish to, subscribe to or receive from `topic`."""
    if is_gateway(name):
        return topic.startswith(f"{topics.PREFIX}/")
    direction = "up" if action == Action.PUBLISH else "down"
    return topic.startswith(f"{topics.PREFIX}/{name}/{direction}/")


class FleetBroker(Broker):  # type: ignore[misc]  # amqtt publishes no types
    """amqtt's broker with the fleet's rules."""

    @staticmethod
    def _create_ssl_context(listener: Any) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_verify_locations(cafile=listener["cafile"])
        context.load_cert_chain(listener["certfile"], listener["keyfile"])
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    async def _initialize_client_session(
        self, reader: Any, writer: Any, address: str, port: int
    ) -> Any:
        name = certificate_name(writer.get_ssl_info())
        handler, session = await super()._initialize_client_session(reader, writer, address, port)
        will = session.will_topic if session.will_flag else None
        if session.client_id != name:
            await writer.close()
            raise AMQTTError(f"client id {session.client_id!r} is not the certificate's {name!r}")
        if will and not allowed(name, Action.PUBLISH, will):
            await writer.close()
            raise AMQTTError(f"{name} may not leave a will on {will!r}")
        session.username = name
        return handler, session

    async def _authenticate(self, session: Any, _listener: Any) -> bool:
        return bool(session.username)  # from the certificate, above

    async def _topic_filtering(self, session: Any, topic: str, action: Any) -> bool:
        return allowed(session.client_id, action, topic)

    async def _publish_retained_messages_for_subscription(
        self, subscription: tuple[str, int], session: Any
    ) -> None:
        # On connect amqtt replays every client's filters to this one.
        holders = self._subscriptions.get(subscription[0], [])
        if any(holder.client_id == session.client_id for holder, _ in holders):
            await super()._publish_retained_messages_for_subscription(subscription, session)


def certificate_name(connection: ssl.SSLObject | None) -> str:
    """Return the common name of the peer's certificate; empty if it has none."""
    certificate = connection.getpeercert() if connection else None
    subject: Any = (certificate or {}).get("subject", ())
    return next((str(value) for part in subject for key, value in part if key == "commonName"), "")


async def serve(host: str, port: int, ca: str, certificate: str, key: str) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    listener = {
        "type": "tcp",
        "bind": f"{host}:{port}",
        "ssl": True,
        "cafile": ca,
        "certfile": certificate,
        "keyfile": key,
    }
    broker = FleetBroker({"listeners": {"default": listener}, "plugins": {}})
    await broker.start()
    log.warning("broker.stand_in", hint="install mosquitto for anything but trying out", port=port)
    await stop.wait()
    await broker.shutdown()


def main() -> None:
    """Run as ``python -m control_plane.local.amqtt_broker``."""
    parser = argparse.ArgumentParser()
    for option in ("--host", "--port", "--ca", "--certificate", "--key"):
        parser.add_argument(option, required=True)
    given = parser.parse_args()
    configure_logging("WARNING", process="broker")
    asyncio.run(serve(given.host, int(given.port), given.ca, given.certificate, given.key))


if __name__ == "__main__":
    main()
