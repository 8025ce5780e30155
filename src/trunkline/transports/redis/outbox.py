"""What this node sends to one server, in order: nothing overtakes, nothing is forgotten while it may not have arrived.

Rules of this room: every operation is idempotent by its number, so all that is unanswered is sent again, in order and
before anything new, when a connection was lost or the server is in a state in which it refuses to work. What is not
yet numbered waits in a bounded buffer and can still be withdrawn.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ...clock import Clock
from ...continuity import REPEATED, Sender
from ...errors import ChannelFull, TransportUnavailable
from .connection import ReplyError, pack, unavailable
from .dialect import PLAIN, Dialect
from .hosts import Host
from .ops import FOR_EVER, Batch, Op, Post, Posts, Push
from .replicas import Line
from .scripts import POST

__all__ = ["Outbox"]

#: Refusals that pass: the server starts, saves its memory, runs a long script, changes its role.
_PASSING = (
    "LOADING", "OOM", "BUSY", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "MISCONF", "NOREPLICAS", "NOSCRIPT", "READONLY",
    "MOVED", "ASK",
)  # fmt: skip

#: What may wait in an outage.
MAX_WAITING = 10_000
MAX_WAITING_BYTES = 16 << 20

#: Bytes that one log may take, roughly.
LOG_BYTES = 128 << 20


class _Log:
    """What this sender has put into one log since it last looked after it."""

    __slots__ = ("bytes", "frames", "renew_at")

    def __init__(self) -> None:
        self.renew_at = 0.0
        self.frames = self.bytes = 0


class Outbox:
    """The way out to one server: *flowing*, *stalled* (connected, but the server refuses) or *down*.

    Args:
        hears: Whether this node listens to a topic.
        echo: Gets every operation of a chain that this node hears, when the server has answered it, in the order of the
            chain.
        dialect: The words of pub/sub there.
        redirect: In a cluster: gets every refusal that passes, and whether the operation is the only one on its way. It
            returns True when it has sent the operation elsewhere.
    """

    #: Seconds between two attempts at a server that refuses.
    PAUSE = 0.05

    def __init__(
        self,
        host: Host,
        sender: Sender[Op],
        clock: Clock,
        log_length: int,
        hears: Callable[[bytes], bool],
        echo: Callable[[Op], None],
        *,
        dialect: Dialect = PLAIN,
        redirect: Callable[[Op, str, bool], bool] | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.sender = sender
        self.clock = clock
        self._host = host
        self._hears, self._echo = hears, echo
        self.dialect = dialect
        self.post_sha = dialect.sha(POST)
        self._redirect = redirect
        self._log_length = log_length
        self._many = log_length / 8
        self._connection: Line | None = None
        self._told: asyncio.Future[Any] = self.loop.create_future()
        self._told.set_result(None)
        self.flowing = False
        self._trial: Op | None = None
        #: The last trial was sent elsewhere, so the next ones may be too.
        self._elsewhere = False
        self._fence: _Fence | None = None
        self._trouble: BaseException | str = "not connected yet"
        self._waiting: deque[Op | Push] = deque()
        self._waiting_bytes = 0
        self._sweeper: asyncio.TimerHandle | None = None
        self._logs: dict[bytes, _Log] = {}
        #: What this turn of the loop pushes to each queue.
        self._batches: dict[str, Batch] = {}
        #: What it posts to each inbox.
        self._posts: dict[bytes, list[Post]] = {}
        #: Posts come one at a time, as far as the last ones tell.
        self._alone = True
        #: What is done again because somebody asked for it.
        self._repeated: set[Op] = set()

    # -- in

    def submit(self, op: Op | Push) -> None:
        """Send it, or keep it until it can be sent.

        Raises:
            TransportUnavailable: The server cannot be reached, and as much is waiting as may wait.
        """
        if self.flowing:
            self._send_new(op)
            return
        # What has no end of life (pulls, reports) is bounded by who makes it.
        if op.expires != FOR_EVER and self._is_full():
            self._prune_waiting()
            if self._is_full():
                raise unavailable(self._host, self._trouble)
        self._waiting.append(op)
        self._waiting_bytes += len(op.body)
        self._arm()

    def _is_full(self) -> bool:
        return len(self._waiting) >= MAX_WAITING or self._waiting_bytes >= MAX_WAITING_BYTES

    def _prune_waiting(self) -> None:
        self._waiting = deque(op for op in self._waiting if not op.future.done())
        self._waiting_bytes = sum(len(op.body) for op in self._waiting)

    def _send_new(self, op: Op | Push) -> None:
        if isinstance(op, Post):
            if self._posts or not self._alone or self.sender.busy:
                self._gather_post(op)
            else:
                self._number(op)
        elif isinstance(op, Push):
            self._gather(op)
        else:
            if self._posts and op.topic is not None:
                self._send_posts()  # what one sender sends stays in order
            self._number(op)

    def _number(self, op: Op) -> None:
        self.sender.number(op, int(self.clock.now() * 1000))
        if self._connection is not None:
            self._connection.send(op.commands(), op)

    def _gather_post(self, post: Post) -> None:
        if len(post.body) > Posts.MOST_BYTES:
            self._send_posts()
            self._number(post)
            return
        if not self._posts:
            self.loop.call_soon(self._send_gathered)
        posts = self._posts.setdefault(post.to.inbox, [])
        posts.append(post)
        if len(posts) == Posts.MOST:
            self._send_posts()

    def _send_gathered(self) -> None:
        self._alone = sum(len(posts) for posts in self._posts.values()) == 1
        self._send_posts()

    def _send_posts(self) -> None:
        gathered, self._posts = self._posts, {}
        for posts in gathered.values():
            self._number(posts[0] if len(posts) == 1 else Posts(posts))

    def _stall(self) -> None:
        """What comes from now on waits, behind what has come in this turn of the loop."""
        self.flowing = False
        gathered, self._posts = self._posts, {}
        for posts in gathered.values():
            self._keep(posts)

    def _keep(self, ops: Sequence[Op | Push]) -> None:
        self._waiting.extend(ops)
        self._waiting_bytes += sum(len(op.body) for op in ops)

    def _gather(self, push: Push) -> None:
        batch = self._batches.get(push.queue)
        if batch is not None and batch.join(push):
            return
        if not self._batches:
            self.loop.call_soon(self._send_batches)
        self._batches[push.queue] = Batch(push)
        if batch is not None:
            self._send_new(batch)

    def _send_batches(self) -> None:
        batches, self._batches = self._batches, {}
        for batch in batches.values():
            if self.flowing:
                self._send_new(batch)
            else:
                self._keep(batch.pushes)

    def _log(self, topic: bytes) -> _Log:
        log = self._logs.get(topic)
        if log is None:
            if len(self._logs) > 1000:
                recent = time.monotonic() - 30
                self._logs = {name: log for name, log in self._logs.items() if log.renew_at > recent}
            log = self._logs[topic] = _Log()
        return log

    def due(self, topic: bytes, size: int, retention_ms: int) -> int | None:
        """Count a frame of a log.

        Returns:
            None, or when somebody has to look after the log: to how many frames it must be cut; 0: it is not too long.
        """
        log = self._logs.get(topic) or self._log(topic)
        log.frames += 1
        log.bytes += size
        now = time.monotonic()
        # Each sender looks at what itself has sent, every eighth of the bound: senders need not know of each other.
        is_long = log.frames >= self._many or log.bytes >= LOG_BYTES / 8
        if not is_long and now < log.renew_at:
            return None
        log.renew_at = now + retention_ms / 4000
        if not is_long:
            return 0
        keep = max(min(self._log_length, LOG_BYTES * log.frames // log.bytes), 1)
        log.frames = log.bytes = 0
        return keep

    def upkeep(self, topic: bytes, size: int, stamp: int, retention_ms: int) -> list[bytes]:
        """Commands that keep a log from living or growing for ever: seldom any."""
        keep = self.due(topic, size, retention_ms)
        if keep is None:
            return []
        packed = [
            pack(b"XTRIM", topic, b"MINID", b"~", stamp - retention_ms),
            pack(b"PEXPIRE", topic, retention_ms + 10_000),
        ]
        if keep:
            packed.append(pack(b"XTRIM", topic, b"MAXLEN", b"~", keep))
        return packed

    def discard(self, log: bytes, entry: bytes) -> None:
        """Take a large entry that nobody may have out of its log before it is trimmed."""
        if self._connection is not None:
            self._connection.send(pack(b"XDEL", log, entry), _Unheeded())

    def repeat(self, number: int) -> None:
        """Do again what the server did, and has forgotten: somebody asks for it."""
        op = self.sender.find(number)
        if op is None or not op.done or op.topic is None or op in self._repeated:
            return
        if self._connection is not None and self.flowing:
            self._repeated.add(op)
            op.flags |= REPEATED
            self._connection.send(op.commands(), op)

    def renew(self, retention: float) -> list[tuple[bytes | str | int, ...]]:
        """Commands that give every log its time to live again, for a server that may have made them anew."""
        return [("PEXPIRE", topic, int(retention * 1000) + 10_000) for topic in self._logs]

    def forget_logs(self) -> None:
        """The server may have lost its logs: look after each from its next frame on."""
        self._logs.clear()

    # -- answers

    def answered(self, op: Op, replies: list[Any]) -> None:
        for reply in replies:
            if isinstance(reply, ReplyError):
                self._refused(op, reply)
                return
        future = op.future
        try:
            result = op.conclude(replies)
        except ChannelFull as error:
            if not future.done():
                future.set_exception(error)
        else:
            if not future.done():
                future.set_result(result)
        self._done(op)

    def short(self, op: Op, replies: list[Any], error: TransportUnavailable) -> None:
        """The server did it, but too few replicas have it: tell, or do it again until they have."""
        for reply in replies:
            if isinstance(reply, ReplyError):
                self._refused(op, reply)
                return
        if op.patient:
            self._refused(op, ReplyError(f"NOREPLICAS {error}"))
            return
        try:
            op.fall_short(op.conclude(replies), error)
        except ChannelFull as full:
            if not op.future.done():
                op.future.set_exception(full)
        self._done(op)

    def _done(self, op: Op) -> None:
        if op.topic is not None:
            if self._hears(op.topic):
                self._echo(op)
            op.future = self._told  # it is kept for a while, its caller's need not be
        self.sender.answer(op, time.monotonic())
        if self._repeated:
            self._repeated.discard(op)
        if op is self._trial:
            self._trial = None
            if self._elsewhere:
                self._elsewhere = False
                self._try()
            else:
                self._flow(after=op)

    def _refused(self, op: Op, reply: Exception) -> None:
        text = str(reply)
        self._trouble = reply
        self._repeated.discard(op)
        passing = text.startswith(_PASSING)
        if passing and self._redirect is not None and self._redirect(op, text, op is self._trial):
            self._elsewhere = True
            return
        if op is self._trial:
            self._trial = None
            self.loop.call_later(self.PAUSE, self._try)
        if not passing:
            if op.topic is not None:
                self.sender.forget(op.topic)
                op.topic = None
            self.sender.answer(op, time.monotonic())
            if not op.future.done():
                op.future.set_exception(unavailable(self._host, reply))
            return
        if self.flowing:
            self._stall()
            self._arm()
            self.loop.call_later(0 if text.startswith("ASK") else self.PAUSE, self._try)
        if text.startswith("READONLY") and self._connection is not None:
            self._connection.drop(reply)

    # -- stalls and outages

    def untried(self, op: Op) -> None:
        """What ``redirect`` sent elsewhere did not get there."""
        if op is self._trial:
            self._trial = None
            self._elsewhere = False
            self.loop.call_later(self.PAUSE, self._try)

    def _try(self) -> None:
        """Send the oldest unanswered operation; the others follow when it gets through."""
        connection = self._connection
        if connection is None or self.flowing or self._trial is not None or self._fence is not None:
            return
        if not connection.idle:
            # Others may keep the connection busy: what was asked of it before this has an answer before it.
            self._fence = _Fence(self._fenced)
            connection.send(pack("PING"), self._fence)
            return
        self._try_now(connection)

    def _fenced(self, fence: _Fence) -> None:
        if fence is self._fence:
            self._fence = None
            if self._connection is not None and not self.flowing and self._trial is None:
                self._try_now(self._connection)

    def _try_now(self, connection: Line) -> None:
        if str(self._trouble).startswith("NOSCRIPT"):
            for command in self.dialect.load_commands():
                connection.send(pack(*command), _Unheeded())
        self.forget_logs()
        unanswered = self.sender.unanswered()
        if unanswered:
            self._trial = unanswered[0]
            connection.send(self._trial.commands(), self._trial)
        else:
            self._flow()

    def _flow(self, after: Op | None = None) -> None:
        connection = self._connection
        if connection is None:
            return
        self.flowing = True
        self.forget_logs()  # what was to give them their time to live may not have been done
        for op in self.sender.unanswered():
            if op is not after:
                connection.send(op.commands(), op)
        waiting, self._waiting, self._waiting_bytes = self._waiting, deque(), 0
        for late in waiting:
            if not late.future.done():
                self._send_new(late)

    def resume(self, connection: Line, *, forgetful: bool) -> None:
        """Go on over a new connection. ``forgetful``: the server may have lost what it answered."""
        self._connection = connection
        self._trial = self._fence = None
        self._elsewhere = False
        if forgetful:
            self.sender.replay()
        self._flow()

    def interrupt(self, trouble: BaseException) -> None:
        """The connection is gone."""
        self._connection = None
        self._repeated.clear()
        self._stall()
        self._trial = self._fence = None
        self._elsewhere = False
        self._trouble = trouble
        self._arm()

    def fail(self, error: Exception) -> None:
        """Nothing will be sent any more: tell whoever waits."""
        self._connection = None
        self._stall()
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._send_batches()  # they wait, now that nothing flows
        for op in (*self.sender.unanswered(), *self._waiting):
            if not op.future.done():
                op.future.set_exception(error)
                op.future.exception()
        self._waiting.clear()

    @property
    def trouble(self) -> str:
        """What keeps it from flowing."""
        return str(self._trouble) or type(self._trouble).__name__

    @property
    def waiting(self) -> int:
        """Operations that were not sent, or not answered."""
        return len(self._waiting) + self.sender.pending

    @property
    def busy(self) -> bool:
        """Whether something is not answered yet."""
        return bool(self._waiting or self._batches or self._posts) or self.sender.busy

    def _arm(self) -> None:
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(0.1, self._sweep)

    def _sweep(self) -> None:
        """Give up what has waited for its whole life."""
        self._sweeper = None
        if self.flowing:
            return
        now = time.monotonic()
        for op in self._waiting:
            if op.expires <= now and not op.future.done():
                op.future.set_exception(unavailable(self._host, self._trouble))
        self._prune_waiting()
        for op in self.sender.unanswered():  # they were on their way already
            if op.expires <= now and not op.future.done():
                op.future.set_exception(unavailable(self._host, self._trouble, on_its_way=True))
                if op.topic is None:
                    self.sender.answer(op, now)
                else:
                    self.sender.give_up(op)
        self._arm()


class _Fence:
    """A request whose answer comes behind those of all before it."""

    want = 1

    def __init__(self, reached: Callable[[_Fence], None]) -> None:
        self._reached = reached

    def answered(self, replies: list[Any]) -> None:
        self._reached(self)

    def lost(self, error: TransportUnavailable) -> None:
        pass


class _Unheeded:
    """A request whose replies matter to nobody: what depends on it is refused again if it failed."""

    want = 1

    def answered(self, replies: list[Any]) -> None:
        pass

    def lost(self, error: TransportUnavailable) -> None:
        pass
