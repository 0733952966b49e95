import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from control_plane.dashboard.live import Live

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run in a thread of its own: a browser test before this one leaves a loop running in ours."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(asyncio.run, work).result()


def events(live: Live, pages: list[str], *, most: int) -> tuple[list[bytes], int]:
    """Read a stream of pages, the last of which stays; returns events and renderings."""
    rendered = 0

    def render() -> str:
        nonlocal rendered
        rendered += 1
        return pages[min(rendered, len(pages)) - 1]

    async def read() -> list[bytes]:
        found = []
        async for event in live.events("key", render):
            found.append(event)
            if len(found) == most:
                break
        return found

    return run(read()), rendered


def test_only_changes_are_sent() -> None:
    sent, _ = events(Live(period_s=0), ["<p>1</p>", "<p>1</p>", "<p>2</p>"], most=3)
    assert sent == [b": open\n\n", b"data: <p>1</p>\n\n", b"data: <p>2</p>\n\n"]


def test_a_stream_ends_in_time_so_that_the_tab_says_again_who_it_is() -> None:
    sent, _ = events(Live(period_s=0.01, longest_s=0.05), ["<p>1</p>"], most=1000)
    assert sent == [b": open\n\n", b"data: <p>1</p>\n\n"]


def test_tabs_that_watch_the_same_share_one_rendering() -> None:
    rendered = 0

    def render() -> str:
        nonlocal rendered
        rendered += 1
        return "<p>1</p>"

    async def ten() -> list[list[bytes]]:
        live = Live(period_s=60, longest_s=60)
        tabs = [live.events("key", render) for _ in range(10)]
        return [[await anext(tab), await anext(tab)] for tab in tabs]

    assert len(run(ten())) == 10
    assert rendered == 1


def test_a_line_break_in_a_page_cannot_end_an_event() -> None:
    sent, _ = events(Live(period_s=0), ["<p>\n\n\r\nevent: evil\n</p>"], most=2)
    assert sent[1] == b"data: <p>\ndata: event: evil\ndata: </p>\n\n"
