"""The site in FastAPI."""

from fastapi import FastAPI
from framework_site import ChatConsumer, announce, announce_from_thread, sockets

app = FastAPI()


@app.get("/announce/async/{text}")
async def from_async(text: str) -> str:
    await announce(text)
    return "announced"


@app.get("/announce/sync/{text}")
def from_sync(text: str) -> str:
    announce_from_thread(text)
    return "announced"


app.mount("/plain", ChatConsumer.as_asgi())
app.mount("/ws", sockets)
