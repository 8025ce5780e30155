"""The websocket protocol for uvicorn: what one turn of the loop brings is written at once, and nothing else is different."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import uvicorn
import uvloop
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

import trunkline
from frameworks.programs import Program
from trunkline.consumers import AsyncWebsocketConsumer
from trunkline.serving.uvicorn import WebSocketProtocol

PATIENCE = 30.0
#: Around every length at which a frame's head changes, and above what is held until the turn ends.
SIZES = [0, 1, 125, 126, 127, 65535, 65536, 1_000_000, 3]

Application = Callable[[Any, Any, Any], Awaitable[None]]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Callable[[Any], Any]]:
    """Runs a coroutine on either loop."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        yield lambda scenario: runner.run(asyncio.wait_for(scenario, 2 * PATIENCE))


class Served:
    """A server in this loop."""

    def __init__(self, server: uvicorn.Server, port: int) -> None:
        self.server = server
        self.port = port
        self.url = f"ws://127.0.0.1:{port}/"

    @property
    def protocol(self) -> WebSocketProtocol:
        """That of its only websocket."""
        (found,) = (
            each for each in self.server.server_state.connections if isinstance(each, WebSocketProtocol)
        )
        return found


@contextlib.asynccontextmanager
async def served(
    application: Application, protocol: type[WebSocketProtocol] = WebSocketProtocol, **settings: Any
) -> AsyncIterator[Served]:
    settings = {"lifespan": "off", "log_level": "warning", "ws_per_message_deflate": False, **settings}
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(application, ws=protocol, **settings))
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        await until(lambda: server.started)
        try:
            yield Served(server, listening.getsockname()[1])
        finally:
            server.should_exit = True
            await serving


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


def text(content: str) -> dict[str, Any]:
    return {"type": "websocket.send", "text": content}


async def accept(receive: Any, send: Any) -> None:
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})


async def last_words(client: ClientConnection) -> tuple[list[str | bytes], int | None, str]:
    """All that comes until the close, and how it is closed."""
    got = []
    try:
        while True:
            got.append(await client.recv())
    except ConnectionClosed as closed:
        close = closed.rcvd
    return (got, close.code, close.reason) if close else (got, None, "")


class Raw:
    """A client that reads only when it is told to, and sees every frame."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, port: int) -> Raw:
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        made.setblocking(False)
        await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", port))
        raw = cls(*await asyncio.open_connection(sock=made, limit=1 << 16))
        lines = [
            "GET / HTTP/1.1",
            f"Host: 127.0.0.1:{port}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version: 13",
        ]
        raw.writer.write("\r\n".join([*lines, "", ""]).encode())
        head = await raw.reader.readuntil(b"\r\n\r\n")
        assert b" 101 " in head.splitlines()[0]
        return raw

    async def frame(self) -> tuple[int, bytes] | None:
        """The next frame's opcode and payload; None at the end of the stream."""
        if not (first := await self.reader.read(1)):
            return None
        (size,) = await self.reader.readexactly(1)
        if size >= 126:
            (size,) = struct.unpack(
                "!H" if size == 126 else "!Q", await self.reader.readexactly(2 if size == 126 else 8)
            )
        return first[0] & 15, await self.reader.readexactly(size)

    def reset(self) -> None:
        """Be gone, as a machine that lost its network and comes back."""
        self.writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        self.writer.transport.abort()


