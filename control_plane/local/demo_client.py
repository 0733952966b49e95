"""The demo's view of the control plane: its public HTTP API, and nothing else."""

import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import httpx

Json = dict[str, Any]

# A rollout that waits for a person or has ended: the story goes on.
SETTLED = frozenset({"SUCCEEDED", "HALTED", "ABORTED", "REVERTED", "PAUSED", "AWAITING_APPROVAL"})
POLL_S = 0.5


class DemoError(Exception):
    """The story cannot go on; the message says what happened and where to look."""


class Client:
    """The API, with the few calls that the story needs."""

    def __init__(self, url: str, token: str) -> None:
        self._http = httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=30
        )

    def get(self, path: str, **query: str | int) -> Json:
        """Return one answer; `DemoError` says what the server said instead."""
        answer = self._http.get(path, params=query)
        if answer.is_error:
            raise DemoError(f"GET {path}: {answer.status_code}: {answer.text[:400]}")
        return cast("Json", answer.json())

    def post(self, path: str, body: Json) -> Json:
        """Post and return the answer; errors as in `get`."""
        answer = self._http.post(path, json=body)
        if answer.is_error:
            raise DemoError(f"POST {path}: {answer.status_code}: {answer.text[:400]}")
        return cast("Json", answer.json())

    def all(self, path: str, **query: str | int) -> Iterator[Json]:
        """Yield every item of a listing, page by page."""
        cursor = ""
        while True:
            page = self.get(path, limit=200, **query, **({"cursor": cursor} if cursor else {}))
            yield from page["items"]
            cursor = page.get("next") or ""
            if not cursor:
                return

    def wait_for_rollout(self, name: str, *, limit_s: float, shown: Callable[[Json], None]) -> Json:
        """Return the rollout once it settles; calls `shown` with every new view on the way."""
        deadline = time.monotonic() + limit_s
        while True:
            view = self.get(f"/api/v1/rollouts/{name}")
            shown(view)
            if view["state"] in SETTLED:
                return view
            if time.monotonic() > deadline:
                raise DemoError(f"rollout {name} is still {view['state']} after {limit_s:.0f} s")
            time.sleep(POLL_S)

    def wait_for_builds(
        self, model: str, version: str, *, limit_s: float, shown: Callable[[list[Json]], None]
    ) -> list[Json]:
        """Return the version's builds once each has ended."""
        deadline = time.monotonic() + limit_s
        while True:
            builds = [
                build
                for build in self.all("/api/v1/builds")
                if (build["model"], build["version"]) == (model, version)
            ]
            shown(builds)
            if builds and all(build["state"] in ("SUCCEEDED", "FAILED") for build in builds):
                return builds
            if time.monotonic() > deadline:
                raise DemoError(f"builds of {model} {version} have not ended in {limit_s:.0f} s")
            time.sleep(POLL_S)

    def close(self) -> None:
        """Give back connections."""
        self._http.close()
