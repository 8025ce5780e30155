"""Readers of shared queues: one slot for each pull that runs.

Rules of this room: a pull asks once, and if the queue is empty waits until the server, or the poll behind it, wakes
its slot. What a slot was given stays in its hand on the server until its next request, so a lost answer loses nothing
and doubles nothing; a cancelled pull puts back what it may have been given.
"""

from __future__ import annotations

import asyncio
from typing import Any

from .ops import ScriptOp
from .outbox import Outbox
from .scripts import LEAVE, TAKE
from .topology import Names

__all__ = ["Readers"]

#: Milliseconds that a hand is remembered; longer than any command can be late.
_MEMORY_MS = 600_000


class _Slot:
    __slots__ = ("name", "waiting", "woken")

    def __init__(self, name: str) -> None:
        self.name = name
        self.waiting: asyncio.Future[None] | None = None
        self.woken = False


class Readers:
    """The pulls of this node on one server."""

    def __init__(self, outbox: Outbox, names: Names, channel: bytes, sid: str) -> None:
        self._outbox = outbox
        self._names = names
        self._channel = channel
        self._sid = sid
        self._requests = 0
        self._free: list[_Slot] = []
        self._busy: dict[bytes, _Slot] = {}
        self._made = 0

    async def pull(self, queue: str) -> bytes:
        """Take the oldest frame of the queue; wait for one."""
        slot = self._free.pop() if self._free else self._make()
        self._busy[slot.name.encode()] = slot
        keys = self._names.queue_keys(queue)
        member = self._channel + b" " + slot.name.encode()
        args: list[Any] = []
        take: ScriptOp | None = None
        asked = False
        try:
            while True:
                self._requests += 1
                args = [slot.name, self._requests, member, _MEMORY_MS]
                slot.woken = False
                take = ScriptOp(self._outbox, TAKE, keys, args)
                self._outbox.submit(take)
                frame: bytes | None = await take.future
                asked = True
                if frame is not None:
                    return frame[1:]
                if not slot.woken:
                    slot.waiting = asyncio.get_running_loop().create_future()
                    await slot.waiting
        except asyncio.CancelledError:
            # Behind the request in the same line: whatever became of that, this comes after it.
            if asked or (take is not None and take.seq):
                self._outbox.submit(ScriptOp(self._outbox, LEAVE, keys, args))
            raise
        finally:
            slot.waiting = None
            del self._busy[slot.name.encode()]
            self._free.append(slot)

    def _make(self) -> _Slot:
        self._made += 1
        return _Slot(f"{self._sid}.{self._made}")

    def wake(self, name: bytes) -> None:
        """The server says that there is something for a slot."""
        slot = self._busy.get(name)
        if slot is not None:
            slot.woken = True
            if slot.waiting is not None and not slot.waiting.done():
                slot.waiting.set_result(None)

    def wake_all(self) -> None:
        """Let every waiting pull ask again."""
        for name in list(self._busy):
            self.wake(name)

    def fail(self, error: Exception) -> None:
        """Nothing will come any more."""
        for slot in self._busy.values():
            if slot.waiting is not None and not slot.waiting.done():
                slot.waiting.set_exception(error)
