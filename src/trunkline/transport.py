"""The contract: what carries frames between nodes, and nothing more.

A *transport* moves *frames* (opaque bytes) between *nodes* (one open layer in one event loop). It knows *topics* (every
subscriber gets a copy) and *queues* (one taker gets it). It never hears of groups, messages or consumers: their
meaning is given once, above, by the layer. So what holds on ``memory://`` holds on every other transport.

Rules for whoever implements one:

- Construction does no I/O and needs no event loop. All other methods run in the loop that called ``open``.
- Arrivals are handed to ``arrivals.deliver(frame)`` by plain calls that never block and never raise; no queue sits on
  this boundary. Arrivals may start before ``open`` returns and must stop when ``close`` returns.
- A driver's exception becomes ``TransportUnavailable`` (as its ``__cause__``) in one place. It means: not sent, unless
  its text says that it was on its way and may have arrived.
- Cancelling any call leaves the transport usable and loses nothing that was already taken.

``trunkline.testing.TransportConformance`` is this page as tests.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self

from .settings import shown_url

__all__ = ["Arrivals", "Finding", "Leased", "Record", "Renewal", "Server", "Transport"]


class Finding(NamedTuple):
    """One thing that ``trunkline doctor`` has to say about what is behind a URL."""

    level: Literal["ok", "warning", "error"]
    what: str
    #: What to do about it; empty when it is fine.
    fix: str = ""


class Server(NamedTuple):
    """One thing that an open transport is linked to, as it knows without asking: a server, or a folder."""

    #: What people call it, without secrets.
    name: str
    up: bool
    #: Seconds since its last sign of life; None: there was none yet, or nobody counts.
    silent: float | None = 0.0
    #: What is wrong with it, if anything.
    trouble: str = ""
    #: Operations that wait to be sent to it, or for its answer.
    outbox: int = 0


class Leased(NamedTuple):
    """A frame that was taken for a while."""

    #: What ``hold`` and ``settle`` know it by.
    token: str
    frame: bytes
    #: How often it was leased, this time included.
    tries: int


class Record(NamedTuple):
    """A few bytes that a node keeps beside a topic for as long as it lives."""

    node: str
    key: str
    #: What it is counted with; empty for none.
    tag: str
    value: bytes


class Renewal(NamedTuple):
    """What ``renew_records`` found out, as topics."""

    #: What this node kept there is lost, or not all of it is sure: keep it anew.
    forgotten: list[str]
    #: The lease had ended and another node has reaped what this one kept, or a part of it: keep it anew.
    reaped: list[str]
    #: Leases of other nodes have ended there, and nobody has reaped all they left.
    lapsed: list[str]


class Arrivals(Protocol):
    """What a transport calls when something arrives. The calls are quick, synchronous and do not raise."""

    def deliver(self, frame: bytes) -> None:
        """Take one frame that was published to a subscribed topic or posted to this node."""

    def gap(self, topic: str | None, reason: str) -> None:
        """Learn that frames for this topic (None: any topic) were lost and cannot be fetched any more."""


class Transport(ABC):
    """Carries frames between nodes."""

    #: Extra powers this transport has: ``"leases"``, ``"records"``. The layer asks before it offers them.
    features: ClassVar[frozenset[str]] = frozenset()
    #: Query keys of a URL that ``from_url`` reads itself; all others are settings of the layer or of the constructor.
    url_keys: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    @abstractmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """Make one from a URL whose scheme named it; ``options`` are keyword arguments of the constructor."""

    @classmethod
    async def examine(cls, url: str, **options: Any) -> list[Finding]:
        """Look at what is behind a URL: is it there, is it fit for this, how quick is it, what should be changed.

        Never raises for what it finds; leaves nothing behind.
        """
        return [Finding("ok", f"{shown_url(url)}: nothing is known against it")]

    @abstractmethod
    async def open(self, node: str, arrivals: Arrivals) -> None:
        """Connect under this node name, unique for ever. From the return on, posts to the node arrive.

        Raises:
            TransportUnavailable: It could not connect.
            ConfigurationError: It never will (wrong permissions, wrong path, wrong version).
        """

    @abstractmethod
    async def close(self) -> None:
        """Leave: the node is gone for all others, no task or connection stays. Closing twice is fine."""

    @abstractmethod
    def abandon(self) -> None:
        """Let go of every local resource at once, without I/O that others would notice.

        Called in a forked child, which must not speak for its parent, and when the event loop is already closed.
        """

    def servers(self) -> list[Server]:
        """What it is linked to, and how that does. No I/O: for ``layer.health()``, asked at any time, by any thread."""
        return []

    @abstractmethod
    def now(self) -> float:
        """The shared clock, in seconds: the broker's where there is one. All expiry is measured on it."""

    @abstractmethod
    async def subscribe(self, topic: str) -> None:
        """Receive the topic. On return, no later publish is missed."""

    @abstractmethod
    async def unsubscribe(self, topic: str) -> None:
        """Stop receiving the topic. Unknown topics are ignored."""

    @abstractmethod
    async def publish(self, topic: str, frame: bytes, ttl: float) -> Sequence[str]:
        """Carry the frame to every node subscribed, this one included, and into every queue bound to the topic.

        Delivery: at most once to each node; to a live node that can be reached within ``ttl`` seconds, exactly once.
        Order: as this node published, for each receiving node. Its own copy is delivered before this returns, so that
            what the layer then puts into a mailbox here by itself comes after it.

        Returns:
            The bound queues that were full and did not get it (usually empty).
        """

    @abstractmethod
    async def post(self, node: str, channel: str, frame: bytes, capacity: int | None, ttl: float) -> bool:
        """Carry the frame to one node, counting it against ``capacity`` frames waiting on ``channel``.

        With ``capacity`` None it is neither bounded nor counted, and never reported as taken.

        The owner tells by ``taken`` what was consumed; until then a frame counts, wherever it is.
        Order: with publishes of the same sender, as sent.

        Returns:
            False when no such node is open: nothing was sent.

        Raises:
            ChannelFull: ``capacity`` posted frames are waiting.
        """

    @abstractmethod
    def taken(self, channel: str, count: int) -> None:
        """Report that ``count`` posted frames of a channel of this node were consumed (or dropped). Never waits."""

    @abstractmethod
    async def push(self, queue: str, frame: bytes, capacity: int, ttl: float) -> None:
        """Append to a shared queue. The frame is forgotten after ``ttl`` seconds and then no longer counts.

        Raises:
            ChannelFull: ``capacity`` live frames are waiting.
        """

    @abstractmethod
    async def pull(self, queue: str) -> bytes:
        """Wait for the oldest live frame of the queue and take it: no other pull, in any process, gets it too.

        Cancellation: safe. A cancelled pull takes nothing. An outage is waited out, not raised.
        """

    # With "leases" in ``features``. One thing is behind all four: a queue's frames that are *put off*, each until a time of
    # its own, at which it goes to the front of the queue, to live there for its ``ttl``. That needs a reader only, whoever
    # put it off may be dead.

    async def lease(self, queue: str, seconds: float, ttl: float) -> Leased:
        """As ``pull``, but the frame is put off for so many seconds: unless it is settled until then, it comes back.

        Cancellation: safe. A cancelled lease takes nothing, and counts as no try. An outage is waited out, not raised.
        """
        raise NotImplementedError

    async def hold(self, queue: str, token: str, seconds: float) -> bool:
        """Let a lease end so many seconds from now instead: to go on with the frame, or to have it come back sooner.

        Returns:
            False when it had ended: the frame is in the queue again, or in other hands.
        """
        raise NotImplementedError

    async def settle(self, queue: str, token: str) -> bool:
        """The frame is done: it will not come back. Returns False as ``hold`` does."""
        raise NotImplementedError

    async def push_later(self, queue: str, frame: bytes, capacity: int, ttl: float, delay: float) -> None:
        """As ``push``, but the frame is put off for ``delay`` seconds first.

        Raises:
            ChannelFull: ``capacity`` frames of the queue are put off, leased ones included. Those in the queue do not count.
        """
        raise NotImplementedError

    @abstractmethod
    async def bind(self, topic: str, queue: str, capacity: int, ttl: float) -> None:
        """Append every later publish to ``topic`` to the queue too, for ``ttl`` seconds from the last bind."""

    @abstractmethod
    async def unbind(self, topic: str, queue: str) -> None:
        """Undo ``bind``. Unknown pairs are ignored."""

    @abstractmethod
    async def flush(self) -> None:
        """Forget every frame, queue, binding and count of this prefix, for all nodes. Nodes and subscriptions stay."""

    # History: a power declared by "history" in ``features``.

    async def remember(
        self, topic: str, frame: bytes, mark: str, size: int, seconds: float
    ) -> tuple[int, str]:
        """Append the frame to the topic's history, which is not published.

        The newest ``size`` frames are kept, each for at least ``seconds``; the newest one always, for a day longer.

        Args:
            mark: A few characters that stand for the frame.

        Returns:
            Its place, 1, 2, 3 …, without a hole, in the same order for all nodes, and the mark of the frame before it
            ("" without one). Places begin anew only when everything was lost, flushed or forgotten.
        """
        raise NotImplementedError(f"{type(self).__name__} has no history")

    async def recall(self, topic: str, first: int | None, count: int) -> list[tuple[int, bytes]]:
        """The remembered frames with their places, oldest first: at most ``count``, from place ``first`` on, or, with None,
        the newest."""
        raise NotImplementedError(f"{type(self).__name__} has no history")

    # With "records" in ``features``: what nodes keep beside topics
    #
    # Those of one node beside one topic share a lease: they count as gone ``ttl`` seconds after the node's last keep or
    # renewal there, or when it closes, and stay until some node reaps them. What one node asks takes effect in the order
    # in which the calls were started, and once, whatever becomes of the answer.

    async def keep_record(self, topic: str, key: str, tag: str, value: bytes, ttl: float) -> int:
        """Keep a record of this node beside a topic, under a key that this node uses there once.

        Again, with the same tag: its value is replaced. It does not hide from the next renewal that records of this node
        were lost or reaped.

        Returns:
            How many records beside the topic have its tag now, over all nodes; 0 when this one was there already. Of
            concurrent calls for one tag, exactly one gets 1.
        """
        raise NotImplementedError

    async def drop_record(self, topic: str, key: str) -> int | None:
        """Take a record of this node away.

        Returns:
            How many others beside the topic have its tag, over all nodes; of concurrent calls for one tag exactly one gets
            0. None: there was no such record.
        """
        raise NotImplementedError

    async def renew_records(self, topics: Sequence[str], ttl: float) -> Renewal:
        """Renew the leases on what this node keeps beside these topics. What is forgotten or reaped is told each time
        until a ``keep_record`` that was started after the return."""
        raise NotImplementedError

    async def records(self, topic: str) -> list[Record]:
        """The records beside a topic whose lease has not ended, and this node's own."""
        raise NotImplementedError

    async def count_records(self, topic: str) -> tuple[int, int]:
        """How many records there are beside a topic, and how many different tags other than "" they have.

        Its cost grows with the nodes, not with the records. What was not reaped yet may count.
        """
        raise NotImplementedError

    async def reap_records(self, topic: str) -> list[tuple[Record, int]]:
        """Take away what other nodes whose lease has ended left beside a topic: all, or a part, and call it again.

        Returns:
            Each record, and how many others have its tag then. No record is ever returned twice, to any node.
        """
        raise NotImplementedError
