"""The shared clock: a server's time, kept going between two looks at it. For transports whose server has the time."""

from __future__ import annotations

import time

__all__ = ["Clock"]


class Clock:
    """One server's time, in seconds since the epoch."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()
        #: Seconds by which it may be wrong.
        self.error = 1.0
        self.set = False

    def now(self) -> float:
        return time.monotonic() + self._offset

    def now_ms(self) -> int:
        return int(self.now() * 1000)

    def at(self, moment: float) -> float:
        """The shared clock at this ``time.monotonic()``."""
        return moment + self._offset

    def adopt(self, other: Clock) -> float:
        """Follow another server's clock from now on; returns by how many seconds that jumps."""
        jump = other._offset - self._offset if self.set else 0.0
        self._offset, self.error, self.set = other._offset, other.error, other.set
        return jump

    def learn(self, told: float, asked: float, answered: float) -> float:
        """Take in what the server told, to the millisecond, asked and answered at these ``time.monotonic()`` times.

        Returns:
            By how many seconds the clock jumped.
        """
        offset = told - (asked + answered) / 2
        error = (answered - asked) / 2 + 0.001
        jump = offset - self._offset
        # A slow answer tells less than an earlier quick one, unless the server's clock was set.
        if not self.set or error <= self.error * 1.5 or abs(jump) > error + self.error + 0.01:
            self._offset, self.error = offset, error
            first, self.set = not self.set, True
            return 0.0 if first else jump
        return 0.0
