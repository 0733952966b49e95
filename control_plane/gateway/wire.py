"""The gateway's TLS socket: few reads and few writes, however many packets there are.

The MQTT client reads each packet in three pieces and writes each by itself. Every piece would be a
call into OpenSSL, every write a record of its own, for us and for the broker that reads it.
"""

import socket
import ssl
from contextlib import suppress

RECORD = 16_384
"""Bytes that one TLS record may hold."""


class WireSocket(ssl.SSLSocket):
    """Reads whole records, and sends on `flush` what was written until then.

    What is written and not yet flushed is lost with the connection, as what the kernel still holds:
    MQTT's own acknowledgements say what arrived.
    """

    # Set here: the base makes its instances without calling __init__.
    _got = b""
    _at = 0
    _written = bytearray()
    _sending = b""

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - the base's signature
        self._written = bytearray()
        self.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # we gather ourselves
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()  # paho leaves that to the collector
            raise

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:  # noqa: ARG002 - the base's signature
        if self._at >= len(self._got):
            self._got, self._at = self.read(RECORD), 0
        found = self._got[self._at : self._at + buflen]
        self._at += len(found)
        return found

    def pending(self) -> int:
        return len(self._got) - self._at + super().pending()

    def send(self, data: bytes | bytearray, flags: int = 0) -> int:  # type: ignore[override]  # noqa: ARG002 - what paho sends
        self._written += data
        return len(data)

    @property
    def unsent(self) -> bool:
        return bool(self._sending or self._written)

    def flush(self) -> bool:
        """Send what was written; False while the peer takes no more of it."""
        while self.unsent:
            if not self._sending:
                # Kept as it is until it has gone: OpenSSL wants to be asked the same thing again.
                self._sending, self._written = bytes(self._written), bytearray()
            try:
                sent = super().send(self._sending)
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return False
            self._sending = self._sending[sent:]
        return True

    def close(self) -> None:
        with suppress(OSError):
            self.flush()  # the goodbye
        super().close()
