"""The live stream: renders each page's fragment at most once a second, however many tabs watch."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

PERIOD_S = 1.0
KEEP_ALIVE_S = 15.0
# Then the tab connects again, and so says again who it is: a session may have ended meanwhile.
LONGEST_S = 600.0


@dataclass
class _Shared:
    """One fragment that several tabs may watch."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    html: str = ""
    rendered_at: float = float("-inf")
    watchers: int = 0


class Live:
    """Fans rendered fragments out to the open tabs of this process.

    The database is asked, not told: any number of API processes show the same facts, and a
    restarted one needs nothing handed over.
    """

    def __init__(self, *, period_s: float = PERIOD_S, longest_s: float = LONGEST_S) -> None:
        self._period, self._longest = period_s, longest_s
        self._shared: dict[str, _Shared] = {}

    async def events(self, key: str, render: Callable[[], str]) -> AsyncIterator[bytes]:
        """Yield server-sent events (WHATWG HTML 9.2): the fragment, whenever it has changed.

        Args:
            key: what is watched; tabs with the same key share the rendering.
            render: makes the fragment; runs in a worker thread.
        """
        shared = self._shared.setdefault(key, _Shared())
        shared.watchers += 1
        shown, spoken_at = "", time.monotonic()
        ends_at = spoken_at + self._longest
        try:
            yield b": open\n\n"
            while time.monotonic() < ends_at:
                html = await self._fragment(shared, render)
                if html != shown:
                    shown, spoken_at = html, time.monotonic()
                    yield _event(html)
                elif time.monotonic() - spoken_at > KEEP_ALIVE_S:
                    spoken_at = time.monotonic()
                    yield b": still here\n\n"
                await asyncio.sleep(self._period)
        finally:
            shared.watchers -= 1
            if shared.watchers == 0:
                self._shared.pop(key, None)

    async def _fragment(self, shared: _Shared, render: Callable[[], str]) -> str:
        async with shared.lock:
            if time.monotonic() - shared.rendered_at >= self._period:
                shared.html = await asyncio.to_thread(render)
                shared.rendered_at = time.monotonic()
            return shared.html


def _event(html: str) -> bytes:
    lines = "\n".join(f"data: {line}" for line in html.splitlines() if line.strip())
    return f"{lines}\n\n".encode()
