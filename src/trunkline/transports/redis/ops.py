"""The operations an outbox sends: what each says to the server, and what its answer means.

Rules of this room: every operation may be sent twice. Its number makes the second time harmless.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...continuity import HEAD, HEADER_SIZE, VOID, Sent
from ...errors import ChannelFull, TransportUnavailable
from .connection import LARGE, ReplyError, pack, pack_large, words
from .scripts import PUSH, REMEMBER, Script

if TYPE_CHECKING:
    from .outbox import Outbox

__all__ = [
    "FOR_EVER",
    "Batch",
    "Destination",
    "Op",
    "PlainOp",
    "Post",
    "Posts",
    "Publish",
    "Push",
    "Remember",
    "ScriptOp",
]

FOR_EVER = float("inf")

#: Bytes from which on a frame is only appended to its log, and what is pushed is its head.
HEADED = 64 << 10


class Op(Sent):
    """One operation and the future its caller waits for."""

    #: It has no answer to give before enough replicas have it; others then tell that they have not.
    patient = False

    __slots__ = ("expires", "future", "outbox", "want")

    def __init__(
        self,
        outbox: Outbox,
        topic: bytes | None,
        body: bytes,
        ttl: float,
        future: asyncio.Future[Any] | None = None,
    ) -> None:
        super().__init__(topic, body)
        self.want = 1
        self.outbox = outbox
        self.expires = time.monotonic() + ttl
        self.future: asyncio.Future[Any] = asyncio.Future(loop=outbox.loop) if future is None else future

    def commands(self) -> bytes | list[bytes]:
        """The packed commands, in parts if they are large; ``want`` says how many."""
        raise NotImplementedError

    def conclude(self, replies: list[Any]) -> Any:
        """What the caller gets; or raise."""
        return replies[-1]

    def answered(self, replies: list[Any]) -> None:
        self.outbox.answered(self, replies)

    def short(self, replies: list[Any], error: TransportUnavailable) -> None:
        """As ``answered``, but too few replicas have it."""
        self.outbox.short(self, replies, error)

    def fall_short(self, result: Any, error: TransportUnavailable) -> None:
        """Tell the caller that too few replicas have it; what changed nothing needs none."""
        if not self.future.done():
            if result is False or self.expires == FOR_EVER:
                self.future.set_result(result)
            else:
                self.future.set_exception(error)

    def lost(self, error: TransportUnavailable) -> None:
        """Nothing to do: the outbox sends it again."""


@functools.lru_cache(maxsize=16384)
def _publish_words(topic: bytes, publish: bytes, bindings: bytes) -> tuple[bytes, bytes, bytes]:
    """What all publishes to a topic have in common: the beginnings of two commands, and the third."""
    append = b"*5\r\n" + words(b"XADD", topic, b"*", b"d")
    return append, b"*3\r\n" + words(publish, topic), pack(b"HGETALL", bindings)


#: Those, with the frame, twice.
_PUBLISH = b"%b$%d\r\n%b\r\n%b$%d\r\n%b\r\n%b"


class Publish(Op):
    """Append to the topic's log, push to whoever listens, and learn which queues are bound to it."""

    __slots__ = ("bindings", "retention_ms", "seen")

    def __init__(
        self, outbox: Outbox, topic: bytes, body: bytes, ttl: float, retention: float, bindings: bytes
    ) -> None:
        super().__init__(outbox, topic, body, ttl)
        self.retention_ms = int(retention * 1000)
        self.bindings = bindings
        #: Bindings that were found where the log is no more.
        self.seen: list[bytes] = []

    def commands(self) -> bytes | list[bytes]:
        outbox, topic = self.outbox, self.topic
        sender = outbox.sender
        append, push, look = _publish_words(topic or b"", outbox.dialect.publish, self.bindings)
        size = HEADER_SIZE + len(self.body)
        upkeep = outbox.upkeep(topic or b"", size, self.stamp, self.retention_ms)
        self.want = 3 + len(upkeep)
        if upkeep:
            look = b"".join((*upkeep, look))
        # The log first: whatever was pushed can then be read.
        if size < HEADED:
            frame = sender.frame(self)
            return _PUBLISH % (append, size, frame, push, size, frame, look)
        head = sender.header(self, HEAD)
        return [
            b"%b$%d\r\n%b" % (append, size, sender.header(self)),
            self.body,
            b"\r\n%b$%d\r\n%b\r\n%b" % (push, len(head), head, look),
        ]

    def conclude(self, replies: list[Any]) -> list[bytes] | None:
        """The bindings; None: they are at another master, and to be asked for by themselves."""
        found: list[bytes] | None = replies[-1]
        return found if found is None else found or self.seen

    def answered(self, replies: list[Any]) -> None:
        if isinstance(replies[0], ReplyError) or isinstance(replies[-1], ReplyError):
            self._apart(replies)
        self.outbox.answered(self, replies)

    def short(self, replies: list[Any], error: TransportUnavailable) -> None:
        if isinstance(replies[0], ReplyError) or isinstance(replies[-1], ReplyError):
            self._apart(replies)
        self.outbox.short(self, replies, error)

    def _apart(self, replies: list[Any]) -> None:
        """While a slot is on its way to another master, the log may be here and the bindings there, or the reverse.

        All of it sent there would make a second log, for which the migration would stop.
        """
        *log, found = replies
        if not isinstance(found, ReplyError):
            self.seen = found
        elif str(found).startswith("ASK") and not any(isinstance(reply, ReplyError) for reply in log):
            replies[-1] = None


