"""The health endpoint and the dashboard: as ASGI applications, mounted, and in a browser."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

import trunkline
from trunkline import ChannelLayer, ConfigurationError
from trunkline.dashboard import Dashboard
from trunkline.health import HealthApp, app
from trunkline.opening import override
from trunkline.testing import ApplicationCommunicator, HttpCommunicator

Layers = Callable[..., ChannelLayer]


async def get(application: Any, path: str = "/", headers: Any = (), method: str = "GET") -> tuple[int, bytes]:
    async with HttpCommunicator(application, method, path, headers=list(headers)) as client:
        response = await client.get_response(timeout=20)
    return response["status"], response["body"]


async def test_health(layers: Layers) -> None:
    """200 with the state of a layer that works, which it opens if need be."""
    layer = layers()
    status, body = await get(HealthApp(layer))
    found = json.loads(body)
    assert (status, found["state"], found["reasons"]) == (200, "ok", [])
    assert [server["up"] for server in found["servers"]] == [True]
    assert await get(HealthApp(layer), method="HEAD") == (200, b"")
    assert (await get(HealthApp(layer), method="POST"))[0] == 405
    with override("default", layer):
        assert (await get(app))[0] == 200


async def test_health_when_it_is_down() -> None:
    """503 with the reason, without the password."""
    layer = trunkline.layer_from_url("redis://:zecret@127.0.0.1:1?connect_timeout=0.1")
    for _ in range(2):
        status, body = await get(HealthApp(layer))
        assert (status, json.loads(body)["state"]) == (503, "down")
        assert b"127.0.0.1:1" in body
        assert b"zecret" not in body
    layer = trunkline.layer_from_url("redis://127.0.0.1:1?connect_timeout=60")
    status, body = await get(HealthApp(layer, timeout=0.1))
    assert (status, json.loads(body)["reasons"]) == (503, ["it could not be opened within 0.1 s"])
    await layer.close()


async def test_health_without_a_layer() -> None:
    """Is a mistake of the project, not an outage."""
    with pytest.raises(ConfigurationError, match="no layer is configured"):
        await get(HealthApp(alias="nobody"))


async def test_mounted(layers: Layers) -> None:
    """Under a framework's router, and alone under a server with a lifespan."""
    layer = layers()
    site = Starlette(
        routes=[Mount("/health", HealthApp(layer)), Mount("/top", Dashboard(token="t", layer=layer))]
    )
    assert json.loads((await get(site, "/health/"))[1])["state"] == "ok"
    assert (await get(site, "/top/"))[0] == 401
    assert b"<h1>Trunkline</h1>" in (await get(site, "/top/?token=t"))[1]
    for alone in (HealthApp(layer), Dashboard(token=None, layer=layer)):
        async with ApplicationCommunicator(alone, {"type": "lifespan"}) as server:
            for event in ("lifespan.startup", "lifespan.shutdown"):
                await server.send_input({"type": event})
                assert await server.receive_output(timeout=10) == {"type": f"{event}.complete"}


async def test_dashboard_data(layers: Layers) -> None:
    """What every process reports; several visitors at once cost one look."""
    layer, other = layers(), layers()
    await other.group_add("room", await other.new_channel())
    page = Dashboard(token=None, layer=layer, wait=1.5)
    status, body = await get(page, "/?data=")
    nodes = json.loads(body)["nodes"]
    assert status == 200
    assert sorted(node["stats"]["groups"] for node in nodes) == [0, 1]
    assert {node["pid"] for node in nodes} == {os.getpid()}
    await other.group_add("room2", await other.new_channel())
    page._looked += 60
    assert (await get(page, "/?data="))[1] == body


async def test_dashboard_token(layers: Layers) -> None:
    """Without it, or with a wrong one, there is neither page nor data; it may be in the query or a header."""
    page = Dashboard(token="säcret", layer=layers())
    for path in ("/", "/?data=", "/?token=", "/?token=sacret&data=", "/?token=s%E4cret"):
        status, body = await get(page, path)
        assert (status, b"nodes" in body or b"<html" in body) == (401, False)
    assert (await get(page, headers=[(b"authorization", b"Bearer sacret")]))[0] == 401
    assert (await get(page, headers=[(b"authorization", "bearer säcret".encode())]))[0] == 200
    assert (await get(page, "/?token=s%C3%A4cret&data="))[0] == 200
    assert (await get(page, "/?token=s%C3%A4cret", method="DELETE"))[0] == 405
    for wrong in ("", 5):
        with pytest.raises(ConfigurationError, match="token"):
            Dashboard(token=wrong)  # type: ignore[arg-type]