@pytest.mark.parametrize("deflate", [False, True])
def test_everything_arrives_in_its_order(run: Any, deflate: bool) -> None:
    """Text and bytes of any length, sent in one turn, with pings of the client between them, compressed or not."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await accept(receive, send)
        while (event := await receive())["type"] == "websocket.receive":
            for size in SIZES:
                await send(text("é" * size))
                await send({"type": "websocket.send", "bytes": b"b" * size, "text": None})
                await send({"type": "websocket.send", "text": event["text"], "bytes": None})

    async def scenario() -> None:
        compression: Any = "deflate" if deflate else None
        async with served(application, ws_per_message_deflate=True) as server:
            client: ClientConnection
            async with connect(server.url, compression=compression, max_size=None) as client:
                assert bool(client.protocol.extensions) is deflate
                for said in ("one", "two"):
                    await client.send(said)
                    pong = await client.ping()
                    for size in SIZES:
                        assert [await client.recv() for _ in range(3)] == ["é" * size, b"b" * size, said]
                    await pong

    run(scenario())


class Counting(WebSocketProtocol):
    """Counts what reaches the transport under it."""

    writes = 0

    def connection_made(self, transport: Any) -> None:
        class Counted:
            def __getattr__(counted, name: str) -> Any:
                return getattr(transport, name)

            def write(counted, data: bytes) -> None:
                Counting.writes += 1
                transport.write(data)

        super().connection_made(Counted())  # type: ignore[arg-type]


@pytest.mark.parametrize("deflate", [False, True])
def test_a_turn_is_one_write(run: Any, deflate: bool) -> None:
    """A hundred messages sent in a row are one write; the next one, a turn later, is another."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await accept(receive, send)
        await receive()
        Counting.writes = 0
        for number in range(100):
            await send(text(str(number)))
        await receive()
        await send(text(f"{Counting.writes} writes"))
        await receive()

    async def scenario() -> None:
        async with served(application, Counting, ws_per_message_deflate=deflate) as server:
            client: ClientConnection
            async with connect(server.url) as client:
                assert bool(client.protocol.extensions) is deflate
                await client.send("go")
                assert [await client.recv() for _ in range(100)] == [str(number) for number in range(100)]
                await client.send("how many")
                assert await client.recv() == "1 writes"

    run(scenario())


def test_a_close_comes_after_what_was_sent_and_before_nothing(run: Any) -> None:
    """All frames, then the close with its code and reason, then the end: what is sent behind it is refused and not sent."""
    refused: list[Exception] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await accept(receive, send)
        for number in range(1000):
            await send(text(str(number)))
        await send({"type": "websocket.close", "code": 4321, "reason": "enough"})
        try:
            await send(text("too late"))
        except Exception as error:
            refused.append(error)

    async def scenario() -> None:
        async with served(application) as server:
            async with connect(server.url) as client:
                said, code, reason = await last_words(client)
                assert (said, code, reason) == ([str(number) for number in range(1000)], 4321, "enough")
            raw = await Raw.connect(server.port)
            for number in range(1000):
                assert await raw.frame() == (1, str(number).encode())
            assert await raw.frame() == (8, struct.pack("!H", 4321) + b"enough")
            raw.writer.write(b"\x88\x82\0\0\0\0" + struct.pack("!H", 4321))
            assert await raw.frame() is None
            raw.writer.close()
        assert len(refused) == 2

    run(scenario())


