"""The transport contract over one NATS server or cluster."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self
from urllib.parse import parse_qsl, urlunsplit

from ...errors import ConfigurationError, LayerClosed, TransportUnavailable
from ...logs import hook
from ...settings import split_url
from ...transport import Arrivals, Finding, Server, Transport
from .doctor import examine
from .history import History
from .link import Link
from .queues import Queues, make_stream, stamp
from .servers import access
from .subjects import Subjects

__all__ = ["NatsTransport"]

log = logging.getLogger("trunkline.nats")

_MARGIN = 15.0


class NatsTransport(Transport):
    """Carries frames over NATS 2.10 or newer.

    Args:
        servers: One URL, ``nats://[user:password@]host[:port][,host…]`` or ``nats+tls://…``, or a list of them.
        prefix: What all subjects and streams begin with: two prefixes never meet.
        expiry: Seconds that frames are of interest; logs reach back a little longer.
        recover: Keep a log of what is published, so that a node that was cut off gets what it missed. Needs JetStream.
        storage: Where JetStream keeps queues, histories and the log: "file" or "memory".
        replicas: Servers of a cluster that keep them. None: three where there are as many.
        connect_timeout: Seconds that ``open`` goes on trying while no server answers.
        deadline: Seconds that a server may owe an answer before its connection is dropped.
        credentials: A ``.creds`` file.
        ssl_ca_certs: Whom to trust instead of the system's authorities.
        ssl_certfile: Our own certificate.
        ssl_keyfile: The key to it.
        ssl_check_hostname: Whether the certificate must name the host.
        on_disconnect: Called when the connection is lost, with the servers if it takes an argument.
        on_reconnect: Called when it is back.

    Raises:
        ConfigurationError: A setting is wrong.
    """

    features: ClassVar[frozenset[str]] = frozenset({"history"})

    def __init__(
        self,
        servers: str | Sequence[str] | None = None,
        *,
        prefix: str = "asgi",
        expiry: float = 60.0,
        recover: bool = False,
        storage: str = "file",
        replicas: int | None = None,
        connect_timeout: float = 10.0,
        deadline: float = 5.0,
        credentials: str | None = None,
        ssl_ca_certs: str | None = None,
        ssl_certfile: str | None = None,
        ssl_keyfile: str | None = None,
        ssl_check_hostname: bool = True,
        on_disconnect: Callable[..., Any] | None = None,
        on_reconnect: Callable[..., Any] | None = None,
    ) -> None:
        self._access = access(
            "nats://localhost:4222" if servers is None else servers,
            credentials=credentials,
            ssl_ca_certs=ssl_ca_certs,
            ssl_certfile=ssl_certfile,
            ssl_keyfile=ssl_keyfile,
            ssl_check_hostname=_flag("ssl_check_hostname", ssl_check_hostname),
        )
        if not isinstance(prefix, str) or not prefix:
            raise ConfigurationError(f"prefix is a str that is not empty, not {prefix!r}")
        self._prefix = prefix
        self._expiry = _positive("expiry", expiry)
        self._recover = _flag("recover", recover)
        if storage not in ("file", "memory"):
            raise ConfigurationError(f'storage is "file" or "memory", not {storage!r}')
        self._storage = storage
        if replicas is not None and (isinstance(replicas, bool) or replicas not in (1, 3, 5)):
            raise ConfigurationError(f"replicas is 1, 3 or 5, not {replicas!r}")
        self._replicas = replicas or 0
        self._connect_timeout = _positive("connect_timeout", connect_timeout)
        self._deadline = _positive("deadline", deadline)
        self._on_disconnect = hook("on_disconnect", on_disconnect, log)
        self._on_reconnect = hook("on_reconnect", on_reconnect, log)
        self._subjects = Subjects(prefix)
        self._link: Link | None = None
        self._queues: Queues | None = None
        self._history: History | None = None
        #: Topic -> queue -> (capacity, deadline).
        self._bound: dict[str, dict[str, tuple[int, float]]] = {}
        #: The same while it is read anew.
        self._loading: dict[str, dict[str, tuple[int, float]]] | None = None
        self._jetstream = True

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """Make one from ``nats://[user:password@]host[:port][,host…][?option=value]``; options are the constructor's."""
        parts = split_url(url, "the URL of a layer")
        known = inspect.signature(cls.__init__).parameters
        for key, value in parse_qsl(parts.query):
            if key not in known or key in ("servers", "on_disconnect", "on_reconnect"):
                raise ConfigurationError(f"unknown setting {key!r} in the URL of a layer")
            annotation = str(known[key].annotation)
            options.setdefault(
                key, value if "str" in annotation or annotation == "bool" else _number(key, value)
            )
        return cls(urlunsplit(parts._replace(query="")), **options)

    @classmethod
    async def examine(cls, url: str, **options: Any) -> list[Finding]:
        made = cls(**options) if "servers" in options else cls.from_url(url, **options)
        return await examine(made._access, made._prefix, deadline=made._deadline, recover=made._recover)

    def __repr__(self) -> str:
        state = "open" if self._link is not None else "closed"
        return f"<NatsTransport {self._access.address} prefix={self._prefix!r} {state}>"

    # -- life

    async def open(self, node: str, arrivals: Arrivals) -> None:
        self._subjects = Subjects(self._prefix, node)
        link = Link(
            self._access,
            self._subjects,
            node,
            arrivals,
            recover=self._recover,
            retention=self._expiry + _MARGIN,
            deadline=self._deadline,
            greet=self._greet,
            delivered=lambda *message: queues.delivered(*message),
            control=self._told,
            resumed=lambda: queues.resumed(),
            on_disconnect=self._on_disconnect,
            on_reconnect=self._on_reconnect,
        )
        queues = Queues(link, storage=self._storage, replicas=self._replicas, expiry=self._expiry)
        self._link, self._queues = link, queues
        self.now = link.now  # type: ignore[method-assign]  # asked for with every message
        self._history = History(link, self._storage, self._replicas)
        try:
            await link.open(self._connect_timeout)
        except BaseException:
            await self.close()
            raise

    async def _greet(self, first: bool) -> None:
        """Learn the time and the bindings from JetStream, and see that the log is there."""
        link = self._live()
        asked = time.monotonic()
        try:
            config = self._stream(self._subjects.bindings_stream, "b", {"max_msgs_per_subject": 1})
            made = await make_stream(link, config, self._deadline, now=first)
            if self._recover:
                # Frames of a log are read for as long as they are of interest.
                age = int((self._expiry + _MARGIN) * 1e9)
                limits = {"max_age": age, "duplicate_window": min(age, 2_000_000_000)}
                topics = self._stream(self._subjects.topics_stream, "t", limits)
                await make_stream(link, topics, self._deadline, now=first)
        except ConfigurationError:
            if self._recover:
                raise
            self._jetstream = False
            return
        self._jetstream = True
        if "ts" in made:
            took = time.monotonic() - asked
            link.set_clock(stamp(made["ts"]), max(took, 0.05))
        if first and link.clustered and self._queues is not None:
            # While the cluster has all its servers.
            await self._queues.ensure(self._deadline, now=True)
            await self._remembered().ensure(now=True)
        self._loading = {}
        try:
            if made.get("state", {}).get("messages"):
                everything = [f"{self._subjects.root}.b.>"]
                stream = self._subjects.bindings_stream
                await link.reading.read(stream, everything, self._told_before, now=first)
            self._bound = self._loading
        finally:
            self._loading = None

    def _stream(self, name: str, kind: str, limits: dict[str, Any]) -> dict[str, Any]:
        return {
            "name": name, "subjects": [f"{self._subjects.root}.{kind}.>"], "retention": "limits", "discard": "old",
            "storage": self._storage, "num_replicas": self._replicas, **limits,
        }  # fmt: skip

    async def close(self) -> None:
        link, queues, self._link, self._queues = self._link, self._queues, None, None
        if queues is not None:
            await queues.leave()
        if link is not None:
            await link.close()

    def abandon(self) -> None:
        link, self._link, self._queues = self._link, None, None
        if link is not None:
            link.abandon()

    def servers(self) -> list[Server]:
        link = self._link
        return (
            []
            if link is None
            else [Server(self._access.address, link.up, None, link.trouble, link.sender.pending)]
        )

    def now(self) -> float:
        return self._live().now()

    def _live(self) -> Link:
        if self._link is None:
            raise LayerClosed("the transport is not open")
        return self._link

    # -- topics and posts

    async def subscribe(self, topic: str) -> None:
        await self._live().topics.subscribe(topic)

    async def unsubscribe(self, topic: str) -> None:
        if self._link is not None:
            self._link.topics.unsubscribe(topic)

    async def publish(self, topic: str, frame: bytes, ttl: float) -> Sequence[str]:
        link = self._live()
        await link.publish(topic, frame, ttl).future
        await link.topics.caught_up()
        # Whatever was bound before the server took this publish has been heard before its confirmation.
        bound = self._bound.get(topic)
        return await self._push_bound(topic, bound, frame, ttl) if bound else ()

    async def _push_bound(
        self, topic: str, bound: dict[str, tuple[int, float]], frame: bytes, ttl: float
    ) -> list[str]:
        now = self.now()
        queues, pushes = [], []
        for queue, (capacity, until) in list(bound.items()):
            if until > now:
                queues.append(queue)
                pushes.append(self.push(queue, frame, capacity, ttl))
            else:
                del bound[queue]
        outcomes = await asyncio.gather(*pushes, return_exceptions=True)
        for queue, outcome in zip(queues, outcomes, strict=True):
            if isinstance(outcome, TransportUnavailable):
                log.warning(
                    "queue %s did not get a message published to a topic it is bound to: %s", queue, outcome
                )
        return [
            queue
            for queue, outcome in zip(queues, outcomes, strict=True)
            if isinstance(outcome, BaseException)
        ]

    async def post(self, node: str, channel: str, frame: bytes, capacity: int | None, ttl: float) -> bool:
        arrived: bool = await self._live().post(node, channel, frame, capacity, ttl).future
        return arrived

    def taken(self, channel: str, count: int) -> None:
        if self._link is not None:
            self._link.inbox.taken(channel, count)

    # -- queues

    def _shared(self) -> Queues:
        if self._queues is None:
            raise LayerClosed("the transport is not open")
        return self._queues

    async def push(self, queue: str, frame: bytes, capacity: int, ttl: float) -> None:
        await self._shared().push(queue, frame, capacity, ttl)

    async def pull(self, queue: str) -> bytes:
        return await self._shared().pull(queue)

    async def bind(self, topic: str, queue: str, capacity: int, ttl: float) -> None:
        await self._tell(topic, queue, capacity, self.now() + ttl, ttl)

    async def unbind(self, topic: str, queue: str) -> None:
        if queue in self._bound.get(topic, ()):
            await self._tell(topic, queue, 0, 0, self._deadline)
            ask = {"filter": self._subjects.binding(topic, queue).decode()}
            await self._live().api(f"STREAM.PURGE.{self._subjects.bindings_stream}", ask)

    async def _tell(self, topic: str, queue: str, capacity: int, until: float, ttl: float) -> None:
        """Say it to every node, and to the stream that nodes read which come later."""
        link = self._live()
        told = json.dumps([topic, queue, capacity, until]).encode()
        subject = self._subjects.binding(topic, queue).decode()
        answer, header = await link.request(subject, told, ttl=min(ttl, 2 * self._deadline))
        if header or b'"error"' in answer:
            config = self._stream(self._subjects.bindings_stream, "b", {"max_msgs_per_subject": 1})
            await make_stream(link, config, self._deadline)
            await link.request(subject, told)

    def _told_before(self, subject: bytes, payload: bytes, ms: int, number: int) -> None:
        self._told(subject, payload)

    def _told(self, subject: bytes, payload: bytes) -> None:
        if payload == b"flush":
            self._bound.clear()
            if self._queues is not None:
                self._queues.forget()
            if self._history is not None:
                self._history.forget()
            return
        try:
            topic, queue, capacity, until = json.loads(payload)
        except ValueError:
            return
        for bound in (self._bound,) if self._loading is None else (self._bound, self._loading):
            if until:
                bound.setdefault(topic, {})[queue] = capacity, until
                continue
            queues = bound.get(topic, {})
            queues.pop(queue, None)
            if not queues:
                bound.pop(topic, None)

    # -- history

    def _remembered(self) -> History:
        if self._link is None or self._history is None:
            raise LayerClosed("the transport is not open")
        return self._history

    async def remember(
        self, topic: str, frame: bytes, mark: str, size: int, seconds: float
    ) -> tuple[int, str]:
        return await self._remembered().remember(topic, frame, mark, size, seconds)

    async def recall(self, topic: str, first: int | None, count: int) -> list[tuple[int, bytes]]:
        return await self._remembered().recall(topic, first, count)

    # -- all

    async def flush(self) -> None:
        link = self._live()
        if self._jetstream:
            await self._shared().flush()
            await self._remembered().flush()
            await link.api(f"STREAM.PURGE.{self._subjects.bindings_stream}", {})
        link.say(self._subjects.control, b"flush")
        await link.round_trip(self._deadline)


def _positive(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise ConfigurationError(f"{name} is a number above 0, not {value!r}")
    return value


def _number(name: str, text: str) -> float:
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        raise ConfigurationError(f"{name} is a number, not {text!r}") from None


def _flag(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if str(value).lower() in ("1", "true", "yes", "0", "false", "no"):
        return str(value).lower() in ("1", "true", "yes")
    raise ConfigurationError(f"{name} is true or false, not {value!r}")
