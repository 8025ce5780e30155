"""The link to one cluster: what this node says, in order and again when it must, and what it hears.

Rules of this room: every operation may be sent twice, its number makes the second time harmless; what is unanswered is
sent again, in order and before anything new, when a connection was lost. Whatever is written in one turn of the loop
leaves in one write, or in one for each 40 operations of a kind. Nothing that arrives costs a task.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from ...continuity import REPEATED, Sender, Sent
from ...errors import ChannelFull, ConfigurationError, LayerClosed, MessageTooLarge, TransportUnavailable
from ...transport import Arrivals
from .inbox import ANSWER, FULL, HEAD, POST, Inbox
from .interest import Interest
from .reading import Reading, status
from .servers import Access
from .subjects import Subjects
from .topics import MANY, SIZE, Topics
from .wire import Wire, connect, unavailable

__all__ = ["Answer", "Link", "Op"]

log = logging.getLogger("trunkline.nats")

#: What may wait in an outage.
_MAX_WAITING, _MAX_WAITING_BYTES = 10_000, 16 << 20
#: Seconds after which an operation that got no answer is sent again: it may have died between two servers.
_AGAIN = 1.0
#: Seconds that a node which was heard of may be away, and any node of a cluster, whose news need a moment to spread.
_AWAY, _SPREADING = 1.5, 0.25
_KNOCK = 0.03
#: Seconds that answered publishes are kept, for a server that dies with what it has confirmed.
_WINDOW, _WINDOW_BYTES = 3.0, 8 << 20
_HEARTBEAT = 2.5
#: Bytes of operations that share a message, at most; a larger one goes alone.
_SHARED = 64 << 10
#: So many leave before the turn of the loop is over: the server, and who hears of it, work at them meanwhile.
_FULL = 40

Answer = tuple[bytes, bytes]


class Op(Sent):
    """One operation, and the future its caller waits for.

    ``confirm``: the server's pong is its answer; else an answer comes to its own subject. What is logged waits for both:
    our own copy comes before the pong.
    """

    __slots__ = (
        "at",
        "capacity",
        "channel",
        "confirm",
        "expires",
        "future",
        "header",
        "mates",
        "node",
        "since",
        "subject",
        "want",
    )

    def __init__(
        self,
        link: Link,
        subject: bytes,
        body: bytes,
        ttl: float,
        *,
        chained: bool = False,
        future: asyncio.Future[Any] | None = None,
    ) -> None:
        super().__init__(subject if chained else None, body)
        self.subject = subject
        self.future: asyncio.Future[Any] = link.loop.create_future() if future is None else future
        self.expires = link.loop.time() + ttl
        self.at = 0.0
        self.confirm = False
        #: What is still to come: 1 the pong, 2 the log's answer.
        self.want = 0
        self.header = b""
        #: Those that share its message, itself included, until it is answered.
        self.mates: Sequence[Op] = ()
        #: Posts only: the node, the channel, its capacity (0: no bound), when the node was first found to be away.
        self.node = ""
        self.channel = ""
        self.capacity = 0
        self.since = 0.0


class _Shared:
    """Operations that will share a message."""

    __slots__ = ("ops", "parts", "size")

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.parts: list[bytes] = []
        self.size = 0


class Link:
    """One node's connection to a cluster, for as long as the node is open.

    Args:
        delivered: Gets (subject, reply, payload, header) of what JetStream delivers to this node.
        control: Gets what a node says to all: bindings and flushes.
        resumed: Called when the link is up again, before anything new is sent.
    """

    def __init__(
        self,
        access: Access,
        subjects: Subjects,
        node: str,
        arrivals: Arrivals,
        *,
        recover: bool,
        retention: float,
        deadline: float,
        greet: Callable[[bool], Coroutine[Any, Any, None]],
        delivered: Callable[[bytes, bytes, bytes, bytes], None],
        control: Callable[[bytes, bytes], None],
        resumed: Callable[[], None],
        on_disconnect: Callable[[str], None],
        on_reconnect: Callable[[str], None],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.access = access
        self.subjects = subjects
        self.node = node
        self.recover = recover
        self.deadline = deadline
        self._greet, self._control, self._resumed = greet, control, resumed
        self._on_disconnect, self._on_reconnect = on_disconnect, on_reconnect
        self._context = access.context()
        self.sid = os.urandom(8)
        self.sender: Sender[Op] = Sender(
            self.sid, retention=retention, window=_WINDOW, window_bytes=_WINDOW_BYTES
        )
        self.wire: Wire | None = None
        self._servers = list(access.servers)
        self._offset = time.time() - time.monotonic()
        self.clustered = False
        self.max_payload = 1 << 20
        self._room = _SHARED
        self.up = False
        self._was_up = False
        self.met = False
        self._closed = False
        self._trouble: BaseException | str = "no answer yet"
        self._lost: asyncio.Future[None] = self.loop.create_future()
        self._opened: asyncio.Future[None] = self.loop.create_future()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        # out
        self._out: list[bytes] = []
        self._soon = False
        #: Operations come one at a time, as far as the last ones tell; how many came since none was on its way.
        self._alone = True
        self._together = 0
        #: By subject: one topic's publishes, or posts to nodes. What follows must not overtake them.
        self._open: dict[bytes, _Shared] = {}
        self._publishing = False
        self._unconfirmed: list[Op] = []
        self._pings: deque[list[Op]] = deque()
        self._asked: dict[int, Op] = {}
        self._waiting: deque[Op] = deque()
        self._waiting_bytes = 0
        #: Asked while the connection is not up yet: they end with it.
        self._urgent: list[Op] = []
        self._silent_since = 0.0
        # posts
        self._known: set[str] = set()
        self._away: dict[str, deque[Op]] = {}
        self._knocking: asyncio.TimerHandle | None = None
        # in
        self._sids = 0
        self.topics = Topics(self, arrivals, recover=recover, retention=retention)
        self.inbox = Inbox(self, self.topics, arrivals)
        self.reading = Reading(self)
        self._handlers: dict[bytes, Callable[[bytes, bytes, bytes, bytes], None]] = {}
        self._fixed: list[tuple[bytes, bytes]] = []
        self._listen(subjects.node(node), self.inbox.posted)
        self._listen(subjects.answers + b".*", self._answered)
        self._listen(subjects.deliveries + b".*", delivered)
        self._listen(subjects.bindings, lambda subject, reply, payload, header: control(subject, payload))
        self._listen(subjects.control, self._told)
        self._listen(subjects.log, self.reading.heard)
        self.interest = Interest(self)
        self._handlers.update(self.interest.handlers)
        #: What the server said it does not allow us.
        self._refusals: deque[str] = deque(maxlen=50)
        self._alive_ms = 0
        self._ponged_at = 0.0
        self._greeting: asyncio.Task[None] | None = None

    # -- life

    async def open(self, timeout: float) -> None:
        self._task = self.loop.create_task(self._run(), name=f"trunkline nats {self.access.address}")
        self._timer = self.loop.call_later(0.25, self._watch)
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(self._opened)
        except TimeoutError:
            raise unavailable(self.access, self._trouble)

    async def close(self) -> None:
        until = self.loop.time() + 1.0
        while self.up and (self.sender.busy or self.inbox.answering) and self.loop.time() < until:
            if self._task is not None and self._task.done():
                break
            await asyncio.sleep(0.005)
        if self.up:
            self.send_raw(
                b"PUB %b %d\r\nbye %b\r\n" % (self.subjects.control, 4 + len(self.node), self.node.encode())
            )
            if self._task is not None and self._task.done():
                self.flush()  # the loop is ending and has cancelled whoever reads: there is no answer
            else:
                op = Op(self, b"", b"", 1.0)
                self._ping(op)
                try:
                    await asyncio.wait_for(op.future, 1.0)
                except (TransportUnavailable, TimeoutError):
                    log.info("%s was gone before we could say good-bye", self.access.address)
        self._closed = True
        tasks = [task for task in (self._task, self.topics.reading, self._greeting) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._hang_up()
        self._fail(LayerClosed("the layer was closed while the call waited"))

    def abandon(self) -> None:
        self._closed = True
        for task in (self._task, self.topics.reading, self._greeting):
            if task is not None:
                task._log_destroy_pending = False  # type: ignore[attr-defined] # it ends here, and that is meant
        if self.wire is not None:
            self.wire.abandon()

    def _fail(self, error: Exception) -> None:
        for timer in (self._timer, self._knocking):
            if timer is not None:
                timer.cancel()
        futures = [op.future for op in (*self._asked.values(), *self._waiting)]
        pinged = [op.future for ping in (*self._pings, self._unconfirmed) for op in ping]
        for future in (*futures, *pinged, *self.topics.waiting(), self._opened):
            _raise(future, error)

    async def _hang_up(self) -> None:
        wire, self.wire, self.up = self.wire, None, False
        if wire is not None:
            await wire.shut()

    async def _run(self) -> None:
        attempt = 0
        while True:
            try:
                await self._connect()
                attempt = 0
                await self._lost
            except ConfigurationError as error:
                self._trouble = error
                if not self.met:
                    _raise(self._opened, error)
                    return
            except TransportUnavailable as error:
                self._trouble = error.__cause__ or error
            except TimeoutError:
                self._trouble = f"no answer in {self.deadline:g} s"
            except Exception as error:
                # Whatever it is, a link that stops trying is an outage without end.
                log.exception("unexpected trouble with %s, connecting anew", self.access.address)
                self._trouble = error
            was_up, self._was_up = self._was_up, False
            self._interrupt()
            await self._hang_up()
            if was_up:
                log.warning("lost %s: %s", self.access.address, self._trouble)
                self._on_disconnect(self.access.address)
            self._servers.append(self._servers.pop(0))
            pause = min(0.02 * 2 ** (attempt // len(self._servers)), 0.5)
            attempt += 1
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))

    async def _connect(self) -> None:
        self._lost = self.loop.create_future()
        name = f"trunkline-{self.node}"
        self.wire = wire = await connect(
            self.access, self._servers[0], self, name=name, deadline=self.deadline, context=self._context
        )
        self.max_payload = wire.info.get("max_payload", self.max_payload)
        # A part of it is for what stands between them.
        self._room = min(_SHARED, self.max_payload // 2)
        self.clustered = bool(wire.info.get("cluster"))
        for url in wire.info.get("connect_urls") or ():
            if url not in self._servers:
                self._servers.append(url)
        self._out, self._unconfirmed, self._open = [], [], {}
        self._pings.clear()
        self._silent_since = 0.0
        async with asyncio.timeout(2 * self.deadline):
            first = not self.met
            if not first:
                self.topics.interrupted(self._alive_ms)
            for sid, subject in (*self._fixed, *self.topics.subscriptions()):
                self.send_raw(b"SUB %b %b\r\n" % (subject, sid))
            if self.clustered:
                servers = set(wire.info.get("connect_urls") or ())
                self.send_raw(self.interest.at(wire.info["server_id"], len(servers)))
            here = b"here %b %b" % (self.node.encode(), self.interest.home)
            self.send_raw(b"PUB %b %d\r\n%b\r\n" % (self.subjects.control, len(here), here))
            self._refusals.clear()
            subscribed = Op(self, b"", b"", 2 * self.deadline)
            self._ping(subscribed)
            await subscribed.future
            if self._refusals:
                raise self._refusal(self._refusals[0])
            if self.clustered:
                await self.interest.arrive()
            if first:
                await self._greet(True)
        self._urgent = []
        self.up = self.met = self._was_up = True
        self._alive_ms = int(self.now() * 1000)
        self._resume()
        self._resumed()
        if first:
            self._opened.set_result(None)
            return
        log.info("%s is back", self.access.address)
        self.topics.resumed()
        self._greeting = self.loop.create_task(self._greet_again(), name="trunkline nats greeting")
        self._on_reconnect(self.access.address)

    async def _greet_again(self) -> None:
        # Messages flow meanwhile: a cluster that lost a server takes seconds until JetStream answers.
        while True:
            try:
                await self._greet(False)
                return
            except (TransportUnavailable, ConfigurationError, TimeoutError) as error:
                log.info("JetStream at %s is not ready: %s", self.access.address, error)
            await asyncio.sleep(0.25)

    def _interrupt(self) -> None:
        self.up = False
        self._pings.clear()
        self._out, self._unconfirmed, self._open = [], [], {}
        self.inbox.interrupted()
        self.topics.stop()
        if self._greeting is not None:
            self._greeting.cancel()

    def _watch(self) -> None:
        """Signs of life, operations without an answer, what has waited for its whole life."""
        now = self.loop.time()
        self._timer = self.loop.call_later(0.25, self._watch)
        wire = self.wire
        if wire is not None and not wire.closed:
            if wire.heard or not self._pings:
                self._silent_since = now
            elif now - self._silent_since >= self.deadline:
                wire.drop(TimeoutError(f"no answer for {self.deadline:g} s"))
            if not self._pings and now - self._ponged_at >= _HEARTBEAT:
                self._ping(None)
            wire.heard = False
        self.sender.prune(time.monotonic())
        for op in (*self._waiting, *self._asked.values()):
            if op.expires <= now:
                self._give_up(op)
            elif self.up and not op.confirm and op.at and now - op.at > _AGAIN and op.node not in self._away:
                op.flags |= REPEATED
                self._transmit(op)

    def _give_up(self, op: Op) -> None:
        _raise(
            op.future,
            unavailable(self.access, self._trouble if not self.up else "no answer", on_its_way=bool(op.seq)),
        )
        if op.seq:
            self._asked.pop(op.seq, None)
            self.sender.answer(op, time.monotonic())
        else:
            self._waiting.remove(op)
        away = self._away.get(op.node)
        if away is not None and op in away:
            away.remove(op)

    # -- clock

    @property
    def trouble(self) -> str:
        """Why it is not up; empty when it is."""
        return "" if self.up else str(self._trouble) or type(self._trouble).__name__

    def now(self) -> float:
        return time.monotonic() + self._offset

    def set_clock(self, seconds: float, error: float) -> None:
        """Take over the server's time; one that our own cannot be told from changes nothing."""
        if abs(seconds - self.now()) > error:
            self._offset += seconds - self.now()
            self.topics.rebase(int(self.now() * 1000))

    # -- out

    def submit(self, op: Op) -> asyncio.Future[Any]:
        """Send it, or keep it until it can be sent.

        Raises:
            TransportUnavailable: There is no connection, and as much is waiting as may wait.
            MessageTooLarge: The server would refuse it.
        """
        if self._closed:
            raise LayerClosed("the transport is closed")
        size = len(op.body) + len(op.header) + 200
        if size > self.max_payload:
            raise MessageTooLarge(
                f"a message of {len(op.body)} bytes is above what the NATS server takes, max_payload = {self.max_payload} "
                "bytes with 200 of our own: raise max_payload in the server's configuration (64MB at most)"
            )
        if self.up:
            self._send(op)
        elif len(self._waiting) >= _MAX_WAITING or self._waiting_bytes + size > _MAX_WAITING_BYTES:
            raise unavailable(self.access, self._trouble)
        else:
            self._waiting.append(op)
            self._waiting_bytes += size
        return op.future

    def _send(self, op: Op) -> None:
        self.sender.number(op, int(self.now() * 1000))
        self._asked[op.seq] = op
        away = self._away.get(op.node) if op.node else None
        if away is not None:
            away.append(op)
        else:
            self._transmit(op)

    def _transmit(self, op: Op) -> None:
        """Have it leave in this turn of the loop; at once if nothing is on its way and operations come one at a time."""
        op.at = self.loop.time()
        self._gather(op)
        if len(op.mates) >= _FULL:
            self.flush()
        if len(self._asked) > 1:
            self._together += 1
        else:
            self._together = 1
            if self._alone and not self._soon:
                self.flush()
                return
        self.flush_soon()

    def _gather(self, op: Op) -> None:
        """Put it into one message with others of the same subject."""
        if op.topic is not None:
            self._unconfirmed.append(op)
            op.want = 1 if op.confirm else 3
            head = self.sender.header(op)
        elif op.node:
            channel = op.channel.encode()
            head = POST.pack(op.seq, op.capacity, op.flags, len(channel), len(op.body)) + channel
        else:
            self._put(op.subject, op.seq, [op.body], len(op.body), op.header)
            return
        body = op.body
        size = len(head) + len(body)
        shared = self._open.get(op.subject)
        if shared is None or shared.size + size > self._room:
            # Posts to different nodes cannot overtake each other; what is published goes to any.
            if shared is not None or op.topic is not None or self._publishing:
                self._close_open()
            self._publishing = op.topic is not None
            shared = self._open[op.subject] = _Shared()
        op.mates = shared.ops
        shared.ops.append(op)
        shared.parts += (head, body)
        shared.size += size

    def _close_open(self) -> None:
        """What follows is another message."""
        opened, self._open = self._open, {}
        for subject, shared in opened.items():
            parts, size, first = shared.parts, shared.size, shared.ops[0]
            if first.node:
                parts.insert(0, HEAD.pack(self.sid, self.sender.floor))
                self._put(subject, first.seq, parts, size + HEAD.size)
                continue
            if len(shared.ops) > 1:
                framed = [MANY]
                for header, body in zip(parts[::2], parts[1::2], strict=True):
                    framed += (SIZE.pack(len(header) + len(body)), header, body)
                parts, size = framed, size + len(MANY) + SIZE.size * len(shared.ops)
            self._put(subject, 0 if first.confirm else first.seq, parts, size)

    def _put(self, subject: bytes, answer: int, parts: list[bytes], size: int, header: bytes = b"") -> None:
        """Write a message; ``answer``: the number under which it is answered, or 0."""
        reply = b"%b.%d " % (self.subjects.answers, answer) if answer else b""
        if header:
            head = b"HPUB %b %b%d %d\r\n%b" % (subject, reply, len(header), len(header) + size, header)
        else:
            head = b"PUB %b %b%d\r\n" % (subject, reply, size)
        if size < _SHARED:
            self._out.append(b"".join((head, *parts, b"\r\n")))
        else:
            self._out += (head, *parts, b"\r\n")

    def send_raw(self, data: bytes) -> None:
        """Have it leave in this turn of the loop, behind what was said before."""
        self.flush_soon()
        if self._open:
            self._close_open()
        self._out.append(data)

    def say(self, subject: bytes, payload: bytes, reply: bytes = b"") -> None:
        """Publish something that nobody confirms; nothing happens without a connection."""
        if self.wire is not None:
            self.send_raw(b"PUB %b %b %d\r\n%b\r\n" % (subject, reply, len(payload), payload))

    def _ping(self, op: Op | None) -> None:
        """Ask for a sign of life; with an operation, in this turn of the loop, as its confirmation."""
        if op is None:
            self._pings.append([])
            self._out.append(b"PING\r\n")
            self.flush()
        else:
            op.confirm = True
            self._unconfirmed.append(op)
            self.flush_soon()

    def flush_soon(self) -> None:
        """Write at the end of this turn of the loop."""
        if not self._soon:
            self._soon = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._soon = False
        self._alone = self._together <= 1
        self.flush()

    def flush(self) -> None:
        """Write what is to leave in this turn of the loop so far."""
        if self._open:
            self._close_open()
        out, self._out = self._out, []
        wire = self.wire
        if wire is None:
            return
        if self.inbox.answering:
            out += self.inbox.answers()
        if self._unconfirmed:
            self._pings.append(self._unconfirmed)
            self._unconfirmed = []
            out.append(b"PING\r\n")
        if len(out) < 2 or max(map(len, out)) < _SHARED:
            wire.write(b"".join(out))
            return
        # What is large is not copied once more.
        start = 0
        for place, part in enumerate(out):
            if len(part) >= _SHARED:
                wire.write(b"".join(out[start:place]))
                wire.write(part)
                start = place + 1
        wire.write(b"".join(out[start:]))

    def _resume(self) -> None:
        self._asked.clear()
        self._away.clear()
        for op in self.sender.replay():
            self._asked[op.seq] = op
            op.since = 0.0
            self._transmit(op)
        waiting, self._waiting, self._waiting_bytes = self._waiting, deque(), 0
        for op in waiting:
            if not op.future.done():
                self._send(op)

    async def round_trip(self, ttl: float) -> None:
        """Wait until the server has done what was said so far."""
        op = Op(self, b"", b"", ttl)
        self._ping(op)
        await op.future

    async def request(
        self,
        subject: str,
        payload: Any = None,
        *,
        header: bytes = b"",
        ttl: float | None = None,
        now: bool = False,
    ) -> Answer:
        """Ask something that may be asked twice; returns (payload, header) of the answer.

        Args:
            now: Ask over a connection that is not up for others yet.

        Raises:
            TransportUnavailable: No answer.
        """
        body = (
            payload
            if isinstance(payload, bytes)
            else b""
            if payload is None
            else json.dumps(payload).encode()
        )
        op = Op(self, subject.encode(), body, self.deadline if ttl is None else ttl)
        op.header = header
        if now:
            self._urgent.append(op)
            self._send(op)
        else:
            self.submit(op)
        answer: Answer = await op.future
        return answer

    def request_op(
        self,
        subject: bytes,
        body: bytes,
        ttl: float,
        future: asyncio.Future[Answer] | None = None,
        *,
        header: bytes = b"",
    ) -> asyncio.Future[Answer]:
        """The same, answered as a future."""
        op = Op(self, subject, body, ttl, future=future)
        op.header = header
        try:
            return self.submit(op)
        except (TransportUnavailable, LayerClosed) as error:
            _raise(op.future, error)
            return op.future

    async def api(self, subject: str, payload: Any = None, *, now: bool = False) -> dict[str, Any]:
        """Ask JetStream; the answer may hold an ``error``. Without JetStream its code is 503."""
        body, header = await self.request(f"$JS.API.{subject}", payload, now=now)
        if header:
            return {"error": {"code": status(header), "err_code": 0, "description": "no responders"}}
        answer: dict[str, Any] = json.loads(body)
        return answer

    # -- publish, post

    def publish(self, topic: str, frame: bytes, ttl: float) -> Op:
        op = Op(self, self.subjects.topic(topic), frame, ttl, chained=True)
        op.confirm = not self.recover
        self.submit(op)
        return op

    def post(self, node: str, channel: str, frame: bytes, capacity: int | None, ttl: float) -> Op:
        op = Op(self, self.subjects.node(node), frame, min(ttl, 2 * self.deadline))
        op.node, op.channel, op.capacity = node, channel, capacity or 0
        self.submit(op)
        return op

    # -- in

    def new_sid(self) -> bytes:
        """The name of a new subscription."""
        self._sids += 1
        return b"%d" % self._sids

    def _listen(self, subject: bytes, handler: Callable[[bytes, bytes, bytes, bytes], None]) -> None:
        sid = self.new_sid()
        self._handlers[sid] = handler
        self._fixed.append((sid, subject))

    def message(self, sid: bytes, subject: bytes, reply: bytes, payload: bytes, header: bytes) -> None:
        topic = self.topics.by_sid.get(sid)
        if topic is not None:
            self.topics.heard(topic, payload)
            return
        handler = self._handlers.get(sid)
        if handler is not None:
            handler(subject, reply, payload, header)

    def pong(self) -> None:
        self._alive_ms = int(self.now() * 1000)
        self._ponged_at = self.loop.time()
        if not self._pings:
            return
        for op in self._pings.popleft():
            op.want &= ~1
            if not op.want:
                self._finish(op, None)

    def _finish(self, op: Op, answer: Any) -> None:
        op.mates = ()
        if op.seq and not op.done:
            self._asked.pop(op.seq, None)
            self.sender.answer(op, time.monotonic())
        if not op.future.done():
            op.future.set_result(answer)

    def _answered(self, subject: bytes, reply: bytes, payload: bytes, header: bytes) -> None:
        seq = int(subject[subject.rindex(b".") + 1 :])
        if not seq:
            for number, outcome in ANSWER.iter_unpack(payload):
                self._post_answered(number, outcome)
            return
        op = self._asked.get(seq)
        if op is None:
            return
        if op.node:
            for mate in op.mates or (op,):
                if mate.seq in self._asked:
                    self._not_there(mate)
            return
        if op.topic is not None and (header or b'"error"' in payload):
            return  # the log did not take it: it is sent again in a moment
        for mate in op.mates or (op,):
            mate.want &= ~2
            if not mate.want:
                self._finish(mate, (payload, header))

    def _post_answered(self, seq: int, outcome: int) -> None:
        op = self._asked.pop(seq, None)
        if op is None:
            return
        op.mates = ()
        self._known.add(op.node)
        self.sender.answer(op, time.monotonic())
        if op.future.done():
            return
        if outcome == FULL:
            op.future.set_exception(ChannelFull(f"{op.channel} holds {op.capacity} messages, its capacity"))
            op.future.exception()
        else:
            op.future.set_result(True)

    def _not_there(self, op: Op) -> None:
        """Nobody hears the node of a post: it is gone, or about to be back."""
        now = self.loop.time()
        op.since = op.since or now
        patience = _AWAY if op.node in self._known else _SPREADING if self.clustered else 0.0
        if now - op.since >= patience:
            away = self._away.pop(op.node, deque())
            self._known.discard(op.node)
            for each in dict.fromkeys((op, *away)):
                self._asked.pop(each.seq, None)
                self.sender.answer(each, time.monotonic())
                if not each.future.done():
                    each.future.set_result(False)
            return
        # In the order sent: answers of this kind come in that order too.
        away = self._away.setdefault(op.node, deque())
        if op not in away:
            later = [each for each in away if each.seq > op.seq]
            away.append(op)
            if later:
                self._away[op.node] = deque(sorted(away, key=lambda each: each.seq))
        if self._knocking is None:
            self._knocking = self.loop.call_later(_KNOCK, self._knock)

    def _knock(self) -> None:
        self._knocking = None
        for node in list(self._away):
            self._try_again(node)

    def _try_again(self, node: str) -> None:
        for op in self._away.pop(node, ()):
            op.flags |= REPEATED
            if self.up:
                self._transmit(op)

    def _told(self, subject: bytes, reply: bytes, payload: bytes, header: bytes) -> None:
        word, _, rest = payload.partition(b" ")
        name, _, server = rest.partition(b" ")
        node = name.decode("utf-8", "replace")
        if word == b"here":
            self.interest.met(server)
            self._known.add(node)
            self._try_again(node)
        elif word == b"bye":
            self._known.discard(node)
        elif word == b"flush":
            self.inbox.flushed()
            self._control(subject, payload)

    def refused(self, text: str) -> None:
        log.error("NATS at %s: %s", self.access.address, text)
        self._refusals.append(text)
        error = self._refusal(text)
        for op in list(self._asked.values()):
            if f'"{op.subject.decode()}"'.lower() in text.lower():
                self._asked.pop(op.seq, None)
                self.sender.answer(op, time.monotonic())
                _raise(op.future, error)

    def refusal_of(self, subject: bytes) -> ConfigurationError | None:
        """What the server said that it does not allow us there."""
        named = f'"{subject.decode()}"'.lower()
        return next((self._refusal(text) for text in self._refusals if named in text.lower()), None)

    def _refusal(self, text: str) -> ConfigurationError:
        doctor = f"trunkline doctor {self.access.shown}"
        return ConfigurationError(
            f"NATS at {self.access.address}: {text}. `{doctor}` names what must be allowed"
        )

    def lame(self) -> None:
        if self.clustered and self.wire is not None:
            self.wire.drop(ConnectionError("the server is about to stop"))

    def lost(self, wire: Wire, error: BaseException) -> None:
        if wire is self.wire or self.wire is None:
            self._trouble = error
            self.up = False
            urgent, self._urgent = self._urgent, []
            for op in urgent:
                self._asked.pop(op.seq, None)
                self.sender.answer(op, time.monotonic())
            pinged = [op for ping in (*self._pings, self._unconfirmed) for op in ping if not op.seq]
            for op in (*urgent, *pinged):
                _raise(op.future, unavailable(self.access, error))
            if not self._lost.done():
                self._lost.set_result(None)


def _raise(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()
