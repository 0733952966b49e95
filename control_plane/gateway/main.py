"""The gateway process: one thread, one connection; reports in, orders out, until told to stop."""

import ssl
import threading

from agent.protocol import topics
from control_plane.bootstrap import Application, utc_now
from control_plane.gateway.inbox import Inbox
from control_plane.gateway.link import BrokerAddress, Link, LinkError
from control_plane.gateway.outage import OutageError
from control_plane.gateway.relay import POLL_S, Relay
from control_plane.gateway.tls import GatheringSocket
from control_plane.observability import logger

QUIET_S = 0.005
"""Nothing new for so long: apply what waits. Under load batches grow by themselves."""
FIRST_RETRY_S = 0.5
LAST_RETRY_S = 15.0

log = logger(__name__)


def run_gateway(app: Application, stop: threading.Event) -> None:
    """Carry reports to the database and orders to the broker until `stop` is set."""
    _Gateway(app, stop).run()


def broker_address(app: Application) -> BrokerAddress:
    """Return where and as whom the gateway connects."""
    settings = app.settings
    return BrokerAddress(
        host=settings.mqtt_host,
        port=settings.mqtt_port,
        client_id=settings.gateway_name,
        username=settings.mqtt_username,
        password=settings.mqtt_password,
        tls=_tls(app) if settings.mqtt_tls else None,
    )


def _tls(app: Application) -> ssl.SSLContext:
    files = app.keyring.issue_service(app.settings.gateway_name, [], utc_now())
    context = ssl.create_default_context(cafile=str(app.keyring.ca_path))
    context.sslsocket_class = GatheringSocket
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(files.certificate, files.key)
    return context


class _BackOff:
    """How long to wait after one more failure."""

    def __init__(self) -> None:
        self._next = FIRST_RETRY_S

    def reset(self) -> None:
        self._next = FIRST_RETRY_S

    def delay(self) -> float:
        now, self._next = self._next, min(self._next * 2, LAST_RETRY_S)
        return now


class _Gateway:
    """The loop and its parts."""

    def __init__(self, app: Application, stop: threading.Event) -> None:
        self._app = app
        self._stop = stop
        self._inbox = Inbox(app)
        self._relay = Relay(app, app.settings.gateway_name)
        self._link = Link(
            broker_address(app),
            topics.all_up(app.settings.share_group),
            on_message=self._inbox.take,
            on_published=self._relay.confirmed,
        )
        self._broker_retry = _BackOff()
        self._database_retry = _BackOff()

    def run(self) -> None:
        try:
            while not self._stop.is_set():
                if self._connect():
                    self._serve()
        finally:
            self._link.close()
            log.info("gateway.stopped", received=self._inbox.received, counted=self._inbox.counted)

    def _connect(self) -> bool:
        address = self._link.address
        try:
            self._link.open()
        except LinkError as error:
            # What came before it failed has message ids that the next connection gives to others.
            self._inbox.forget()
            delay = self._broker_retry.delay()
            log.warning(
                "gateway.broker_unreachable",
                host=address.host,
                port=address.port,
                error=str(error),
                retry_s=delay,
            )
            self._stop.wait(delay)
            return False
        self._broker_retry.reset()
        log.info("gateway.connected", host=address.host, port=address.port)
        return True

    def _serve(self) -> None:
        """Work on one connection until it is lost or we are told to stop."""
        released = False
        while not self._stop.is_set():
            try:
                if not released:
                    self._relay.release()
                    released = True
                if not self._turn():
                    break
                self._database_retry.reset()
            except OutageError as error:
                if not self._wait_out(error):
                    break
        if self._stop.is_set():
            self._finish()
        else:
            log.warning("gateway.connection_lost", dropped=len(self._inbox))
        self._inbox.forget()

    def _turn(self) -> bool:
        """Read a little, apply what is due, publish a little; False when the link is lost."""
        before = len(self._inbox)
        if not self._link.pump(QUIET_S if before else POLL_S):
            return False
        quiet = len(self._inbox) == before
        if self._inbox.due or (quiet and before):
            self._inbox.flush(self._link)
        self._relay.step(self._link)
        return True

    def _wait_out(self, error: OutageError) -> bool:
        """Keep the connection, but read nothing, until it is time for another try."""
        delay = self._database_retry.delay()
        log.warning("gateway.database_away", error=str(error)[:500], retry_s=delay)
        waited = 0.0
        while waited < delay and not self._stop.wait(min(1.0, delay - waited)):
            waited += 1.0
            if not self._link.pump_writes():
                return False
        return True

    def _finish(self) -> None:
        """Apply what was read already; what fails now stays with the broker and the devices."""
        try:
            if len(self._inbox):
                self._inbox.flush(self._link)
            self._relay.release()
        except OutageError as error:
            log.warning("gateway.database_away", error=str(error)[:500])
