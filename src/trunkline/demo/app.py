"""What a server process serves: the page over HTTP and the chat over a websocket.

Every window is a member of two groups: ``EVERYONE`` and its room's. The consumers of one process share a ``Here``, which
says which process it is; everything between processes goes through the channel layer.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from ..consumers import AsyncHttpConsumer, AsyncJsonWebsocketConsumer, DenyConnection
from ..consumers.resume import Past
from ..errors import ChannelFull, MessageTooLarge, TransportUnavailable
from ..names import safe_group_name
from .thumbnails import MAX_IMAGE, QUEUE

__all__ = ["EVERYONE", "MAX_TEXT", "Chat", "Here", "Page", "plain"]

logger = logging.getLogger("trunkline.demo")

#: The group of every window, whatever its room.
EVERYONE = "demo.everyone"

MAX_NAME = 30  # characters, as all of these
MAX_ROOM = 60
MAX_TEXT = 2000
#: Seconds the announcing script may take, start-up of its Python included.
_ANNOUNCE = 20.0
#: People shown of one room.
_SHOWN = 100
#: Rooms told of in one pulse.
_ROOMS = 40

_PAGE = Path(__file__).parent / "page"
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Mistake(Exception):
    """What the user asked for cannot be done; the text is shown to them."""


class Here:
    """This server process, as its consumers know it."""

    def __init__(self, number: int, layer: str) -> None:
        self.number = number
        #: The kind of channel layer, e.g. ``"embedded"``.
        self.layer = layer
        self.pid = os.getpid()
        self.chats: set[Chat] = set()
        self.said = 0
        self.shown = 0
        self.announcing = False

    def pulse(self) -> dict[str, Any]:
        """What every window is told about this process, once a second."""
        rooms = Counter(chat.room for chat in self.chats if chat.room)
        return {
            "part": "server",
            "number": self.number,
            "pid": self.pid,
            "windows": len(self.chats),
            "said": self.said,
            "shown": self.shown,
            "rooms": dict(rooms.most_common(_ROOMS)),
        }


class Page(AsyncHttpConsumer):
    """The page and its files."""

    async def handle(self, body: bytes) -> None:
        found = _FILES.get(self.scope["path"])
        if self.scope["method"] not in ("GET", "HEAD"):
            await self._plain(405, b"Only GET is served here.\n")
        elif found is None:
            await self._plain(404, b"There is no such page; the demo is at /\n")
        else:
            name, kind = found
            content = await asyncio.to_thread((_PAGE / name).read_bytes)
            headers = {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(content))}
            await self.send_response(200, b"" if self.scope["method"] == "HEAD" else content, headers=headers)

    async def _plain(self, status: int, text: bytes) -> None:
        headers = {**_HEADERS, "Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(text))}
        await self.send_response(status, b"" if self.scope["method"] == "HEAD" else text, headers=headers)


class Chat(AsyncJsonWebsocketConsumer):
    """One window: what it says goes to its room, what its room says goes to it."""

    groups = [EVERYONE]
    #: A process tells that it is there, the layer who comes and who goes: the same frame for every window.
    relay = {
        "pulse": lambda event: {"is": "pulse", **event["facts"]},
        "presence.join": lambda event: {"is": "came", "who": event["user"], **event["presence"]},
        "presence.leave": lambda event: {"is": "gone", "who": event["user"], **event["presence"]},
    }

    def __init__(self, here: Here) -> None:
        super().__init__()
        self.here = here
        self.id = os.urandom(6).hex()
        self.room = ""
        self.name = ""
        #: What this window missed of its room, and has been shown.
        self._past = Past()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve the window, and count it as long as it lasts, however it ends."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.here.chats.discard(self)

    async def connect(self) -> None:
        if not _same_origin(self.scope):
            raise DenyConnection
        await self.accept()
        self.here.chats.add(self)
        limits = {"name": MAX_NAME, "room": MAX_ROOM, "text": MAX_TEXT, "image": MAX_IMAGE}
        await self.send_json(
            {"is": "hello", "id": self.id, "layer": self.here.layer, "limits": limits, **self._from()}
        )

    async def disconnect(self, code: int) -> None:
        try:
            await self._leave_room()
        except TransportUnavailable as error:
            logger.warning("%s left and the room could not be told: %s", self.name, error)

    # From the browser

    async def receive(
        self, text_data: str | None = None, bytes_data: bytes | None = None, **kwargs: Any
    ) -> None:
        try:
            if bytes_data is not None:
                await self._picture(bytes_data)
            else:
                await self._asked(text_data or "")
        except Mistake as mistake:
            await self._complain(str(mistake))
        except MessageTooLarge:
            await self._complain("That is more than the layer carries in one message.")
        except TransportUnavailable as error:
            logger.warning("nothing was sent: %s", error)
            await self._complain(
                "The layer cannot be reached just now; nothing was sent. Try again in a moment."
            )

    async def _asked(self, text: str) -> None:
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            raise Mistake("The server expects JSON.") from None
        asked = content.get("do") if isinstance(content, dict) else None
        methods: dict[Any, Callable[[dict[str, Any]], Awaitable[None]]] = {
            "join": self._join,
            "say": self._say,
            "announce": self._announce,
            "draft": self._draft,
        }
        method = methods.get(asked) if isinstance(asked, str) else None
        if method is None:
            raise Mistake(f"The server knows: {', '.join(methods)}.")
        await method(content)

    async def _join(self, content: dict[str, Any]) -> None:
        """Enter a room, or take another name in it."""
        room, name = plain(content, "room", MAX_ROOM), plain(content, "name", MAX_NAME)
        if room == self.room:
            before, self.name = self.name, name
            if before != name:
                await self._enter(room)
                await self._tell_room({"is": "renamed", "before": before})
            return
        await self._leave_room()
        self.name = name
        await self._enter(room)
        await self.channel_layer.group_add(_drafts(room), self.channel_name)
        self.room = room
        await self._show_past(room, content.get("since"))
        await self._tell_room({"is": "joined", "back": content.get("back") is True})

    async def _enter(self, room: str) -> None:
        """Join the room's group, as a user who is there as long as one of their windows is; and see who else is."""
        if "presence" not in self.channel_layer.extensions:
            await self.channel_layer.group_add(_group(room), self.channel_name)
            return
        shown = {"presence": {"room": room}, "user": self.name, "announce": True}
        await self.channel_layer.group_add(_group(room), self.channel_name, **shown)
        present = await self.channel_layer.presence(_group(room))
        names = list(dict.fromkeys(each.user for each in present))[:_SHOWN]
        await self.send_json({"is": "who", "room": room, "names": names})

    async def _show_past(self, room: str, since: Any) -> None:
        """Show a window that was in the room before what was said there meanwhile; live lines come after it."""
        group = _group(room)
        self._past = Past()
        if not self.channel_layer.remembers(group):
            return
        asked = {group: since} if isinstance(since, str) else {}
        positions, lost = await self._past.begin(self.channel_layer, [group], asked)
        for event in self._past.drain():
            if event["type"] == "room.line":  # who came and went meanwhile is of no interest any more
                await self._show(event)
        if not asked or lost:
            await self.send_json(
                {"is": "here", "room": room, "position": positions[group], "lost": bool(lost)}
            )

    async def _say(self, content: dict[str, Any]) -> None:
        self._in_a_room()
        text = plain(content, "text", MAX_TEXT)
        self.here.said += 1
        ref = content.get("ref")
        await self._tell_room(
            {"is": "message", "text": text, "ref": ref if isinstance(ref, int) and 0 <= ref < 2**53 else 0}
        )

    async def _draft(self, content: dict[str, Any]) -> None:
        """Show the others what is being written: of many such messages only the newest is worth having."""
        self._in_a_room()
        text = content.get("text")
        if not isinstance(text, str) or len(text) > MAX_TEXT:
            raise Mistake(f"A draft is a text of at most {MAX_TEXT} characters.")
        event = {"type": "draft", "text": text, "name": self.name, "by": self.id}
        await self.channel_layer.group_send(_drafts(self.room), event, exclude=self.channel_name)

    async def _picture(self, image: bytes) -> None:
        """Hand an image to whichever worker is free; the answer comes to ``thumbnail_done``."""
        self._in_a_room()
        if len(image) > MAX_IMAGE:
            raise Mistake(
                f"That picture has {len(image) / 2**20:.1f} MB; at most {MAX_IMAGE // 2**20} MB are taken."
            )
        job = {
            "type": "thumbnail.make",
            "image": image,
            "reply_channel": self.channel_name,
            "room": self.room,
        }
        try:
            await self.channel_layer.send(QUEUE, job)
        except ChannelFull:
            raise Mistake(
                "The worker is busy: as many pictures wait as its queue holds. Try again in a moment."
            ) from None

    async def _announce(self, content: dict[str, Any]) -> None:
        """Start a script in a process of its own, as a cron job or a management command would be."""
        text = plain(content, "text", MAX_TEXT)
        if self.here.announcing:
            raise Mistake("An announcement is on its way already.")
        self.here.announcing = True
        try:
            await _run_script(text)
        finally:
            self.here.announcing = False

    def _in_a_room(self) -> None:
        if not self.room:
            raise Mistake("Join a room first.")

    # From the layer

    async def room_line(self, event: dict[str, Any]) -> None:
        """A line of the room."""
        if not self._past.had(event):
            await self._show(event)

    async def _show(self, event: Mapping[str, Any]) -> None:
        self.here.shown += 1
        line = event["line"]
        if "position" in event:
            line = {**line, "position": event["position"]}
        await self.send_json(line)

    async def draft(self, event: dict[str, Any]) -> None:
        """What somebody in the room is writing."""
        await self.send_json({"is": "draft", "text": event["text"], "name": event["name"], "by": event["by"]})

    async def announcement(self, event: dict[str, Any]) -> None:
        """A line from outside, for every room."""
        self.here.shown += 1
        await self.send_json({"is": "announcement", "text": event["text"], "pid": event["pid"]})

    async def thumbnail_done(self, event: dict[str, Any]) -> None:
        """The worker's answer to this window: show it to the room."""
        url = f"data:{event['kind']};base64,{base64.b64encode(event['image']).decode()}"
        line = {"is": "picture", "image": url, "width": event["width"], "height": event["height"]}
        await self._tell_room({**line, "worker": event["pid"], "ms": event["ms"]}, event["room"])

    async def thumbnail_failed(self, event: dict[str, Any]) -> None:
        """The worker could not read the picture."""
        await self._complain(f"{event['error']} (worker, pid {event['pid']})")

    # To the room

    def _from(self) -> dict[str, Any]:
        return {"server": self.here.number, "pid": self.here.pid}

    async def _tell_room(self, line: dict[str, Any], room: str = "") -> None:
        room = room or self.room
        line = {**line, "room": room, "by": self.id, "name": self.name, **self._from()}
        await self.channel_layer.group_send(_group(room), {"type": "room.line", "line": line})

    async def _leave_room(self) -> None:
        if self.room:
            left, self.room = self.room, ""
            await self.channel_layer.group_discard(_group(left), self.channel_name)
            await self.channel_layer.group_discard(_drafts(left), self.channel_name)
            await self._tell_room({"is": "left"}, left)

    async def _complain(self, text: str) -> None:
        await self.send_json({"is": "error", "text": text})


