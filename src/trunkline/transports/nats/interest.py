"""Whether the servers of a cluster know what this node subscribed to.

A server tells the others of a subscription and does not say when they know. But what it tells and what it forwards to one
of them arrive in order, so a question that follows a subscription arrives when it is known there. One of the nodes at
each server answers for it; a server without a node of this prefix has nobody who could publish.

A node that comes asks all servers too: what they answer comes after the subscriptions that its own server has to know.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .link import Answer, Link

__all__ = ["Interest"]

#: Seconds that a node which comes waits for all servers to answer, some of which may have no node; how often it asks.
_MOMENT, _TIMES = 0.5, 10
#: Seconds that a server may owe an answer, and for how long it is not asked when it did not give one.
_PATIENCE, _LATER = 2.5, 10.0


class Interest:
    """What one node knows of the servers that others of its prefix are linked to."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._root = link.subjects.servers
        self._mine = link.subjects.server_answers
        #: By subscription.
        self.handlers = {b"s1": self.asked, b"s2": self.asked, b"s3": self.answered}
        #: Our own server; the others, and until when they are not asked.
        self.home = b""
        self._others: dict[bytes, float] = {}
        self._count = 0
        self._heard: set[bytes] = set()
        self._complete: asyncio.Future[None] = link.loop.create_future()
        #: What is asked for all who subscribed in this turn of the loop.
        self._asked: tuple[list[bytes], asyncio.Future[list[Answer | BaseException]]] | None = None

    def at(self, server: str, count: int) -> bytes:
        """Be at a server of a cluster of so many, as far as is known; returns how to listen there."""
        self.home, self._count = server.encode(), count
        root, home, mine = self._root, self.home, self._mine
        return b"SUB %b %b s1\r\nSUB %b.%b all s2\r\nSUB %b s3\r\n" % (root, home, root, home, mine)

    def asked(self, subject: bytes, reply: bytes, payload: bytes, header: bytes) -> None:
        """Answer for the server."""
        self.met(payload)
        self._link.say(reply, self.home)

    def answered(self, subject: bytes, reply: bytes, payload: bytes, header: bytes) -> None:
        """A server answers to our coming."""
        self.met(payload)
        self._heard.add(payload)
        if self._all_heard() and not self._complete.done():
            self._complete.set_result(None)

    def _all_heard(self) -> bool:
        return 1 < self._count <= len(self._heard) and self._others.keys() <= self._heard

    def met(self, server: bytes) -> None:
        """Somebody is at this server."""
        if server and server != self.home:
            self._others.setdefault(server, 0.0)

    async def arrive(self) -> None:
        """Make known where we are, and learn where others are; waits a moment for servers without nodes."""
        loop = self._link.loop
        self._others.pop(self.home, None)
        self._heard.clear()
        self._complete = loop.create_future()
        for _ in range(_TIMES):
            self._link.say(self._root, self.home, self._mine)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_MOMENT / _TIMES):
                    await asyncio.shield(self._complete)
                return

    async def spread(self) -> bool:
        """Wait until all servers with nodes know what was subscribed to before the call, confirmed by our own server.

        Returns:
            False when one of them does not answer: what is published there may be missed.
        """
        link = self._link
        if self._asked is None:
            now = link.loop.time()
            servers = [each for each, later in self._others.items() if each != self.home and later <= now]
            calls = [link.request_op(b"%b.%b" % (self._root, each), b"", _PATIENCE) for each in servers]
            self._asked = servers, asyncio.gather(*calls, return_exceptions=True)
            link.loop.call_soon(self._asked_all)
        servers, answers = self._asked
        known = len(servers) == len(self._others.keys() - {self.home})
        for server, answer in zip(servers, await asyncio.shield(answers), strict=True):
            if isinstance(answer, BaseException):
                self._others[server] = link.loop.time() + _LATER
                known = False
            elif answer[1]:
                self._others.pop(server, None)  # nobody is there any more
            elif server in self._others:
                self._others[server] = 0.0
        return known

    def _asked_all(self) -> None:
        self._asked = None
