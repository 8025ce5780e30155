"""A message in somebody's hands, which comes back unless it is acknowledged."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

__all__ = ["Lease"]


class Lease:
    """A message taken with ``layer.lease``. Until it is acknowledged, it comes back when the lease ends."""

    def __init__(
        self,
        message: dict[str, Any],
        tries: int,
        hold: Callable[[float], Awaitable[bool]],
        settle: Callable[[], Awaitable[bool]],
    ) -> None:
        self.message = message
        #: How often the message was taken so far, this time included.
        self.tries = tries
        self._hold = hold
        self._settle = settle

    async def ack(self) -> bool:
        """The message is done and will not come back.

        Returns:
            False when the lease had ended: somebody else may have got the message, too.

        Raises:
            TransportUnavailable: Nobody was told; the message comes back.
        """
        return await self._settle()

    async def extend(self, seconds: float) -> bool:
        """Let the lease end so many seconds from now; returns and raises as ``ack``."""
        return await self._hold(seconds)

    async def retry(self, delay: float = 0.0) -> bool:
        """Give it back, to be taken again in ``delay`` seconds; returns and raises as ``ack``."""
        return await self._hold(delay)
