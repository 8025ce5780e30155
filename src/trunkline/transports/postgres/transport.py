"""The transport contract over PostgreSQL."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self
from urllib.parse import parse_qsl, urlencode, urlunsplit

from ...errors import ConfigurationError, LayerClosed
from ...logs import hook
from ...settings import parse_number, positive, shown_url, split_url
from ...transport import Arrivals, Finding, Leased, Record, Renewal, Server, Transport
from .doctor import examine
from .driver import driver_named
from .inbox import pack_post
from .link import Link
from .names import Names
from .outbox import Kind, Op
from .pace import Pace

__all__ = ["PostgresTransport"]

log = logging.getLogger("trunkline.postgres")

#: What the drivers read of a URL.
_URL_KEYS = frozenset(
    {
        "channel_binding",
        "dbname",
        "gsslib",
        "host",
        "krbsrvname",
        "options",
        "passfile",
        "password",
        "port",
        "service",
        "ssl_max_protocol_version",
        "ssl_min_protocol_version",
        "sslcert",
        "sslcrl",
        "sslkey",
        "sslmode",
        "sslnegotiation",
        "sslpassword",
        "sslrootcert",
        "target_session_attrs",
        "user",
    }
)

_schema = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}").fullmatch


class PostgresTransport(Transport):
    """Carries frames through a PostgreSQL database, version 13 or newer.

    Args:
        server: A URL as libpq reads it, ``postgresql://user:password@host:port/database``, or a callable that gives one;
            what it leaves out comes from ``PGHOST``, ``PGUSER``, … None: everything does.
        prefix: Two prefixes never meet.
        schema: The schema that holds Trunkline's tables; it is made on first use.
        expiry: Seconds that frames are of interest; the log reaches back a little longer.
        connect_timeout: Seconds that ``open`` goes on trying while the server does not answer.
        deadline: Seconds that the server may owe an answer before its connection is dropped.
        driver: ``"asyncpg"`` or ``"psycopg"``; None takes the first that is installed.
        on_disconnect: Called when the connection is lost, with the server's address if it takes an argument.
        on_reconnect: Called when it is back.

    Raises:
        ConfigurationError: A setting is wrong, or no driver is installed.
    """

    features: ClassVar[frozenset[str]] = frozenset({"history", "leases", "records"})
    url_keys = _URL_KEYS

    def __init__(
        self,
        server: str | Callable[[], str] | None = None,
        *,
        prefix: str = "asgi",
        schema: str = "trunkline",
        expiry: float = 60.0,
        connect_timeout: float = 10.0,
        deadline: float = 5.0,
        driver: str | None = None,
        on_disconnect: Callable[..., Any] | None = None,
        on_reconnect: Callable[..., Any] | None = None,
        _pace: Pace | None = None,
    ) -> None:
        if server is None:
            server = "postgresql://"
        if isinstance(server, str):
            _check_url(server)
        elif not callable(server):
            raise ConfigurationError(f'the server is a URL, "postgresql://…", not {type(server).__name__}')
        self._server = server
        if not isinstance(prefix, str) or not prefix:
            raise ConfigurationError(f"prefix is a str that is not empty, not {prefix!r}")
        if not isinstance(schema, str) or _schema(schema) is None:
            raise ConfigurationError(f"schema is a name of letters, digits and '_', not {schema!r}")
        self._prefix, self._schema = prefix, schema
        self._expiry = positive("expiry", expiry)
        self._connect_timeout = positive("connect_timeout", connect_timeout)
        self._deadline = positive("deadline", deadline)
        self._driver = driver_named(driver)
        self._on_disconnect = hook("on_disconnect", on_disconnect, log)
        self._on_reconnect = hook("on_reconnect", on_reconnect, log)
        self._pace = _pace or Pace()
        self._names = Names(schema, prefix)
        self._link: Link | None = None

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """Make one from ``postgresql://[user:password@][host][:port][/database][?option=value]``.

        Options are those of the constructor, and those that libpq knows (``sslmode``, ``target_session_attrs``, …).
        """
        if "server" in options:
            raise ConfigurationError("the URL names the server: leave server away")
        parts = split_url(url, "the URL of a layer")
        known = inspect.signature(cls.__init__).parameters
        for_server = []
        for key, value in parse_qsl(parts.query):
            if key in _URL_KEYS or key not in known or key[0] == "_":
                for_server.append((key, value))
            elif key in ("prefix", "schema", "driver"):
                options.setdefault(key, value)
            else:
                options.setdefault(key, parse_number(key, value))
        return cls(urlunsplit(parts._replace(query=urlencode(for_server))), **options)

    @classmethod
    async def examine(cls, url: str, **options: Any) -> list[Finding]:
        """As ``from_url``; or, with ``server`` among the options, as the constructor."""
        made = cls(**options) if "server" in options else cls.from_url(url, **options)
        return await examine(
            made._url(),
            driver=made._driver,
            schema=made._schema,
            area=made._names.area,
            deadline=made._deadline,
        )

    def _url(self) -> str:
        url = self._server if isinstance(self._server, str) else self._server()
        _check_url(url)
        return url

    def __repr__(self) -> str:
        shown = shown_url(self._server) if isinstance(self._server, str) else "postgresql"
        return f"<PostgresTransport {shown} prefix={self._prefix!r} {'open' if self._link else 'closed'}>"

    # -- life

    async def open(self, node: str, arrivals: Arrivals) -> None:
        url = self._url()
        self._link = Link(
            url,
            shown_url(url),
            self._names,
            node,
            arrivals,
            driver=self._driver,
            schema=self._schema,
            expiry=self._expiry,
            deadline=self._deadline,
            pace=self._pace,
            on_disconnect=self._on_disconnect,
            on_reconnect=self._on_reconnect,
        )
        self.now = self._link.clock.now  # type: ignore[method-assign]  # asked for with every message
        try:
            await self._link.open(self._connect_timeout)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await link.close(LayerClosed())

    def abandon(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.abandon()

    def servers(self) -> list[Server]:
        return [] if self._link is None else [self._link.server()]

    def now(self) -> float:
        return self._open().clock.now()

    def _open(self) -> Link:
        if self._link is None:
            raise LayerClosed("the transport is not open")
        return self._link

    # -- topics

    async def subscribe(self, topic: str) -> None:
        await self._open().subscribe(topic)

    async def unsubscribe(self, topic: str) -> None:
        self._open().unsubscribe(topic)

    def _kept(self, ttl: float) -> int:
        return int((max(ttl, self._expiry) + 10) * 1000)

    async def publish(self, topic: str, frame: bytes, ttl: float) -> Sequence[str]:
        link = self._open()
        wire = self._names.topic(topic)
        # Queues that are bound to the topic keep it for `number` ms, the log for `ttl`.
        op = Op(
            Kind.PUBLISH,
            wire=wire,
            chained=True,
            body=frame,
            number=_ms(ttl),
            ttl=self._kept(ttl),
            expires=ttl,
        )
        _, full = await link.outbox.submit(op).future
        if link.inflow.receiver.recovering:
            await link.inflow.caught_up(wire)
        return [name.decode() for name in full]

    # -- posts

    async def post(self, node: str, channel: str, frame: bytes, capacity: int | None, ttl: float) -> bool:
        op = Op(
            Kind.POST,
            channel,
            wire=self._names.inbox(node),
            chained=True,
            body=pack_post(channel, capacity, frame),
            number=-1 if capacity is None else capacity,
            ttl=self._kept(ttl),
            expires=ttl,
        )
        code, _ = await self._open().outbox.submit(op).future
        return bool(code == 0)

    def taken(self, channel: str, count: int) -> None:
        if self._link is not None:
            self._link.inbox.taken(channel, count)

    # -- queues

    async def push(self, queue: str, frame: bytes, capacity: int, ttl: float) -> None:
        op = Op(Kind.PUSH, queue, body=frame, number=capacity, ttl=_ms(ttl), expires=ttl)
        await self._open().outbox.submit(op).future

    async def pull(self, queue: str) -> bytes:
        return (await self._open().readers.take(queue))[2]

    async def lease(self, queue: str, seconds: float, ttl: float) -> Leased:
        token, tries, frame = await self._open().readers.take(queue, (_ms(seconds), _ms(ttl)))
        return Leased(str(token), frame, tries)

    async def hold(self, queue: str, token: str, seconds: float) -> bool:
        return await self._about(Kind.HOLD, queue, token, int(seconds * 1000))

    async def settle(self, queue: str, token: str) -> bool:
        return await self._about(Kind.SETTLE, queue, token)

    async def _about(self, kind: Kind, queue: str, token: str, ms: int = 0) -> bool:
        op = Op(kind, queue, number=int(token), ttl=ms, expires=self._expiry)
        code, _ = await self._open().outbox.submit(op).future
        return bool(code == 0)

    async def push_later(self, queue: str, frame: bytes, capacity: int, ttl: float, delay: float) -> None:
        wire = int(delay * 1000).to_bytes(8, "big")
        op = Op(Kind.LATER, queue, wire=wire, body=frame, number=capacity, ttl=_ms(ttl), expires=ttl)
        await self._open().outbox.submit(op).future

    async def bind(self, topic: str, queue: str, capacity: int, ttl: float) -> None:
        wire = self._names.topic(topic)
        op = Op(Kind.BIND, queue, wire=wire, number=capacity, ttl=_ms(ttl), expires=ttl)
        await self._open().outbox.submit(op).future

    async def unbind(self, topic: str, queue: str) -> None:
        op = Op(Kind.UNBIND, queue, wire=self._names.topic(topic), expires=self._expiry)
        await self._open().outbox.submit(op).future

    # -- history

    async def remember(
        self, topic: str, frame: bytes, mark: str, size: int, seconds: float
    ) -> tuple[int, str]:
        wire = self._names.topic(topic)
        op = Op(
            Kind.REMEMBER, mark, wire=wire, body=frame, number=size, ttl=_ms(seconds), expires=self._expiry
        )
        _, (placed,) = await self._open().outbox.submit(op).future
        return int.from_bytes(placed[:8], "big"), placed[8:].decode()

    async def recall(self, topic: str, first: int | None, count: int) -> list[tuple[int, bytes]]:
        # From place 0 on, which there is none: the newest.
        after = 0 if first is None else max(first, 1)
        wire = self._names.topic(topic)
        op = Op(Kind.RECALL, topic, wire=wire, number=count, ttl=after, expires=self._expiry)
        _, entries = await self._open().outbox.submit(op).future
        return [(int.from_bytes(entry[:8], "big"), entry[8:]) for entry in entries]

    # -- records

    async def keep_record(self, topic: str, key: str, tag: str, value: bytes, ttl: float) -> int:
        return await self._open().records.keep(topic, key, tag, value, _ms(ttl))

    async def drop_record(self, topic: str, key: str) -> int | None:
        return await self._open().records.drop(topic, key)

    async def renew_records(self, topics: Sequence[str], ttl: float) -> Renewal:
        return await self._open().records.renew(topics, _ms(ttl))

    async def records(self, topic: str) -> list[Record]:
        return await self._open().records.read(topic)

    async def count_records(self, topic: str) -> tuple[int, int]:
        return await self._open().records.count(topic)

    async def reap_records(self, topic: str) -> list[tuple[Record, int]]:
        return await self._open().records.reap(topic)

    async def flush(self) -> None:
        op = Op(Kind.FLUSH, wire=self._names.news, expires=self._expiry)
        await self._open().outbox.submit(op).future


def _ms(seconds: float) -> int:
    return max(int(seconds * 1000), 1)


def _check_url(url: str) -> None:
    parts = split_url(url, "the URL of a layer")
    if parts.scheme not in ("postgres", "postgresql"):
        raise ConfigurationError(f"{shown_url(url)!r} is not a URL such as postgresql://user@host/database")