def test_the_end_of_the_application_loses_nothing(run: Any) -> None:
    """What it sent last is written before uvicorn ends the connection."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await accept(receive, send)
        await send(text("good"))
        await send(text("bye"))

    async def scenario() -> None:
        async with served(application) as server:
            raw = await Raw.connect(server.port)
            assert [await raw.frame() for _ in range(3)] == [(1, b"good"), (1, b"bye"), None]
            raw.writer.close()

    run(scenario())


@pytest.mark.parametrize("size", [1000, 1_000_000])
def test_a_slow_reader_has_the_sender_wait(run: Any, size: int) -> None:
    """What waits for it in this process is bounded, however much is sent in one go; once it reads, everything is there."""
    sent = 0
    total = 48_000_000 // size

    async def application(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await accept(receive, send)
        for number in range(total):
            await send({"type": "websocket.send", "bytes": number.to_bytes(4, "big") * (size // 4)})
            sent += 1
        await receive()

    async def scenario() -> None:
        async with served(application, ws_ping_interval=None) as server:
            raw = await Raw.connect(server.port)
            await until(lambda: sent and not server.protocol.writable.is_set())
            stalled = sent
            assert stalled < total
            waits = server.protocol.transport.get_write_buffer_size()
            assert waits <= 2 * (64 << 10) + size + 14, (
                "more waits here than the limit, what one turn holds, and a frame"
            )
            for number in range(total):
                assert await raw.frame() == (2, number.to_bytes(4, "big") * (size // 4))
            assert sent == total
            raw.writer.close()

    run(scenario())


def test_pings_of_both_sides_are_answered_while_frames_flow(run: Any) -> None:
    """uvicorn's keepalive finds its client alive, and a client that pings gets its pongs, in order with the frames."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await accept(receive, send)
        listening = asyncio.ensure_future(receive())
        while not listening.done():
            await send(text("tick"))
            await asyncio.sleep(0)
        await send({"type": "websocket.close", "code": 4000})

    async def scenario() -> None:
        async with served(application, ws_ping_interval=0.05, ws_ping_timeout=PATIENCE) as server:
            raw = await Raw.connect(server.port)
            pings = pongs = ticks = 0
            raw.writer.write(b"\x89\x84\0\0\0\0ping")
            while pings < 3 or pongs < 3 or ticks < 100:
                found = await raw.frame()
                assert found is not None
                opcode, payload = found
                ticks += opcode == 1
                if opcode == 9:
                    pings += 1
                    raw.writer.write(b"\x8a" + bytes([0x80 | len(payload)]) + b"\0\0\0\0" + payload)
                elif opcode == 10:
                    assert payload == b"ping"
                    pongs += 1
                    raw.writer.write(b"\x89\x84\0\0\0\0ping")
            raw.writer.write(b"\x81\x82\0\0\0\0ok")
            while (found := await raw.frame()) and found[0] != 8:
                pass
            assert found is not None
            assert found[1][:2] == struct.pack("!H", 4000)
            raw.writer.close()

    run(scenario())


@pytest.mark.parametrize("reading", [True, False])
def test_a_client_that_vanishes_ends_its_sender_only(
    run: Any, reading: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A sender learns it by an OSError, one that waited for a slow reader too; the others go on, nothing is logged."""
    ended: list[BaseException] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await accept(receive, send)
        if (await receive()).get("text") == "echo":
            await send(text("here"))
            await receive()
            return
        try:
            while True:
                await send(text("x" * 1000))
                if reading:
                    await asyncio.sleep(0)
        except BaseException as error:
            ended.append(error)
            raise

    async def scenario() -> None:
        async with served(application, ws_ping_interval=None) as server:
            raw = await Raw.connect(server.port)
            raw.writer.write(b"\x81\x82\0\0\0\0go")
            if reading:
                for _ in range(10):
                    assert await raw.frame() == (1, b"x" * 1000)
            else:
                await until(lambda: not server.protocol.writable.is_set())
            raw.reset()
            await until(lambda: ended)
            assert isinstance(ended[0], OSError)
            async with connect(server.url) as other:
                await other.send("echo")
                assert await other.recv() == "here"

    with caplog.at_level(logging.WARNING):
        run(scenario())
    assert not caplog.records


def test_a_server_that_stops_says_so_after_what_was_sent(run: Any) -> None:
    """On shutdown the clients get what is held, then the close with 1012."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await accept(receive, send)
        await receive()
        for number in range(1000):
            await send(text(str(number)))
        server.server.should_exit = True
        assert (await receive())["type"] == "websocket.disconnect"

    async def scenario() -> None:
        nonlocal server
        async with served(application) as server, connect(server.url) as client:
            await client.send("go")
            said, code, _ = await last_words(client)
            assert (said, code) == ([str(number) for number in range(1000)], 1012)

    server: Served
    run(scenario())


def test_a_shutdown_in_the_same_turn_as_a_send_keeps_their_order(run: Any) -> None:
    """The frame leaves before the close that uvicorn sends by itself, though both are made in one turn."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await accept(receive, send)
        await receive()
        await send(text("last"))
        server.protocol.shutdown()
        await receive()

    async def scenario() -> None:
        nonlocal server
        async with served(application) as server, connect(server.url) as client:
            await client.send("go")
            assert (await last_words(client))[:2] == (["last"], 1012)

    server: Served
    run(scenario())


def test_who_is_refused_hears_it(run: Any) -> None:
    """A close before the accept is uvicorn's 403, a response of the application's own its own."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if scope["path"] == "/closed":
            await send({"type": "websocket.close"})
        else:
            await send({"type": "websocket.http.response.start", "status": 418, "headers": []})
            await send({"type": "websocket.http.response.body", "body": b"short and stout"})

    async def scenario() -> None:
        async with served(application) as server:
            for path, status in (("closed", 403), ("teapot", 418)):
                with pytest.raises(InvalidStatus) as refused:
                    async with connect(server.url + path):
                        pass
                assert refused.value.response.status_code == status
            assert refused.value.response.body == b"short and stout"

    run(scenario())


def test_messages_that_are_none_are_refused_as_before(run: Any) -> None:
    """What is no text and no bytes goes to uvicorn, whose errors they are; bytes-like objects are sent."""
    found: list[Exception] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await accept(receive, send)
        for wrong in ({"type": "websocket.snd", "text": "x"}, {"type": "websocket.send", "text": 7}):
            try:
                await send(wrong)
            except Exception as error:
                found.append(error)
        await send({"type": "websocket.send", "bytes": bytearray(b"fine")})
        await receive()

    async def scenario() -> None:
        async with served(application) as server, connect(server.url) as client:
            assert await client.recv() == b"fine"
        assert [type(error) for error in found] == [RuntimeError, AttributeError]

    run(scenario())


def test_a_relay_reaches_every_socket(run: Any) -> None:
    """Relayed events and the consumer's own sends arrive at each client in the order in which they were sent."""

    async def scenario() -> None:
        layer = trunkline.layer_from_url("memory://", capacity=1000)

        class Room(AsyncWebsocketConsumer):
            groups = ["room"]
            channel_layer = layer
            relay = {"said": lambda event: event["text"]}

            async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
                for number in range(50):
                    await layer.group_send("room", {"type": "said", "text": f"{text_data} {number}"})
                await self.send(text_data="done")

        async with served(Room.as_asgi()) as server, contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(connect(server.url)) for _ in range(20)]
            await until(lambda: layer.stats().memberships == 20)
            await asyncio.gather(*(clients[number].send(str(number)) for number in range(3)))
            for number, client in enumerate(clients):
                got = [await client.recv() for _ in range(150 + (number < 3))]
                assert got.count("done") == (number < 3)
                for speaker in range(3):
                    mine = [each for each in got if isinstance(each, str) and each.startswith(f"{speaker} ")]
                    assert mine == [f"{speaker} {number}" for number in range(50)]
        await layer.close()

    run(scenario())


