"""Websocket consumers: ``connect``, ``receive`` and ``disconnect`` instead of raw events, and groups joined by name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from asgiref.sync import async_to_sync

from ..errors import ConfigurationError
from .base import AcceptConnection, AsyncConsumer, DenyConnection, Event, StopConsumer, SyncConsumer, signals
from .relay import ToFrame, checked
from .resume import Resuming, asked

__all__ = [
    "AsyncJsonWebsocketConsumer",
    "AsyncWebsocketConsumer",
    "JsonWebsocketConsumer",
    "WebsocketConsumer",
]

_NO_STATUS = 1005  # RFC 6455: what a close without a code counts as
_RESERVED = {1004, 1005, 1006, 1015}
_MAX_REASON = 123  # bytes, RFC 6455: a control frame holds 125, the code takes two

Headers = Iterable[tuple[bytes, bytes]]


def _accept_event(subprotocol: str | None, headers: Headers | None) -> Event:
    event: Event = {"type": "websocket.accept", "subprotocol": subprotocol}
    if headers:
        event["headers"] = list(headers)
    return event


def _send_event(text_data: str | None, bytes_data: bytes | None) -> Event:
    if text_data is not None:
        return {"type": "websocket.send", "text": text_data}
    if bytes_data is not None:
        return {"type": "websocket.send", "bytes": bytes_data}
    raise ValueError("send() needs text_data or bytes_data")


def _close_event(code: int | bool | None, reason: str | None) -> Event:
    event: Event = {"type": "websocket.close"}
    if code is not None and code is not True:
        if not isinstance(code, int):
            raise TypeError(f"a close code is an int, not {type(code).__name__}: {code!r}")
        if code in _RESERVED or not (1000 <= code <= 1014 or 3000 <= code <= 4999):
            raise ValueError(
                f"{code} is not a close code an application may send: use 1000 or one of 4000 to 4999"
            )
        event["code"] = code
    if reason:
        if not isinstance(reason, str):
            raise TypeError(f"a close reason is a str, not {type(reason).__name__}: {reason!r}")
        if len(reason.encode()) > _MAX_REASON:
            raise ValueError(
                f"a close reason holds {_MAX_REASON} bytes of UTF-8, this one has {len(reason.encode())}"
            )
        event["reason"] = reason
    return event


def _resumed_event(positions: dict[str, str], lost: Sequence[str]) -> Event:
    content = {"type": "resume", "positions": list(positions.values()), "lost": list(lost)}
    return {"type": "websocket.send", "text": json.dumps(content)}


class _Groups:
    """The groups a consumer joins when its client connects, and what of them it relays."""

    groups: Sequence[str] | None = None
    #: By the type of an event: the function that makes of it what the frame holds, for everyone the same.
    relay: Mapping[str, ToFrame] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._relays = checked(cls, cls.relay)  # type: ignore[attr-defined]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.groups, str):
            self.groups = list(self.groups or ())

    def group_presence(self) -> Mapping[str, Any] | None:
        """How this connection is present in its ``groups`` once ``connect`` has accepted it; None: it is not.

        Keyword arguments of ``group_add``: ``{"presence": {…}, "user": …, "announce": …}``.
        """
        return None

    def _presence_to_show(self) -> Mapping[str, Any]:
        if not self._joined or not self._open:  # type: ignore[attr-defined]
            return {}
        shown = self.group_presence()
        if shown is not None and (not isinstance(shown, Mapping) or "presence" not in shown):
            raise TypeError(
                f"{type(self).__name__}.group_presence() returns keyword arguments of group_add, "
                f'{{"presence": {{…}}, "user": …}}, or None, not {shown!r}'
            )
        return shown or {}

    def _groups_to_join(self) -> Sequence[str]:
        who = type(self).__name__
        if isinstance(self.groups, str):
            raise TypeError(f"{who}.groups is a list of group names: write groups = [{self.groups!r}]")
        if self.groups and self.channel_layer is None:  # type: ignore[attr-defined]
            alias = self.channel_layer_alias  # type: ignore[attr-defined]
            raise ConfigurationError(
                f"{who}.groups = {list(self.groups)!r} needs a channel layer, and none is configured as {alias!r}: "
                f"call trunkline.configure({{{alias!r}: 'memory://'}}) at start, or set CHANNEL_LAYERS in Django"
            )
        return self.groups or ()

    async def _catch_up(self, resuming: Resuming) -> tuple[dict[str, str], Sequence[str]]:
        layer, who = self.channel_layer, type(self).__name__  # type: ignore[attr-defined]
        joined: list[str] = self._joined  # type: ignore[attr-defined]
        remembers = getattr(layer, "remembers", None)
        groups = [group for group in joined if remembers is not None and remembers(group)]
        if not groups:
            raise ConfigurationError(
                f"{who}.resume needs a group with a history, and none of {joined!r} has one: "
                "give the layer history={'name or pattern': {'size': 100, 'seconds': 3600}}"
            )
        return await resuming.begin(layer, groups, asked(self.scope))  # type: ignore[attr-defined]

    def _groups_to_leave(self) -> Sequence[str]:
        if self.channel_layer is None:  # type: ignore[attr-defined]
            return ()
        # `groups` may have grown since: code written for Django Channels appends to it.
        return list(dict.fromkeys([*self._joined, *(self.groups or ())]))  # type: ignore[attr-defined]


class WebsocketConsumer(_Groups, SyncConsumer):
    """A websocket connection, with ``def`` methods."""

    def websocket_connect(self, message: Event) -> None:
        """Join the groups, then ask ``connect``."""
        for group in self._groups_to_join():
            async_to_sync(self.channel_layer.group_add)(group, self.channel_name)
            self._joined.append(group)
        try:
            self.connect()
        except signals(AcceptConnection):
            self.accept()
        except signals(DenyConnection):
            self.close()
        if shown := self._presence_to_show():
            for group in self._joined:
                async_to_sync(self.channel_layer.group_add)(group, self.channel_name, **shown)
        if self._resuming is not None:
            if self._open:
                self.resumed(*async_to_sync(self._catch_up)(self._resuming))
            self._resuming.go()

    def resumed(self, positions: dict[str, str], lost: Sequence[str]) -> None:
        """Called for a consumer with ``resume`` when its client has connected, before what it missed is handled.

        Unless overridden, sends ``{"type": "resume", "positions": …, "lost": …}`` as text.

        Args:
            positions: By group, where the client stands: what it was asked to resume from, or the newest event's position.
            lost: Groups of which it must load everything anew, for what it missed is no longer known for certain.
        """
        self.base_send(_resumed_event(positions, lost))

    def layer_close(self, event: Event) -> None:
        """Close, for the channel was full and its ``overflow`` says so."""
        self.close(event["code"])

    def connect(self) -> None:
        """Decide about the connection: call ``accept()`` or ``close()``. Unless overridden, accepts."""
        self.accept()

    def accept(self, subprotocol: str | None = None, headers: Headers | None = None) -> None:
        """Accept the connection."""
        super().send(_accept_event(subprotocol, headers))

    def websocket_receive(self, message: Event) -> None:
        """Hand a frame to ``receive``."""
        if message.get("text") is not None:
            self.receive(text_data=message["text"])
        else:
            self.receive(bytes_data=message.get("bytes"))

    def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Take a frame from the client: one of the two is set."""

    def send(  # type: ignore[override]
        self, text_data: str | None = None, bytes_data: bytes | None = None, close: bool | int = False
    ) -> None:
        """Send a frame to the client, and close afterwards if asked to (an int is the close code).

        Raises:
            ValueError: Neither text nor bytes, or no legal close code.
        """
        super().send(_send_event(text_data, bytes_data))
        if close:
            self.close(close)

    def close(self, code: int | bool | None = None, reason: str | None = None) -> None:
        """Close the connection, or refuse it if it was not accepted yet.

        Raises:
            ValueError: The code is not one an application may send, or the reason is longer than 123 bytes.
        """
        super().send(_close_event(code, reason))

    def websocket_disconnect(self, message: Event) -> None:
        """Leave the groups, call ``disconnect``, end."""
        try:
            for group in self._groups_to_leave():
                async_to_sync(self.channel_layer.group_discard)(group, self.channel_name)
            self._joined.clear()
        finally:
            self.disconnect(message.get("code", _NO_STATUS))
        raise StopConsumer

    def disconnect(self, code: int) -> None:
        """Clean up after the client has gone."""


