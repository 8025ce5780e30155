"""Log lines that may come in floods: at most one per key and interval, with a count of those held back."""

from __future__ import annotations

import logging
import time

__all__ = ["RateLimited", "logger"]

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