class ScriptOp(Op):
    """Run a script whose arguments are known beforehand, but for its own number."""

    __slots__ = ("_args", "_keys", "_script", "numbered", "patient")

    def __init__(
        self,
        outbox: Outbox,
        script: Script,
        keys: tuple[bytes, ...],
        args: list[bytes | str | int],
        *,
        ttl: float = FOR_EVER,
        numbered: bool = False,
        patient: bool = False,
        future: asyncio.Future[Any] | None = None,
    ) -> None:
        super().__init__(outbox, None, b"", ttl, future)
        self._script, self._keys, self._args = script, keys, args
        self.numbered, self.patient = numbered, patient

    def commands(self) -> bytes:
        number: tuple[int, ...] = (self.seq,) if self.numbered else ()
        return pack(
            b"EVALSHA",
            self.outbox.dialect.sha(self._script),
            len(self._keys),
            *self._keys,
            *number,
            *self._args,
        )


class PlainOp(Op):
    """One command that may be done twice without harm."""

    __slots__ = ("_command",)

    def __init__(self, outbox: Outbox, *command: bytes | str | int, ttl: float = FOR_EVER) -> None:
        super().__init__(outbox, None, b"", ttl)
        self._command = command

    def commands(self) -> bytes:
        return pack(*self._command)


class Destination:
    """A channel of another node, seen from here: what all posts to it have in common.

    Args:
        keys: Of its node: the inbox, and four more.
        label: What stands in a post between its size and its frame.
        retention: Seconds.
    """

    __slots__ = ("capacity", "channel", "head", "inbox", "label", "life", "outbox", "retention_ms", "run")

    def __init__(
        self,
        outbox: Outbox,
        keys: tuple[bytes, ...],
        channel: str,
        capacity: int | None,
        label: bytes,
        retention: float,
    ) -> None:
        self.outbox = outbox
        self.inbox = keys[0]
        self.channel = channel
        self.capacity = -1 if capacity is None else capacity
        self.label = label
        self.retention_ms = int(retention * 1000)
        self.head = words(b"EVALSHA", outbox.post_sha, len(keys), *keys)
        #: How long the keys live there, in milliseconds.
        self.life = words(self.retention_ms + 60_000)
        #: One frame for it.
        self.run = words(channel, self.capacity, 1)

    def full(self) -> ChannelFull:
        """What callers are told when there is no room."""
        return ChannelFull(
            f"channel {self.channel!r} holds {self.capacity} messages, as many as its capacity allows"
        )


