"""Routers: ASGI applications that pass a connection on to another one, by its type, its channel or its path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .consumers.base import Application, Receive, Scope, Send

__all__ = ["ChannelNameRouter", "PathRouter", "ProtocolTypeRouter"]


class ProtocolTypeRouter:
    """Choose by ``scope["type"]``: ``http``, ``websocket``, ``channel``, ``lifespan``."""

    def __init__(self, application_mapping: Mapping[str, Application]) -> None:
        self.application_mapping = application_mapping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        application = self.application_mapping.get(scope["type"])
        if application is None:
            raise ValueError(
                f"no application for connections of type {scope['type']!r}: {_known(self.application_mapping)}"
            )
        await application(scope, receive, send)


class ChannelNameRouter:
    """Choose by the channel that a worker listens on."""

    def __init__(self, application_mapping: Mapping[str, Application]) -> None:
        self.application_mapping = application_mapping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "channel" not in scope:
            raise ValueError(
                f"ChannelNameRouter is for workers, and got a connection of type {scope.get('type')!r}: "
                'put it under "channel" in a ProtocolTypeRouter'
            )
        application = self.application_mapping.get(scope["channel"])
        if application is None:
            raise ValueError(
                f"no application for channel {scope['channel']!r}: {_known(self.application_mapping)}"
            )
        await application(scope, receive, send)


class PathRouter:
    """Choose by path, for HTTP and websockets, where no framework does it.

    Patterns are tried in order, each against the whole path: ``/ws/{room}`` takes one segment, ``/files/{name:path}``
    all that is left. What they took is in ``scope["url_route"]["kwargs"]``. A path that fits none gets a 404, or its
    websocket refused.
    """

    def __init__(self, routes: Mapping[str, Application] | Iterable[tuple[str, Application]]) -> None:
        pairs = routes.items() if isinstance(routes, Mapping) else routes
        self._routes = [(_Pattern(pattern), application) for pattern, application in pairs]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            raise ValueError(
                f"PathRouter got a connection of type {scope['type']!r}, which has no path: "
                'put it under "http" and "websocket" in a ProtocolTypeRouter'
            )
        path = _path_below_root(scope)
        for pattern, application in self._routes:
            kwargs = pattern.match(path)
            if kwargs is not None:
                outer = scope.get("url_route", {})
                route = {"args": outer.get("args", ()), "kwargs": {**outer.get("kwargs", {}), **kwargs}}
                await application({**scope, "url_route": route}, receive, send)
                return
        await _not_found(scope, receive, send)


class _Pattern:
    """A path pattern, taken apart."""

    def __init__(self, pattern: str) -> None:
        if not isinstance(pattern, str) or not pattern.startswith("/"):
            raise ValueError(f"a path pattern is a str that starts with '/', not {pattern!r}")
        self._rest: str | None = None
        self._segments: list[tuple[str, bool]] = []  # (text, False) or (name, True)
        parts = pattern.split("/")
        names: list[str] = []
        for number, part in enumerate(parts):
            is_name = part.startswith("{") and part.endswith("}")
            name, _, kind = part[1:-1].partition(":") if is_name else ("", "", "")
            last = number == len(parts) - 1
            if is_name:
                if (
                    not name.isidentifier()
                    or name in names
                    or kind not in ("", "path")
                    or (kind and not last)
                ):
                    raise ValueError(_complain(pattern, part))
                names.append(name)
            elif "{" in part or "}" in part:
                raise ValueError(_complain(pattern, part))
            if kind:
                self._rest = name
            else:
                self._segments.append((name if is_name else part, is_name))

    def match(self, path: str) -> dict[str, str] | None:
        """What the names took, or None if the path does not fit."""
        found = path.split("/")
        wanted = len(self._segments)
        if len(found) < wanted or (len(found) > wanted) is not (self._rest is not None):
            return None
        kwargs: dict[str, str] = {}
        for (text, is_name), segment in zip(self._segments, found, strict=False):
            if is_name and segment:
                kwargs[text] = segment
            elif is_name or text != segment:
                return None
        if self._rest is not None:
            kwargs[self._rest] = "/".join(found[wanted:])
        return kwargs


def _complain(pattern: str, part: str) -> str:
    return (
        f"{part!r} in path pattern {pattern!r}: a segment is plain text or a {{name}} of its own, each name once, "
        "and {name:path} may only come last"
    )


def _path_below_root(scope: Scope) -> str:
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    return path[len(root) :] if root and (path + "/").startswith(root + "/") else path


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()  # the connect event: a server may insist that it is taken first
        await send({"type": "websocket.close"})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"9")]
    await send({"type": "http.response.start", "status": 404, "headers": headers})
    await send({"type": "http.response.body", "body": b"Not Found"})


def _known(mapping: Mapping[str, Any]) -> str:
    names = ", ".join(repr(name) for name in sorted(mapping))
    return f"there is one for {names}" if names else "the router is empty"
