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

__all__ = ["Arrivals", "Finding", "Leased", "Server", "Transport"]


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
    #: Seconds since its last sign of life; None: there was none yet.
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


class Arrivals(Protocol):
    """What a transport calls when something arrives. The calls are quick, synchronous and do not raise."""

    def deliver(self, frame: bytes) -> None:
        """Take one frame that was published to a subscribed topic or posted to this node."""

    def gap(self, topic: str | None, reason: str) -> None:
        """Learn that frames for this topic (None: any topic) were lost and cannot be fetched any more."""


class Transport(ABC):
    """Carries frames between nodes."""

    #: Extra powers this transport has, e.g. ``"leases"``. The layer asks before it offers them.
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

    async def remember(self, topic: str, frame: bytes, size: int, seconds: float) -> int:
        """Append the frame to the topic's history, which is not published.

        The newest ``size`` frames are kept, each for at least ``seconds``; the newest one always, for a day longer.

        Returns:
            Its place: 1, 2, 3 …, without a hole, in the same order for all nodes. Places begin anew only when
            everything was lost, flushed or forgotten.
        """
        raise NotImplementedError(f"{type(self).__name__} has no history")

    async def recall(self, topic: str, first: int | None, count: int) -> list[tuple[int, bytes]]:
        """The remembered frames with their places, oldest first: at most ``count``, from place ``first`` on, or, with None,
        the newest."""
        raise NotImplementedError(f"{type(self).__name__} has no history")
