"""The layers by name, as ``BACKEND`` in ``CHANNEL_LAYERS`` or made by hand."""

from __future__ import annotations

import importlib
import os
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Unpack

from .errors import ConfigurationError
from .layer import ChannelLayer
from .opening import layer_settings, transport_class
from .settings import Options

__all__ = [
    "EmbeddedChannelLayer",
    "InMemoryChannelLayer",
    "NatsChannelLayer",
    "PostgresChannelLayer",
    "RedisChannelLayer",
]

OnGap = Callable[[str | None, str], object]


class InMemoryChannelLayer(ChannelLayer):
    """One process, for tests and development; same semantics as the others.

    Args:
        hub: Layers with the same hub hear each other, so that a test can play several processes. None: this layer stands
            alone.
        prefix: Layers of one hub with different prefixes do not meet.
        on_gap: Called with the group (None: any) and the reason when messages were lost.
        **options: See ``trunkline.settings.Settings``.
    """

    def __init__(
        self,
        *,
        hub: str | None = None,
        prefix: str = "asgi",
        on_gap: OnGap | None = None,
        **options: Unpack[Options],
    ) -> None:
        settings = layer_settings(InMemoryChannelLayer, options)
        transport = partial(transport_class("memory"), hub or uuid.uuid4().hex, prefix=prefix)
        super().__init__(transport, settings, on_gap)


