"""The site in Starlette."""

from framework_site import ChatConsumer, announce, announce_from_thread, sockets
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route


async def from_async(request: Request) -> PlainTextResponse:
    await announce(request.path_params["text"])
    return PlainTextResponse("announced")


def from_sync(request: Request) -> PlainTextResponse:
    announce_from_thread(request.path_params["text"])
    return PlainTextResponse("announced")


app = Starlette(
    routes=[
        Route("/announce/async/{text}", from_async),
        Route("/announce/sync/{text}", from_sync),
        Mount("/plain", ChatConsumer.as_asgi()),
        Mount("/ws", sockets),
    ]
)
