"""The gateway's TLS socket: gathers small writes, each of them a record, into large ones."""

import contextlib
import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

PIECE = 65_536


class GatheringSocket(ssl.SSLSocket):
    """Keeps what is written until `flush`; for a client that is driven by one thread.

    A message costs a third less so. Closes itself when the handshake fails, which paho leaves to
    the collector.
    """

    _kept: bytearray | None = None

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - the base's signature
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise
        self._kept = bytearray()

    def send(self, data: "ReadableBuffer", flags: int = 0) -> int:
        """Keep data, all of it; large amounts begin to leave at once."""
        if self._kept is None:
            return super().send(data, flags)
        piece = bytes(data)
        self._kept += piece
        if len(self._kept) >= PIECE:
            self.flush()
        return len(piece)

    def flush(self) -> bool:
        """Write what is kept, as much as goes without waiting; return whether nothing is left.

        Raises:
            OSError: the connection is lost.
        """
        while self._kept:
            try:
                # After a refusal TLS wants the same bytes again; what came since is behind them.
                sent = super().send(bytes(self._kept[:PIECE]))
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return False
            del self._kept[:sent]
        return True

    def stop_gathering(self) -> None:
        """Write what is kept if it goes, and from now on at once: what comes is a goodbye."""
        with contextlib.suppress(OSError):
            self.flush()
        self._kept = None