class Post(Op):
    """Post to a node's inbox."""

    __slots__ = ("to",)

    def __init__(self, to: Destination, body: bytes, ttl: float) -> None:
        # As Op(…) does, without two calls in between: this is once for every message.
        outbox = self.outbox = to.outbox
        self.topic = to.inbox
        self.body = body
        self.flags = self.seq = self.prev = self.stamp = self.age = 0
        self.done = False
        self.want = 1
        self.expires = time.monotonic() + ttl
        self.future = asyncio.Future(loop=outbox.loop)
        self.to = to

    def commands(self) -> bytes | list[bytes]:
        outbox, to = self.outbox, self.to
        sender = outbox.sender
        size = HEADER_SIZE + len(self.body)
        if size < HEADED:
            self.want = 1
            return _post(self, to, sender.frame(self), _ONE, to.run)
        # The script would copy it several times: it only counts, and says in the log what it refuses.
        header = sender.header(self)
        append = b"*5\r\n" + words(b"XADD", to.inbox, b"*", b"d")
        behind = pack(b"PEXPIRE", to.inbox, to.retention_ms + 60_000)
        behind += pack(outbox.dialect.publish, to.inbox, sender.header(self, HEAD))
        self.want = 4
        count = _post(self, to, header, _ONE, to.run)
        return [b"%b%b$%d\r\n%b" % (count, append, size, header), self.body, b"\r\n" + behind]

    def conclude(self, replies: list[Any]) -> Any:
        if replies[0] == b"OK":
            return True
        if self.want > 1:
            self.outbox.discard(self.to.inbox, replies[1])
        if replies[0] == b"GONE":
            _unheard(self)
            return False
        self.outbox.sender.give_up(self)
        raise self.to.full()


class Posts(Op):
    """What one turn of the loop posts to one node's inbox: one link of the chain, one push, one command."""

    __slots__ = ("_posts", "_runs", "_to")

    #: Frames of one, and bytes of each, at most. Of 100 senders' posts the first half is on its way before the other is.
    MOST, MOST_BYTES = 50, 8 << 10

    def __init__(self, posts: list[Post]) -> None:
        first = posts[0]
        super().__init__(first.outbox, first.topic, b"", 0.0, _Each(posts, first.outbox.loop))
        self.expires = first.expires
        self._to = first.to
        #: Until they are answered: what is kept for a replay are few objects, for the collector looks at each.
        self._posts = posts
        self._hold(posts)

    def _hold(self, posts: list[Post]) -> None:
        self.body = b"".join([post.body for post in posts])
        runs: list[str | int] = []
        to: Destination | None = None
        for post in posts:
            if post.to is to:
                runs[-1] += 1  # type: ignore[operator] # the count
            else:
                to = post.to
                runs += to.channel, to.capacity, 1
        self._runs = tuple(runs)

    def commands(self) -> bytes:
        to = self._to
        return _post(self, to, self.outbox.sender.frame(self), len(self._runs), _runs(self._runs))

    def conclude(self, replies: list[Any]) -> Any:
        posts, self._posts = self._posts, []
        if replies[0] == b"OK":
            return [True] * len(posts)
        if replies[0] == b"GONE":
            _unheard(self)
            return [False] * len(posts)
        if self.future.done():  # concluded before: what was refused is not in it any more
            return []
        refused = {int(place) - 1 for place in replies[0].split()[1:]}
        if len(refused) < len(posts):
            self._hold([post for place, post in enumerate(posts) if place not in refused])
        else:
            self.outbox.sender.give_up(self)
        return [post.to.full() if place in refused else True for place, post in enumerate(posts)]

    def fall_short(self, result: list[bool | ChannelFull], error: TransportUnavailable) -> None:
        if not self.future.done():
            self.future.set_result([error if outcome is True else outcome for outcome in result])


