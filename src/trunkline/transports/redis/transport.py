"""The transport contract over one or several servers: each name belongs to one of them, each has its own link."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import math
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ClassVar, Self
from urllib.parse import parse_qsl, urlencode, urlunsplit

from ...errors import ConfigurationError, LayerClosed, TransportUnavailable
from ...logs import hook
from ...settings import parse_number, positive, split_url
from ...transport import Arrivals, Finding, Leased, Record, Renewal, Server, Transport
from .cluster import Cluster
from .doctor import examine
from .hosts import URL_KEYS, Host, in_cluster, parse_hosts
from .inbox import label, pack_post
from .leases import Leases
from .link import Link, Setting
from .ops import Destination, Op, PlainOp, Post, Publish, Push, Remember, ScriptOp
from .pace import Pace
from .records import Records
from .scripts import BIND
from .server import ServerLink
from .topology import Names, owners, partition

__all__ = ["RedisTransport"]

log = logging.getLogger("trunkline.redis")

_NO_BOUND = 1 << 31


class RedisTransport(Transport):
    """Carries frames over Redis 6.2 or newer, or Valkey.

    Where there are several servers and some do not answer when it opens, names of the others work; theirs raise
    ``TransportUnavailable`` until they do, and pulls wait.

    Args:
        hosts: The servers: a list of URLs, (host, port) pairs or dicts. Names are spread over them.
        prefix: What all key names begin with: two prefixes never meet.
        expiry: Seconds that frames are of interest; logs reach back a little longer.
        connect_timeout: Seconds that ``open`` goes on trying while no server answers.
        deadline: Seconds that a server may owe an answer before its connection is dropped.
        read_hosts: Servers that names are still, or already, read from while ``hosts`` is being changed.
        log_length: Frames kept for one topic at most, roughly; a shorter log shortens the outages that lose nothing.
        cluster: ``hosts`` are some nodes of one cluster; it tells of the others.
        wait_replicas: Replicas that must have what is sent, before it counts as sent.
        on_disconnect: Called when a connection is lost, with the server's address if it takes an argument.
        on_reconnect: Called when it is back.

    Raises:
        ConfigurationError: A setting is wrong.
    """

    features: ClassVar[frozenset[str]] = frozenset({"history", "leases", "records"})
    url_keys = URL_KEYS

    def __init__(
        self,
        hosts: Any = None,
        *,
        prefix: str = "asgi",
        expiry: float = 60.0,
        connect_timeout: float = 10.0,
        deadline: float = 5.0,
        read_hosts: Any = None,
        log_length: int = 10_000,
        cluster: bool | None = None,
        wait_replicas: int = 0,
        on_disconnect: Callable[..., Any] | None = None,
        on_reconnect: Callable[..., Any] | None = None,
        _pace: Pace | None = None,
    ) -> None:
        self._hosts = parse_hosts(hosts)
        self._read_hosts = [] if read_hosts is None else parse_hosts(read_hosts, "read_hosts")
        self._hosts = in_cluster(self._hosts, cluster, self._read_hosts)
        if not isinstance(prefix, str) or not prefix or "{" in prefix:
            raise ConfigurationError(f"prefix is a str that is not empty and has no '{{', not {prefix!r}")
        self._prefix = prefix
        self._expiry = positive("expiry", expiry)
        self._connect_timeout = positive("connect_timeout", connect_timeout)
        self._deadline = positive("deadline", deadline)
        self._log_length = math.ceil(positive("log_length", log_length))
        whole = isinstance(wait_replicas, (int, float)) and not isinstance(wait_replicas, bool)
        if not whole or wait_replicas not in range(101):
            raise ConfigurationError(
                f"wait_replicas is a whole number of replicas, 0 to 100, not {wait_replicas!r}"
            )
        self._wait_replicas = int(wait_replicas)
        self._on_disconnect = hook("on_disconnect", on_disconnect, log)
        self._on_reconnect = hook("on_reconnect", on_reconnect, log)
        self._pace = _pace or Pace()
        self._node = ""
        self._links: list[ServerLink] = []
        self._cluster: Cluster | None = None
        self._writes: list[Link] = []
        self._reads: list[tuple[Link, ...]] = []
        self._destination = functools.lru_cache(maxsize=16384)(self._find)

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """Make one from ``redis://[user:password@]host[:port][/database][?option=value]``.

        Schemes: redis, rediss, valkey, valkeys, unix. Options are those of the constructor and of a host.
        """
        if "hosts" in options:
            raise ConfigurationError(
                "the URL names the server: for several, use RedisChannelLayer(hosts=[…])"
            )
        parts = split_url(url, "the URL of a layer")
        known = inspect.signature(cls.__init__).parameters
        for_host = []
        for key, value in parse_qsl(parts.query):
            if key in known and key not in (
                "hosts",
                "read_hosts",
                "cluster",
                "on_disconnect",
                "on_reconnect",
                "_pace",
            ):
                options.setdefault(key, value if key == "prefix" else parse_number(key, value))
            else:
                for_host.append((key, value))
        return cls([urlunsplit(parts._replace(query=urlencode(for_host)))], **options)

    @classmethod
    async def examine(cls, url: str, **options: Any) -> list[Finding]:
        """As ``from_url``; or, with ``hosts`` among the options, as the constructor."""
        made = cls(**options) if "hosts" in options else cls.from_url(url, **options)
        return await examine(
            made._hosts,
            made._read_hosts,
            prefix=made._prefix,
            deadline=made._deadline,
            wait_replicas=made._wait_replicas,
        )

    def __repr__(self) -> str:
        servers = ", ".join(host.address for host in self._hosts)
        return f"<RedisTransport {servers} prefix={self._prefix!r} {'open' if self._writes else 'closed'}>"

    # -- life

    async def open(self, node: str, arrivals: Arrivals) -> None:
        self._node = node
        for host in self._hosts + self._read_hosts:
            for server in (host, *host.sentinels, *host.seeds):
                server.context()  # a wrong certificate file is told now, not in the background
        if self._hosts[0].seeds:
            await self._open_cluster(self._hosts[0], arrivals)
            return
        by_identity = {host.identity: host for host in self._hosts + self._read_hosts}
        setting = self._setting(arrivals)
        links = {
            identity: ServerLink(host, Names(self._prefix, host.db), setting)
            for identity, host in by_identity.items()
        }
        self._links = list(links.values())
        self._writes, self._reads = self._route(links)
        if len(self._links) == 1:
            # With every message: no call in between.
            self.now = self._links[0].clock.now  # type: ignore[method-assign]
            self.taken = self._links[0].inbox.taken  # type: ignore[method-assign, assignment]
        for link in self._links:
            link.start()
        try:
            await self._meet()
        except BaseException:
            await self.close()
            raise

    async def _open_cluster(self, host: Host, arrivals: Arrivals) -> None:
        self._cluster = Cluster(host, Names(self._prefix, 0), self._setting(arrivals))
        try:
            await self._cluster.open(self._connect_timeout)
        except BaseException:
            await self.close()
            raise
        self._writes = list(self._cluster.links)
        self._reads = [(link,) for link in self._writes]

    async def _meet(self) -> None:
        """Wait until every server was tried and one has answered."""
        opening = [asyncio.ensure_future(link.opened()) for link in self._links]
        try:
            async with asyncio.timeout(self._connect_timeout):
                for link in self._links:
                    await link.tried()
                done, _ = await asyncio.wait(opening, return_when=asyncio.FIRST_COMPLETED)
                for each in done:
                    each.result()
        except TimeoutError:
            pass  # who has answered is seen below
        finally:
            for each in opening:
                each.cancel()
            await asyncio.wait(opening)
        missing = [link for link in self._links if not link.met]
        if len(missing) == len(self._links):
            raise missing[0].unavailable()
        for link in missing:
            link.keep_trying()
        if missing:
            addresses = ", ".join(link.host.address for link in missing)
            text = "%s of %d servers did not answer: names that live there cannot be used until it does (%s)"
            log.warning(text, addresses, len(self._links), missing[0].unavailable())

    def _setting(self, arrivals: Arrivals) -> Setting:
        return Setting(
            self._node,
            arrivals,
            expiry=self._expiry,
            deadline=self._deadline,
            log_length=self._log_length,
            wait_replicas=self._wait_replicas,
            pace=self._pace,
            on_disconnect=self._on_disconnect,
            on_reconnect=self._on_reconnect,
        )

    def _route(self, links: dict[str, ServerLink]) -> tuple[list[Link], list[tuple[Link, ...]]]:
        identities = [host.identity for host in self._hosts]
        writes: list[Link] = [links[identities[place]] for place in owners(identities)]
        olds = [host.identity for host in self._read_hosts]
        also: list[Link] = [links[olds[place]] for place in owners(olds)] if olds else writes
        return writes, [tuple(dict.fromkeys(pair)) for pair in zip(writes, also, strict=True)]

    async def close(self) -> None:
        links, self._links = self._links, []
        cluster, self._cluster = self._cluster, None
        self._writes, self._reads = [], []
        self._destination.cache_clear()
        await asyncio.gather(*(each.close(LayerClosed()) for each in (*links, cluster) if each is not None))

    def abandon(self) -> None:
        links, self._links = self._links, []
        cluster, self._cluster = self._cluster, None
        self._writes, self._reads = [], []
        self._destination.cache_clear()
        for each in (*links, cluster):
            if each is not None:
                each.abandon()

    def servers(self) -> list[Server]:
        if self._cluster is not None:
            return self._cluster.servers()
        return [link.server() for link in self._links]

    def now(self) -> float:
        if self._cluster is not None and self._writes:
            return self._cluster.clock.now()
        for link in self._links:
            if link.clock.set:
                return link.clock.now()
        raise LayerClosed("the transport is not open")

    # -- routing

    def _write(self, name: str) -> Link:
        """Where a name lives. Once its server has answered (``met``), outages are waited out."""
        if not self._writes:
            raise LayerClosed("the transport is not open")
        return self._writes[partition(name)]

    def _read(self, name: str) -> tuple[Link, ...]:
        if not self._reads:
            raise LayerClosed("the transport is not open")
        return self._reads[partition(name)]

    async def _met(self, name: str) -> tuple[Link, ...]:
        links = self._read(name)
        for link in links:
            if not link.met:
                await link.meet()
        return links

    # -- topics

    async def subscribe(self, topic: str) -> None:
        for link in await self._met(topic):
            await link.subscribe(topic)

    async def unsubscribe(self, topic: str) -> None:
        for link in self._read(topic):
            link.unsubscribe(topic)

    async def publish(self, topic: str, frame: bytes, ttl: float) -> Sequence[str]:
        link = self._write(topic)
        if not link.met:
            await link.meet()
        names = link.names
        retention = max(ttl, self._expiry)
        op = Publish(link.outbox, names.topic(topic), frame, ttl, retention, names.bindings(topic))
        link.outbox.submit(op)
        fields: list[bytes] | None = await op.future
        if fields is None:
            look = PlainOp(link.outbox, "HGETALL", op.bindings, ttl=ttl)
            link.outbox.submit(look)
            fields = await look.future
        if link.inflow.receiver.recovering:
            await link.inflow.caught_up(names.topic(topic))
        for other in self._read(topic):
            if other is not link:
                fetch = PlainOp(other.outbox, "HGETALL", other.names.bindings(topic), ttl=ttl)
                other.outbox.submit(fetch)
                fields = [*(fields or []), *await fetch.future]
        return await self._push_bound(link, frame, ttl, fields) if fields else ()

    async def _push_bound(self, link: Link, frame: bytes, ttl: float, fields: list[bytes]) -> list[str]:
        now_ms = link.clock.now() * 1000
        queues, pushes = [], []
        for name, value in dict(zip(fields[::2], fields[1::2], strict=True)).items():
            deadline, capacity = value.split()
            if int(deadline) > now_ms:
                queues.append(name.decode())
                pushes.append(self.push(queues[-1], frame, int(capacity), ttl))
        outcomes = await asyncio.gather(*pushes, return_exceptions=True)
        full = []
        for queue, outcome in zip(queues, outcomes, strict=True):
            if isinstance(outcome, TransportUnavailable):
                text = "queue %s did not get a message published to a topic it is bound to: %s"
                log.warning(text, queue, outcome)
            if isinstance(outcome, BaseException):
                full.append(queue)
        return full

    # -- posts

    async def post(self, node: str, channel: str, frame: bytes, capacity: int | None, ttl: float) -> bool:
        link, to = self._destination(node, channel, capacity, ttl)
        if not link.met:
            await link.meet()
        op = Post(to, pack_post(to.label, frame), ttl)
        to.outbox.submit(op)
        arrived: bool = await op.future
        return arrived

    def _find(self, node: str, channel: str, capacity: int | None, ttl: float) -> tuple[Link, Destination]:
        link = self._write(node)
        keys = link.names.post_keys(node, link.sid)
        retention = max(ttl, self._expiry)
        return link, Destination(link.outbox, keys, channel, capacity, label(channel, capacity), retention)

    def taken(self, channel: str, count: int) -> None:
        links: Sequence[Link] = self._links if self._cluster is None else (self._cluster.home_link,)
        for link in links:
            count = link.inbox.taken(channel, count)
            if not count:
                return

    # -- queues

    def _push(self, link: Link, queue: str, frame: bytes, capacity: int, ttl: float) -> Push:
        op = Push(link.outbox, link.names.push_keys(queue, link.sid), queue, frame, capacity, ttl)
        link.outbox.submit(op)
        return op

    async def push(self, queue: str, frame: bytes, capacity: int, ttl: float) -> None:
        link = self._write(queue)
        if not link.met:
            await link.meet()
        await self._push(link, queue, frame, capacity, ttl).future

    def pull(self, queue: str) -> Coroutine[Any, Any, bytes]:
        links = self._read(queue)
        if len(links) == 1:
            links[0].use()
            return links[0].readers.pull(queue)
        return self._pull_any(queue, links)

    async def _pull_any(self, queue: str, links: tuple[Link, ...]) -> bytes:
        """Pull from the old and the new home of a queue, while names move from one to the other."""
        pulls = [asyncio.ensure_future(link.readers.pull(queue)) for link in links]
        taken: list[bytes] = []
        try:
            await asyncio.wait(pulls, return_when=asyncio.FIRST_COMPLETED)
            taken = [pull.result() for pull in pulls if pull.done()][:1]
        finally:
            for pull in pulls:
                pull.cancel()
            outcomes = await asyncio.gather(*pulls, return_exceptions=True)
            # Two can come at once, or one with our own cancellation: what nobody takes goes back.
            for frame in [outcome for outcome in outcomes if isinstance(outcome, bytes)][len(taken) :]:
                self._push(self._write(queue), queue, frame, _NO_BOUND, self._expiry)
        return taken[0]

    async def lease(self, queue: str, seconds: float, ttl: float) -> Leased:
        links = self._read(queue)
        if len(links) == 1:
            links[0].use()
            return await links[0].readers.leases.lease(queue, seconds, ttl)
        leases = [asyncio.ensure_future(link.readers.leases.lease(queue, seconds, ttl)) for link in links]
        leased: list[Leased] = []
        try:
            await asyncio.wait(leases, return_when=asyncio.FIRST_COMPLETED)
            leased = [lease.result() for lease in leases if lease.done()][:1]
        finally:
            for lease in leases:
                lease.cancel()
            for other in await asyncio.gather(*leases, return_exceptions=True):
                if isinstance(other, Leased) and other not in leased:
                    await self.hold(queue, other.token, 0)
        return leased[0]

    async def hold(self, queue: str, token: str, seconds: float) -> bool:
        return await self._lessor(queue, token).settle(queue, token, seconds, self._expiry)

    async def settle(self, queue: str, token: str) -> bool:
        return await self._lessor(queue, token).settle(queue, token, None, self._expiry)

    def _lessor(self, queue: str, token: str) -> Leases:
        """Where a lease is: its token begins with the name that this node has there."""
        for link in self._read(queue):
            if token.startswith(f"{link.sid}."):
                return link.readers.leases
        raise LayerClosed("the transport was closed since")

    async def push_later(self, queue: str, frame: bytes, capacity: int, ttl: float, delay: float) -> None:
        link = self._write(queue)
        if not link.met:
            await link.meet()
        await link.readers.leases.push_later(queue, frame, capacity, ttl, delay)

    async def bind(self, topic: str, queue: str, capacity: int, ttl: float) -> None:
        ops: list[Op] = []
        for link in await self._met(topic):
            args: list[bytes | str | int] = [queue, capacity, max(int(ttl * 1000), 1)]
            ops.append(ScriptOp(link.outbox, BIND, (link.names.bindings(topic),), args, ttl=ttl))
            link.outbox.submit(ops[-1])
        for op in ops:
            await op.future

    async def unbind(self, topic: str, queue: str) -> None:
        for link in await self._met(topic):
            op: Op = PlainOp(link.outbox, "HDEL", link.names.bindings(topic), queue)
            link.outbox.submit(op)
            await op.future

    # -- history

    async def remember(
        self, topic: str, frame: bytes, mark: str, size: int, seconds: float
    ) -> tuple[int, str]:
        link = self._write(topic)
        if not link.met:
            await link.meet()
        keys = link.names.history_keys(topic, link.sid)
        op = Remember(link.outbox, keys, frame, mark, size, seconds, self._expiry)
        link.outbox.submit(op)
        place, before = await op.future
        return place, before.decode()

    async def recall(self, topic: str, first: int | None, count: int) -> list[tuple[int, bytes]]:
        link = self._write(topic)
        if not link.met:
            await link.meet()
        key = link.names.history_keys(topic, link.sid)[0]
        command = ("XREVRANGE", key, "+", "-") if first is None else ("XRANGE", key, f"{first}-0", "+")
        op = PlainOp(link.outbox, *command, "COUNT", count, ttl=self._expiry)
        link.outbox.submit(op)
        entries = await op.future
        return [
            (int(entry_id.partition(b"-")[0]), fields[1])
            for entry_id, fields in (reversed(entries) if first is None else entries)
        ]

    # -- records

    async def _records_of(self, topic: str) -> Records:
        link = self._write(topic)
        if not link.met:
            await link.meet()
        return link.records

    async def keep_record(self, topic: str, key: str, tag: str, value: bytes, ttl: float) -> int:
        return await (await self._records_of(topic)).keep(topic, key, tag, value, ttl, self._expiry)

    async def drop_record(self, topic: str, key: str) -> int | None:
        return await (await self._records_of(topic)).drop(topic, key, self._expiry)

    async def renew_records(self, topics: Sequence[str], ttl: float) -> Renewal:
        asked = [
            (topic, records := await self._records_of(topic), records.renew(topic, ttl)) for topic in topics
        ]
        outcomes = await asyncio.gather(*(op.future for _, _, op in asked), return_exceptions=True)
        news = Renewal([], [], [])
        trouble: BaseException | None = None
        for (topic, records, _), outcome in zip(asked, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                trouble = outcome
            else:
                records.heed(topic, outcome, news)
        # With several servers, trouble with one is not that of the others: they are asked again soon.
        if trouble is not None and not any(news):
            raise trouble
        return news

    async def records(self, topic: str) -> list[Record]:
        return await (await self._records_of(topic)).read(topic, self._deadline)

    async def count_records(self, topic: str) -> tuple[int, int]:
        return await (await self._records_of(topic)).count(topic, self._deadline)

    async def reap_records(self, topic: str) -> list[tuple[Record, int]]:
        return await (await self._records_of(topic)).reap(topic)

    async def flush(self) -> None:
        if self._cluster is not None:
            await self._cluster.flush()
        for link in self._links:
            await link.flush()
