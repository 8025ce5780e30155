"""One connection to one server: commands out, replies in, in order.

Rules of this room: the only one that imports the driver (hiredis, a parser and packer without I/O). Whatever is written
during one turn of the loop leaves in one write, or in one for each 8 KB of it. Replies are matched to requests by their
order alone, so nobody who stops waiting can put it out of step. A connection that owes a reply for ``deadline`` seconds
is dropped.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

try:
    import hiredis
except ImportError as error:  # pragma: no cover - seen only where the extra is missing
    raise ImportError("The Redis transport needs hiredis: pip install 'trunkline[redis]'") from error

from ...errors import ConfigurationError, TransportUnavailable
from .hosts import Host

__all__ = [
    "LARGE",
    "Connection",
    "ReplyError",
    "Request",
    "asking",
    "connect",
    "pack",
    "pack_large",
    "raise_refused",
    "seconds",
    "unavailable",
    "words",
]

#: What a server answers when it refuses a command; it is handed over as a value.
ReplyError = hiredis.ReplyError

_NOTHING = object()

#: Bytes read at a time, at most.
_BUFFER = 64 << 10

#: Bytes that are written before the turn of the loop is over: the server, and who hears of it, work at them meanwhile.
_EAGER = 8 << 10

#: Bytes from which on an argument is written as it is: copying it would cost more than one more write.
LARGE = 32 << 10

_FATAL = (
    "NOAUTH",
    "WRONGPASS",
    "NOPERM",
    "ERR invalid password",
    "ERR AUTH",
    "ERR DB index",
    "ERR invalid DB index",
)


def pack(*command: bytes | str | int) -> bytes:
    """The bytes of one command."""
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]
    return packed


def words(*words: bytes | str | int) -> bytes:
    """The same for a part of a command, to be put together with others behind ``*COUNT``.

    For what many commands have in common: for a long command of short words the driver's packer takes longer than all
    else that we do for a message.
    """
    return pack(*words).partition(b"\r\n")[2]


def pack_large(*command: bytes | str | int) -> list[bytes]:
    """The same in parts; large arguments are not copied."""
    parts: list[bytes] = []
    text = b"*%d\r\n" % len(command)
    for word in command:
        data = word if isinstance(word, bytes) else str(word).encode()
        if len(data) < LARGE:
            text += b"$%d\r\n%b\r\n" % (len(data), data)
        else:
            parts += text + b"$%d\r\n" % len(data), data
            text = b"\r\n"
    return [*parts, text]


def asking(data: bytes) -> bytes:
    """The same packed commands, each behind an ``ASKING``."""
    reader = hiredis.Reader(notEnoughData=_NOTHING)
    reader.feed(data)
    prefix = pack("ASKING")
    packed: list[bytes] = []
    while (command := reader.gets()) is not _NOTHING:
        packed += prefix, pack(*command)
    return b"".join(packed)


def seconds(reply: list[bytes]) -> float:
    """What TIME answers, since the epoch."""
    return int(reply[0]) + int(reply[1]) / 1e6


def unavailable(host: Host, cause: BaseException | str, *, on_its_way: bool = False) -> TransportUnavailable:
    """The one place where a driver's, a socket's or a server's trouble becomes ours.

    Args:
        on_its_way: It was sent, and only the answer may be missing.
    """
    text = str(cause) or type(cause).__name__
    if isinstance(cause, ReplyError):
        advice = f"Redis at {host.address} refuses to work: {text}"
    elif (
        isinstance(cause, OSError) and (cause.errno or isinstance(cause, TimeoutError)) and not host.sentinels
    ):
        what, fix = _explained(host, cause)
        advice = f"Redis at {host.address} cannot be reached: {what}. {fix}. Try: redis-cli {_cli(host)}"
    else:
        advice = f"Redis at {host.address} cannot be reached ({text}). Try: redis-cli {_cli(host)}"
    error = TransportUnavailable(
        advice + (". The message was on its way and may have arrived" if on_its_way else "")
    )
    if isinstance(cause, BaseException):
        error.__cause__ = cause
    return error


def _explained(host: Host, cause: BaseException) -> tuple[str, str]:
    """What it means, and what to do, as a sentence without its full stop."""
    from .diagnosis import why_unreachable  # here: it knows the errors of this room

    finding = why_unreachable(host, cause)
    return finding.what.removeprefix(f"{host.address}: "), finding.fix[:1].upper() + finding.fix[1:]


def _cli(host: Host) -> str:
    server = host.sentinels[0] if host.sentinels else host
    where = f"-s {server.path}" if server.path else f"-h {server.host} -p {server.port}"
    question = f"sentinel get-master-addr-by-name {host.master_name}" if host.sentinels else "ping"
    return f"{where}{' --tls' if server.ssl else ''} {question}"


class Request(Protocol):
    """Something that waits for replies."""

    #: Replies it waits for.
    want: int

    def answered(self, replies: list[Any]) -> None:
        """All replies are here; refusals are ``ReplyError`` values among them."""

    def lost(self, error: TransportUnavailable) -> None:
        """The connection ended first; nobody knows whether the server did it."""


class _Call:
    """A request made by a coroutine that is there to wait."""

    __slots__ = ("future", "want")

    def __init__(self, want: int, future: asyncio.Future[list[Any]]) -> None:
        self.want = want
        self.future = future

    def answered(self, replies: list[Any]) -> None:
        if not self.future.done():
            self.future.set_result(replies)

    def lost(self, error: TransportUnavailable) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()


class Connection(asyncio.BufferedProtocol):
    """A connection that is open until ``on_lost`` is called, once."""

    def __init__(self, host: Host, deadline: float, on_lost: Callable[[TransportUnavailable], None]) -> None:
        self._host = host
        self._deadline = deadline
        self._on_lost = on_lost
        self._on_push: Callable[[list[Any]], None] | None = None
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        # Where the loop reads to. Without one it makes a new quarter of a megabyte for every read, which costs more
        # than all else that a small message costs.
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._transport: asyncio.Transport | None = None
        self._requests: deque[Request] = deque()
        self._replies: list[Any] = []
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        #: What waits in front of that for the socket: parts of large commands, and what follows them.
        self._backlog: deque[bytes] = deque()
        self._paused = False
        #: Requests come one at a time, as far as the last ones tell.
        self._alone = True
        self._heard = False
        self._silent = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._trouble: BaseException | None = None
        self.closed = False

    # -- out

    def send(self, data: bytes | list[bytes], request: Request) -> None:
        """Send packed commands, ``request.want`` in number. It goes out with all else of this
        turn of the loop; at once if that is much, or if nothing is on its way and requests come one at a time."""
        if self.closed:
            request.lost(unavailable(self._host, self._trouble or "the connection is closed"))
            return
        if isinstance(data, list):
            self._requests.append(request)
            self._write_parts(data)
            return
        at_once = self._alone and not (self._requests or self._unsent or self._backlog)
        self._requests.append(request)
        if at_once and self._transport is not None:
            self._transport.write(data)
        else:
            self.write(data)

    def write(self, data: bytes) -> None:
        """Send commands whose replies are pushes (SUBSCRIBE and its like)."""
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(data)
        self._unsent_bytes += len(data)
        if self._unsent_bytes >= _EAGER:
            self._flush()

    async def call(self, *commands: tuple[bytes | str | int, ...]) -> list[Any]:
        """Send commands and wait for their replies.

        Raises:
            TransportUnavailable: The connection ended first.
        """
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        self.send(b"".join([pack(*command) for command in commands]), _Call(len(commands), future))
        return await future

    def _flush(self) -> None:
        unsent, self._unsent, self._unsent_bytes = self._unsent, [], 0
        self._alone = len(unsent) == 1
        transport = self._transport
        if transport is None or self.closed or not unsent:
            return
        data = unsent[0] if len(unsent) == 1 else b"".join(unsent)
        if self._backlog:
            self._backlog.append(data)
        else:
            transport.write(data)

    def _write_parts(self, parts: list[bytes]) -> None:
        self._flush()  # what was sent before
        self._backlog += parts
        self._drain()

    def _drain(self) -> None:
        # A transport that cannot send at once copies all it is given, so it is given one part at a time.
        while self._backlog and not self._paused and self._transport is not None:
            self._transport.write(memoryview(self._backlog.popleft()))

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._drain()

    @property
    def idle(self) -> bool:
        """Whether every reply has come."""
        return not self._requests

    # -- in

    def listen(self, on_push: Callable[[list[Any]], None]) -> None:
        """From now on the server only pushes, and each push goes to ``on_push``."""
        self._on_push = on_push

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view  # TLS fills it in slices, which must not be copies

    def buffer_updated(self, nbytes: int) -> None:
        self._heard = True
        reader, requests, on_push = self._reader, self._requests, self._on_push
        try:
            reader.feed(self._buffer, 0, nbytes)  # type: ignore[arg-type] # it takes any buffer
            while (reply := reader.gets()) is not _NOTHING:
                if on_push is not None:
                    on_push(reply)
                    continue
                if not requests:
                    raise hiredis.ProtocolError(f"a reply nobody asked for: {reply!r}")
                request = requests[0]
                if request.want == 1:
                    requests.popleft()
                    request.answered([reply])
                    continue
                self._replies.append(reply)
                if len(self._replies) == request.want:
                    replies, self._replies = self._replies, []
                    requests.popleft()
                    request.answered(replies)
        except hiredis.ProtocolError as error:
            self.drop(error)

    # -- life

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport) and not hasattr(transport, "write"):
            raise TypeError(f"not a stream transport: {transport!r}")
        self._transport = transport  # type: ignore[assignment]
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
                if hasattr(socket, option):
                    sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self._timer = self._loop.call_later(self._deadline / 4, self._watch)

    def _watch(self) -> None:
        if self._heard or not self._requests:
            self._silent = 0.0
        else:
            self._silent += self._deadline / 4
        self._heard = False
        if self._silent >= self._deadline:
            self.drop(TimeoutError(f"no reply for {self._deadline:g} s"))
        else:
            self._timer = self._loop.call_later(self._deadline / 4, self._watch)

    def drop(self, cause: BaseException | None = None) -> None:
        """End the connection now."""
        self._trouble = self._trouble or cause
        if self._loop.is_closed():  # a coroutine of it that was connecting is being collected
            self.abandon()
        elif self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.closed = True
        self._transport = None
        self._backlog.clear()
        error = unavailable(
            self._host, self._trouble or exc or ConnectionResetError("the server closed the connection")
        )
        requests, self._requests = self._requests, deque()
        for request in requests:
            request.lost(error)
        self._on_lost(error)

    def abandon(self) -> None:
        """Let go of the socket without a word, for a forked child or a closed loop."""
        transport, self._transport, self.closed = self._transport, None, True
        self._requests.clear()
        self._backlog.clear()
        self._on_lost = _ignore
        sock = transport.get_extra_info("socket") if transport is not None else None
        if sock is None or sock.fileno() < 0:
            return
        # The number stays taken, so that whoever still holds it cannot close a file opened later.
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, sock.fileno())
        os.close(nowhere)
        # Nobody will run the last step of a closed loop's transport, and it would complain when it is collected.
        finish = getattr(transport, "_call_connection_lost", None)
        if self._loop.is_closed() and finish is not None:
            finish(None)


def _ignore(error: TransportUnavailable) -> None:
    """Nobody is there to be told."""


async def connect(
    host: Host, *, name: str, deadline: float, on_lost: Callable[[TransportUnavailable], None]
) -> Connection:
    """Connect and log in.

    Raises:
        TransportUnavailable: The server does not answer, or not yet.
        ConfigurationError: It never will: wrong password, no permission, no such database.
    """
    loop = asyncio.get_running_loop()
    connection: Connection | None = None

    def factory() -> Connection:
        return Connection(host, deadline, on_lost)

    try:
        async with asyncio.timeout(deadline):
            if host.path:
                _, connection = await loop.create_unix_connection(factory, host.path)
            else:
                _, connection = await loop.create_connection(
                    factory, host.host, host.port, ssl=host.context()
                )
            await _log_in(connection, host, name)
    except BaseException as error:
        if connection is not None:
            connection.drop()
        if isinstance(error, TimeoutError):
            raise unavailable(host, TimeoutError(f"no answer in {deadline:g} s")) from error
        if isinstance(error, OSError) and not isinstance(error, TransportUnavailable):
            raise unavailable(host, error) from error
        raise
    return connection


async def _log_in(connection: Connection, host: Host, name: str) -> None:
    commands: list[tuple[bytes | str | int, ...]] = []
    if host.password is not None:
        commands.append(("AUTH", host.username, host.password) if host.username else ("AUTH", host.password))
    if host.db:
        commands.append(("SELECT", host.db))
    commands.append(("PING",))
    replies = await connection.call(*commands, ("CLIENT", "SETNAME", name))
    for reply in replies[:-1]:  # a server that forbids CLIENT SETNAME is still of use
        if isinstance(reply, ReplyError):
            raise_refused(host, reply)


def raise_refused(host: Host, reply: Exception) -> None:
    """Raise what a refusal during the log-in means."""
    if str(reply).startswith("NOPERM"):
        raise ConfigurationError(
            f"Redis at {host.address} refuses us: {reply}. The user {host.username or 'default'!r} lacks a permission: "
            "`trunkline doctor URL` names all that are missing and the command that grants them"
        ) from reply
    if str(reply).startswith(_FATAL):
        raise ConfigurationError(
            f"Redis at {host.address} refuses us: {str(reply).rstrip('.')}. {_explained(host, reply)[1]}"
        ) from reply
    raise unavailable(host, reply)
