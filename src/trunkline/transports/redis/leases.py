"""Leases of this node on one server: frames that are put off until they are settled.

Rules of this room: a lease's token is made here, so a request that is repeated after a lost answer gets the same frame.
One that waits is on the queue's list of idle readers under its token, and asks again when it is woken, when the next
frame is due, and with every poll. A cancelled one puts back what it may have been given.
"""

from __future__ import annotations

import asyncio
import itertools
import os

from ...errors import ChannelFull
from ...transport import Leased
from .ops import ScriptOp
from .outbox import Outbox
from .scripts import LATER, LEASE, SETTLE, UNLEASE
from .topology import Names

__all__ = ["Leases"]

#: Milliseconds that an idle reader stays on its list without asking again.
_MEMORY_MS = 600_000
#: The first byte of a frame that was never leased.
_FRESH = ord("+")


class _Waiting:
    """One that waits for a frame."""

    def __init__(self, keys: tuple[bytes, ...], member: bytes) -> None:
        self.keys = keys
        self.member = member
        self.wake = asyncio.Event()


class Leases:
    """What this node leases, and puts off, on one server."""

    def __init__(self, outbox: Outbox, names: Names, channel: bytes, sid: str) -> None:
        self._outbox = outbox
        self._names = names
        self._channel = channel
        self._sid = sid
        self._tokens = itertools.count(1)
        self._waiting: dict[bytes, _Waiting] = {}
        self._failed: Exception | None = None

    def _keys(self, queue: str) -> tuple[bytes, ...]:
        return (*self._names.queue_keys(queue)[:3], *self._names.put_off_keys(queue))

    async def lease(self, queue: str, seconds: float, ttl: float) -> Leased:
        """Take the oldest frame of the queue for a while; wait for one."""
        token = f"{self._sid}.{next(self._tokens)}"
        slot = token.encode()
        mine = _Waiting(self._keys(queue), self._channel + b" " + slot)
        self._waiting[slot] = mine
        args: list[bytes | str | int] = [token, mine.member, _MEMORY_MS, _ms(seconds), _ms(ttl)]
        timer: asyncio.TimerHandle | None = None
        try:
            while True:
                mine.wake.clear()
                op = ScriptOp(self._outbox, LEASE, mine.keys, args, patient=True)
                self._outbox.submit(op)
                answer: bytes | int = await op.future
                if isinstance(answer, bytes):
                    return Leased(token, answer[1:], answer[0] - _FRESH)
                if timer is not None:
                    timer.cancel()
                timer = self._outbox.loop.call_later(answer / 1000, mine.wake.set) if answer else None
                await mine.wake.wait()
                if self._failed is not None:
                    raise self._failed
        except asyncio.CancelledError:
            self._give_up(slot, mine)
            raise
        finally:
            if timer is not None:
                timer.cancel()
            del self._waiting[slot]

    def _give_up(self, slot: bytes, waiting: _Waiting) -> None:
        if self._failed is None:
            args: list[bytes | str | int] = [slot, waiting.member]
            self._outbox.submit(ScriptOp(self._outbox, UNLEASE, waiting.keys, args, patient=True))

    async def settle(self, queue: str, token: str, seconds: float | None, ttl: float) -> bool:
        """End a lease, at another time or, without one, for good; False when it had ended."""
        ms = -1 if seconds is None else int(seconds * 1000)
        op = ScriptOp(self._outbox, SETTLE, self._keys(queue)[2:], [token, ms], ttl=ttl)
        self._outbox.submit(op)
        return bool(await op.future)

    async def push_later(self, queue: str, frame: bytes, capacity: int, ttl: float, delay: float) -> None:
        """Put a new frame off."""
        keys = (*self._keys(queue), *self._names.push_keys(queue, self._sid)[3:])
        token = os.urandom(12).hex()
        floor = self._outbox.sender.floor
        args: list[bytes | str | int] = [floor, token, capacity, _ms(delay), _ms(ttl), _ms(ttl) + 60_000]
        op = ScriptOp(self._outbox, LATER, keys, [*args, b"+" + frame], ttl=ttl, numbered=True)
        self._outbox.submit(op)
        if not await op.future:
            raise ChannelFull(f"queue {queue!r} holds {capacity} messages that are put off, its capacity")

    def wake(self, slot: bytes) -> None:
        """The server says that there is something for a slot."""
        if (waiting := self._waiting.get(slot)) is not None:
            waiting.wake.set()

    def wake_all(self) -> None:
        """Let everyone who waits ask again."""
        for waiting in self._waiting.values():
            waiting.wake.set()

    def leave(self) -> None:
        """Put back what those who wait may have been given."""
        for slot, waiting in self._waiting.items():
            self._give_up(slot, waiting)

    def fail(self, error: Exception) -> None:
        """Nothing will come any more."""
        self._failed = error
        self.wake_all()


def _ms(seconds: float) -> int:
    return max(int(seconds * 1000), 1)
