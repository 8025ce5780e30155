"""What a worker does with a message in its hands: done when it is taken (at most once), or when it is handled (at least).

Rules of this room:

- A lease is prolonged for as long as its handler runs, so its length says only how soon a death is noticed.
- Whatever goes wrong on the way to the layer, the message comes back: nothing here drops one that was not acknowledged.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

from .errors import ConfigurationError, LayerClosed, Refused, TransportUnavailable, UsageError
from .leases import Lease

__all__ = ["AtLeastOnce", "AtMostOnce", "Terms"]

logger = logging.getLogger("trunkline.worker")

_LONGEST_PAUSE = 3600.0  # seconds between two tries
_PER_LEASE = 3  # times that a lease is prolonged before it would end


@dataclass(frozen=True)
class Terms:
    """How often, and how soon, a message is tried again.

    Args:
        lease: Seconds after which the message of a worker that died comes back.
        retries: Tries after the first.
        backoff: Seconds before the second try; doubled for each further one, at most an hour.
        dead_letter: The channel for what could not be handled; None: it is logged and dropped.
    """

    lease: float = 30.0
    retries: int = 3
    backoff: float = 1.0
    dead_letter: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("lease", "above 0"), ("backoff", "0 or more")):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
                raise ConfigurationError(f"{name} is a number of seconds, {least}, not {value!r}")
        if not self.lease:
            raise ConfigurationError("lease is a number of seconds, above 0, not 0")
        if isinstance(self.retries, bool) or not isinstance(self.retries, int) or self.retries < 0:
            raise ConfigurationError(f"retries is a whole number, 0 or more, not {self.retries!r}")

    def pause(self, tries: int) -> float:
        """Seconds between a try and the next."""
        return min(self.backoff * 2.0 ** min(tries - 1, 60), _LONGEST_PAUSE)


class AtMostOnce:
    """Messages that are gone once they are taken."""

    def __init__(self, layer: Any, channel: str) -> None:
        self._layer = layer
        self._channel = channel

    async def take(self) -> Any:
        return await self._layer.receive(self._channel)

    async def handled(self) -> None:
        """The message in hand is done."""

    async def failed(self, error: Exception) -> None:
        """The message in hand could not be handled."""

    async def let_go(self) -> None:
        """The message in hand will not be handled here."""


class AtLeastOnce(AtMostOnce):
    """Messages that come back until they were handled, so often."""

    def __init__(self, layer: Any, channel: str, terms: Terms) -> None:
        super().__init__(layer, channel)
        self._terms = terms
        self._lease: Lease | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._prolonging: asyncio.Task[None] | None = None

    async def take(self) -> Any:
        while True:
            lease = await self._layer.lease(self._channel, self._terms.lease)
            self._lease = lease
            self._prolong_later()
            if lease.tries <= self._terms.retries + 1:
                return lease.message
            await self._bury(lease, "whoever had it died, or lost its lease, every time")

    async def handled(self) -> None:
        if (lease := self._put_down()) is not None:
            await self._tell(lease.ack(), lease, "was handled, but may be handled again")

    async def failed(self, error: Exception) -> None:
        if (lease := self._lease) is None:
            return
        if lease.tries > self._terms.retries or isinstance(error, UsageError):  # which would come again
            await self._bury(lease, f"{type(error).__name__}: {error}")
            return
        self._put_down()
        pause = self._terms.pause(lease.tries)
        logger.warning("%s is tried again in %g s (try %d)", self._named(lease), pause, lease.tries)
        await self._tell(lease.retry(pause), lease, "is tried again when its lease ends")

    async def let_go(self) -> None:
        if (lease := self._put_down()) is not None:
            await self._tell(lease.retry(0), lease, "comes back when its lease ends")

    async def _bury(self, lease: Lease, why: str) -> None:
        terms = self._terms
        if terms.dead_letter is None:
            logger.error("%s is dropped after %d tries: %s", self._named(lease), lease.tries, why)
        else:
            letter = {
                "type": "dead.letter",
                "channel": self._channel,
                "message": lease.message,
                "tries": lease.tries,
                "error": why,
            }
            try:
                await self._layer.send(terms.dead_letter, letter)
            except (Refused, TransportUnavailable, UsageError) as error:
                self._put_down()
                pause = max(terms.pause(lease.tries), 1.0)
                text = "%s cannot be moved to %s (%s): it comes back in %g s"
                logger.error(text, self._named(lease), terms.dead_letter, error, pause)
                await self._tell(lease.retry(pause), lease, "comes back when its lease ends")
                return
            text = "%s was moved to %s after %d tries: %s"
            logger.error(text, self._named(lease), terms.dead_letter, lease.tries, why)
        self._put_down()
        await self._tell(lease.ack(), lease, "is done, but may come back")

    async def _tell(self, call: Any, lease: Lease, otherwise: str) -> None:
        try:
            if not await call:
                text = "the lease of %s ended before it was done: somebody else may handle it, too"
                logger.warning(text, self._named(lease))
        except (TransportUnavailable, LayerClosed) as error:
            logger.warning("%s %s: %s", self._named(lease), otherwise, error)

    def _named(self, lease: Lease) -> str:
        kind = lease.message.get("type") if isinstance(lease.message, MutableMapping) else None
        return f"{kind!r} on channel {self._channel!r}"

    # The lease of a handler at work

    def _prolong_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._terms.lease / _PER_LEASE, self._prolong)

    def _prolong(self) -> None:
        self._prolonging = asyncio.get_running_loop().create_task(self._extend())

    async def _extend(self) -> None:
        lease = self._lease
        if lease is not None:
            await self._tell(lease.extend(self._terms.lease), lease, "may be handled twice")
            if lease is self._lease:
                self._prolong_later()

    def _put_down(self) -> Lease | None:
        lease, self._lease = self._lease, None
        if self._timer is not None:
            self._timer.cancel()
        if self._prolonging is not None:
            self._prolonging.cancel()
            self._prolonging = None
        return lease
