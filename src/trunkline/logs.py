"""Log lines that may come in floods: at most one per key and interval, with a count of those held back.

Beside them the hooks of users, whose errors are logged.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable
from typing import Any

from .errors import ConfigurationError

__all__ = ["RateLimited", "hook", "logger"]

logger = logging.getLogger("trunkline")


class RateLimited:
    """Warns at most once per ``interval`` seconds for each key."""

    def __init__(self, interval: float = 10.0, logger: logging.Logger = logger) -> None:
        self._interval = interval
        self._logger = logger
        self._last: dict[str, tuple[float, int]] = {}

    def warning(
        self, key: str, text: str, *args: object, event: str, error: Exception | None = None, **fields: object
    ) -> None:
        """Log a warning, or count it if the key had one just now. With ``error`` it is an error, with its traceback.

        ``event`` and the other fields become attributes of the log record; docs/observe.md lists them.
        """
        now = time.monotonic()
        at, held = self._last.get(key, (-1e9, 0))
        if now - at < self._interval:
            self._last[key] = at, held + 1
            return
        if len(self._last) >= 1024:  # channel names come and go: keep the memory bounded
            self._last = {k: v for k, v in self._last.items() if now - v[0] < self._interval}
        self._last[key] = now, 0
        suffix = f" ({held} more like this since the last such line)" if held else ""
        level = logging.WARNING if error is None else logging.ERROR
        more = {"event": event, "held": held, **fields}
        self._logger.log(level, text + "%s", *args, suffix, exc_info=error, extra=more)


def hook(key: str, hook: Callable[..., Any] | None, log: logging.Logger) -> Callable[[str], None]:
    """A user's callable, with or without an argument, that can do no harm: what it raises is logged."""
    if hook is None:
        return lambda address: None
    if not callable(hook):
        raise ConfigurationError(f"{key} is a callable, not {hook!r}")
    try:
        inspect.signature(hook).bind("address")
        takes_address = True
    except (TypeError, ValueError):
        takes_address = False

    def call(address: str) -> None:
        try:
            hook(address) if takes_address else hook()
        except Exception:
            log.exception("%s raised", key)

    return call
