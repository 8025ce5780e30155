"""One connection to one server: the only room that imports the driver.

nats-py connects and logs in; then what comes is read here and goes to plain calls, with no task or queue.
Reconnecting, resubscribing and repeating are the link's, which knows what may be repeated.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from typing import Any, Protocol

try:
    from nats import errors
    from nats.aio.client import Client
except ImportError as error:  # pragma: no cover - seen only where the extra is missing
    raise ImportError("The NATS transport needs nats-py: pip install 'trunkline[nats]'") from error

from ...errors import ConfigurationError, TransportUnavailable
from .servers import Access

__all__ = ["Wire", "connect", "unavailable"]

#: Bytes that the loop reads at once, where nothing larger is awaited.
_BUFFER = 64 << 10
_REFUSALS = ("authorization", "authentication", "user authentication", "permissions violation")


class Heard(Protocol):
    """Who is told what a connection brings. The calls are quick and do not raise."""

    def message(self, sid: bytes, subject: bytes, reply: bytes, payload: bytes, header: bytes) -> None:
        """A message for subscription ``sid``; header is empty where there is none."""

    def pong(self) -> None:
        """The answer to the oldest ping."""

    def refused(self, text: str) -> None:
        """The server refuses something and goes on."""

    def lame(self) -> None:
        """The server is about to close."""

    def lost(self, wire: Wire, error: BaseException) -> None:
        """The connection has ended."""


class _Inflow(asyncio.BufferedProtocol):
    """Reads what the server says, in the driver's place: without a task, and with one copy of each message."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        # Where the loop reads to: one that it makes for every read costs more than a small message.
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._filled = 0
        #: Bytes that must be there before it is worth looking.
        self._needed = 0

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        wire = self._wire
        wire.heard = True
        self._filled += nbytes
        if self._filled < self._needed:
            return
        try:
            done = self._take()
        except (ValueError, IndexError, errors.ProtocolError) as error:
            wire.drop(error)
            return
        left = self._filled - done
        size = (self._needed // _BUFFER + 1) * _BUFFER
        # Room for what is awaited; a large one is kept while large messages come.
        if size > len(self._buffer) or (size < len(self._buffer) and done < _BUFFER):
            buffer = bytearray(size)
            buffer[:left] = self._view[done : self._filled]
            self._buffer, self._view = buffer, memoryview(buffer)
        elif left and done:
            self._buffer[:left] = self._buffer[done : self._filled]
        self._filled = left

    def feed(self, data: bytes) -> None:
        """What was read before."""
        while data:
            room = self.get_buffer(len(data))
            count = min(len(room), len(data))
            room[:count] = data[:count]
            self.buffer_updated(count)
            data = data[count:]

    def connection_lost(self, error: Exception | None) -> None:
        self._wire.end(error or errors.UnexpectedEOF())

    def _take(self) -> int:
        """Hand on what is complete; returns where the rest begins."""
        heard = self._wire.listener
        buffer, view, filled = self._buffer, self._view, self._filled
        position = self._needed = 0
        while (end := buffer.find(b"\r\n", position, filled)) >= 0:
            kind = buffer[position]
            if kind == 0x4D:  # MSG subject sid [reply] size
                words = view[position + 4 : end].tobytes().split()
                body = end + 2
                after = body + int(words[-1])
                if filled < after + 2:
                    self._needed = after + 2 - position
                    return position
                reply = words[2] if len(words) == 4 else b""
                heard.message(words[1], words[0], reply, view[body:after].tobytes(), b"")
                position = after + 2
            elif kind == 0x48:  # HMSG subject sid [reply] header-size size
                words = view[position + 5 : end].tobytes().split()
                header = end + 2
                body = header + int(words[-2])
                after = header + int(words[-1])
                if filled < after + 2:
                    self._needed = after + 2 - position
                    return position
                reply = words[2] if len(words) == 5 else b""
                payload, head = view[body:after].tobytes(), view[header:body].tobytes()
                heard.message(words[1], words[0], reply, payload, head)
                position = after + 2
            else:
                line = view[position:end].tobytes()
                position = end + 2
                self._control(line)
        if filled - position >= _BUFFER:  # an INFO of very many servers
            self._needed = filled - position + _BUFFER
        return position

    def _control(self, line: bytes) -> None:
        wire = self._wire
        word = line[:4].upper()
        if word == b"PONG":
            wire.listener.pong()
        elif word == b"PING":
            wire.write(b"PONG\r\n")
        elif word == b"-ERR":
            wire.refuse(line[4:].decode("utf-8", "replace").strip(" '"))
        elif word == b"INFO":
            wire.inform(line[5:])
        elif word[:3] != b"+OK":
            raise errors.ProtocolError


class Wire(Client):
    """A connection that is open until ``listener.lost`` is called, once."""

    def __init__(self, listener: Heard, access: Access) -> None:
        super().__init__()
        self.listener = listener
        #: Something was read since this was last set to False.
        self.heard = False
        self.closed = False
        self._access = access

    # What the driver calls

    async def _select_next_server(self) -> None:
        self._current_server = self._server_pool[0]  # one server, one attempt
        await self._connect_to_server(self._current_server)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        access = self._access
        if initial_connection and access.tls and not info.get("tls_required"):
            if not info.get("tls_available"):
                raise ConfigurationError(
                    f"NATS at {access.address} offers no TLS, which the URL asks for: give the server a certificate "
                    "(tls {…} in its configuration), or write nats:// and talk in the clear"
                )
            info["tls_required"] = True
        if initial_connection and info.get("tls_verify") and not access.ssl_certfile:
            raise ConfigurationError(
                f"NATS at {access.address} wants a certificate of ours: write nats+tls:// and set ssl_certfile and "
                "ssl_keyfile"
            )
        await super()._process_info(info, initial_connection)

    async def _process_op_err(self, e: Exception) -> None:
        self.end(e)

    async def _read_loop(self) -> None:
        """From now on we read; what the driver's reader holds already comes first."""
        transport, driver = self._socket(), self._transport
        reader = getattr(driver, "_io_reader", None)
        if transport is None or reader is None or transport.is_closing() or reader.at_eof():
            self.end(errors.UnexpectedEOF())
            return
        inflow = _Inflow(self)
        transport.set_protocol(inflow)
        reader.feed_eof()
        inflow.feed(await reader.read())

    async def _ping_interval(self) -> None:
        """The link asks for signs of life."""

    async def _flusher(self) -> None:
        """The link writes."""

    # What the link calls

    @property
    def info(self) -> dict[str, Any]:
        """What the server says of itself."""
        return self._server_info

    def write(self, data: bytes) -> None:
        transport = self._socket()
        if data and transport is not None and not self.closed:
            transport.write(data)

    def refuse(self, text: str) -> None:
        if text.lower().startswith("permissions violation"):
            self.listener.refused(text)
        else:
            self.end(errors.Error(text))

    def inform(self, text: bytes) -> None:
        info = json.loads(text)
        self._server_info.update(info)
        if info.get("ldm"):
            self.listener.lame()

    def drop(self, error: BaseException) -> None:
        """End the connection now."""
        transport = self._socket()
        if transport is not None:
            transport.abort()
        self.end(error)

    def end(self, error: BaseException) -> None:
        """It has ended: told once."""
        if not self.closed:
            self.closed = True
            self.listener.lost(self, error)

    async def shut(self) -> None:
        """Leave no task and no socket behind."""
        self.closed = True
        self._status = Client.CLOSED
        transport = self._socket()
        if transport is not None:
            transport.close()
        tasks = [
            task
            for task in (self._reading_task, self._flusher_task, self._ping_interval_task)
            if task is not None
        ]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if transport is not None:
            transport.abort()
            await asyncio.sleep(0)  # the loop calls connection_lost

    def abandon(self) -> None:
        """Let go of the socket without a word, for a forked child or a closed loop."""
        self.closed = True
        for task in (self._reading_task, self._flusher_task, self._ping_interval_task):
            if task is not None:
                task._log_destroy_pending = False  # type: ignore[attr-defined] # it ends here, and that is meant
        transport = self._socket()
        sock = transport.get_extra_info("socket") if transport is not None else None
        if sock is None or sock.fileno() < 0:
            return
        # The number stays taken, so that whoever still holds it cannot close a file opened later.
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, sock.fileno())
        os.close(nowhere)
        finish = getattr(transport, "_call_connection_lost", None)
        loop = getattr(transport, "_loop", None)
        if finish is not None and loop is not None and loop.is_closed():
            finish(None)  # nobody will run it, and the transport would complain when it is collected

    def _socket(self) -> Any:
        writer = getattr(self._transport, "_io_writer", None)
        return writer.transport if writer is not None else None


