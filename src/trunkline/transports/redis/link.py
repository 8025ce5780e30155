"""A link: what one node sends to one server, or to one partition of a cluster, and hears from there.

Rules of this room: here is what outlives connections: the chain, the marks, what waits, what is subscribed. Whoever keeps
the connections (``server.ServerLink``, ``partition.PartitionLink``) gives them to it and takes them away. When there
are new ones, in this order: subscribe to all, show a sign of life, send what is unanswered, read the logs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from ...clock import Clock
from ...continuity import Receiver, Sender
from ...errors import TransportUnavailable
from ...transport import Arrivals
from .connection import ReplyError, raise_refused, seconds, unavailable
from .dialect import PLAIN, Dialect
from .hosts import Host
from .inbox import Inbox
from .inflow import Asking, Ears, Inflow
from .ops import Op
from .outbox import Outbox
from .pace import Pace
from .readers import Readers
from .records import Records
from .replicas import Line
from .topology import Names

__all__ = ["Link", "Setting"]

log = logging.getLogger("trunkline.redis")


@dataclass(frozen=True)
class Setting:
    """What all links of one open transport have in common."""

    node: str
    arrivals: Arrivals
    expiry: float
    deadline: float
    log_length: int
    wait_replicas: int
    pace: Pace
    on_disconnect: Callable[[str], None]
    on_reconnect: Callable[[str], None]

    @property
    def retention(self) -> float:
        """Seconds that logs reach back."""
        return self.expiry + 10


class Link(ABC):
    """What outlives the connections.

    Args:
        is_home: The node's inbox is here.
    """

    def __init__(
        self,
        host: Host,
        names: Names,
        setting: Setting,
        *,
        is_home: bool = True,
        dialect: Dialect = PLAIN,
        redirect: Callable[[Op, str, bool], bool] | None = None,
    ) -> None:
        self.host, self.names = host, names
        self._setting, self._pace, self._arrivals = setting, setting.pace, setting.arrivals
        self._dialect = dialect
        self._retention = setting.retention
        self.clock = Clock()
        sid = os.urandom(8)
        self.sid = sid.hex()
        self._channel = names.node(setting.node)
        self._sender: Sender[Op] = Sender(sid, retention=self._retention, window=setting.pace.window)
        receiver = Receiver(retention=self._retention, patience=setting.pace.patience)
        self.outbox = Outbox(
            host,
            self._sender,
            self.clock,
            setting.log_length,
            receiver.hears,
            self._echo,
            dialect=dialect,
            redirect=redirect,
        )
        self.readers = Readers(self.outbox, names, self._channel, self.sid)
        inbox_ttl_ms = int((setting.pace.life + setting.expiry) * 1000)
        self.inbox = Inbox(self.outbox, names.post_keys(setting.node, ""), setting.arrivals, inbox_ttl_ms)
        self.records = Records(self.outbox, names, setting.node, self.sid)
        self._is_home = is_home
        #: Names of the topics we subscribe to, for those who are told of gaps.
        self._topics: dict[bytes, str] = {}
        self.inflow = Inflow(
            receiver,
            self.clock,
            others=(self._channel, names.news),
            deliver=self._deliver,
            gap=self._gap,
            other=self._hear,
            whole=self._sender.whole,
            dialect=dialect,
        )
        if is_home:
            self.inflow.want(self.inbox.keys[0], 0)
        self._run_id: object = None
        #: The shared clock when surely everything pushed until then had been heard.
        self._alive_ms = 0
        #: Whether the server has ever been of use.
        self.met = False
        self._trouble: BaseException | None = None
        self.up = False
        #: When the connections were lost (``time.monotonic()``).
        self._left = 0.0

    def use(self) -> None:  # noqa: B027 - most have nothing to do
        """It will be used from now on."""

    @abstractmethod
    async def meet(self) -> None:
        """Wait for the server, if that makes sense.

        Raises:
            TransportUnavailable: It does not.
        """

    def unavailable(self) -> TransportUnavailable:
        """Why it is not up."""
        return unavailable(self.host, self._trouble or TimeoutError("no answer yet"))

    def _fail(self, error: Exception) -> None:
        self.outbox.fail(error)
        self.inflow.fail(error)
        self.readers.fail(error)
        self.inbox.close()

    # -- connections come and go

    async def _resume(self, pushes: Ears, commands: Asking, line: Line, run_id: str) -> None:
        first = self._run_id is None
        forgetful = not first and (run_id != self._run_id or run_id == "unknown")
        if not first:
            self.inflow.receiver.interrupted(self._alive_ms - 5000)
        async with asyncio.timeout(self._setting.deadline):
            try:
                await self.inflow.resume(pushes, commands)
            except ReplyError as reply:
                raise_refused(self.host, reply)
            known = await self._show_life(commands)
        self._run_id = run_id
        if first:
            self._alive_ms = self.clock.now_ms()
        if forgetful and (not known or time.monotonic() - self._left > self._pace.life / 2):
            # The other nodes may be as late as we are; what is posted to one that gives no sign of life is refused.
            await asyncio.sleep(2 * self._pace.backoff)
        if forgetful or not (known or first):
            self._doubt()
        self.outbox.resume(line, forgetful=forgetful)
        self.inbox.flush()
        self.inflow.read_logs()
        self.readers.wake_all()
        self.up = True

    def _interrupted(self, trouble: TransportUnavailable) -> bool:
        """The connections are gone, or belong to others now; returns whether they were of use."""
        was_up, self.up = self.up, False
        if was_up:
            self._left = time.monotonic()
        self._trouble = trouble.__cause__ or trouble
        self.outbox.interrupt(self._trouble)
        self.inflow.interrupt()
        return was_up

    def _set_clock(self, reply: list[bytes], asked: float) -> int:
        return self._jumped(self.clock.learn(seconds(reply), asked, time.monotonic()))

    def _jumped(self, jump: float) -> int:
        jump_ms = int(jump * 1000)
        if jump_ms >= -100:
            return 0
        # Another server, or a clock set back: what comes now may look older than what we had.
        self.inflow.receiver.rebase(self.clock.now_ms())
        self._alive_ms += jump_ms
        return jump_ms

    def _sign(self) -> tuple[tuple[bytes | str | int, ...], ...]:
        """The commands that give our sign of life; the first answers with the last one."""
        inbox, alive, depth = self.inbox.keys[:3]
        return (
            ("SET", alive, self.sid, "PX", int(self._pace.life * 1000), "GET"),
            ("PEXPIRE", inbox, self.inbox.ttl_ms),
            ("PEXPIRE", depth, self.inbox.ttl_ms),
        )

    async def _show_life(self, commands: Asking) -> bool:
        """The sign of life; True when the server had the last one still."""
        asked = time.monotonic()
        time_, was, *_ = await commands.call(("TIME",), *self._sign())
        if isinstance(time_, list):
            self._set_clock(time_, asked)
        if not isinstance(was, ReplyError):
            return was not in (None, b"late")  # the second is a sender's word, not ours
        if not str(was).startswith(("OOM", "MISCONF", "BUSY")):
            raise_refused(self.host, was)
        return True  # it cannot say; it works and will remember us when it can

    async def _beat_life(self, commands: Asking) -> None:
        """Show it again, to a server that should know us."""
        if not await self._show_life(commands):
            # It forgot us without going away: somebody emptied it. Logs made since then have no time to live.
            self._doubt()
            await commands.call(("PING",), *self.outbox.renew(self._retention))
        self.inbox.tell_truth()

    def _doubt(self) -> None:
        if self._is_home:
            self.inbox.doubt(30.0)

    async def _say_good_bye(self, commands: Asking) -> None:
        inbox, alive, depth = self.inbox.keys[:3]
        ttl = int(self._pace.life * 1000)
        await commands.call(("SET", alive, "", "PX", ttl), ("UNLINK", inbox, depth))

    # -- arrivals

    def _echo(self, op: Op) -> None:
        """Our own copy is here when the server has answered, whatever takes longer on the other connection."""
        if op.topic is not None:
            self.inflow.take(op.topic, self._sender.frame(op))

    def _deliver(self, topic: bytes, body: bytes) -> None:
        if topic == self.inbox.keys[0]:
            self.inbox.deliver(body)
        else:
            self._arrivals.deliver(body)

    def _gap(self, topic: bytes) -> None:
        if topic == self.inbox.keys[0]:
            self.inbox.doubt(30.0)
            self._arrivals.gap(None, f"{self.host.address} lost messages that were sent to this node")
        elif topic in self._topics:
            self._arrivals.gap(self._topics[topic], f"{self.host.address} lost messages")

    def _hear(self, channel: bytes, data: bytes) -> None:
        kind, text = data[:1], data[1:]
        if kind == b"W":
            self.readers.wake(text)
        elif kind == b"F":
            self.inbox.forget()
            self.readers.forget()
            self.outbox.forget_logs()
        elif kind == b"R" and text.startswith(self._sender.sid):
            self.outbox.repeat(int(text[len(self._sender.sid) :]))

    # -- topics

    async def subscribe(self, topic: str) -> None:
        wire = self.names.topic(topic)
        self._topics[wire] = topic
        await self.inflow.subscribe(wire)

    def unsubscribe(self, topic: str) -> None:
        wire = self.names.topic(topic)
        self._topics.pop(wire, None)
        self.inflow.unsubscribe(wire)
