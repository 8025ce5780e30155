# ruff: noqa: S101
"""The transport contract as tests: subclass, say how to make yours, and run pytest."""

from __future__ import annotations

import asyncio
import threading
import time
from abc import abstractmethod

from ..errors import ChannelFull, LayerClosed, TransportUnavailable
from ..names import new_node
from ..transport import Transport
from .kit import Link, NotOffered, Peer, eventually, promise, refused, together
from .record_conformance import RecordConformance

__all__ = ["TransportConformance"]

TTL = 30.0


def _numbered(start: int, count: int, mark: bytes = b"") -> list[bytes]:
    return [mark + b"%06d" % number for number in range(start, start + count)]


async def _frame(peer: Peer, queue: str) -> bytes:
    return (await peer.transport.lease(queue, TTL, TTL)).frame


class TransportConformance(RecordConformance):
    """Every promise of ``trunkline.transport.Transport``, faults included."""

    @abstractmethod
    def make_transport(self, link: Link, prefix: str) -> Transport:
        """Make an unopened transport whose arrivals obey the link. Those of one prefix share a broker; others never meet."""

    async def set_up(self) -> None:
        await super().set_up()
        self._peers: list[Peer] = []

    async def tear_down(self) -> None:
        for peer in self._peers:
            peer.link.heal()
            await peer.transport.close()
            peer.link.close()
        await super().tear_down()

    async def peer(self, prefix: str | None = None, delay: float = 0.0) -> Peer:
        link = Link()
        link.delay = delay
        peer = Peer(self.make_transport(link, prefix or self.unique), link, self.patience)
        await peer.transport.open(peer.node, peer)
        self._peers.append(peer)
        return peer

    async def peers(self, count: int) -> list[Peer]:
        return [await self.peer() for _ in range(count)]

    async def settled(self, sender: Peer, *receivers: Peer) -> None:
        """A fence: a last message to each, after which nothing sent before can still be on its way."""
        for receiver in receivers:
            fence = b"fence-" + self.fresh("f").encode()
            assert await sender.transport.post(receiver.node, f"x.{receiver.node}!fence", fence, None, TTL)
            async with asyncio.timeout(self.patience):
                while fence not in receiver.frames:
                    await receiver.has(len(receiver.frames) + 1)
            receiver.frames.remove(fence)

    # Topics

    @promise
    async def test_publish_reaches_every_subscriber_once(self) -> None:
        """A publish reaches every node subscribed to the topic, the sender's own included, once each."""
        a, b, c = await self.peers(3)
        topic = self.fresh("topic")
        for peer in (a, b, c):
            await peer.transport.subscribe(topic)
        assert list(await a.transport.publish(topic, b"hello", TTL)) == []
        for peer in (a, b, c):
            await peer.has(1)  # a fence overtakes it where order holds for one name only
        await self.settled(a, a, b, c)
        assert [a.frames, b.frames, c.frames] == [[b"hello"]] * 3

    @promise
    async def test_publish_reaches_nobody_else(self) -> None:
        """Nodes that did not subscribe to the topic, or no longer do, get nothing."""
        a, b, c = await self.peers(3)
        topic, other = self.fresh("topic"), self.fresh("topic")
        await b.transport.subscribe(topic)
        await c.transport.subscribe(other)
        await b.transport.unsubscribe(topic)
        await b.transport.unsubscribe(topic)
        await b.transport.unsubscribe(self.fresh("never"))
        await a.transport.publish(topic, b"hello", TTL)
        await self.settled(a, a, b, c)
        assert a.frames == b.frames == c.frames == []

    @promise
    async def test_nothing_is_missed_after_subscribe(self) -> None:
        """Whatever is published after subscribe returned arrives, also over a slow link."""
        sender = await self.peer()
        slow = await self.peer(delay=0.05)
        for number in range(20):
            topic = self.fresh("topic")
            await slow.transport.subscribe(topic)
            await sender.transport.publish(topic, b"%d" % number, TTL)
        assert await slow.has(20) == [b"%d" % number for number in range(20)]

    @promise
    async def test_nothing_from_before_subscribe(self) -> None:
        """What was published before a node's first subscription to the topic does not arrive."""
        a, b = await self.peers(2)
        topic = self.fresh("topic")
        await a.transport.publish(topic, b"before", TTL)
        await b.transport.subscribe(topic)
        await a.transport.publish(topic, b"after", TTL)
        await b.has(1)
        await self.settled(a, b)
        assert b.frames == [b"after"]

    @promise
    async def test_order_of_one_sender(self) -> None:
        """Publishes and posts of one sender arrive in the order sent, on every node."""
        a, b, c = await self.peers(3)
        topic = self.fresh("topic")
        await b.transport.subscribe(topic)
        await c.transport.subscribe(topic)
        for number, frame in enumerate(_numbered(0, 300)):
            if number % 3:
                await a.transport.publish(topic, frame, TTL)
            else:
                for node in (b.node, c.node):
                    await a.transport.post(node, f"x.{node}!1", frame, None, TTL)
        assert await b.has(300) == _numbered(0, 300)
        assert await c.has(300) == _numbered(0, 300)

    @promise
    async def test_the_own_copy_comes_first(self) -> None:
        """The sender's own copy of a publish has been delivered when publish returns."""
        a, b = await self.peers(2)
        topic = self.fresh("topic")
        for peer in (a, b):
            await peer.transport.subscribe(topic)
        for count, frame in enumerate(_numbered(0, 50), 1):
            await a.transport.publish(topic, frame, TTL)
            assert a.frames == _numbered(0, count)
        assert await b.has(50) == _numbered(0, 50)

    @promise
    async def test_order_of_concurrent_calls(self) -> None:
        """Calls that one node starts at once, without awaiting each, keep the order in which they were started."""
        a, b = await self.peers(2)
        topic = self.fresh("topic")
        await b.transport.subscribe(topic)
        await together(*[a.transport.publish(topic, frame, TTL) for frame in _numbered(0, 400)])
        assert await b.has(400) == _numbered(0, 400)

    @promise
    async def test_concurrent_senders(self) -> None:
        """Many senders at once: every frame arrives once at each node, each sender's in its order."""
        peers = await self.peers(4)
        topic = self.fresh("topic")
        for peer in peers:
            await peer.transport.subscribe(topic)

        async def sender(peer: Peer, mark: bytes) -> None:
            for frame in _numbered(0, 150, mark):
                await peer.transport.publish(topic, frame, TTL)

        await together(*[sender(peer, b"%d" % index) for index, peer in enumerate(peers)])
        for peer in peers:
            frames = await peer.has(600)
            for index in range(4):
                mark = b"%d" % index
                assert [frame for frame in frames if frame[:1] == mark] == _numbered(0, 150, mark)

    @promise
    async def test_bytes_travel_unchanged(self) -> None:
        """Every byte value, a one-byte frame and a frame of 1 MB arrive as sent, on every road."""
        a, b = await self.peers(2)
        topic, queue = self.fresh("topic"), self.fresh("queue")
        await b.transport.subscribe(topic)
        frames = [bytes(range(256)) * 2, b"\0", bytes(1_000_000), b"\r\n$-1\r\n"]
        for frame in frames:
            await a.transport.publish(topic, frame, TTL)
            await a.transport.post(b.node, f"x.{b.node}!1", frame, None, TTL)
            await a.transport.push(queue, frame, 100, TTL)
        assert sorted(await b.has(8)) == sorted(frames * 2)
        assert [await b.transport.pull(queue) for _ in frames] == frames

    @promise
    async def test_a_burst_overtakes_nobody(self) -> None:
        """A receiver whose loop is busy for a while gets a burst of 3000 frames complete, once, in order."""
        a, b = await self.peers(2)
        topic = self.fresh("topic")
        await b.transport.subscribe(topic)
        for start in range(0, 3000, 100):
            await together(*[a.transport.publish(topic, frame * 30, TTL) for frame in _numbered(start, 100)])
            if start == 500:
                time.sleep(0.3)  # noqa: ASYNC251 the point of the test
        assert await b.has(3000) == [frame * 30 for frame in _numbered(0, 3000)]

    # Posts

    @promise
    async def test_post_reaches_its_node_only(self) -> None:
        """A post arrives at its node and no other; to a node nobody has opened, or has closed, it returns False."""
        a, b, c = await self.peers(3)
        assert await a.transport.post(b.node, f"x.{b.node}!1", b"hi", 5, TTL)
        assert await a.transport.post(a.node, f"x.{a.node}!1", b"self", 5, TTL)
        unknown = new_node()
        assert not await a.transport.post(unknown, f"x.{unknown}!1", b"hi", 5, TTL)
        await c.transport.close()
        assert not await a.transport.post(c.node, f"x.{c.node}!1", b"hi", 5, TTL)
        await self.settled(a, a, b)
        assert [a.frames, b.frames, c.frames] == [[b"self"], [b"hi"], []]

    @promise
    async def test_post_stops_at_capacity(self) -> None:
        """The post above capacity raises ChannelFull, whoever sends it; a channel's neighbours have their own room."""
        a, b, owner = await self.peers(3)
        full, free = f"x.{owner.node}!full", f"x.{owner.node}!free"
        for number in range(10):
            sender = (a, b)[number % 2]
            assert await sender.transport.post(owner.node, full, b"%d" % number, 10, TTL)
        for sender in (a, b):
            await refused(
                ChannelFull, sender.transport.post(owner.node, full, b"too many", 10, TTL), naming=full
            )
        assert await a.transport.post(owner.node, free, b"free", 10, TTL)
        await self.settled(a, owner)
        assert len(owner.frames) == 11
        assert b"too many" not in owner.frames

    @promise
    async def test_capacity_is_exact_in_a_race(self) -> None:
        """Of 60 posts from three nodes at once to a channel with room for 25, exactly 25 are taken."""
        owner, *senders = await self.peers(4)
        channel = f"x.{owner.node}!1"

        async def attempt(peer: Peer) -> bool:
            try:
                return await peer.transport.post(owner.node, channel, b"x", 25, TTL)
            except ChannelFull:
                return False

        taken = await together(*[attempt(peer) for _ in range(20) for peer in senders])
        assert sum(taken) == 25
        assert len(await owner.has(25)) == 25

    @promise
    async def test_posts_at_once_count_one_by_one(self) -> None:
        """Of posts that one node starts at once, to several channels, each channel takes the first that have room and
        refuses the others; what is taken arrives once, in the order of the calls."""
        a, owner = await self.peers(2)
        small, large, free = (f"x.{owner.node}!{name}" for name in ("small", "large", "free"))
        room = {small: 3, large: 8, free: 100}
        names = [*(small,) * 5, *(large, free) * 10, *(small, free, large) * 5]
        frames = _numbered(0, len(names))
        outcomes = await asyncio.gather(
            *[
                a.transport.post(owner.node, name, f, room[name], TTL)
                for name, f in zip(names, frames, strict=True)
            ],
            return_exceptions=True,
        )
        left, expected = dict(room), []
        for name, frame, outcome in zip(names, frames, outcomes, strict=True):
            left[name] -= 1
            if left[name] >= 0:
                expected.append(frame)
                assert outcome is True
            else:
                assert isinstance(outcome, ChannelFull)
                assert name in str(outcome)
        assert await owner.has(len(expected)) == expected
        # What was refused left no count behind: as much room as is taken is there again.
        owner.transport.taken(small, 3)
        await self._has_room_again(a, owner, small, capacity=3, room=3)

    @promise
    async def test_taken_makes_room(self) -> None:
        """Room is there again soon after the owner reports what was taken, and as much as it reported."""
        a, owner = await self.peers(2)
        channel = f"x.{owner.node}!1"
        for _ in range(8):
            await a.transport.post(owner.node, channel, b"x", 8, TTL)
        await owner.has(8)
        owner.transport.taken(channel, 3)
        await self._has_room_again(a, owner, channel, capacity=8, room=3)

    async def _has_room_again(self, a: Peer, owner: Peer, channel: str, *, capacity: int, room: int) -> None:
        """Soon so many posts are taken, and then no more."""
        accepted = 0
        deadline = time.monotonic() + self.patience
        while accepted < room and time.monotonic() < deadline:
            try:
                await a.transport.post(owner.node, channel, b"y", capacity, TTL)
                accepted += 1
            except ChannelFull:
                await asyncio.sleep(0.01)
        assert accepted == room
        await refused(ChannelFull, a.transport.post(owner.node, channel, b"z", capacity, TTL))

    @promise
    async def test_a_consumer_that_keeps_up_is_never_full(self) -> None:
        """With capacity 20, 2000 posts to an owner that takes each at once meet no refusal when sent one by one."""
        a, owner = await self.peers(2)
        channel = f"x.{owner.node}!1"
        for number in range(2000):
            await a.transport.post(owner.node, channel, b"%d" % number, 20, TTL)
            await owner.has(number + 1)
            owner.transport.taken(channel, 1)

    # Queues

    @promise
    async def test_queue_is_first_in_first_out(self) -> None:
        """Frames of one sender leave the queue in order, also those pushed before anybody pulled."""
        a, b = await self.peers(2)
        queue = self.fresh("queue")
        for frame in _numbered(0, 50):
            await a.transport.push(queue, frame, 100, TTL)
        assert [await b.transport.pull(queue) for _ in range(50)] == _numbered(0, 50)

    @promise
    async def test_each_frame_has_one_taker(self) -> None:
        """Six pullers on three nodes share 600 frames: each frame is taken once, nothing stays behind."""
        sender, *peers = await self.peers(4)
        queue = self.fresh("queue")
        got: list[bytes] = []

        async def puller(peer: Peer) -> None:
            while True:
                got.append(await peer.transport.pull(queue))

        pullers = [asyncio.ensure_future(puller(peer)) for peer in peers for _ in range(2)]
        try:
            for frame in _numbered(0, 600):
                while True:
                    try:
                        await sender.transport.push(queue, frame, 50, TTL)
                        break
                    except ChannelFull:
                        await asyncio.sleep(0.002)
            await eventually(lambda: len(got) >= 600, self.patience, "600 frames are taken")
            assert sorted(got) == _numbered(0, 600)
        finally:
            for task in pullers:
                task.cancel()
            await asyncio.gather(*pullers, return_exceptions=True)

    @promise
    async def test_a_waiting_pull_is_woken(self) -> None:
        """A pull that waits in another node gets a pushed frame by a wake-up, not by the next poll."""
        a, b = await self.peers(2)
        queue = self.fresh("queue")
        took = []
        for number in range(5):
            pull = asyncio.ensure_future(b.transport.pull(queue))
            await asyncio.sleep(0.05)
            start = time.perf_counter()
            await a.transport.push(queue, b"%d" % number, 10, TTL)
            assert await pull == b"%d" % number
            took.append(time.perf_counter() - start)
        assert min(took) < 0.5, took  # a poll shows each time, a busy machine now and then

    @promise
    async def test_push_stops_at_capacity(self) -> None:
        """The push above capacity raises ChannelFull and takes nothing; a pull makes room."""
        a, b = await self.peers(2)
        queue = self.fresh("queue")
        for frame in _numbered(0, 10):
            await (a, b)[frame[-1] % 2].transport.push(queue, frame, 10, TTL)
        for peer in (a, b):
            await refused(ChannelFull, peer.transport.push(queue, b"too many", 10, TTL), naming=queue)
        assert await b.transport.pull(queue) == b"000000"
        await a.transport.push(queue, b"room", 10, TTL)
        assert [await a.transport.pull(queue) for _ in range(10)] == [*_numbered(1, 9), b"room"]

    @promise
    async def test_stale_frames_are_forgotten(self) -> None:
        """After its ttl a pushed frame is not pulled any more and takes no room."""
        a, b = await self.peers(2)
        queue = self.fresh("queue")
        for frame in _numbered(0, 10):
            await a.transport.push(queue, frame, 10, 0.8)
        await asyncio.sleep(1.0)
        for frame in _numbered(10, 10):
            await a.transport.push(queue, frame, 10, TTL)
        assert [await b.transport.pull(queue) for _ in range(10)] == _numbered(10, 10)

    @promise
    async def test_a_cancelled_pull_takes_nothing(self) -> None:
        """Pulls cancelled at every moment, while frames come in, lose none and double none."""
        a, b = await self.peers(2)
        queue = self.fresh("queue")
        got: list[bytes] = []

        async def feed() -> None:
            for frame in _numbered(0, 200):
                await a.transport.push(queue, frame, 1000, TTL)
                await asyncio.sleep(0.001)

        feeder = asyncio.ensure_future(feed())
        step = 0
        deadline = time.monotonic() + 2 * self.patience
        while len(got) < 200 and time.monotonic() < deadline:
            pull = asyncio.ensure_future(b.transport.pull(queue))
            for _ in range(step % 7):
                await asyncio.sleep(0)
            if step % 3 == 0:
                await asyncio.sleep(0.0015)
            step += 1
            if step % 10:
                pull.cancel()
            else:
                await asyncio.wait([pull], timeout=self.patience)
                pull.cancel()
            try:
                got.append(await pull)
            except asyncio.CancelledError:
                continue
        await feeder
        assert got == _numbered(0, 200)

    @promise
    async def test_a_woken_and_cancelled_pull_passes_on(self) -> None:
        """When the pull that was woken is cancelled, another waiting pull gets the frame, here or in another node."""
        a, b, c = await self.peers(3)
        queue = self.fresh("queue")
        for _ in range(10):
            first = asyncio.ensure_future(b.transport.pull(queue))
            await asyncio.sleep(0.02)
            others = [asyncio.ensure_future(peer.transport.pull(queue)) for peer in (b, c)]
            await asyncio.sleep(0.02)
            await a.transport.push(queue, b"x", 10, TTL)
            first.cancel()
            tasks = [first, *others]
            async with asyncio.timeout(self.patience):
                while not any(task.done() and not task.cancelled() for task in tasks):
                    await asyncio.wait(
                        [task for task in tasks if not task.done()], return_when="FIRST_COMPLETED"
                    )
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert results.count(b"x") == 1

    @promise
    async def test_close_ends_a_waiting_pull(self) -> None:
        """Closing a node ends its waiting pulls with LayerClosed, and a frame pushed later goes to another node."""
        a, b = await self.peers(2)
        queue = self.fresh("queue")
        pull = asyncio.ensure_future(b.transport.pull(queue))
        await asyncio.sleep(0.05)
        await b.transport.close()
        await refused(LayerClosed, pull)
        await a.transport.push(queue, b"later", 10, TTL)
        async with asyncio.timeout(self.patience):
            assert await a.transport.pull(queue) == b"later"

    # History

    async def rememberers(self, count: int) -> list[Peer]:
        peers = await self.peers(count)
        if "history" not in peers[0].transport.features:
            raise NotOffered(f"{type(peers[0].transport).__name__} has no history")
        return peers

    @promise
    async def test_what_is_remembered_has_places(self) -> None:
        """Every remembered frame has the next place, whoever appends it, and learns the mark of the one before."""
        a, b = await self.rememberers(2)
        topic = self.fresh("topic")
        assert await a.transport.recall(topic, None, 5) == []
        before = ""
        for number, frame in enumerate(_numbered(0, 12)):
            transport = (a, b)[number % 2].transport
            assert await transport.remember(topic, frame, f"m{number}", 100, TTL) == (number + 1, before)
            before = f"m{number}"
        line = list(enumerate(_numbered(0, 12), 1))
        for peer in (a, b):
            assert await peer.transport.recall(topic, None, 5) == line[-5:]
            assert await peer.transport.recall(topic, None, 100) == line
            assert await peer.transport.recall(topic, 4, 3) == line[3:6]
            assert await peer.transport.recall(topic, 13, 3) == []
        assert await a.transport.recall(self.fresh("other"), None, 5) == []
        assert a.frames == b.frames == []

    @promise
    async def test_places_are_given_once(self) -> None:
        """Nodes that append at the same time share the places among them: none twice, none left out."""
        peers = await self.rememberers(3)
        topic = self.fresh("topic")
        frames = [_numbered(number * 100, 40) for number in range(3)]
        work = [
            peer.transport.remember(topic, frame, "m", 1000, TTL)
            for peer, mine in zip(peers, frames, strict=True)
            for frame in mine
        ]
        placed = await asyncio.gather(*work)
        assert sorted(place for place, _ in placed) == list(range(1, 121))
        line = dict(await peers[0].transport.recall(topic, 1, 1000))
        assert [line[place] for place, _ in placed] == [frame for mine in frames for frame in mine]

    @promise
    async def test_a_history_is_bounded(self) -> None:
        """The newest ``size`` frames stay; older than ``seconds`` goes when a new one comes; the newest always stays."""
        (a,) = await self.rememberers(1)
        topic, short = self.fresh("topic"), self.fresh("short")
        for frame in _numbered(0, 10):
            await a.transport.remember(topic, frame, "m", 4, TTL)
        assert await a.transport.recall(topic, 1, 100) == list(enumerate(_numbered(6, 4), 7))
        for frame in _numbered(0, 3):
            await a.transport.remember(short, frame, "m", 100, 1)
        await asyncio.sleep(2.2)  # a broker may count whole seconds
        assert (await a.transport.recall(short, None, 1)) == [(3, b"000002")]
        await a.transport.remember(short, b"new", "m", 100, 1)
        assert await a.transport.recall(short, 1, 100) == [(4, b"new")]

    @promise
    async def test_flush_forgets_history(self) -> None:
        """After a flush nothing is remembered, and places begin anew."""
        a, b = await self.rememberers(2)
        topic = self.fresh("topic")
        await a.transport.remember(topic, b"x", "m", 10, TTL)
        await b.transport.flush()
        assert await a.transport.recall(topic, None, 10) == []
        assert await a.transport.remember(topic, b"y", "m", 10, TTL) == (1, "")

    @promise
    async def test_history_survives_its_senders(self) -> None:
        """What is remembered stays when the nodes that appended it are gone; a large frame too."""
        a, b = await self.rememberers(2)
        topic, large = self.fresh("topic"), bytes(range(256)) * 4096
        await a.transport.remember(topic, large, "m", 10, TTL)
        await a.transport.close()
        assert await b.transport.recall(topic, 1, 10) == [(1, large)]

    # Leases

    async def lessors(self, count: int) -> list[Peer]:
        peers = await self.peers(count)
        if "leases" not in peers[0].transport.features:
            raise NotOffered(f"{type(peers[0].transport).__name__} has no leases")
        return peers

    @promise
    async def test_a_settled_lease_is_done(self) -> None:
        """Leases take in order, one taker for each frame; what was settled does not come back, nor settle twice."""
        a, b = await self.lessors(2)
        queue = self.fresh("queue")
        for frame in _numbered(0, 10):
            await a.transport.push(queue, frame, 10, TTL)
        for place, frame in enumerate(_numbered(0, 10)):
            peer = (a, b)[place % 2]
            leased = await peer.transport.lease(queue, TTL, TTL)
            assert leased[1:] == (frame, 1)
            assert await peer.transport.settle(queue, leased.token)
            assert not await peer.transport.settle(queue, leased.token)
            assert not await peer.transport.hold(queue, leased.token, 0)
        await a.transport.push(queue, b"fence", 10, TTL)
        assert await b.transport.pull(queue) == b"fence"

    @promise
    async def test_a_lease_that_ends_comes_back(self) -> None:
        """A frame whose holder is gone comes back when the lease ends, to the front, once, with its tries counted."""
        a, b, c = await self.lessors(3)
        queue = self.fresh("queue")
        for frame in _numbered(0, 3):
            await a.transport.push(queue, frame, 3, TTL)
        start = time.monotonic()
        assert (await b.transport.lease(queue, 1.2, TTL))[1:] == (b"000000", 1)
        assert (await b.transport.lease(queue, 1.4, TTL))[1:] == (b"000001", 1)
        await b.transport.close()
        assert (await c.transport.lease(queue, TTL, TTL))[1:] == (b"000002", 1)
        async with asyncio.timeout(self.patience + 2):
            back = [await c.transport.lease(queue, TTL, TTL) for _ in range(2)]
        assert time.monotonic() - start > 1.3
        assert [leased[1:] for leased in back] == [(b"000000", 2), (b"000001", 2)]
        await a.transport.push(queue, b"behind", 3, TTL)
        assert await c.transport.hold(queue, back[1].token, 0)
        assert await c.transport.hold(queue, back[0].token, 0)
        async with asyncio.timeout(self.patience):
            again = [await a.transport.lease(queue, TTL, TTL) for _ in range(3)]
        assert sorted(leased[1:] for leased in again) == [(b"000000", 3), (b"000001", 3), (b"behind", 1)]
        assert again[2].frame == b"behind"

    @promise
    async def test_a_lease_can_be_prolonged(self) -> None:
        """hold moves the end of a lease, later or sooner; afterwards it returns False and the lease stays ended."""
        a, b = await self.lessors(2)
        queue = self.fresh("queue")
        await a.transport.push(queue, b"long", 10, TTL)
        leased = await a.transport.lease(queue, 1.5, TTL)
        assert await a.transport.hold(queue, leased.token, TTL)
        waiting = asyncio.ensure_future(b.transport.lease(queue, TTL, TTL))
        await asyncio.sleep(1.6)
        assert not waiting.done()
        assert await a.transport.hold(queue, leased.token, 0)
        async with asyncio.timeout(self.patience):
            second = await waiting
        assert second[1:] == (b"long", 2)
        assert not await a.transport.hold(queue, leased.token, TTL)
        assert not await a.transport.settle(queue, leased.token)
        assert await b.transport.settle(queue, second.token)

    @promise
    async def test_a_delayed_frame_waits(self) -> None:
        """push_later puts a frame off: no pull sees it before it is due, and a waiting one gets it then, not by polling."""
        a, b = await self.lessors(2)
        queue = self.fresh("queue")
        late = []
        for number in range(4):
            pull = asyncio.ensure_future(b.transport.pull(queue) if number % 2 else _frame(b, queue))
            await asyncio.sleep(0.02)
            start = time.monotonic()
            await a.transport.push_later(queue, b"%d" % number, 10, TTL, 0.3)
            async with asyncio.timeout(self.patience):
                assert await pull == b"%d" % number
            late.append(time.monotonic() - start - 0.3)
        assert min(late) > -0.05, late
        assert min(late) < 0.3, late

    @promise
    async def test_delayed_frames_come_by_time(self) -> None:
        """What was put off comes in the order of its times, before what waits; capacity bounds it by itself."""
        a, b = await self.lessors(2)
        queue, full = self.fresh("queue"), self.fresh("queue")
        for _ in range(3):
            await a.transport.push_later(full, b"x", 3, TTL, TTL)
        await refused(ChannelFull, b.transport.push_later(full, b"x", 3, TTL, TTL), naming=full)
        for frame in _numbered(0, 3):
            await a.transport.push(queue, frame, 3, TTL)
        start = time.monotonic()
        for number in (3, 1, 2):
            due = start + 1.0 + 0.1 * number
            await a.transport.push_later(queue, b"%d" % number, 3, TTL, due - time.monotonic())
        await asyncio.sleep(start + 1.5 - time.monotonic())
        assert [await b.transport.pull(queue) for _ in range(6)] == [b"1", b"2", b"3", *_numbered(0, 3)]

    @promise
    async def test_a_delay_survives_its_sender(self) -> None:
        """A frame that was put off comes though the node that pushed it is gone, also when nobody waited meanwhile."""
        a, b = await self.lessors(2)
        queue = self.fresh("queue")
        await a.transport.push_later(queue, b"testament", 10, TTL, 0.2)
        await a.transport.close()
        await asyncio.sleep(0.3)
        async with asyncio.timeout(self.patience):
            assert (await b.transport.lease(queue, TTL, TTL))[1:] == (b"testament", 1)

    @promise
    async def test_what_comes_back_lives_its_ttl(self) -> None:
        """A frame that came back, or is due, is forgotten its ttl later."""
        a, b = await self.lessors(2)
        queue = self.fresh("queue")
        await a.transport.push(queue, b"leased", 10, TTL)
        await b.transport.lease(queue, 0.1, 0.8)
        await a.transport.push_later(queue, b"delayed", 10, 0.8, 0.1)
        await asyncio.sleep(1.3)
        await a.transport.push(queue, b"fence", 10, TTL)
        assert await b.transport.pull(queue) == b"fence"

    @promise
    async def test_a_cancelled_lease_takes_nothing(self) -> None:
        """Leases cancelled at every moment, while frames come in, lose none, double none and count no try."""
        a, b = await self.lessors(2)
        queue = self.fresh("queue")
        got: list[bytes] = []

        async def feed() -> None:
            for frame in _numbered(0, 100):
                await a.transport.push(queue, frame, 1000, TTL)
                await asyncio.sleep(0.001)

        feeder = asyncio.ensure_future(feed())
        step = 0
        deadline = time.monotonic() + 2 * self.patience
        while len(got) < 100 and time.monotonic() < deadline:
            lease = asyncio.ensure_future(b.transport.lease(queue, TTL, TTL))
            for _ in range(step % 7):
                await asyncio.sleep(0)
            if step % 3 == 0:
                await asyncio.sleep(0.0015)
            step += 1
            if step % 10 == 0:
                await asyncio.wait([lease], timeout=self.patience)
            lease.cancel()
            try:
                token, frame, tries = await lease
            except asyncio.CancelledError:
                continue
            got.append(frame)
            assert tries == 1
            assert await b.transport.settle(queue, token)
        await feeder
        assert got == _numbered(0, 100)

    @promise
    async def test_leases_and_pulls_share_a_queue(self) -> None:
        """Pulls and leases on three nodes, some given back: each frame is done once, nothing stays behind."""
        sender, *peers = await self.lessors(4)
        queue = self.fresh("queue")
        got: list[bytes] = []

        async def puller(peer: Peer) -> None:
            while True:
                got.append(await peer.transport.pull(queue))

        async def lessee(peer: Peer) -> None:
            while True:
                token, frame, tries = await peer.transport.lease(queue, TTL, TTL)
                if tries == 1 and frame[-1] % 3 == 0:
                    assert await peer.transport.hold(queue, token, 0.01)
                else:
                    assert await peer.transport.settle(queue, token)
                    got.append(frame)

        tasks = [asyncio.ensure_future(work(peer)) for peer in peers for work in (puller, lessee)]
        try:
            for frame in _numbered(0, 200):
                await sender.transport.push(queue, frame, 1000, TTL)
            await eventually(lambda: len(got) >= 200, self.patience, "200 frames are done")
            assert sorted(got) == _numbered(0, 200)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @promise
    async def test_flush_forgets_what_was_put_off(self) -> None:
        """flush forgets leased and delayed frames: none comes back."""
        a, b = await self.lessors(2)
        queue = self.fresh("queue")
        await a.transport.push(queue, b"leased", 10, TTL)
        leased = await b.transport.lease(queue, 0.2, TTL)
        await a.transport.push_later(queue, b"delayed", 10, TTL, 0.2)
        await a.transport.flush()
        assert not await b.transport.settle(queue, leased.token)
        await asyncio.sleep(0.3)
        await a.transport.push(queue, b"fence", 10, TTL)
        assert await b.transport.pull(queue) == b"fence"

    @promise
    async def test_a_cut_lessee_settles_late(self) -> None:
        """Leases and settlements that a cut link holds up are done once, when it heals; no frame is done twice."""
        a, b = await self.lessors(2)
        queue = self.fresh("queue")
        done: list[bytes] = []

        async def lessee() -> None:
            while True:
                token, frame, tries = await b.transport.lease(queue, TTL, TTL)
                assert tries == 1
                await b.transport.settle(queue, token)
                done.append(frame)

        working = asyncio.ensure_future(lessee())
        try:
            for round_ in range(4):
                for number, frame in enumerate(_numbered(round_ * 20, 20)):
                    await a.transport.push(queue, frame, 1000, TTL)
                    if number == 5:
                        b.link.cut()
                    if number == 15:
                        b.link.heal()
            await eventually(lambda: len(done) >= 80 or working.done(), self.patience, "80 frames are done")
            assert done == _numbered(0, 80)
        finally:
            working.cancel()
            await asyncio.wait([working])

    # Bindings

    @promise
    async def test_bound_queue_gets_publishes(self) -> None:
        """A queue bound to a topic gets each publish once, as one message for all its readers; unbind ends it."""
        a, b = await self.peers(2)
        topic, queue = self.fresh("topic"), self.fresh("queue")
        await a.transport.bind(topic, queue, 10, TTL)
        await b.transport.bind(topic, queue, 10, TTL)
        await b.transport.publish(topic, b"1", TTL)
        await a.transport.publish(topic, b"2", TTL)
        assert [await b.transport.pull(queue), await a.transport.pull(queue)] == [b"1", b"2"]
        await b.transport.unbind(topic, queue)
        await b.transport.unbind(topic, self.fresh("never"))
        await a.transport.publish(topic, b"3", TTL)
        await a.transport.push(queue, b"fence", 10, TTL)
        assert await b.transport.pull(queue) == b"fence"

    @promise
    async def test_a_bind_counts_at_once(self) -> None:
        """Once bind has returned, every publish reaches the queue, also from a node that hears everything late."""
        a, late = await self.peers(2)
        topic, queue = self.fresh("topic"), self.fresh("queue")
        await late.transport.publish(topic, b"before", TTL)
        late.link.delay = 0.3
        await a.transport.bind(topic, queue, 10, TTL)
        await late.transport.publish(topic, b"x", TTL)
        await a.transport.push(queue, b"fence", 10, TTL)
        assert await a.transport.pull(queue) == b"x"

    @promise
    async def test_full_bound_queue_is_named(self) -> None:
        """A publish never fails for a full bound queue: the queue misses it, and is returned."""
        a, b = await self.peers(2)
        topic, queue = self.fresh("topic"), self.fresh("queue")
        await a.transport.bind(topic, queue, 2, TTL)
        await b.transport.subscribe(topic)
        results = [list(await a.transport.publish(topic, frame, TTL)) for frame in _numbered(0, 3)]
        assert results == [[], [], [queue]]
        assert await b.has(3) == _numbered(0, 3)
        assert [await b.transport.pull(queue) for _ in range(2)] == _numbered(0, 2)

    @promise
    async def test_binding_ends_after_its_ttl(self) -> None:
        """A binding lives for its ttl from the last bind."""
        a = await self.peer()
        topic, queue, kept = self.fresh("topic"), self.fresh("queue"), self.fresh("kept")
        await a.transport.bind(topic, queue, 10, 0.8)
        await a.transport.bind(topic, kept, 10, 0.8)
        await a.transport.bind(topic, kept, 10, TTL)
        await asyncio.sleep(1.0)
        await a.transport.publish(topic, b"x", TTL)
        assert await a.transport.pull(kept) == b"x"
        await a.transport.push(queue, b"fence", 10, TTL)
        assert await a.transport.pull(queue) == b"fence"

    # Life

    @promise
    async def test_prefixes_never_meet(self) -> None:
        """Nodes of different prefixes share nothing: topics, queues, posts, flush."""
        a = await self.peer()
        b = await self.peer(prefix=self.unique + "other")
        topic, queue = self.fresh("topic"), self.fresh("queue")
        await b.transport.subscribe(topic)
        await b.transport.push(queue, b"mine", 10, TTL)
        await a.transport.publish(topic, b"x", TTL)
        await a.transport.push(queue, b"yours", 10, TTL)
        assert not await a.transport.post(b.node, f"x.{b.node}!1", b"x", 10, TTL)
        await a.transport.flush()
        assert await b.transport.pull(queue) == b"mine"
        await self.settled(b, b)
        assert b.frames == []

    @promise
    async def test_flush_forgets(self) -> None:
        """flush forgets frames, queues, bindings and counts; nodes and subscriptions go on."""
        a, b = await self.peers(2)
        topic, queue = self.fresh("topic"), self.fresh("queue")
        channel = f"x.{b.node}!1"
        await b.transport.subscribe(topic)
        await a.transport.bind(topic, queue, 10, TTL)
        await a.transport.push(queue, b"old", 10, TTL)
        for _ in range(3):
            await a.transport.post(b.node, channel, b"old", 3, TTL)
        await b.has(3)
        await a.transport.flush()
        for _ in range(3):
            await a.transport.post(b.node, channel, b"new", 3, TTL)
        await a.transport.publish(topic, b"new", TTL)
        await a.transport.push(queue, b"new", 10, TTL)
        assert await b.transport.pull(queue) == b"new"
        assert await b.has(7) == [b"old"] * 3 + [b"new"] * 4

    @promise
    async def test_close_leaves_nothing(self) -> None:
        """Closing twice is fine; afterwards nothing arrives, calls say so, and the name is free of its subscriptions."""
        a, b = await self.peers(2)
        topic = self.fresh("topic")
        await b.transport.subscribe(topic)
        await b.transport.close()
        await b.transport.close()
        await a.transport.publish(topic, b"x", TTL)
        await refused((TransportUnavailable, LayerClosed), b.transport.publish(topic, b"x", TTL))
        await refused((TransportUnavailable, LayerClosed), b.transport.push(topic, b"x", 10, TTL))
        await refused((TransportUnavailable, LayerClosed), b.transport.subscribe(topic))
        await self.settled(a, a)
        assert b.frames == []

    @promise
    async def test_it_tells_how_it_does(self) -> None:
        """While it works, whatever it names as its servers is up; closed, none of it is."""
        a = await self.peer()
        await a.transport.publish("t", b"x", 60.0)
        # Of several servers some may be met only now.
        await eventually(lambda: all(server.up and server.name for server in a.transport.servers()))
        await a.transport.close()
        assert not any(server.up for server in a.transport.servers())

    @promise
    async def test_clocks_agree(self) -> None:
        """All nodes read the same clock, within half a second, and it moves on."""
        a, b = await self.peers(2)
        start = a.transport.now()
        assert abs(a.transport.now() - b.transport.now()) < 0.5
        await asyncio.sleep(0.05)
        assert 0.03 < a.transport.now() - start < 2

    @promise
    async def test_loops_and_threads(self) -> None:
        """Nodes in different event loops of one process hear each other, each in its own loop."""
        a = await self.peer()
        topic, back = self.fresh("topic"), self.fresh("topic")
        await a.transport.subscribe(back)
        ready, failed = threading.Event(), []

        async def elsewhere() -> None:
            link = Link()
            peer = Peer(self.make_transport(link, self.unique), link)
            await peer.transport.open(peer.node, peer)
            try:
                await peer.transport.subscribe(topic)
                ready.set()
                for frame in list(await peer.has(50)):
                    await peer.transport.publish(back, frame, TTL)
            finally:
                await peer.transport.close()
                link.close()

        def run() -> None:
            try:
                asyncio.run(elsewhere())
            except BaseException as error:
                failed.append(error)
                ready.set()

        thread = threading.Thread(target=run)
        thread.start()
        await asyncio.to_thread(ready.wait, 10)
        for frame in _numbered(0, 50):
            await a.transport.publish(topic, frame, TTL)
        await eventually(lambda: failed or len(a.frames) == 50, self.patience, "50 frames come back")
        await asyncio.to_thread(thread.join, 10)
        assert not failed, failed
        assert a.frames == _numbered(0, 50)
        assert a.strays == 0

    # Faults

    @promise
    async def test_slow_link(self) -> None:
        """Over a slow link everything arrives late, complete and in order; queues work."""
        a = await self.peer()
        slow = await self.peer(delay=0.03)
        topic, queue = self.fresh("topic"), self.fresh("queue")
        await slow.transport.subscribe(topic)
        pull = asyncio.ensure_future(slow.transport.pull(queue))
        for frame in _numbered(0, 100):
            await a.transport.publish(topic, frame, TTL)
        await a.transport.push(queue, b"job", 10, TTL)
        assert await slow.has(100) == _numbered(0, 100)
        async with asyncio.timeout(self.patience):
            assert await pull == b"job"

    @promise
    async def test_cut_link(self) -> None:
        """What was sent to a node while it was cut off arrives after the link heals: all of it, once, in order."""
        a, b, witness = await self.peers(3)
        topic = self.fresh("topic")
        await b.transport.subscribe(topic)
        await witness.transport.subscribe(topic)
        for frame in _numbered(0, 20):
            await a.transport.publish(topic, frame, TTL)
        await b.has(20)
        b.link.cut()
        for frame in _numbered(20, 100):
            await a.transport.publish(topic, frame, TTL)
        assert await witness.has(120) == _numbered(0, 120)
        b.link.heal()
        for frame in _numbered(120, 20):
            await a.transport.publish(topic, frame, TTL)
        assert await b.has(140) == _numbered(0, 140)
        assert b.gaps == []

    @promise
    async def test_cut_again_and_again(self) -> None:
        """A link that is cut ten times under load loses nothing, doubles nothing, reorders nothing."""
        a, b = await self.peers(2)
        topic = self.fresh("topic")
        await b.transport.subscribe(topic)
        for round_ in range(10):
            for number, frame in enumerate(_numbered(round_ * 40, 40)):
                await a.transport.publish(topic, frame, TTL)
                if number == 10:
                    b.link.cut()
                if number == 25:
                    b.link.heal()
        assert await b.has(400) == _numbered(0, 400)
        assert b.gaps == []

    @promise
    async def test_queue_survives_a_cut_reader(self) -> None:
        """A reader that is cut off keeps no frame from the others, and goes on when it is back."""
        a, b, c = await self.peers(3)
        queue = self.fresh("queue")
        got: list[bytes] = []

        async def puller(peer: Peer) -> None:
            while True:
                got.append(await peer.transport.pull(queue))

        pullers = [asyncio.ensure_future(puller(peer)) for peer in (b, c)]
        try:
            await asyncio.sleep(0.05)
            b.link.cut()
            for frame in _numbered(0, 20):
                await a.transport.push(queue, frame, 1000, TTL)
            await eventually(lambda: len(got) >= 19, self.patience, "the other reader serves the queue")
            b.link.heal()
            for frame in _numbered(20, 20):
                await a.transport.push(queue, frame, 1000, TTL)
            await eventually(lambda: len(got) >= 40, self.patience, "everything is taken")
            assert sorted(got) == _numbered(0, 40)
        finally:
            for task in pullers:
                task.cancel()
            await asyncio.gather(*pullers, return_exceptions=True)
