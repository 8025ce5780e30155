"""Routers: by type, by channel, by path."""

from __future__ import annotations

import pytest

from trunkline.consumers import AsyncWebsocketConsumer
from trunkline.routing import ChannelNameRouter, PathRouter, ProtocolTypeRouter
from trunkline.testing.communicators import ApplicationCommunicator, HttpCommunicator, WebsocketCommunicator


def named(name):
    async def application(scope, receive, send):
        await send({"type": name, **scope.get("url_route", {}).get("kwargs", {})})

    return application


async def answer(application, scope):
    async with ApplicationCommunicator(application, scope) as client:
        return await client.receive_output()


async def test_the_type_of_a_connection_chooses():
    """Each type goes to its application; an unknown one is an error that lists the known."""
    router = ProtocolTypeRouter({"http": named("web"), "websocket": named("socket")})
    assert (await answer(router, {"type": "http"}))["type"] == "web"
    assert (await answer(router, {"type": "websocket"}))["type"] == "socket"
    with pytest.raises(ValueError, match=r"'lifespan'.*'http', 'websocket'"):
        await answer(router, {"type": "lifespan"})


async def test_the_channel_of_a_worker_chooses():
    """Each channel goes to its application; an unknown one is an error that lists the known."""
    router = ChannelNameRouter({"thumbnails": named("t"), "mail": named("m")})
    assert (await answer(router, {"type": "channel", "channel": "mail"}))["type"] == "m"
    with pytest.raises(ValueError, match=r"'audio'.*'mail', 'thumbnails'"):
        await answer(router, {"type": "channel", "channel": "audio"})
    with pytest.raises(ValueError, match='"channel" in a ProtocolTypeRouter'):
        await answer(router, {"type": "http"})


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", {"type": "root"}),
        ("/ws/lobby", {"type": "room", "room": "lobby"}),
        ("/ws/Zürich Süd", {"type": "room", "room": "Zürich Süd"}),
        ("/ws/fixed", {"type": "fixed"}),
        ("/ws/a/b", {"type": "pair", "x": "a", "y": "b"}),
        ("/files/", {"type": "file", "name": ""}),
        ("/files/a", {"type": "file", "name": "a"}),
        ("/files/a/b.txt", {"type": "file", "name": "a/b.txt"}),
        ("/slash/x/", {"type": "slash", "x": "x"}),
        ("/ws", None),
        ("/ws/", None),
        ("/ws//b", None),
        ("/ws/a/", None),
        ("/ws/a/b/c", None),
        ("/files", None),
        ("/slash/x", None),
        ("/else", None),
    ],
)
@pytest.mark.parametrize("root", ["", "/app"])
async def test_the_path_chooses_and_its_parts_are_arguments(path, expected, root):
    """First pattern that fits the whole path; ``{name}`` is one segment, ``{name:path}`` the rest; 404 otherwise."""
    router = PathRouter(
        [
            ("/", named("root")),
            ("/ws/fixed", named("fixed")),
            ("/ws/{room}", named("room")),
            ("/ws/{x}/{y}", named("pair")),
            ("/files/{name:path}", named("file")),
            ("/slash/{x}/", named("slash")),
        ]
    )
    scope = {"type": "http", "path": root + path, "root_path": root}
    if expected is not None:
        assert await answer(router, scope) == expected
    else:
        assert (await answer(router, scope))["status"] == 404


async def test_an_unknown_path_is_not_found_and_not_an_exception():
    """HTTP gets a 404, a websocket is refused."""
    router = ProtocolTypeRouter({"http": PathRouter({}), "websocket": PathRouter({"/ws/{room}": named("x")})})
    response = await HttpCommunicator(router, "GET", "/nowhere").get_response()
    assert (response["status"], response["body"]) == (404, b"Not Found")
    async with WebsocketCommunicator(router, "/nowhere") as ws:
        assert (await ws.connect())[0] is False
        assert ws.input_queue.empty()  # the connect event was taken, as servers expect


async def test_a_router_within_a_router_adds_its_arguments():
    """What an outer router found stays."""
    inner = PathRouter({"/t/{tenant}/ws/{room}": named("x")})
    scope = {"type": "http", "path": "/t/a/ws/b", "url_route": {"args": (), "kwargs": {"site": "s"}}}
    assert await answer(inner, scope) == {"type": "x", "site": "s", "tenant": "a", "room": "b"}
    assert scope["url_route"] == {"args": (), "kwargs": {"site": "s"}}


async def test_a_connection_without_a_path_is_an_error():
    """The error says where the router belongs."""
    with pytest.raises(ValueError, match=r"'lifespan'.*ProtocolTypeRouter"):
        await answer(PathRouter({}), {"type": "lifespan"})


@pytest.mark.parametrize(
    "pattern",
    ["ws", "", 7, "/a{b}", "/{a}-x", "/{a}/{a}", "/{1a}", "/{}", "/{a:int}", "/{a:path}/b", "/{a", "/a}"],
)
def test_a_pattern_that_cannot_work_is_refused_at_once(pattern):
    """The error shows the pattern."""
    with pytest.raises(ValueError, match=r"pattern"):
        PathRouter([(pattern, named("x"))])


async def test_a_route_of_starlette_takes_an_application() -> None:
    """Starlette takes a function for a view of its own: as_asgi() is an object, which it serves as an application."""
    from starlette.applications import Starlette
    from starlette.routing import WebSocketRoute

    class Echo(AsyncWebsocketConsumer):
        async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            await self.send(text_data=f"{self.scope['path_params']['room']}: {text_data}")

    app = Starlette(routes=[WebSocketRoute("/ws/{room}", Echo.as_asgi())])
    async with WebsocketCommunicator(app, "/ws/lobby") as browser:
        await browser.connect()
        await browser.send_to(text_data="hi")
        assert await browser.receive_from() == "lobby: hi"