class EmbeddedChannelLayer(ChannelLayer):
    """Every process of one machine, with no server.

    Args:
        path: The directory the processes share. None: one per user and project folder.
        prefix: Layers of one directory with different prefixes do not meet.
        max_size: Bytes the file may take.
        on_gap: Called with the group (None: any) and the reason when messages were lost.
        **options: See ``trunkline.settings.Settings``.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        prefix: str = "asgi",
        max_size: int | None = None,
        on_gap: OnGap | None = None,
        **options: Unpack[Options],
    ) -> None:
        settings = layer_settings(EmbeddedChannelLayer, options)
        extra: dict[str, Any] = {} if max_size is None else {"max_size": max_size}
        transport = partial(transport_class("embedded"), path, prefix=prefix, **extra)
        super().__init__(transport, settings, on_gap)


class RedisChannelLayer(ChannelLayer):
    """Every process of any number of machines, over Redis 6.2 or newer, or Valkey.

    Takes every ``CONFIG`` key of channels_redis with its meaning.

    Args:
        hosts: The servers: a list of URLs, ``(host, port)`` pairs or dicts; names are spread over several. None:
            ``redis://localhost:6379``.
        prefix: What all key names begin with: layers with different prefixes never meet.
        connect_timeout: Seconds that the first call goes on trying to connect while no server answers.
        deadline: Seconds that a server may owe an answer before its connection is dropped.
        read_hosts: Servers that names are still, or already, read from while ``hosts`` is being changed.
        log_length: Frames kept for one group at most, roughly; a shorter log shortens the outages that lose nothing.
        cluster: ``hosts`` are some nodes of one cluster, which tell of the others. A ``redis+cluster://`` URL says so too.
        wait_replicas: Replicas that must have a message before it counts as sent; else ``TransportUnavailable`` says that
            it may have arrived.
        on_disconnect: Called when a connection is lost.
        on_reconnect: Called when it is back.
        random_prefix_length: Accepted and without meaning: frames are unique as they are.
        on_gap: Called with the group (None: any) and the reason when messages were lost.
        **options: See ``trunkline.settings.Settings``.
    """

    def __init__(
        self,
        hosts: Any = None,
        *,
        prefix: str = "asgi",
        connect_timeout: float | None = None,
        deadline: float | None = None,
        read_hosts: Any = None,
        log_length: int | None = None,
        cluster: bool | None = None,
        wait_replicas: int | None = None,
        on_disconnect: Callable[..., Any] | None = None,
        on_reconnect: Callable[..., Any] | None = None,
        random_prefix_length: int | None = None,
        on_gap: OnGap | None = None,
        **options: Unpack[Options],
    ) -> None:
        settings = layer_settings(RedisChannelLayer, options)
        if random_prefix_length is not None and type(random_prefix_length) is not int:
            raise ConfigurationError(
                f"random_prefix_length is a whole number, without meaning, not {random_prefix_length!r}"
            )
        given = {
            "connect_timeout": connect_timeout,
            "deadline": deadline,
            "read_hosts": read_hosts,
            "log_length": log_length,
            "cluster": cluster,
            "wait_replicas": wait_replicas,
            "on_disconnect": on_disconnect,
            "on_reconnect": on_reconnect,
        }
        extra = {key: value for key, value in given.items() if value is not None}
        transport = partial(transport_class("redis"), hosts, prefix=prefix, expiry=settings.expiry, **extra)
        super().__init__(transport, settings, on_gap)


class PostgresChannelLayer(ChannelLayer):
    """Every process of any number of machines, through a PostgreSQL database, version 13 or newer.

    Args:
        dsn: The database, ``postgresql://user:password@host:port/database``; what it leaves out comes from ``PGHOST``,
            ``PGUSER``, …
        database: In its place, an alias of Django's ``DATABASES``: ``"default"``.
        prefix: Layers with different prefixes never meet.
        schema: The schema that holds Trunkline's tables; it is made on first use.
        connect_timeout: Seconds that the first call goes on trying to connect while the server does not answer.
        deadline: Seconds that the server may owe an answer before its connection is dropped.
        driver: ``"asyncpg"`` or ``"psycopg"``; None takes the first that is installed.
        on_disconnect: Called when the connection is lost.
        on_reconnect: Called when it is back.
        on_gap: Called with the group (None: any) and the reason when messages were lost.
        **options: See ``trunkline.settings.Settings``.
    """

    def __init__(
        self,
        dsn: str | None = None,
        *,
        database: str | None = None,
        prefix: str = "asgi",
        schema: str = "trunkline",
        connect_timeout: float | None = None,
        deadline: float | None = None,
        driver: str | None = None,
        on_disconnect: Callable[..., Any] | None = None,
        on_reconnect: Callable[..., Any] | None = None,
        on_gap: OnGap | None = None,
        **options: Unpack[Options],
    ) -> None:
        settings = layer_settings(PostgresChannelLayer, options)
        if dsn is not None and database is not None:
            raise ConfigurationError("dsn and database both name the database: keep one of them")
        server: str | Callable[[], str] | None = dsn
        if database is not None:
            # Asked for when a connection is opened: Django's test runner changes the name of the database.
            server = partial(importlib.import_module("trunkline.django.databases").url, database)
        given = {
            "connect_timeout": connect_timeout,
            "deadline": deadline,
            "driver": driver,
            "on_disconnect": on_disconnect,
            "on_reconnect": on_reconnect,
        }
        extra = {key: value for key, value in given.items() if value is not None}
        kept = {"prefix": prefix, "schema": schema, "expiry": settings.expiry}
        transport = partial(transport_class("postgres"), server=server, **kept, **extra)
        super().__init__(transport, settings, on_gap)


class NatsChannelLayer(ChannelLayer):
    """Every process of any number of machines, over NATS 2.10 or newer.

    Args:
        servers: One URL, ``nats://[user:password@]host[:port][,host…]``, ``nats+tls://…``, or a list of them. None:
            ``nats://localhost:4222``.
        prefix: What all subjects and streams begin with: layers with different prefixes never meet.
        recover: Keep a log of group messages in JetStream, so that a process that was cut off gets what it missed.
        storage: Where JetStream keeps queues, histories and that log: "file" or "memory".
        replicas: Servers of a cluster that keep them. None: three where there are as many.
        connect_timeout: Seconds that the first call goes on trying to connect while no server answers.
        deadline: Seconds that a server may owe an answer before its connection is dropped.
        credentials: A ``.creds`` file.
        ssl_ca_certs: Whom to trust instead of the system's authorities.
        ssl_certfile: Our own certificate.
        ssl_keyfile: The key to it.
        ssl_check_hostname: Whether the certificate must name the host.
        on_disconnect: Called when the connection is lost.
        on_reconnect: Called when it is back.
        on_gap: Called with the group (None: any) and the reason when messages were lost.
        **options: See ``trunkline.settings.Settings``.
    """

    def __init__(
        self,
        servers: str | Sequence[str] | None = None,
        *,
        prefix: str = "asgi",
        recover: bool = False,
        storage: str = "file",
        replicas: int | None = None,
        connect_timeout: float | None = None,
        deadline: float | None = None,
        credentials: str | None = None,
        ssl_ca_certs: str | None = None,
        ssl_certfile: str | None = None,
        ssl_keyfile: str | None = None,
        ssl_check_hostname: bool = True,
        on_disconnect: Callable[..., Any] | None = None,
        on_reconnect: Callable[..., Any] | None = None,
        on_gap: OnGap | None = None,
        **options: Unpack[Options],
    ) -> None:
        settings = layer_settings(NatsChannelLayer, options)
        given = {
            "replicas": replicas,
            "connect_timeout": connect_timeout,
            "deadline": deadline,
            "credentials": credentials,
            "ssl_ca_certs": ssl_ca_certs,
            "ssl_certfile": ssl_certfile,
            "ssl_keyfile": ssl_keyfile,
            "on_disconnect": on_disconnect,
            "on_reconnect": on_reconnect,
        }
        transport = partial(
            transport_class("nats"),
            servers,
            prefix=prefix,
            expiry=settings.expiry,
            recover=recover,
            storage=storage,
            ssl_check_hostname=ssl_check_hostname,
            **{key: value for key, value in given.items() if value is not None},
        )
        super().__init__(transport, settings, on_gap)