def unavailable(
    access: Access, cause: BaseException | str, *, on_its_way: bool = False
) -> TransportUnavailable:
    """The one place where a driver's, a socket's or a server's trouble becomes ours.

    Args:
        on_its_way: It was sent, and only the answer may be missing.
    """
    text = str(cause) or type(cause).__name__
    if isinstance(cause, ConnectionRefusedError):
        text = "nothing listens there (connection refused)"
    error = TransportUnavailable(
        f"NATS at {access.address} cannot be reached: {text}. Is NATS running there? Try: trunkline doctor {access.shown}"
        + (". The message was on its way and may have arrived" if on_its_way else "")
    )
    if isinstance(cause, BaseException):
        error.__cause__ = cause
    return error


async def connect(
    access: Access,
    server: str,
    listener: Heard,
    *,
    name: str,
    deadline: float,
    context: ssl.SSLContext | None,
) -> Wire:
    """Connect to one server and log in.

    Raises:
        TransportUnavailable: It does not answer, or not yet.
        ConfigurationError: It never will: wrong password, wrong credentials file, no TLS.
    """
    wire = Wire(listener, access)

    async def note(error: Exception) -> None:
        """Errors are raised; nothing is logged by the driver."""

    options: dict[str, Any] = {"user": access.user, "password": access.password, "token": access.token}
    try:
        async with asyncio.timeout(deadline):
            await wire.connect(
                [f"nats://{server}"],
                name=name,
                allow_reconnect=False,
                error_cb=note,
                connect_timeout=max(int(deadline), 1),
                tls=context,
                user_credentials=access.credentials,
                **{key: value for key, value in options.items() if value is not None},
            )
    except BaseException as error:
        transport = wire._socket()
        if transport is not None:
            transport.abort()
        await wire.shut()
        if isinstance(error, ConfigurationError):
            raise
        raise _meaning(access, error) from error
    return wire


def _meaning(access: Access, error: BaseException) -> BaseException:
    text = str(error).lower()
    if isinstance(error, ModuleNotFoundError):
        return ConfigurationError(
            f"credentials need a package: pip install 'trunkline[nats]' nkeys ({error})"
        )
    if isinstance(error, (FileNotFoundError, PermissionError)) and access.credentials:
        return ConfigurationError(f"the credentials file {access.credentials} cannot be read: {error}")
    if isinstance(error, ssl.SSLCertVerificationError):
        if "expired" in text:
            fix = "renew the server's certificate; if it was renewed, compare the clocks of both machines"
        elif "hostname" in text or "ip address" in text:
            fix = "ssl_check_hostname=False accepts it"
        else:
            fix = "set ssl_ca_certs"
        if not access.tls:
            fix = f"write nats+tls:// instead of nats://, and {fix}"
        return ConfigurationError(f"NATS at {access.address}: its certificate is not trusted: {error}: {fix}")
    if any(word in text for word in _REFUSALS):
        return ConfigurationError(
            f"NATS at {access.address} refuses us: {error}. Check the user, password, token or credentials file"
        )
    if isinstance(error, (TimeoutError, OSError, errors.Error, ValueError)):
        return unavailable(access, error)
    return error
