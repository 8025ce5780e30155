"""SECURITY.md, line by line: a test's docstring is a line of it."""

from __future__ import annotations

import ast
import asyncio
import logging
import os
import re
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ormsgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import trunkline
from servers import Server, free_port, servers
from trunkline.consumers import AsyncConsumer, AsyncJsonWebsocketConsumer, AsyncWebsocketConsumer
from trunkline.consumers.base import NoHandler
from trunkline.dashboard import Dashboard
from trunkline.envelope import CHANNEL, CONTROL, GROUP, Seal, encode
from trunkline.errors import ChannelFull, ConfigurationError, MessageTooLarge, TransportUnavailable
from trunkline.layers import EmbeddedChannelLayer, InMemoryChannelLayer, RedisChannelLayer
from trunkline.opening import override
from trunkline.testing import ApplicationCommunicator, WebsocketCommunicator, eventually

SOURCES = Path(trunkline.__file__).parent
SECRET = "attack at dawn"
LIMIT = 1 << 20


def test_the_page_is_these_tests() -> None:
    page = (Path(__file__).parents[2] / "SECURITY.md").read_text()
    section = page.partition("## What Trunkline defends")[2].partition("## Your part")[0]
    claims = set(re.findall(r"^- (.*)$", section, re.M))
    tests = [value for name, value in globals().items() if name.startswith("test_")]
    assert claims == {test.__doc__ for test in tests if test.__doc__}


def node_of(layer: Any) -> Any:
    (node,) = layer._nodes.values()
    return node


async def member(layer: Any, group: str) -> str:
    channel: str = await layer.new_channel()
    await layer.group_add(group, channel)
    return channel


async def next_of(layer: Any, channel: str) -> Any:
    async with asyncio.timeout(20):
        return await layer.receive(channel)


def later(layer: Any, seconds: float = 60) -> float:
    now: float = node_of(layer)._transport.now()
    return now + seconds


# On the server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(sorted(servers())[0], tmp_path_factory.mktemp("server"))
    yield made
    made.kill()


async def on_the_server(server: Server, keys: list[str] | None) -> bytes:
    """Everything that the server holds after a group message and a job."""
    server.call("FLUSHALL")
    layer = RedisChannelLayer([server.url], symmetric_encryption_keys=keys)
    mine = await member(layer, "generals")
    await layer.group_send("generals", {"type": "order", "text": SECRET})
    assert (await next_of(layer, mine))["text"] == SECRET
    await layer.send("orders", {"type": "order", "text": SECRET})
    held = b"".join(key + (server.call("DUMP", key) or b"") for key in server.call("KEYS", "*"))
    await layer.close()
    return held


async def test_bodies_are_hidden(server: Server) -> None:
    """Bodies cannot be read: they are AES-256-GCM ciphertext on the server."""
    assert SECRET.encode() in await on_the_server(server, None)
    assert SECRET.encode() not in await on_the_server(server, ["key"])


async def test_names_are_not_hidden(server: Server) -> None:
    """Names of groups and channels, sizes and times can be seen."""
    held = await on_the_server(server, ["key"])
    assert b"generals" in held
    assert b"orders" in held


async def test_nothing_is_changed_or_made() -> None:
    """A message cannot be changed or made: not its body, group, channel, kind or expiry."""
    layer = InMemoryChannelLayer(symmetric_encryption_keys=["key"])
    mine = await member(layer, "generals")
    body = encode({"type": "order", "text": SECRET}, LIMIT)
    frame = Seal(["key"]).frame(GROUP, later(layer), "generals", body)
    forged = [Seal(["guessed"]).frame(GROUP, later(layer), "generals", body)]
    for place in range(len(frame)):
        changed = bytearray(frame)
        changed[place] ^= 0x41
        forged.append(bytes(changed))
    for each in forged:
        node_of(layer).deliver(each)
    assert layer.stats().unreadable == len(forged)
    await layer.group_send("generals", {"type": "order", "text": "real"})
    assert (await next_of(layer, mine))["text"] == "real"
    await layer.close()


