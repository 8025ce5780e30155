"""With asgiref and ormsgpack only: what works, and what is said about the rest.

The imports of everything else are refused, so this says the same in an environment that has it all.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

NOTHING_ELSE = """
import sys
allowed = {"trunkline", "asgiref", "ormsgpack", "typing_extensions", *sys.stdlib_module_names}
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
import asyncio
import trunkline
"""

WORKS = """
from trunkline.consumers import AsyncWebsocketConsumer
from trunkline.testing.communicators import WebsocketCommunicator

class Chat(AsyncWebsocketConsumer):
    groups = ["chat"]

    async def chat_message(self, event):
        await self.send(event["text"])

async def main():
    for url in ("memory://", f"embedded://{sys.argv[1]}/layer"):
        trunkline.configure(url)
        chat = WebsocketCommunicator(Chat.as_asgi(), "/")
        await chat.connect()
        layer = trunkline.get_channel_layer()
        await layer.group_send("chat", {"type": "chat.message", "text": url})
        print(await chat.receive_from(timeout=20))
        await chat.disconnect()
        await layer.send("jobs", {"type": "job"})
        print(await layer.receive("jobs"))
        await layer.close()

asyncio.run(main())
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", NOTHING_ELSE + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_core_works(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The memory and the embedded layer, and consumers, want nothing more."""
    folder = str(tmp_path_factory.mktemp("core"))
    done = run(WORKS, folder)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "memory://",
        "{'type': 'job'}",
        f"embedded://{folder}/layer",
        "{'type': 'job'}",
    ]


@pytest.mark.parametrize(
    ("code", "extra"),
    [
        ("trunkline.layer_from_url('redis://localhost')", "redis"),
        ("from trunkline.layers import RedisChannelLayer; RedisChannelLayer()", "redis"),
        ("trunkline.layer_from_url('postgresql://localhost/x')", "postgres"),
        ("trunkline.layer_from_url('nats://localhost')", "nats"),
        ("trunkline.layer_from_url('memory://', symmetric_encryption_keys=['k'])", "crypto"),
        ("import trunkline.metrics", "metrics"),
        ("import trunkline.otel", "tracing"),
        ("from trunkline.cli import main; sys.exit(main())", "cli"),
    ],
)
def test_what_is_missing_is_named(code: str, extra: str) -> None:
    """What needs an extra ends with the command that installs it."""
    done = run(code)
    assert done.returncode != 0
    assert f"pip install 'trunkline[{extra}]'" in done.stderr.splitlines()[-1]