class JsonWebsocketConsumer(WebsocketConsumer):
    """A websocket connection that speaks JSON in text frames, with ``def`` methods."""

    def receive(self, text_data: str | None = None, bytes_data: bytes | None = None, **kwargs: Any) -> None:
        """Decode a text frame and hand it to ``receive_json``.

        Raises:
            ValueError: The frame holds no text, or no JSON.
        """
        if not text_data:
            raise ValueError(
                f"{type(self).__name__} got a websocket frame without text; it takes JSON in text frames"
            )
        self.receive_json(self.decode_json(text_data), **kwargs)

    def receive_json(self, content: Any, **kwargs: Any) -> None:
        """Take what a client's frame held."""

    def send_json(self, content: Any, close: bool | int = False) -> None:
        """Send one value to the client as JSON."""
        super().send(text_data=self.encode_json(content), close=close)

    @classmethod
    def decode_json(cls, text_data: str) -> Any:
        """Make a value of a frame's text."""
        return json.loads(text_data)

    @classmethod
    def encode_json(cls, content: Any) -> str:
        """Make a frame's text of a value."""
        return json.dumps(content)


class AsyncWebsocketConsumer(_Groups, AsyncConsumer):
    """A websocket connection, with ``async def`` methods."""

    async def websocket_connect(self, message: Event) -> None:
        """Join the groups, then ask ``connect``."""
        for group in self._groups_to_join():
            await self.channel_layer.group_add(group, self.channel_name)
            self._joined.append(group)
        try:
            await self.connect()
        except signals(AcceptConnection):
            await self.accept()
        except signals(DenyConnection):
            await self.close()
        if shown := self._presence_to_show():
            for group in self._joined:
                await self.channel_layer.group_add(group, self.channel_name, **shown)
        if self._resuming is not None:
            if self._open:
                await self.resumed(*await self._catch_up(self._resuming))
            self._resuming.go()

    async def resumed(self, positions: dict[str, str], lost: Sequence[str]) -> None:
        """Called for a consumer with ``resume`` when its client has connected, before what it missed is handled.

        Unless overridden, sends ``{"type": "resume", "positions": …, "lost": …}`` as text.

        Args:
            positions: By group, where the client stands: what it was asked to resume from, or the newest event's position.
            lost: Groups of which it must load everything anew, for what it missed is no longer known for certain.
        """
        await self.base_send(_resumed_event(positions, lost))

    async def layer_close(self, event: Event) -> None:
        """Close, for the channel was full and its ``overflow`` says so."""
        await self.close(event["code"])

    async def connect(self) -> None:
        """Decide about the connection: call ``accept()`` or ``close()``. Unless overridden, accepts."""
        await self.accept()

    async def accept(self, subprotocol: str | None = None, headers: Headers | None = None) -> None:
        """Accept the connection."""
        await super().send(_accept_event(subprotocol, headers))

    async def websocket_receive(self, message: Event) -> None:
        """Hand a frame to ``receive``."""
        if message.get("text") is not None:
            await self.receive(text_data=message["text"])
        else:
            await self.receive(bytes_data=message.get("bytes"))

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Take a frame from the client: one of the two is set."""

    async def send(  # type: ignore[override]
        self, text_data: str | None = None, bytes_data: bytes | None = None, close: bool | int = False
    ) -> None:
        """Send a frame to the client, and close afterwards if asked to (an int is the close code).

        Raises:
            ValueError: Neither text nor bytes, or no legal close code.
        """
        await super().send(_send_event(text_data, bytes_data))
        if close:
            await self.close(close)

    async def close(self, code: int | bool | None = None, reason: str | None = None) -> None:
        """Close the connection, or refuse it if it was not accepted yet.

        Raises:
            ValueError: The code is not one an application may send, or the reason is longer than 123 bytes.
        """
        await super().send(_close_event(code, reason))

    async def websocket_disconnect(self, message: Event) -> None:
        """Leave the groups, call ``disconnect``, end."""
        try:
            for group in self._groups_to_leave():
                await self.channel_layer.group_discard(group, self.channel_name)
            self._joined.clear()
        finally:
            await self.disconnect(message.get("code", _NO_STATUS))
        raise StopConsumer

    async def disconnect(self, code: int) -> None:
        """Clean up after the client has gone."""


class AsyncJsonWebsocketConsumer(AsyncWebsocketConsumer):
    """A websocket connection that speaks JSON in text frames, with ``async def`` methods."""

    async def receive(
        self, text_data: str | None = None, bytes_data: bytes | None = None, **kwargs: Any
    ) -> None:
        """Decode a text frame and hand it to ``receive_json``.

        Raises:
            ValueError: The frame holds no text, or no JSON.
        """
        if not text_data:
            raise ValueError(
                f"{type(self).__name__} got a websocket frame without text; it takes JSON in text frames"
            )
        await self.receive_json(await self.decode_json(text_data), **kwargs)

    async def receive_json(self, content: Any, **kwargs: Any) -> None:
        """Take what a client's frame held."""

    async def send_json(self, content: Any, close: bool | int = False) -> None:
        """Send one value to the client as JSON."""
        await super().send(text_data=await self.encode_json(content), close=close)

    @classmethod
    async def decode_json(cls, text_data: str) -> Any:
        """Make a value of a frame's text."""
        return json.loads(text_data)

    @classmethod
    async def encode_json(cls, content: Any) -> str:
        """Make a frame's text of a value."""
        return json.dumps(content)