def test_uvicorn_takes_it_by_name(tmp_path) -> None:
    """``uvicorn --ws trunkline.serving.uvicorn:WebSocketProtocol``, as the docs say."""
    (tmp_path / "echo.py").write_text(
        "async def app(scope, receive, send):\n"
        "    await receive()\n"
        "    await send({'type': 'websocket.accept'})\n"
        "    while 'text' in (event := await receive()):\n"
        "        await send({'type': 'websocket.send', 'text': event['text']})\n"
    )
    words = [
        "-m",
        "uvicorn",
        "echo:app",
        "--ws",
        "trunkline.serving.uvicorn:WebSocketProtocol",
        "--port",
        "0",
    ]
    with Program([*words, "--lifespan", "off"], tmp_path, tmp_path / "log") as program:

        async def talk() -> None:
            async with connect(f"ws://127.0.0.1:{program.port()}/") as client:
                await client.send("hello")
                assert await client.recv() == "hello"

        asyncio.run(asyncio.wait_for(talk(), PATIENCE))


@pytest.mark.parametrize(
    "here",
    [
        "sys.modules['uvicorn.protocols.websockets.websockets_sansio_impl'] = None",
        "sys.modules['websockets.protocol'] = None",
        "import uvicorn; uvicorn.__version__ = '0.52.3'",
    ],
)
def test_what_is_missing_is_named(here: str) -> None:
    """An older uvicorn, or no websockets: the import says what to install."""
    code = f"import sys; {here}; import trunkline.serving.uvicorn"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode
    assert "ConfigurationError: trunkline.serving.uvicorn needs uvicorn 0.52.4" in done.stderr
    assert "pip install 'trunkline[uvicorn]'" in done.stderr
