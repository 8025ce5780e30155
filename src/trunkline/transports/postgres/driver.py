"""The drivers: a connection that runs one query at a time, hands on notifications, and ends when it owes an answer too long.

Rules of this room: only here is a driver imported, and only here are its exceptions known. All trouble comes out as
``Trouble``, with the SQLSTATE where the server spoke.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import re
import socket
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from ...errors import ConfigurationError
from ...settings import QUOTE, shown_url

__all__ = ["DRIVERS", "Connection", "Trouble", "connect", "driver_named"]

#: In the order of preference.
DRIVERS = ("asyncpg", "psycopg")

#: Called with (pid of the sender, channel, payload).
Heard = Callable[[int, str, str], None]

#: Our own state beside those of SQL: there is no TLS, or none to be trusted.
_TLS = "TLS"

#: What the drivers say of TLS, and what to do about it.
_UNTRUSTED = (
    (
        "verify failed: certificate (has expired|is not yet valid)",
        "renew the server's certificate; if it was renewed, compare the clocks of both machines",
    ),
    (
        "certificate verify failed|certificate for .* does not match|root certificate file",
        "sslrootcert is the file of the authority that signed the server's certificate, and with sslmode=verify-full the "
        "URL names the host as the certificate does",
    ),
    (
        "rejected SSL upgrade|server does not support SSL",
        "turn ssl on at the server, or write sslmode=prefer to go without where it has none",
    ),
    (
        "(?i)alert (unknown ca|bad certificate|(certificate|cert)[ _](expired|revoked|required|unknown))",
        "it is our certificate that the server does not take: sslcert is one that an authority of its ssl_ca_file signed, "
        "and that has not expired",
    ),
    (
        "PEM lib|key values mismatch|private key file|read certificate file|no start line",
        "sslcert is the file of our certificate and sslkey that of its key, which only this user may read; sslpassword "
        "opens it if it is encrypted",
    ),
)

#: What a server says to whom shows no certificate, or another user's.
_OURS = "requires a valid client certificate|certificate authentication failed"
_SHOW = (
    "sslcert and sslkey are the files of our certificate and its key, and its common name is that of the user"
)

_MODES = ("verify-full", "verify-ca", "require", "prefer", "allow", "disable")

#: What we use of asyncpg beside its public interface, and why. Nothing else in this room is private.
_PRIVATE = {
    "_process_notification": "its listeners cost a round trip for each channel and a turn of the loop for each notification",
    "_transport": "a forked child lets go of the socket, which the public interface does not show",
    "_aborted": "a connection that was let go must not complain when it is collected",
}


class Trouble(Exception):
    """The database cannot be reached, or refuses; ``state`` is its SQLSTATE, empty when it did not say a word."""

    def __init__(self, text: str, state: str = "") -> None:
        super().__init__(text)
        self.state = state

    @property
    def lasting(self) -> bool:
        """Whether trying again will not help: wrong password, no such database, missing permission."""
        return self.state[:2] in ("28", "3D") or self.state in ("42501", "3F000", _TLS)


class Connection:
    """One connection.

    Args:
        heard: Gets every notification at once.
        lost: Called once, when the connection has ended by itself or by ``drop``.
        deadline: Seconds that an answer may take.
    """

    pid: int

    def __init__(self, heard: Heard, lost: Callable[[], None], deadline: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._heard, self._lost = heard, lost
        self.deadline = deadline
        self.closed = False

    async def fetch(self, sql: str, *args: Any) -> Sequence[Sequence[Any]]:
        """Run one query; its rows.

        Raises:
            Trouble: It failed, or was not answered in time; then the connection is gone.
        """
        late = self._loop.call_later(self.deadline, self.drop)
        try:
            return await self._fetch(sql, args)
        except Exception as error:
            raise self._trouble(error, late.when() <= self._loop.time()) from error
        finally:
            late.cancel()

    async def run(self, sql: str) -> None:
        """Run several statements at once.

        Raises:
            Trouble: As with ``fetch``.
        """
        late = self._loop.call_later(self.deadline, self.drop)
        try:
            await self._run(sql)
        except Exception as error:
            raise self._trouble(error, late.when() <= self._loop.time()) from error
        finally:
            late.cancel()

    def _trouble(self, error: Exception, late: bool) -> Trouble:
        if late:
            return Trouble(f"no answer within {self.deadline:g} s")
        return _trouble(error)

    def drop(self) -> None:
        """End it now; what waits for it gets ``Trouble``."""
        if not self.closed:
            self.closed = True
            self._drop()
            self._lost()

    def _ended(self) -> None:
        if not self.closed:
            self.closed = True
            self._lost()

    async def _fetch(self, sql: str, args: tuple[Any, ...]) -> Sequence[Sequence[Any]]:
        raise NotImplementedError

    async def _run(self, sql: str) -> None:
        raise NotImplementedError

    def _drop(self) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        """Take leave of the server."""
        raise NotImplementedError

    def abandon(self) -> None:
        """Let go of the socket without a word, for a forked child or a closed loop."""
        raise NotImplementedError


def _trouble(error: Exception) -> Trouble:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ConnectionRefusedError):
        text = "nothing listens there (connection refused)"
    state = getattr(error, "sqlstate", None) or ""
    if re.search(_OURS, text):
        return Trouble(f"{text.rstrip('.')}: {_SHOW}", "28000")
    if not state:
        for words, fix in _UNTRUSTED:
            if re.search(words, text):
                return Trouble(f"{text.rstrip('.')}: {fix}", _TLS)
    return Trouble(text, state)


def _unreadable(url: str) -> ConfigurationError:
    # What the driver says may hold a part of the password.
    return ConfigurationError(f"{shown_url(url)!r} cannot be read as the URL of a PostgreSQL. {QUOTE}")


def _let_go(number: int) -> None:
    # The number stays taken, so that whoever still holds it cannot close a file opened later.
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, number)
    os.close(nowhere)


def driver_named(name: str | None) -> str:
    """The driver to use: the one asked for, or the first that is installed.

    Raises:
        ConfigurationError: It is unknown or not installed.
    """
    if name is not None and name not in DRIVERS:
        raise ConfigurationError(f"driver is {' or '.join(map(repr, DRIVERS))}, not {name!r}")
    for candidate in DRIVERS if name is None else (name,):
        try:
            importlib.import_module(candidate)
        except ImportError:
            continue
        return candidate
    wanted = name or "asyncpg"
    raise ConfigurationError(f"PostgreSQL needs a driver: pip install 'trunkline[postgres]' (or: {wanted})")


async def connect(
    url: str,
    *,
    driver: str,
    label: str,
    timeout: float,
    deadline: float,
    heard: Heard,
    lost: Callable[[], None],
) -> Connection:
    """Connect.

    Raises:
        Trouble: It did not work.
        ConfigurationError: The URL cannot be understood.
    """
    for key, value in parse_qsl(urlsplit(url).query):
        if key == "sslmode" and value not in _MODES:
            raise ConfigurationError(f"sslmode is one of {', '.join(_MODES)}, not {value!r}")
        is_file = key in ("sslrootcert", "sslcert", "sslkey", "sslcrl") and value != "system"
        if is_file and not os.path.exists(value):
            raise ConfigurationError(f"{key}: there is no file {value!r}")
    make = _connect_asyncpg if driver == "asyncpg" else _connect_psycopg
    try:
        async with asyncio.timeout(timeout):
            connection = await make(url, label, heard, lost, deadline)
            try:
                ((connection.pid,),) = await connection.fetch("SELECT pg_backend_pid()")
            except BaseException:
                connection.drop()
                raise
            return connection
    except TimeoutError:
        raise Trouble(f"no answer within {timeout:g} s") from None


async def _connect_asyncpg(
    url: str, label: str, heard: Heard, lost: Callable[[], None], deadline: float
) -> Connection:
    import asyncpg

    if missing := [name for name in _PRIVATE if not hasattr(asyncpg.Connection, name)]:
        raise ConfigurationError(
            f"asyncpg {asyncpg.__version__} lacks {', '.join(missing)}, which Trunkline needs: install an older one, or "
            "psycopg and write driver=psycopg"
        )

    class Hearing(asyncpg.Connection):  # type: ignore[misc]
        hear = staticmethod(heard)

        def _process_notification(self, pid: int, channel: str, payload: str) -> None:
            self.hear(pid, channel, payload)

    try:
        raw = await asyncpg.connect(
            url, connection_class=Hearing, server_settings={"application_name": label}, timeout=None
        )
    except (
        ValueError
    ) as error:  # asyncpg.ClientConfigurationError and ssl.SSLCertVerificationError are some too
        trouble = _trouble(error)
        if trouble.lasting:
            raise trouble from error
        raise _unreadable(url) from None
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        trouble = _trouble(error)
        if trouble.state == "08003" and "sslcert=" in url:
            # With TLS 1.3 the server judges our certificate when the handshake is over for us, and asyncpg drops its words.
            text = f"{trouble}. If it does so every time, it does not take the certificate of sslcert: its log says why"
            trouble = Trouble(text, trouble.state)
        raise trouble from error
    return _Asyncpg(raw, heard, lost, deadline)


class _Asyncpg(Connection):
    def __init__(self, raw: Any, heard: Heard, lost: Callable[[], None], deadline: float) -> None:
        super().__init__(heard, lost, deadline)
        self._raw = raw
        raw.add_termination_listener(lambda _: self._ended())

    async def _fetch(self, sql: str, args: tuple[Any, ...]) -> Sequence[Sequence[Any]]:
        rows: Sequence[Sequence[Any]] = await self._raw.fetch(sql, *args)
        return rows

    async def _run(self, sql: str) -> None:
        await self._raw.execute(sql)

    def _drop(self) -> None:
        self._raw.terminate()

    async def close(self) -> None:
        self.closed = True
        await self._raw.close(timeout=1.0)

    def abandon(self) -> None:
        self.closed = True
        transport = self._raw._transport
        sock = transport.get_extra_info("socket") if transport is not None else None
        if sock is not None and sock.fileno() >= 0:
            _let_go(sock.fileno())
            finish = getattr(transport, "_call_connection_lost", None)
            if self._loop.is_closed() and finish is not None:
                finish(None)
        self._raw._aborted = True  # or it would complain when it is collected


async def _connect_psycopg(
    url: str, label: str, heard: Heard, lost: Callable[[], None], deadline: float
) -> Connection:
    import psycopg
    from psycopg.conninfo import make_conninfo

    try:
        target = make_conninfo(url, application_name=label)
    except psycopg.ProgrammingError:
        raise _unreadable(url) from None
    try:
        raw = await psycopg.AsyncConnection.connect(target, autocommit=True)
    except psycopg.Error as error:
        trouble = _trouble(error)
        if not trouble.state:  # libpq does not tell it of a connection that was refused
            trouble.state = next((state for words, state in _REFUSALS if re.search(words, str(error))), "")
        raise trouble from error
    return _Psycopg(raw, heard, lost, deadline)


_REFUSALS = (
    ("FATAL: +database .* does not exist", "3D000"),
    ("FATAL: +(role .* does not exist|password authentication failed|no pg_hba.conf entry)", "28000"),
    ("fe_sendauth: no password supplied", "28000"),
)


class _Psycopg(Connection):
    def __init__(self, raw: Any, heard: Heard, lost: Callable[[], None], deadline: float) -> None:
        super().__init__(heard, lost, deadline)
        self._raw = raw
        self._number = raw.fileno()
        self._idle = False
        raw.add_notify_handler(lambda notify: heard(notify.pid, notify.channel, notify.payload))
        self._watch()

    def _watch(self) -> None:
        """Hear notifications, and the end, while no query runs."""
        if not self.closed and not self._idle:
            self._idle = True
            self._loop.add_reader(self._number, self._readable)

    def _unwatch(self) -> None:
        if self._idle:
            self._idle = False
            self._loop.remove_reader(self._number)

    def _readable(self) -> None:
        pgconn = self._raw.pgconn
        try:
            pgconn.consume_input()
            while (notify := pgconn.notifies()) is not None:
                self._heard(notify.be_pid, notify.relname.decode(), notify.extra.decode())
        except Exception:  # whatever the driver calls it: there is no more to be read
            self.drop()

    async def _fetch(self, sql: str, args: tuple[Any, ...]) -> Sequence[Sequence[Any]]:
        self._unwatch()
        try:
            # $1 is the server's own way to write a parameter; the driver's is %s.
            cursor = self._raw.cursor(binary=True)
            await cursor.execute(*_client_side(sql, args))
            rows: Sequence[Sequence[Any]] = await cursor.fetchall()
        finally:
            self._rest()
        return rows

    async def _run(self, sql: str) -> None:
        self._unwatch()
        try:
            await self._raw.execute(sql)
        finally:
            self._rest()

    def _rest(self) -> None:
        if self.closed:
            self._raw.pgconn.finish()
        else:
            self._watch()

    def _drop(self) -> None:
        # A query that waits for the socket hears of it by the socket only.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._number)) as sock:
            sock.shutdown(socket.SHUT_RDWR)
        if self._idle:
            self._unwatch()
            self._raw.pgconn.finish()

    async def close(self) -> None:
        self._unwatch()
        self.closed = True
        await self._raw.close()

    def abandon(self) -> None:
        self.closed = True
        _let_go(self._number)
        self._raw.pgconn.finish()


def _client_side(sql: str, args: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
    """The query as psycopg wants it."""
    order: list[int] = []

    def place(match: re.Match[str]) -> str:
        order.append(int(match[1]) - 1)
        return "%s"

    text = re.sub(r"\$(\d+)", place, sql.replace("%", "%%"))
    return text, tuple(args[number] for number in order)
