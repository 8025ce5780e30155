"""A chat in FastAPI with its own websocket endpoints, across the worker processes of one uvicorn. In this folder:

uvicorn main:app --workers 2
"""

import asyncio
from pathlib import Path

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse

import trunkline

PAGE = Path(__file__).with_name("index.html")
app = FastAPI()
trunkline.configure("embedded:")  # all processes started in this folder meet


@app.get("/")
async def page() -> FileResponse:
    """The chat in a browser."""
    return FileResponse(PAGE)


@app.websocket("/ws/{room}")
async def chat(socket: WebSocket, room: str) -> None:
    """What one browser says, every browser in the room gets, whichever process serves it."""
    layer = trunkline.get_channel_layer()
    group = trunkline.safe_group_name(room)
    channel = await layer.new_channel()
    await layer.group_add(group, channel)
    await socket.accept()

    async def listen() -> None:
        while True:
            message = await layer.receive(channel)
            await socket.send_text(message["text"])

    try:
        async with asyncio.TaskGroup() as sides:
            listening = sides.create_task(listen())
            async for text in socket.iter_text():
                await layer.group_send(group, {"type": "chat.message", "text": text})
            listening.cancel()
    except* WebSocketDisconnect:
        pass  # the browser left while it was being sent to
    finally:
        await layer.forget(channel)


@app.post("/rooms/{room}/messages")
def announce(room: str, text: str) -> dict[str, str]:
    """A plain `def` endpoint, which FastAPI runs in a thread: layer.sync needs no await."""
    group = trunkline.safe_group_name(room)
    trunkline.get_channel_layer().sync.group_send(group, {"type": "chat.message", "text": f"* {text}"})
    return {"announced": text}