def plain(content: dict[str, Any], key: str, limit: int) -> str:
    """The text the browser sent under a key, without control characters and outer spaces; only "text" keeps its lines.

    Raises:
        Mistake: It is missing, empty, or longer than ``limit`` characters.
    """
    text = content.get(key)
    if not isinstance(text, str):
        raise Mistake(f"The {key} is missing.")
    # U+200C and U+200D join the parts of letters and emoji. What else cannot be printed is a space, or nothing.
    kept = "".join(
        c if c.isprintable() or c in "\n\u200c\u200d" else " " if c.isspace() else "" for c in text
    )
    kept = kept.strip() if key == "text" else " ".join(kept.split())
    if not kept.strip("\u200c\u200d \n"):
        raise Mistake(f"The {key} is empty.")
    if len(kept) > limit:
        raise Mistake(f"The {key} has {len(kept)} characters; at most {limit} are taken.")
    return kept


def _group(room: str) -> str:
    return safe_group_name(f"demo.room.{room}")


def _drafts(room: str) -> str:
    return safe_group_name(f"demo.draft.{room}")


def _same_origin(scope: MutableMapping[str, Any]) -> bool:
    """Whether the page that opens the websocket came from here. Programs other than browsers send no origin."""
    headers = dict(scope["headers"])
    origin = headers.get(b"origin")
    # No page can make a browser send the second header; proxies that rewrite the first send it.
    hosts = (headers.get(b"host"), headers.get(b"x-forwarded-host"))
    return origin is None or origin.partition(b"://")[2] in hosts


async def _run_script(text: str) -> None:
    command = (sys.executable, "-P", "-m", "trunkline.demo.announce", "--", text)
    pipe = asyncio.subprocess.PIPE
    script = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL, stderr=pipe)
    try:
        async with asyncio.timeout(_ANNOUNCE):
            _, told = await script.communicate()
    except TimeoutError:
        raise Mistake(f"The announcing script did not end within {_ANNOUNCE:g} s and was stopped.") from None
    finally:
        if script.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                script.kill()
            await script.wait()
    if script.returncode:
        logger.warning("the announcing script failed: %s", told.decode(errors="replace").strip())
        raise Mistake("The announcing script failed; the terminal says why.")
