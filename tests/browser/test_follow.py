"""The browser's part of resuming, as the page about history shows it, in a real browser."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import uvicorn
from playwright.async_api import Browser, expect

from browser.test_browser import PLUG, browser, plug, visit
from trunkline import ChannelLayer, layer_from_url
from trunkline.consumers import AsyncHttpConsumer, AsyncWebsocketConsumer
from trunkline.routing import ProtocolTypeRouter

__all__ = ["browser"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

DOCS = Path(__file__).parents[2] / "docs" / "history.md"
SCRIPT = re.search(r"```js\n(.*?)```", DOCS.read_text(), re.S)[1]  # type: ignore[index]
PAGE = b"""<!doctype html><title>follow</title><link rel="icon" href="data:,"><ol></ol><p>connecting</p><b></b>
<script type="module">
import { follow } from "/follow.js";
const list = document.querySelector("ol");
const add = (text) => list.append(Object.assign(document.createElement("li"), { textContent: text }));
window.feed = follow("/ws", {
  onEvent: (event) => add(event.text),
  onLost: (groups) => { document.querySelector("b").textContent = groups.join(); },
  onState: (state) => { document.querySelector("p").textContent = state; },
});
</script>"""


class Files(AsyncHttpConsumer):
    async def handle(self, body: bytes) -> None:
        found = {"/": (PAGE, "text/html"), "/follow.js": (SCRIPT.encode(), "text/javascript")}
        content, kind = found.get(self.scope["path"], (b"", "text/plain"))
        await self.send_response(200 if content else 404, content, headers={"Content-Type": kind})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def layer() -> AsyncIterator[ChannelLayer]:
    async with layer_from_url("memory://", history={"room": {"size": 20, "seconds": 60}}) as layer:
        yield layer


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(layer: ChannelLayer) -> AsyncIterator[str]:
    class Room(AsyncWebsocketConsumer):
        channel_layer = layer
        groups = ["room"]
        resume = True

        async def connect(self) -> None:
            await (self.accept() if self.scope["path"] == "/ws" else self.close())

        async def chat_message(self, event: dict[str, Any]) -> None:
            await self.send(json.dumps({"text": event["text"], "position": event["position"]}))

        async def cut(self, event: dict[str, Any]) -> None:
            await self.close(4000)

    app = ProtocolTypeRouter({"http": Files.as_asgi(), "websocket": Room.as_asgi()})
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        assert not task.done()
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_a_browser_that_was_away_misses_nothing(
    browser: Browser, site: str, layer: ChannelLayer
) -> None:
    async def say(*texts: str) -> None:
        for text in texts:
            await layer.group_send("room", {"type": "chat.message", "text": text})

    async with visit(browser, lost=True) as context:
        await context.add_init_script(PLUG)
        page = await context.new_page()
        await page.goto(site)
        lines, state = page.locator("li"), page.locator("p")
        await expect(state).to_have_text("connected")
        await say("1", "2")
        await expect(lines).to_have_text(["1", "2"])

        await plug(page, False)
        (channel,) = layer._nodes[asyncio.get_running_loop()]._board.members("room")
        await layer.send(channel, {"type": "cut"})
        await expect(state).to_have_text("reconnecting")
        await say("3", "4", "5")
        await plug(page, True)
        await expect(state).to_have_text("connected")
        await say("6")
        await expect(lines).to_have_text(["1", "2", "3", "4", "5", "6"])

        await plug(page, False)
        (channel,) = layer._nodes[asyncio.get_running_loop()]._board.members("room")
        await layer.send(channel, {"type": "cut"})
        await expect(state).to_have_text("reconnecting")
        await say(*(str(number) for number in range(30)))
        await plug(page, True)
        await expect(page.locator("b")).to_have_text("room")
        await say("after")
        await expect(lines.last).to_have_text("after")
        await expect(lines).to_have_count(7)
