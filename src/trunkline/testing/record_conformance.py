# ruff: noqa: S101
"""What a transport promises of records, as tests."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable

from ..transport import Record
from .kit import Kit, NotOffered, Peer, promise, together

__all__ = ["RecordConformance"]

TTL = 30.0
#: A lease that a test waits to end; no test depends on one that is renewed in time by a busy machine.
SHORT = 0.4


class RecordConformance(Kit):
    """The part of ``TransportConformance`` for transports with "records" among their features."""

    @abstractmethod
    async def peers(self, count: int) -> list[Peer]:
        """So many open nodes."""

    async def keepers(self, count: int) -> list[Peer]:
        """So many nodes of a transport that keeps records."""
        peers = await self.peers(count)
        transport = peers[0].transport
        if "records" not in transport.features:
            raise NotOffered(f"{type(transport).__name__} keeps no records")
        return peers

    async def reaped(self, *peers: Peer, topic: str, count: int) -> list[tuple[Record, int]]:
        """What all of these reap together until it is so many records, and a little longer."""
        found: list[tuple[Record, int]] = []
        deadline = time.monotonic() + self.patience
        while len(found) < count and time.monotonic() < deadline:
            for some in await together(*[peer.transport.reap_records(topic) for peer in peers for _ in "ab"]):
                found += some
            await asyncio.sleep(0.02)
        for some in await together(*[peer.transport.reap_records(topic) for peer in peers]):
            found += some
        return found

    async def until(self, ask: Callable[[], Awaitable[bool]], what: str) -> None:
        """Wait until an answer is yes."""
        deadline = time.monotonic() + self.patience
        while not await ask():
            assert time.monotonic() < deadline, what
            await asyncio.sleep(0.02)

    @promise
    async def test_records_are_kept(self) -> None:
        """A record is seen by every node until it is dropped; keeping its key again replaces its value."""
        a, b = await self.keepers(2)
        topic, other = self.fresh("topic"), self.fresh("topic")
        value = bytes(range(256)) + b"\r\n"
        assert await a.transport.keep_record(topic, "1", "ann", b"old", TTL) == 1
        assert await a.transport.keep_record(topic, "1", "ann", value, TTL) == 0
        assert await b.transport.keep_record(topic, "1", "ann", b"", TTL) == 2
        assert await b.transport.keep_record(topic, "2", "", value, TTL) == 1
        assert await b.transport.keep_record(topic, "3", "", b"3", TTL) == 2
        assert await b.transport.keep_record(other, "1", "ann", b"other", TTL) == 1
        kept = {
            Record(a.node, "1", "ann", value),
            Record(b.node, "1", "ann", b""),
            Record(b.node, "2", "", value),
            Record(b.node, "3", "", b"3"),
        }
        for peer in (a, b):
            found = await peer.transport.records(topic)
            assert len(found) == 4
            assert set(found) == kept
            assert await peer.transport.count_records(topic) == (4, 1)
            assert await peer.transport.reap_records(topic) == []
        assert await a.transport.drop_record(topic, "2") is None  # the other node's
        assert await b.transport.drop_record(topic, "2") == 1
        assert await b.transport.drop_record(topic, "2") is None
        assert await a.transport.drop_record(topic, "1") == 1
        assert await a.transport.count_records(topic) == (2, 1)
        assert await b.transport.drop_record(topic, "1") == 0
        assert await b.transport.drop_record(topic, "3") == 0
        assert await a.transport.records(topic) == await a.transport.records(self.fresh("never")) == []
        assert await a.transport.count_records(topic) == (0, 0)
        assert await a.transport.records(other) == [Record(b.node, "1", "ann", b"other")]

    @promise
    async def test_one_first_and_one_last_record(self) -> None:
        """Of concurrent keeps and drops for one tag, exactly one is the first and exactly one the last."""
        peers = await self.keepers(4)
        topic = self.fresh("topic")
        for _ in range(5):
            keys = [(peer, str(number)) for number in range(10) for peer in peers]
            counts = await together(
                *[p.transport.keep_record(topic, key, "ann", b"x", TTL) for p, key in keys]
            )
            assert sorted(counts) == list(range(1, 41))
            left = await together(*[peer.transport.drop_record(topic, key) for peer, key in keys])
            assert sorted(number for number in left if number is not None) == list(range(40))
        assert await peers[0].transport.count_records(topic) == (0, 0)

    @promise
    async def test_calls_take_effect_as_started(self) -> None:
        """A keep and a drop of one key, started one after the other without waiting, leave nothing behind."""
        for peer in await self.keepers(1):
            topic = self.fresh("topic")
            calls: list[Awaitable[int | None]] = []
            for number in range(50):
                calls.append(peer.transport.keep_record(topic, str(number), "ann", b"x", TTL))
                calls.append(peer.transport.drop_record(topic, str(number)))
            assert await together(*calls) == [1, 0] * 50
            assert await peer.transport.records(topic) == []

    @promise
    async def test_a_lease_ends(self) -> None:
        """What a node does not renew counts as gone after its ttl, and is reaped once, by one of all who try."""
        silent, a, b = await self.keepers(3)
        topic = self.fresh("topic")
        for number in range(20):
            await silent.transport.keep_record(topic, str(number), f"user{number % 4}", b"x", SHORT)
        await silent.transport.keep_record(topic, "none", "", b"x", SHORT)
        await a.transport.keep_record(topic, "1", "user0", b"a", TTL)
        mine = [Record(a.node, "1", "user0", b"a")]

        async def over() -> bool:
            return await b.transport.records(topic) == mine

        await self.until(over, "the records of the silent node are gone")
        assert (await b.transport.renew_records([topic], TTL)).forgotten == [topic]
        assert (await a.transport.renew_records([topic], TTL)).lapsed == [topic]
        assert len(await silent.transport.records(topic)) == 22  # its own it sees as long as it lives
        found = await self.reaped(a, b, topic=topic, count=21)
        assert sorted(record.key for record, _ in found) == sorted([*map(str, range(20)), "none"])
        for user, last in (("user0", 1), ("user1", 0), ("user2", 0), ("user3", 0)):
            assert min(left for record, left in found if record.tag == user) == last
            assert len({left for record, left in found if record.tag == user}) == 5
        assert await a.transport.renew_records([topic], TTL) == ([], [], [])
        assert await a.transport.count_records(topic) == (1, 1)
        assert await b.transport.records(topic) == mine

    @promise
    async def test_who_was_reaped_is_told(self) -> None:
        """A node that comes back is told that it was reaped, whatever it keeps meanwhile, until it keeps all anew."""
        late, other = await self.keepers(2)
        topic = self.fresh("topic")
        await late.transport.keep_record(topic, "1", "ann", b"x", SHORT)
        await other.transport.keep_record(topic, "1", "bob", b"x", TTL)
        assert [record.key for record, _ in await self.reaped(other, topic=topic, count=1)] == ["1"]
        assert await late.transport.drop_record(topic, "1") is None
        assert await late.transport.keep_record(topic, "2", "ann", b"x", TTL) == 1
        for _ in range(2):
            assert await late.transport.renew_records([topic], TTL) == ([], [topic], [])
        assert await late.transport.keep_record(topic, "1", "ann", b"x", TTL) == 2
        assert await late.transport.keep_record(topic, "2", "ann", b"x", TTL) == 0
        assert await late.transport.renew_records([topic], TTL) == ([], [], [])
        assert await other.transport.reap_records(topic) == []
        assert len(await other.transport.records(topic)) == 3

    @promise
    async def test_late_is_not_gone(self) -> None:
        """A node that renews after its lease has ended, and before anybody reaped it, has lost nothing."""
        late, other = await self.keepers(2)
        topic = self.fresh("topic")
        await late.transport.keep_record(topic, "1", "ann", b"x", SHORT)

        async def over() -> bool:
            return await other.transport.records(topic) == []

        await self.until(over, "its lease has ended")
        assert await late.transport.renew_records([topic], TTL) == ([], [], [])
        assert await other.transport.reap_records(topic) == []
        assert await other.transport.records(topic) == [Record(late.node, "1", "ann", b"x")]

    @promise
    async def test_closing_ends_the_lease(self) -> None:
        """What a node leaves behind when it closes can be reaped at once."""
        a, b = await self.keepers(2)
        topic = self.fresh("topic")
        for key in "12":
            await b.transport.keep_record(topic, key, "ann", b"x", TTL)
        await b.transport.close()
        found = await self.reaped(a, topic=topic, count=2)
        assert sorted(left for _, left in found) == [0, 1]
        assert await a.transport.records(topic) == []
        assert await a.transport.count_records(topic) == (0, 0)

    @promise
    async def test_what_was_lost_is_told(self) -> None:
        """Records that the transport has forgotten are told at every renewal, until they are kept anew."""
        a, b = await self.keepers(2)
        topics = [self.fresh("topic") for _ in range(3)]
        for topic in topics[:2]:
            await a.transport.keep_record(topic, "1", "ann", b"x", TTL)
        assert (await a.transport.renew_records(topics, TTL)).forgotten == topics[2:]
        await b.transport.flush()
        assert await a.transport.keep_record(topics[1], "2", "bob", b"x", TTL) == 1  # does not hide it
        assert await b.transport.records(topics[0]) == []
        assert await b.transport.count_records(topics[0]) == (0, 0)
        for _ in range(2):
            assert sorted((await a.transport.renew_records(topics, TTL)).forgotten) == sorted(topics)
        assert await a.transport.keep_record(topics[0], "1", "ann", b"x", TTL) == 1
        assert sorted((await a.transport.renew_records(topics[:2], TTL)).forgotten) == [topics[1]]

    @promise
    async def test_records_survive_a_cut(self) -> None:
        """Keeps and drops of a node whose link is cut again and again take effect once each, and are answered."""
        a, b = await self.keepers(2)
        topic = self.fresh("topic")
        await b.transport.keep_record(topic, "b", "ann", b"x", TTL)
        for round_ in range(4):
            keys = [f"{round_}.{number}" for number in range(40)]
            calls = [
                asyncio.ensure_future(a.transport.keep_record(topic, key, "ann", b"x", TTL)) for key in keys
            ]
            await asyncio.sleep(0)
            a.link.cut()
            drops = [asyncio.ensure_future(a.transport.drop_record(topic, key)) for key in keys[:20]]
            await asyncio.sleep(0.01)
            a.link.heal()
            before = 2 + 20 * round_
            assert await together(*calls) == list(range(before, before + 40))
            assert await together(*drops) == list(range(before + 38, before + 18, -1))
        assert await b.transport.count_records(topic) == (81, 1)
        assert await a.transport.renew_records([topic], TTL) == ([], [], [])
        assert await b.transport.reap_records(topic) == []

    @promise
    async def test_reaping_survives_a_cut(self) -> None:
        """What is reaped over a link that is cut again and again is returned once all the same, and all of it."""
        dead, a, b = await self.keepers(3)
        for _ in range(3):
            topic = self.fresh("topic")
            for number in range(30):
                await dead.transport.keep_record(topic, str(number), "", b"x", 0.05)
            await asyncio.sleep(0.1)
            reaping = asyncio.ensure_future(self.reaped(a, b, topic=topic, count=30))
            for _ in range(4):
                a.link.cut()
                await asyncio.sleep(0.01)
                a.link.heal()
                await asyncio.sleep(0.01)
            found = await reaping
            assert sorted(int(record.key) for record, _ in found) == list(range(30))