async def test_no_other_kind_or_place() -> None:
    """A message cannot be turned into another kind, or led to another group or channel."""
    layer = InMemoryChannelLayer(symmetric_encryption_keys=["key"])
    generals, soldiers = await member(layer, "generals"), await member(layer, "soldiers")
    frame = Seal(["key"]).frame(GROUP, later(layer), "generals", encode({"type": "order"}, LIMIT))
    for kind in set(range(256)) - {GROUP}:
        node_of(layer).deliver(frame[:1] + bytes([kind]) + frame[2:])
    node_of(layer).deliver(frame.replace(b"generals", b"soldiers"))
    assert layer.stats().unreadable == 256
    # As it is, it reaches whom it is for, on whatever topic somebody publishes it.
    await node_of(layer)._transport.publish("soldiers", frame, 60)
    assert await next_of(layer, generals) == {"type": "order"}
    await layer.send(soldiers, {"type": "end"})
    assert await next_of(layer, soldiers) == {"type": "end"}
    await layer.close()


async def test_keys_on_one_side() -> None:
    """A layer with keys takes no message that is not encrypted, and one without keys none that is."""
    for mine, theirs in ((["key"], []), ([], ["key"])):
        layer = InMemoryChannelLayer(symmetric_encryption_keys=mine)
        channel = await member(layer, "generals")
        body = encode({"type": "forged"}, LIMIT)
        node_of(layer).deliver(Seal(theirs).frame(GROUP, later(layer), "generals", body))
        node_of(layer).deliver(Seal(theirs).frame(CHANNEL, later(layer), channel, body))
        assert layer.stats().unreadable == 2
        await layer.send(channel, {"type": "real"})
        assert await next_of(layer, channel) == {"type": "real"}
        await layer.close()


async def test_a_copy_expires() -> None:
    """A copied message can be delivered again until it expires, and not later."""
    layer = InMemoryChannelLayer(symmetric_encryption_keys=["key"])
    mine = await member(layer, "generals")
    seal, body = Seal(["key"]), encode({"type": "order"}, LIMIT)
    for frame in (
        seal.frame(GROUP, later(layer), "generals", body),
        seal.frame(GROUP, 1.0, "generals", body),
    ):
        for _ in range(2):
            node_of(layer).deliver(frame)
    await layer.send(mine, {"type": "end"})
    assert [(await next_of(layer, mine))["type"] for _ in range(3)] == ["order", "order", "end"]
    await layer.close()


# On the machine


async def used(folder: Path) -> EmbeddedChannelLayer:
    layer = EmbeddedChannelLayer(folder)
    mine = await member(layer, "generals")
    await layer.send(mine, {"type": "order"})
    await layer.send("orders", {"type": "order"})
    return layer


async def test_modes(tmp_path: Path) -> None:
    """Folders of the embedded layer are 0700 and its files and sockets 0600, whatever the umask."""
    before = os.umask(0)
    try:
        layer = await used(tmp_path / "layer")
    finally:
        os.umask(before)
    kinds = set()
    for path in (tmp_path / "layer", *(tmp_path / "layer").rglob("*")):
        mode = path.lstat().st_mode
        kinds.add(stat.S_IFMT(mode))
        assert stat.S_IMODE(mode) == (0o700 if stat.S_ISDIR(mode) else 0o600), path
    assert kinds == {stat.S_IFDIR, stat.S_IFREG, stat.S_IFSOCK}
    await layer.close()


