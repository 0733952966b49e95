"""Planting mistakes: functions of the product put in place of others, for a while."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock


@contextmanager
def instead(*changes: tuple[Any, str, Any]) -> Iterator[None]:
    """Put functions in place of others: mock.patch, since the point is to break our own code."""
    with ExitStack() as stack:
        for owner, name, new in changes:
            stack.enter_context(mock.patch.object(owner, name, new))
        yield
