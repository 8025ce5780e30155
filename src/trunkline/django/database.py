"""Fresh database connections for code that runs for days: what Django does around a request, around anything else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from asgiref.sync import sync_to_async
from django.db import close_old_connections

__all__ = ["database_sync_to_async", "fresh_connections"]


@contextlib.contextmanager
def fresh_connections() -> Iterator[None]:
    """Close database connections that broke or outlived ``CONN_MAX_AGE``, before and after."""
    close_old_connections()
    try:
        yield
    finally:
        close_old_connections()


def database_sync_to_async(function: Callable[..., Any]) -> Any:
    """``sync_to_async`` for code that uses the database, as a call or a decorator, in async consumers."""
    return sync_to_async(fresh_connections()(function))
