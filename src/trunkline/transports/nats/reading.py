"""Streams, read entry by entry: one at a time, page by page, over a consumer that ends with the reading."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from .wire import unavailable

if TYPE_CHECKING:
    from .link import Link

__all__ = ["Entry", "Reading", "status"]

_ENTRIES = 500

#: What is done with an entry of a stream: its subject, its payload, when it was stored in ms, its number.
Entry = Callable[[bytes, bytes, int, int], None]


class Reading:
    """What one node reads from streams."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._count = 0
        self._one = asyncio.Lock()
        self._entry: Entry | None = None
        self._page: asyncio.Future[int] | None = None
        self._due = self._left = 0

    async def read(
        self,
        stream: str,
        filters: list[str],
        entry: Entry,
        since: datetime | None = None,
        *,
        now: bool = False,
    ) -> None:
        """Read what a stream holds, from a time on.

        Raises:
            TransportUnavailable: It cannot be read at the moment.
        """
        async with self._one:
            self._entry = entry
            await self._read(stream, filters, since, now)

    async def _read(self, stream: str, filters: list[str], since: datetime | None, now: bool) -> None:
        link = self._link
        self._count += 1
        name = f"{link.subjects.answers.rpartition(b'.')[2].decode()}-{self._count}"
        start = {"deliver_policy": "all"}
        if since is not None:
            text = since.isoformat(timespec="milliseconds").replace("+00:00", "Z")
            start = {"deliver_policy": "by_start_time", "opt_start_time": text}
        config = {
            "name": name, "ack_policy": "none", "replay_policy": "instant", "mem_storage": True, "num_replicas": 1,
            "inactive_threshold": 5_000_000_000, "filter_subjects": filters, **start,
        }  # fmt: skip
        made = await link.api(
            f"CONSUMER.CREATE.{stream}.{name}", {"stream_name": stream, "config": config}, now=now
        )
        if error := made.get("error"):
            raise unavailable(link.access, f"JetStream: {error['description']}")
        left = made.get("num_pending", 0)
        while left > 0:
            self._page = link.loop.create_future()
            self._due, self._left = min(left, _ENTRIES), 0
            # A page is small, or the server would take us for a slow consumer and hang up.
            ask = b'{"batch":%d,"max_bytes":%d,"no_wait":true}' % (self._due, link.max_payload + (64 << 10))
            link.say(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}".encode(), ask, link.subjects.log)
            async with asyncio.timeout(link.deadline):
                left = await self._page
        link.say(f"$JS.API.CONSUMER.DELETE.{stream}.{name}".encode(), b"")

    def heard(self, subject: bytes, reply: bytes, payload: bytes, header: bytes) -> None:
        """One entry of a stream that is being read, or that there are no more."""
        page = self._page
        if page is None or page.done() or self._entry is None:
            return
        if not reply.startswith(b"$JS.ACK."):
            # 409: the page has as many bytes as it may; what is left comes with the next.
            page.set_result(self._left if status(header) == 409 else 0)
            return
        words = reply.split(b".")
        number, stamp, left = (
            (words[5], words[7], words[8]) if len(words) == 9 else (words[7], words[9], words[10])
        )
        self._entry(subject, payload, int(stamp) // 1_000_000, int(number))
        self._due -= 1
        self._left = int(left)
        if self._due == 0 or left == b"0":
            page.set_result(self._left)


def status(header: bytes) -> int:
    """The number in a status line; 0 where the header is no status."""
    word = header[8:12].strip()
    return int(word) if word.isdigit() else 0
