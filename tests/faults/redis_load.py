"""A known load over real nodes, and the account of what came of it: lost, doubled, reordered, told."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from typing import Any

from servers import Server
from trunkline.errors import TransportUnavailable
from trunkline.names import new_node
from trunkline.transports.redis import RedisTransport
from trunkline.transports.redis.ops import HEADED
from trunkline.transports.redis.pace import Pace

TTL = 60.0
QUICK = Pace(heartbeat=0.5, audit=2.0)


async def eventually(condition: Callable[[], object], timeout: float = 30.0) -> None:
    """Wait until a condition holds; the timeout is for what never comes true, on a machine however busy."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"did not come true in {timeout} s"
        await asyncio.sleep(0.01)


class Node:
    """One open transport and all that arrived at it."""

    def __init__(self, server: Server, prefix: str, port: int = 0, **options: Any) -> None:
        self.name = new_node()
        self.frames: list[bytes] = []
        self.gaps: list[str | None] = []
        self.disconnects = 0
        self.reconnects = 0
        options = {"deadline": 2.0, "_pace": QUICK, **options}
        self.transport = RedisTransport(
            [f"redis://127.0.0.1:{port or server.port}"],
            prefix=prefix,
            on_disconnect=self._lost,
            on_reconnect=self._back,
            **options,
        )

    def _lost(self) -> None:
        self.disconnects += 1

    def _back(self, address: str) -> None:
        self.reconnects += 1

    def deliver(self, frame: bytes) -> None:
        self.frames.append(frame)

    def gap(self, topic: str | None, reason: str) -> None:
        self.gaps.append(topic)

    async def __aenter__(self) -> Node:
        await self.transport.open(self.name, self)
        return self

    async def __aexit__(self, *args: object) -> None:
        await self.transport.close()


class Load:
    """Nodes that publish to all topics and post to each other for as long as it runs; now and then a large frame."""

    def __init__(self, nodes: list[Node], topics: int = 5) -> None:
        self.nodes = nodes
        self.topics = [f"topic.{n}" for n in range(topics)]
        self.sent: dict[str, list[bytes]] = {node.name: [] for node in nodes}
        self.failed: list[BaseException] = []
        self.gone = 0
        self._stop = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Load:
        for node in self.nodes:
            for topic in self.topics:
                await node.transport.subscribe(topic)
        self._tasks = [asyncio.create_task(self._send(i, node)) for i, node in enumerate(self.nodes)]
        return self

    async def _send(self, number: int, node: Node) -> None:
        count = 0
        others = [other for other in self.nodes if other is not node]
        while not self._stop:
            calls = []
            for topic in self.topics:
                count += 1
                frame = b"%d:%*d:%b" % (number, self._width(count), count, topic.encode())
                calls.append(self._one(node.transport.publish(topic, frame, TTL), frame, self.nodes))
            for channel in ("x!1", "x!1", "x!2"):  # several at once travel as one
                for other in others:
                    count += 1
                    frame = b"%d:%*d:post" % (number, self._width(count), count)
                    post = node.transport.post(other.name, channel, frame, None, TTL)
                    calls.append(self._one(post, frame, [other]))
            await asyncio.gather(*calls)
            await asyncio.sleep(0.002)

    @staticmethod
    def _width(count: int) -> int:
        return HEADED if count % 32 == 0 else 6

    async def _one(self, call: Any, frame: bytes, receivers: list[Node]) -> None:
        try:
            if await call is False:
                self.gone += 1
                return
        except TransportUnavailable as error:
            self.failed.append(error)
            return
        for receiver in receivers:
            self.sent[receiver.name].append(frame)

    async def __aexit__(self, kind: object, *args: object) -> None:
        try:
            if kind is None:
                await eventually(lambda: all(len(node.frames) > 100 for node in self.nodes))
        finally:
            self._stop = True
            await asyncio.gather(*self._tasks)

    def lost(self, node: Node) -> list[bytes]:
        got = set(node.frames)
        return [frame for frame in self.sent[node.name] if frame not in got]

    @staticmethod
    def doubled(node: Node) -> int:
        return len(node.frames) - len(set(node.frames))

    @staticmethod
    def reordered(node: Node, across_topics: bool = True) -> int:
        highest: dict[bytes, int] = {}
        wrong = 0
        for frame in node.frames:
            sender, count, topic = frame.split(b":")
            if not across_topics:
                sender += topic
            wrong += int(count) < highest.get(sender, 0)
            highest[sender] = max(highest.get(sender, 0), int(count))
        return wrong

    async def check(self, across_topics: bool = True) -> None:
        """Nothing lost, nothing doubled, nothing reordered, nothing told."""
        try:
            await eventually(lambda: not any(self.lost(node) for node in self.nodes))
        except AssertionError:
            pass
        account = [
            (
                len(node.frames),
                len(self.lost(node)),
                self.doubled(node),
                self.reordered(node, across_topics),
                node.gaps,
            )
            for node in self.nodes
        ]
        assert all(got > 100 for got, *_ in account), f"too little was sent to tell: {account}"
        bad = [row for row in account if row[1:] != (0, 0, 0, [])]
        assert not bad, f"received, lost, doubled, reordered, told: {account}"
        assert not self.failed, self.failed[:3]
        assert self.gone == 0


def unique() -> str:
    return f"t{uuid.uuid4().hex[:10]}"