async def test_foreign_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that others can enter, that is a symlink or that belongs to somebody else is refused."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o711)
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    for name, complaint in (("open", "open to other users"), ("link", "symlink")):
        with pytest.raises(ConfigurationError, match=complaint):
            await EmbeddedChannelLayer(tmp_path / name).new_channel()
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    with pytest.raises(ConfigurationError, match=f"belongs to user id {user}"):
        await EmbeddedChannelLayer(tmp_path / "mine").new_channel()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_other_users() -> None:
    """Another user can neither read the file nor write to a socket."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        os.chmod(name, 0o755)
        layer = await used(Path(name) / "layer")
        found = [path for path in (Path(name) / "layer").rglob("*") if not path.is_dir()]
        assert found
        program = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
for path in sys.argv[1:]:
    for attempt in (lambda: open(path, "rb"), lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).connect(path)):
        try:
            attempt()
        except PermissionError:
            print("denied")
        else:
            print("let in", path)
"""
        command = [sys.executable, "-S", "-c", program, *map(str, found)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.stdout == "denied\n" * 2 * len(found), done.stdout + done.stderr
        await layer.close()


# Whatever arrives

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
frames = st.lists(
    st.binary(max_size=60)
    | st.builds(
        lambda kind, name, body: Seal().frame(kind, 1e12, name, ormsgpack.packb(body)),
        st.sampled_from([GROUP, CHANNEL, CONTROL, 4, 5, 6, 7, 0x41, 0x42, 0x43, 0x45, 255]),
        st.sampled_from(["generals", "!all", "x", ""]),
        plain | st.fixed_dictionaries({"ask": plain, "to": plain, "id": plain, "type": plain}),
    ),
    max_size=20,
)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(frames)
def test_junk(junk: list[bytes]) -> None:
    """Junk never stops a layer: it is dropped and counted, and what comes after it arrives."""

    async def check() -> None:
        layer = InMemoryChannelLayer()
        mine = await layer.new_channel()
        for each in junk:
            node_of(layer).deliver(each)
        await layer.send(mine, {"type": "real"})
        assert await next_of(layer, mine) == {"type": "real"}
        assert layer.stats().unreadable <= len(junk)
        await layer.close()

    asyncio.run(check())


def test_nothing_runs() -> None:
    """No message makes Python run code: nothing is unpickled, evaluated or imported because of what it holds."""
    evaluating = set()
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {name.split(".")[0] for name in names} & {
                "pickle", "marshal", "shelve", "dill", "cloudpickle", "yaml", "jsonpickle",
            }, path  # fmt: skip
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Name) and called.id in ("eval", "exec", "compile", "__import__"):
                evaluating.add(path.relative_to(SOURCES).as_posix())
    # The annotations of handlers, which are source code of the application.
    assert evaluating == {"consumers/annotated.py"}


async def test_private_handlers() -> None:
    """The type of an event never names a private method of a consumer."""

    class Consumer(AsyncConsumer):
        async def _secret(self, event: Any) -> None:
            raise RuntimeError("reached")

    for kind in (
        "_secret",
        ".secret",
        "__init__",
        "..init..",
        "as.asgi",
        "dispatch",
        "channel_layer",
        "scope",
    ):
        caller = ApplicationCommunicator(Consumer.as_asgi(), {"type": "test"})
        await caller.send_input({"type": kind})
        with pytest.raises(NoHandler):
            await caller.wait(10)


async def test_floods() -> None:
    """A flood by other processes fills no memory: what waits is bounded for each channel and each process."""
    sender = InMemoryChannelLayer(hub="flood", capacity=10)
    layer = InMemoryChannelLayer(hub="flood", capacity=10, process_capacity=50)
    channels = [await member(layer, "generals") for _ in range(20)]
    for _ in range(10):
        await sender.send(channels[0], {"type": "order"})
    with pytest.raises(ChannelFull):
        await sender.send(channels[0], {"type": "order"})
    for _ in range(1000):
        await sender.group_send("generals", {"type": "order"})
    assert 0 < node_of(layer)._board.waiting <= 50
    assert layer.stats().dropped > 0
    await layer.close()
    await sender.close()


async def test_large_messages() -> None:
    """A message larger than `max_message_size` is refused in the sender's hands."""
    layer = InMemoryChannelLayer(max_message_size=1000)
    mine = await member(layer, "generals")
    sends: list[Callable[[Any], Any]] = [
        lambda message: layer.send(mine, message),
        lambda message: layer.send("orders", message),
        lambda message: layer.group_send("generals", message),
    ]
    for send in sends:
        with pytest.raises(MessageTooLarge):
            await send({"type": "order", "text": "x" * 1000})
    await layer.close()


# Logs and errors

PASSWORD = "ze+cret"