class _Each(asyncio.Future[list[Any]]):
    """The answers to several that travelled as one, each told to its caller; one that is an error is raised there."""

    def __init__(self, ops: Sequence[Op | Push], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._ops = ops

    def set_result(self, result: list[Any]) -> None:
        super().set_result(result)
        for op, outcome in zip(self._ops, result, strict=True):
            future = op.future
            if future.done():
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    def set_exception(self, exception: type[BaseException] | BaseException) -> None:
        super().set_exception(exception)
        self.exception()  # heard: it goes on to each caller
        for op in self._ops:
            if not op.future.done():
                op.future.set_exception(exception)


def _post(op: Op, to: Destination, frame: bytes, count: int, runs: bytes) -> bytes:
    """The command that posts ``op``.

    Args:
        frame: Or its header only; then the body comes by itself.
        count: How many words say which channel its frames are for.
        runs: Those words.
    """
    if op.flags & VOID:
        # It was refused or given up: only its place in the chain is filled.
        count, runs = _ONE, words(to.channel, 0, 1)
    outbox = op.outbox
    keep = outbox.due(to.inbox, HEADER_SIZE + len(op.body), to.retention_ms)
    upkeep = _NOT_NOW if keep is None else words(op.stamp - to.retention_ms, keep)
    return _POST % (
        14 + count, to.head, len(frame), frame, op.seq, outbox.sender.floor, to.life, upkeep, runs,
    )  # fmt: skip


#: Words of one run of frames: channel, capacity and count.
_ONE = 3

#: Those of several.
_runs = functools.lru_cache(maxsize=16384)(lambda runs: words(*runs))

_NOT_NOW = words("", 0)

#: How many words, those that say what to do where, the frame, seq and floor, and the rest.
_POST = b"*%d\r\n%b$%d\r\n%b\r\n$16\r\n%016d\r\n$16\r\n%016d\r\n%b%b%b"


def _unheard(op: Op) -> None:
    """The node is gone: its chain begins anew, and this is never to be replayed."""
    if op.topic is not None:
        op.outbox.sender.forget(op.topic)
    op.topic = None


class Remember(Op):
    """Append to what a topic remembers."""

    __slots__ = ("_frame", "_keys", "_mark", "_seconds", "_size")

    #: Milliseconds that the server knows what it appended for us; longer than any command can be late.
    _MEMORY_MS = 600_000

    def __init__(
        self,
        outbox: Outbox,
        keys: tuple[bytes, ...],
        frame: bytes,
        mark: str,
        size: int,
        seconds: float,
        ttl: float,
    ) -> None:
        super().__init__(outbox, None, b"", ttl)
        self._keys, self._frame, self._mark, self._size, self._seconds = keys, frame, mark, size, seconds

    def commands(self) -> bytes | list[bytes]:
        pack_all = pack if len(self._frame) < LARGE else pack_large
        return pack_all(
            b"EVALSHA", self.outbox.dialect.sha(REMEMBER), 2, *self._keys,
            self.seq, self.outbox.sender.floor, self._frame, self._mark, self._size, str(self._seconds),
            self._MEMORY_MS,
        )  # fmt: skip


class Push:
    """One frame for a shared queue, no operation by itself: it travels in a ``Batch``."""

    __slots__ = ("body", "capacity", "expires", "future", "keys", "outbox", "queue", "ttl")

    def __init__(
        self, outbox: Outbox, keys: tuple[bytes, ...], queue: str, frame: bytes, capacity: int, ttl: float
    ) -> None:
        self.outbox, self.body = outbox, b"+" + frame
        self.expires = time.monotonic() + ttl
        self.future: asyncio.Future[None] = outbox.loop.create_future()
        self.keys = keys
        self.queue, self.capacity, self.ttl = queue, capacity, ttl

    def full(self) -> ChannelFull:
        """What its caller is told when there is no room."""
        return ChannelFull(
            f"queue {self.queue!r} holds {self.capacity} messages, as many as its capacity allows"
        )


class Batch(Op):
    """What one turn of the loop appends to a shared queue; the server takes as much of it as has room."""

    __slots__ = ("_room", "pushes")

    #: Frames and bytes of one batch, at most.
    MOST, MOST_BYTES = 64, 64 << 10

    def __init__(self, first: Push) -> None:
        self.pushes = [first]
        answers = _Each(self.pushes, first.outbox.loop)
        super().__init__(first.outbox, None, b"", first.ttl, answers)
        self._room = self.MOST_BYTES - len(first.body)

    def join(self, push: Push) -> bool:
        """Take one more along; False when it must travel by itself."""
        first = self.pushes[0]
        self._room -= len(push.body)
        if (
            self._room < 0
            or len(self.pushes) == self.MOST
            or (first.capacity, first.ttl) != (push.capacity, push.ttl)
        ):
            return False
        self.pushes.append(push)
        return True

    def conclude(self, replies: list[Any]) -> Any:
        return [None if place < replies[0] else push.full() for place, push in enumerate(self.pushes)]

    def fall_short(self, result: list[ChannelFull | None], error: TransportUnavailable) -> None:
        if not self.future.done():
            self.future.set_result([outcome or error for outcome in result])

    def commands(self) -> bytes | list[bytes]:
        first = self.pushes[0]
        ttl = max(int(first.ttl * 1000), 1)
        pack_all = pack if len(first.body) < LARGE else pack_large
        return pack_all(
            b"EVALSHA", self.outbox.dialect.sha(PUSH), 5, *first.keys,
            first.capacity, ttl, self.seq, self.outbox.sender.floor, ttl + 60_000,
            *[push.body for push in self.pushes],
        )  # fmt: skip