async def test_dashboard_when_nobody_can_be_asked() -> None:
    """503, and the page says why."""
    layer = trunkline.layer_from_url("redis://127.0.0.1:1?connect_timeout=0.1")
    status, body = await get(Dashboard(token=None, layer=layer), "/?data=")
    assert status == 503
    assert "127.0.0.1:1" in json.loads(body)["error"]


def test_the_page_brings_everything_itself() -> None:
    """No address of anybody else is in it."""
    page = Dashboard(token=None)._page.decode()
    assert "http" not in page.replace("http-equiv", "")
    assert "src=" not in page


def test_django_view() -> None:
    """`trunkline.django.views.health` in urls.py, under WSGI and ASGI."""
    program = """
import asyncio, json
from django.conf import settings
settings.configure(
    ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x",
    CHANNEL_LAYERS={
        "default": {"BACKEND": "trunkline.layers.InMemoryChannelLayer"},
        "gone": {"BACKEND": "trunkline.layers.RedisChannelLayer",
                 "CONFIG": {"hosts": ["redis://127.0.0.1:1"], "connect_timeout": 0.1}},
    },
)
import django
django.setup()
from django.test import AsyncClient, Client
from django.urls import path
from trunkline.django.views import health
urlpatterns = [path("health/", health), path("gone/", health, {"alias": "gone"})]
print(Client().get("/health/").json()["state"], Client().get("/gone/").status_code, Client().post("/health/").status_code)
print(asyncio.run(AsyncClient().get("/health/")).json()["state"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "ok 503 405\nok\n", done.stderr


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(
    CHROMIUM is None and "browser" not in os.environ.get("TRUNKLINE_REQUIRE", ""), reason="no Chromium"
)
async def test_in_a_browser() -> None:
    """Tables fill, rates come with the second look, hostile names stay text, dark and light can be read."""
    import asyncio

    import uvicorn
    from playwright.async_api import async_playwright, expect

    assert CHROMIUM, "TRUNKLINE_REQUIRE has 'browser', and there is no Chromium: apt install chromium"
    layer = trunkline.layer_from_url("memory://browser-dashboard?capacity=1")
    channel = await layer.new_channel("slow")
    await layer.send(channel, {"type": "x"})
    layer._past.pattern("<b>bold</b>*").missed += 3
    node = next(iter(layer._nodes.values()))
    node.stats.pattern("<b>bold</b>*").missed += 3
    server = uvicorn.Server(
        uvicorn.Config(Dashboard(token="t", layer=layer, wait=0.05), port=0, log_level="warning", ws="none")
    )
    serving = asyncio.create_task(server.serve())
    try:
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        async with async_playwright() as playwright:
            arguments = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
            browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
            for scheme in ("light", "dark"):
                page = await browser.new_page(color_scheme=scheme)  # type: ignore[arg-type]
                wrong: list[str] = []
                page.on("console", lambda line, wrong=wrong: wrong.append(line.text))
                page.on("pageerror", lambda error, wrong=wrong: wrong.append(str(error)))
                await page.goto(f"http://127.0.0.1:{port}/?token=t")
                await expect(page.get_by_role("status")).to_contain_text("1 nodes, 1 waiting", timeout=20_000)
                slow = page.get_by_role("region", name="Slowest channels")
                await expect(slow).to_contain_text(channel)
                patterns = page.get_by_role("region", name="Channels by pattern")
                await expect(patterns).to_contain_text("<b>bold</b>*")
                row = page.get_by_role("region", name="Processes").get_by_role("row").nth(1)
                await expect(row.get_by_role("cell").nth(4)).to_have_text("0", timeout=20_000)
                # Chromium asks for an icon by itself, without the token.
                assert [line for line in wrong if "401" not in line and "favicon" not in line] == []
                await page.close()
            await browser.close()
    finally:
        server.should_exit = True
        await serving
        await layer.close()