@pytest.mark.parametrize(
    "url", ["redis://user:{}@{}", "rediss://:{}@{}", "redis+cluster://user:{}@{}", "redis+sentinel://:{}@{}/m",
            "postgresql://user:{}@{}/shop", "nats://user:{}@{}"],
)  # fmt: skip
async def test_passwords(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Passwords are in no error, log line, `repr`, health report or survey."""
    caplog.set_level(logging.DEBUG)
    address = url.format(PASSWORD, f"127.0.0.1:{free_port()}") + "?connect_timeout=0.3"
    layer = trunkline.layer_from_url(address)
    with pytest.raises((TransportUnavailable, ConfigurationError)) as raised:
        await layer.new_channel()
    shown = [repr(layer), repr(layer._first), repr(layer.health()), repr(layer.stats()), caplog.text]
    error: BaseException | None = raised.value
    while error is not None:
        shown.append(f"{error} {error!r}")
        error = error.__cause__
    shown += [str(finding) for finding in await layer.examine()]
    await layer.close()
    assert not [text for text in shown if "cret" in text.replace("secret", "")]


# Websockets


async def test_a_frame_that_cannot_be_read() -> None:
    """A frame that its consumer cannot read ends the connection it came on, and no other."""

    class Chat(AsyncJsonWebsocketConsumer):
        groups = ["chat"]

        async def receive_json(self, content: Any) -> None:
            await self.channel_layer.group_send("chat", {"type": "chat.message", "text": content["text"]})

        async def chat_message(self, event: Any) -> None:
            await self.send_json(event["text"])

    layer = InMemoryChannelLayer()
    with override("default", layer):
        app = Chat.as_asgi()
        async with WebsocketCommunicator(app, "/") as good:
            await good.connect()
            for text in ("{", "", "[" * 100_000, "[]", "{}", None):
                bad = WebsocketCommunicator(app, "/")
                await bad.connect()
                await bad.send_to(text, b"\xff" if text is None else None)
                with pytest.raises((ValueError, TypeError, LookupError, RecursionError)):
                    await bad.wait(10)
                await good.send_json_to({"text": "still here"})
                assert await good.receive_json_from(10) == "still here"
            assert layer.stats().memberships == 1
        await layer.close()


async def test_turned_away() -> None:
    """A client that is turned away in `connect` is in no group afterwards."""

    class Staff(AsyncWebsocketConsumer):
        groups = ["staff"]

        async def connect(self) -> None:
            await self.channel_layer.group_add("orders", self.channel_name)
            await self.close(4003)

    layer = InMemoryChannelLayer()
    with override("default", layer):
        async with WebsocketCommunicator(Staff.as_asgi(), "/") as client:
            assert await client.connect() == (False, 4003)
        await eventually(lambda: layer.stats().memberships == 0)
        await layer.close()


async def test_a_client_that_does_not_read() -> None:
    """A client that does not read misses messages; those in the same group do not wait for it."""
    stuck = asyncio.Event()

    class Feed(AsyncWebsocketConsumer):
        groups = ["feed"]

        async def feed_news(self, event: Any) -> None:
            if self.scope["path"] == "/slow":
                await stuck.wait()  # as `send` waits while a client's socket is full
            await self.send(text_data=event["text"])

    layer = InMemoryChannelLayer(capacity=5)
    with override("default", layer):
        app = Feed.as_asgi()
        async with WebsocketCommunicator(app, "/slow") as slow, WebsocketCommunicator(app, "/quick") as quick:
            await slow.connect()
            await quick.connect()
            for number in range(20):
                await layer.group_send("feed", {"type": "feed.news", "text": str(number)})
                assert await quick.receive_from(10) == str(number)
            assert layer.stats().missed >= 20 - 5 - 1  # one is in its hands
            stuck.set()
        await layer.close()


# Ports


def test_no_port(tmp_path: Path) -> None:
    """Trunkline listens on no port: health, metrics and the dashboard are there only where you mount them."""
    program = """
import asyncio, os, pathlib, sys
import trunkline, trunkline.health, trunkline.dashboard, trunkline.worker
async def main():
    for url in ("memory://", f"embedded://{sys.argv[1]}/layer"):
        layer = trunkline.layer_from_url(url)
        await layer.group_add("generals", await layer.new_channel())
        await layer.group_send("generals", {"type": "order"})
        inodes = {os.readlink(path) for path in pathlib.Path("/proc/self/fd").iterdir() if os.path.islink(path)}
        for table in ("tcp", "tcp6", "udp", "udp6"):
            for line in pathlib.Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
                if f"socket:[{line.split()[9]}]" in inodes:
                    print("a port", line)
        await layer.close()
asyncio.run(main())
print("done")
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "done\n", done.stdout + done.stderr


async def test_the_dashboard_wants_a_token() -> None:
    """The dashboard has no default: it wants a token, or `token=None` in so many words."""
    with pytest.raises(TypeError, match="token"):
        Dashboard()  # type: ignore[call-arg]
    with pytest.raises(ConfigurationError, match="token"):
        Dashboard(token="")
    page = Dashboard(token="right")
    for query, status in ((b"", 401), (b"token=", 401), (b"token=wrong", 401), (b"token=right", 200)):
        scope = {"type": "http", "method": "GET", "query_string": query, "headers": []}
        caller = ApplicationCommunicator(page, scope)
        assert (await caller.receive_output(10))["status"] == status
        await caller.receive_output(10)
        await caller.wait(10)
