"""The link to the database: one supervisor that keeps two connections, one that writes and one that listens.

Rules of this room: all trouble ends in one place, ``_run``, and is mended there. After a connection comes back, in this
order: show a sign of life, listen to all again, find what may have been missed, send what is unanswered, read the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import time
from collections.abc import Callable

from ...clock import Clock
from ...continuity import Receiver, Sender
from ...errors import ConfigurationError, TransportUnavailable
from ...transport import Arrivals, Server
from .driver import Connection, Trouble, connect
from .inbox import Inbox
from .inflow import Inflow
from .names import CHANNEL, Names
from .outbox import Op, Outbox
from .pace import Pace
from .readers import Readers
from .records import Records
from .schema import quoted, schema_sql

__all__ = ["POOLED", "Link", "prepare"]

log = logging.getLogger("trunkline.postgres")

POOLED = (
    "LISTEN does not work here: this looks like a pooler in transaction mode (PgBouncer pool_mode = transaction). "
    "Give Trunkline a session: a pool with pool_mode = session, or the server itself"
)


class Link:
    """The database, as seen by one node."""

    def __init__(
        self,
        url: str,
        shown: str,
        names: Names,
        node: str,
        arrivals: Arrivals,
        *,
        driver: str,
        schema: str,
        expiry: float,
        deadline: float,
        pace: Pace,
        on_disconnect: Callable[[str], None],
        on_reconnect: Callable[[str], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._url, self.shown, self.names = url, shown, names
        self._driver, self._schema, self._deadline, self._pace = driver, schema, deadline, pace
        self._on_disconnect, self._on_reconnect = on_disconnect, on_reconnect
        self._label = f"trunkline {node}"
        self._arrivals = arrivals
        self._me = names.inbox(node)
        self._retention = expiry + 10
        self.clock = Clock()
        self._sender: Sender[Op] = Sender(os.urandom(8), retention=self._retention, window=pace.window)
        self.outbox = Outbox(
            self._sender,
            self.clock,
            self._me,
            names.area,
            schema=schema,
            life=int(pace.life * 1000),
            echo=self._echo,
            unavailable=self.unavailable,
        )
        self.readers = Readers(self.outbox, self.clock)
        self.records = Records(self.outbox, names, expiry)
        self.inbox = Inbox(self.outbox, arrivals)
        self.inflow = Inflow(
            Receiver(retention=self._retention, patience=pace.patience),
            self.clock,
            schema=schema,
            life=int(pace.life * 1000),
            deliver=self._deliver,
            gap=self._gap,
            other=self._hear,
        )
        self.inflow.want(self._me, 0)
        self.inflow.want(names.news, 0)
        #: Names of the topics we subscribe to, for those who are told of gaps.
        self._topics: dict[bytes, str] = {}
        self._connections: list[Connection] = []
        self._down: asyncio.Future[None] = self._loop.create_future()
        self._probed: asyncio.Future[None] = self._loop.create_future()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._task: asyncio.Task[None] | None = None
        self._trouble: BaseException | None = None
        #: Whether the server has ever been of use.
        self.met = False
        self.up = False

    # -- life

    async def open(self, timeout: float) -> None:
        """Connect.

        Raises:
            TransportUnavailable: No server answered in time.
            ConfigurationError: It never will.
        """
        self._task = self._loop.create_task(self._run(), name=f"trunkline {self.shown}")
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(self._opened)
        except TimeoutError:
            raise self.unavailable() from None

    async def close(self, error: Exception) -> None:
        """Finish what is on its way, say good-bye, leave nothing behind."""
        self.readers.leave()
        until = time.monotonic() + 1.0
        while self.up and self.outbox.busy and time.monotonic() < until:  # noqa: ASYNC110 - once, at the end
            await asyncio.sleep(0.002)
        if self._task is not None:
            was_up = self.up
            self._task.cancel()
            await asyncio.wait([self._task])
            if was_up and not self.outbox.busy:
                await self._say_good_bye()
        self._disconnect()
        for part in (self.outbox, self.inflow, self.readers):
            part.fail(error)
        self.inbox.close()
        await asyncio.sleep(0)  # the loop calls connection_lost

    async def _say_good_bye(self) -> None:
        writing, listening = self._connections
        try:
            async with asyncio.timeout(1.0):
                await writing.fetch(f"SELECT {quoted(self._schema)}.bye_2($1::bytea)", self._me)
                await writing.close()
                await listening.close()
        except (Trouble, TimeoutError, OSError):
            log.info("%s was gone before we could say good-bye", self.shown)

    def server(self) -> Server:
        """How it does, as far as is known without asking."""
        heard = self.inflow.heard_at
        trouble = "" if self.up else str(self._trouble or "no answer yet")
        silent = None if heard is None else time.monotonic() - heard
        return Server(self.shown, self.up, silent, trouble, self.outbox.pending)

    def abandon(self) -> None:
        """Let go of sockets without a word."""
        if self._task is not None:
            self._task._log_destroy_pending = False  # type: ignore[attr-defined] # it ends here, and that is meant
        for connection in self._connections:
            connection.abandon()

    def unavailable(self, on_its_way: bool = False) -> TransportUnavailable:
        """The error for whoever cannot be served now."""
        text = (
            f"{self.shown} cannot be reached: {self._trouble or 'no answer'}. Is PostgreSQL running there? "
            f"Try: trunkline doctor {self.shown}"
        )
        if on_its_way:
            text += "; the message was on its way and may have arrived"
        error = TransportUnavailable(text)
        error.__cause__ = self._trouble
        return error

    # -- supervision

    async def _run(self) -> None:
        attempt = 0
        while True:
            try:
                await self._connect()
                attempt = 0
                await self._attend()
            except (Trouble, ConfigurationError) as trouble:
                lasting = isinstance(trouble, ConfigurationError) or trouble.lasting
                if lasting and not self.met:
                    self._refuse(trouble)
                    return
                self._trouble = trouble
            except Exception as error:
                # Whatever it is, a link that stops trying is an outage without end.
                log.exception("unexpected trouble with %s, connecting anew", self.shown)
                self._trouble = error
            self._interrupt()
            pause = min(0.02 * 2**attempt, self._pace.backoff) * random.uniform(0.5, 1.0)
            attempt = min(attempt + 1, 10)
            await asyncio.sleep(pause)

    def _refuse(self, trouble: Exception) -> None:
        self._disconnect()
        error = ConfigurationError(f"{self.shown}: {trouble}")
        error.__cause__ = trouble
        if not self._opened.done():
            self._opened.set_exception(error)
            self._opened.exception()

    def _lost(self) -> None:
        if not self._down.done():
            self._down.set_result(None)

    def _disconnect(self) -> None:
        connections, self._connections = self._connections, []
        for connection in connections:
            connection.drop()

    def _interrupt(self) -> None:
        was_up, self.up = self.up, False
        self._disconnect()
        self.outbox.interrupt()
        if was_up:
            log.warning("lost %s: %s", self.shown, self._trouble)
            self._on_disconnect(self.shown)

    async def _open_connection(self) -> Connection:
        connection = await connect(
            self._url,
            driver=self._driver,
            label=self._label,
            timeout=self._deadline,
            deadline=self._deadline,
            heard=self.inflow.notified,
            lost=self._lost,
        )
        self._connections.append(connection)
        return connection

    async def _connect(self) -> None:
        self._down = self._loop.create_future()
        writing = await self._open_connection()
        listening = await self._open_connection()
        if writing.pid == listening.pid:
            raise ConfigurationError(POOLED)
        for connection in (writing, listening):
            await prepare(connection, self._deadline)
        self.inflow.own_pid = writing.pid
        await ensure_schema(writing, self._schema)
        asked = time.monotonic()
        ((fresh, clock),) = await writing.fetch(
            f"SELECT fresh, clock FROM {quoted(self._schema)}.hello_2($1::bytea, $2::text, $3::bigint, $4::int)",
            self._me,
            self._label,
            self.names.area,
            listening.pid,
        )
        jump = self.clock.learn(clock / 1000, asked, time.monotonic())
        if jump < -0.1:
            # Another server, or a clock set back: what comes now may look older than what we had.
            self.inflow.receiver.rebase(self.clock.now_ms())
        if self.met:
            self.inflow.receiver.interrupted(self.clock.now_ms())  # from now on what is notified is set aside
        await self.inflow.resume(listening)
        await self._probe(writing, listening)
        forgetful = self.met and fresh
        if self.met:
            await self.inflow.interrupted(listening, forgetful=forgetful)
        if forgetful:
            await asyncio.sleep(2 * self._pace.backoff)
            self.outbox.replay()

    async def _probe(self, writing: Connection, listening: Connection) -> None:
        """Prove that what is notified arrives."""
        self._probed = self._loop.create_future()
        await writing.fetch("SELECT pg_notify($1::text, '!P')", CHANNEL + self._me.hex())
        try:
            async with asyncio.timeout(self._deadline):
                await asyncio.wait([self._probed, self._down], return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            pass
        if self._down.done():
            raise Trouble("the connection was lost at once")
        if not self._probed.done():
            raise ConfigurationError(POOLED)

    async def _attend(self) -> None:
        """Look after connections that work, until they do not."""
        pace = self._pace
        writing, listening = self._connections
        tasks = [
            self._loop.create_task(self.outbox.run(writing), name="trunkline postgres writer"),
            self._loop.create_task(self.inflow.run(listening), name="trunkline postgres listener"),
        ]
        self._announce()
        now = time.monotonic()
        audit, sweep, rotate = now + pace.audit, now + pace.sweep, now + 2 * self._retention
        try:
            while True:
                pause = pace.heartbeat * random.uniform(0.7, 1.0)
                await asyncio.wait([*tasks, self._down], timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    if task.done():
                        task.result()
                if self._down.done():
                    raise Trouble("the connection was lost")
                now = time.monotonic()
                self._sender.prune(now)
                self.inbox.flush()
                self.inbox.tell_truth()
                self.readers.wake_all()
                self.outbox.beat()
                self.inflow.beat(audit=now >= audit, sweep=now >= sweep)
                if now >= audit:
                    audit = now + pace.audit
                if now >= sweep:
                    sweep = now + pace.sweep * random.uniform(0.5, 1.5) * max(self.inflow.nodes, 1)
                if now >= rotate:
                    rotate = now + 2 * self._retention
                    self.inflow.receiver.rotate()
        finally:
            for task in tasks:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(tasks)
            for task in tasks:
                if not task.cancelled():
                    task.exception()

    def _announce(self) -> None:
        self.up = True
        self.outbox.flowing = True
        if self.met:
            log.info("%s is back", self.shown)
            self.inbox.flush()
            self.readers.wake_all()
            self._on_reconnect(self.shown)
        else:
            self.met = True
            self._opened.set_result(None)

    # -- arrivals

    def _echo(self, topic: bytes, frame: bytes) -> None:
        """Our own copy is here when the server has answered."""
        if self.inflow.receiver.hears(topic):
            self.inflow.take(topic, frame)

    def _deliver(self, topic: bytes, body: bytes) -> None:
        if topic == self._me:
            self.inbox.deliver(body)
        else:
            self._arrivals.deliver(body)

    def _gap(self, topic: bytes) -> None:
        if topic == self._me:
            self.inbox.doubt(30.0)
            self._arrivals.gap(None, f"{self.shown} lost messages that were sent to this node")
        elif topic in self._topics:
            self._arrivals.gap(self._topics[topic], f"{self.shown} lost messages")

    def _hear(self, text: str) -> None:
        if text[:1] == "W":
            self.readers.wake(int(text[1:]))
        elif text == "P" and not self._probed.done():
            self._probed.set_result(None)
        elif text == "F":
            self.inbox.forget()
            self.readers.forget()

    # -- topics

    async def subscribe(self, topic: str) -> None:
        wire = self.names.topic(topic)
        self._topics[wire] = topic
        await self.inflow.subscribe(wire)

    def unsubscribe(self, topic: str) -> None:
        wire = self.names.topic(topic)
        self._topics.pop(wire, None)
        self.inflow.unsubscribe(wire)


async def prepare(connection: Connection, deadline: float) -> None:
    """Set what the session needs, as far as the server knows it; a pooler lets no more than this through."""
    settings = {
        "statement_timeout": f"{int(deadline * 1000)}ms",  # what we wait for no more, the server ends too
        "client_connection_check_interval": "2s",
        "synchronous_commit": "off",
        "default_transaction_isolation": "read committed",
        "jit": "off",
        "idle_session_timeout": "0",
    }
    await connection.fetch(
        "SELECT set_config(s.name, w.value, false) FROM unnest($1::text[], $2::text[]) w(name, value) "
        "JOIN pg_settings s ON s.name = w.name",
        list(settings),
        list(settings.values()),
    )


async def ensure_schema(connection: Connection, schema: str) -> None:
    """Make the tables and functions unless they are there.

    Raises:
        Trouble: They are not, and may not be made.
    """
    name = quoted(schema)
    # The last thing that is made stands for all.
    ((there,),) = await connection.fetch(
        "SELECT EXISTS (SELECT FROM pg_proc WHERE pronamespace = to_regnamespace($1::text) AND proname = 'sweep_2')",
        name,
    )
    if there:
        return
    try:
        await connection.run(
            # One message to the server, so one transaction; on disk when it returns, unlike what we write otherwise.
            "SET LOCAL synchronous_commit = on; "
            f"SELECT pg_advisory_xact_lock(hashtext('trunkline schema'), hashtext('{name}')); "
            f"{schema_sql(schema)}"
        )
    except Trouble as trouble:
        if trouble.state == "42501":
            text = (
                f"{trouble}. Trunkline makes the schema {name} on first use: GRANT CREATE ON DATABASE … to this user, "
                "or have somebody run the SQL of `python -m trunkline.transports.postgres` (see docs/postgres.md)"
            )
            raise Trouble(text, trouble.state) from trouble
        raise
