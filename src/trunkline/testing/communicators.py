"""Communicators: drive an ASGI application in a test, in the place of the server.

Rules of this room:

- Waiting ends with the event waited for, not with a tick. An application that crashed fails the test with its own error.
- What the application sent before it ended is handed out first.
- ``async with`` leaves no task behind.
- A wrong answer of the application is an ``AssertionError``; a wrong call of the test a ``TypeError`` or ``ValueError``.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
from collections.abc import Callable, Coroutine, Iterable
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

__all__ = ["ApplicationCommunicator", "HttpCommunicator", "WebsocketCommunicator"]

Event = dict[str, Any]
Headers = Iterable[tuple[bytes, bytes]]
# Loose on purpose: applications annotate their arguments in many ways, and all of them may be tested.
Application = Callable[[Any, Any, Any], Coroutine[Any, Any, Any]]


class ApplicationCommunicator:
    """Runs an application for one scope. It starts with the first event sent to it or awaited from it."""

    _task: asyncio.Task[Any] | None = None

    def __init__(self, application: Application, scope: Event) -> None:
        self.application = application
        self.scope = scope
        self.input_queue: asyncio.Queue[Event] = asyncio.Queue()
        self.output_queue: asyncio.Queue[Event] = asyncio.Queue()
        self._changed = asyncio.Event()

    @property
    def future(self) -> asyncio.Task[Any]:
        """The application's task."""
        if self._task is None:
            # In an empty context, as a server would start it: nothing leaks in from the test.
            output, changed = self.output_queue, self._changed

            # The task must not hold the communicator, or a forgotten one would never be collected.
            async def send(event: Event) -> None:
                output.put_nowait(event)
                changed.set()

            running = self.application(self.scope, self.input_queue.get, send)
            self._task = asyncio.create_task(running, context=contextvars.Context())
            self._task.add_done_callback(lambda _: changed.set())
        return self._task

    async def send_input(self, message: Event) -> None:
        """Send one event to the application.

        Raises:
            Exception: The application's own, if it has crashed.
        """
        if self.future.done():
            self._raise_crash()
        self.input_queue.put_nowait(message)

    async def receive_output(self, timeout: float = 1) -> Event:
        """Wait up to ``timeout`` seconds for the application's next event.

        Raises:
            TimeoutError: Nothing came, or nothing can come because the application has ended.
            Exception: The application's own, if it crashed instead.
        """
        try:
            await self._wait_for_output(timeout)
        except TimeoutError:
            raise TimeoutError(f"the application sent nothing within {timeout} s") from None
        if self.output_queue.empty():
            self._raise_crash()
            raise TimeoutError("the application has ended and sends nothing more")
        return self.output_queue.get_nowait()

    async def receive_nothing(self, timeout: float = 0.1, interval: float = 0.01) -> bool:
        """Tell whether the application sends nothing for ``timeout`` seconds; ``interval`` is not needed any more.

        Raises:
            Exception: The application's own, if it crashed.
        """
        try:
            await self._wait_for_output(timeout)
        except TimeoutError:
            return True
        if not self.output_queue.empty():
            return False
        self._raise_crash()
        return True

    async def wait(self, timeout: float = 1) -> None:
        """Wait up to ``timeout`` seconds for the application to end.

        Raises:
            TimeoutError: It did not, and was cancelled.
            Exception: The application's own, if it crashed.
        """
        try:
            await asyncio.wait([self.future], timeout=timeout)
            if not self.future.done():
                raise TimeoutError(f"the application did not end within {timeout} s")
        finally:
            await self._cancel()
        self._raise_crash()

    def stop(self, exceptions: bool = True) -> None:
        """Cancel the application, or raise its error if it has crashed already and ``exceptions`` is set."""
        if self._task is None:
            return
        if not self._task.done():
            self._task.cancel()
        elif exceptions:
            self._raise_crash()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is None:
            return
        farewell = self._farewell()
        if error is not None or farewell is None:
            await self._cancel()
        elif not self._task.done():
            self.input_queue.put_nowait(farewell)
            await self.wait()
        if error is None:
            self._raise_crash()
        elif not self._task.cancelled() and (crash := self._task.exception()) is not None:
            error.add_note(f"The application crashed: {crash!r}")

    def __del__(self) -> None:
        if self._task is not None and not self._task.done() and not self._task.get_loop().is_closed():
            self._task.cancel()

    def _farewell(self) -> Event | None:
        """The event that tells the application of the client's leaving."""
        return None

    async def _wait_for_output(self, timeout: float) -> None:
        async with asyncio.timeout(timeout):
            while self.output_queue.empty() and not self.future.done():
                self._changed.clear()
                await self._changed.wait()

    async def _cancel(self) -> None:
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])

    def _raise_crash(self) -> None:
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()


class WebsocketCommunicator(ApplicationCommunicator):
    """Plays a websocket client."""

    def __init__(
        self,
        application: Application,
        path: str,
        headers: Headers | None = None,
        subprotocols: Iterable[str] | None = None,
        spec_version: str | None = None,
    ) -> None:
        scope = _scope("websocket", path, headers)
        scope["subprotocols"] = list(subprotocols or ())
        if spec_version:
            scope["spec_version"] = spec_version
        super().__init__(application, scope)
        self.response_headers: list[tuple[bytes, bytes]] | None = None
        self._disconnected = False

    async def connect(self, timeout: float = 1) -> tuple[bool, Any]:
        """Connect; returns ``(True, subprotocol or None)`` or ``(False, close code)``."""
        await self.send_input({"type": "websocket.connect"})
        answer = await self.receive_output(timeout)
        if answer["type"] == "websocket.close":
            return False, answer.get("code", 1000)
        _expect(answer, "websocket.accept")
        self.response_headers = list(answer.get("headers", []))
        return True, answer.get("subprotocol")

    async def send_to(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Send one frame: exactly one of text and bytes."""
        if (text_data is None) is (bytes_data is None):
            raise ValueError("send_to() needs exactly one of text_data and bytes_data")
        if text_data is not None:
            if not isinstance(text_data, str):
                raise TypeError(f"text_data is a str, not {type(text_data).__name__}")
            await self.send_input({"type": "websocket.receive", "text": text_data})
        else:
            if not isinstance(bytes_data, bytes):
                raise TypeError(f"bytes_data is bytes, not {type(bytes_data).__name__}")
            await self.send_input({"type": "websocket.receive", "bytes": bytes_data})

    async def send_json_to(self, data: Any) -> None:
        """Send one value as JSON in a text frame."""
        await self.send_to(text_data=json.dumps(data))

    async def receive_from(self, timeout: float = 1) -> Any:
        """Wait for the next frame; returns its str or bytes.

        Raises:
            AssertionError: The application sent something else, for example a close.
        """
        event = await self.receive_output(timeout)
        _expect(event, "websocket.send")
        text, data = event.get("text"), event.get("bytes")
        if (text is None) is (data is None):
            raise AssertionError(f"a frame has either text or bytes, this one: {event!r}")
        frame, wanted = (text, str) if data is None else (data, bytes)
        if not isinstance(frame, wanted):
            raise AssertionError(f"the frame should hold {wanted.__name__}, and holds {type(frame).__name__}")
        return frame

    async def receive_json_from(self, timeout: float = 1) -> Any:
        """Wait for the next text frame and decode its JSON."""
        frame = await self.receive_from(timeout)
        if not isinstance(frame, str):
            raise AssertionError(f"JSON comes in text frames, this one holds {type(frame).__name__}")
        return json.loads(frame)

    async def disconnect(self, code: int = 1000, timeout: float = 1) -> None:
        """Close the connection and wait up to ``timeout`` seconds for the application to end."""
        self._disconnected = True
        await self.send_input({"type": "websocket.disconnect", "code": code})
        await self.wait(timeout)

    def _farewell(self) -> Event | None:
        return None if self._disconnected else {"type": "websocket.disconnect", "code": 1000}


class HttpCommunicator(ApplicationCommunicator):
    """Plays an HTTP client that makes one request."""

    def __init__(
        self,
        application: Application,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Headers | None = None,
    ) -> None:
        if not isinstance(body, bytes):
            raise TypeError(f"body is bytes, not {type(body).__name__}")
        scope = _scope("http", path, headers)
        scope |= {"http_version": "1.1", "method": method.upper()}
        super().__init__(application, scope)
        self.body = body
        self.sent_request = False

    async def get_response(self, timeout: float = 1) -> dict[str, Any]:
        """Make the request; returns the response as a dict with ``status``, ``headers`` and ``body``.

        ``timeout`` counts for each part of the response.
        """
        if not self.sent_request:
            self.sent_request = True
            await self.send_input({"type": "http.request", "body": self.body, "more_body": False})
        start = await self.receive_output(timeout)
        _expect(start, "http.response.start")
        parts: list[bytes] = []
        more = True
        while more:
            part = await self.receive_output(timeout)
            _expect(part, "http.response.body")
            if not isinstance(part.get("body", b""), bytes):
                raise AssertionError(f"a response body is bytes, not {type(part['body']).__name__}")
            parts.append(part.get("body", b""))
            more = part.get("more_body", False)
        return {"status": start["status"], "headers": list(start.get("headers", [])), "body": b"".join(parts)}

    def _farewell(self) -> Event | None:
        return {"type": "http.disconnect"}


def _scope(kind: str, path: str, headers: Headers | None) -> Event:
    if not isinstance(path, str):
        raise TypeError(f"path is a str, not {type(path).__name__}")
    parts = urlsplit(path)
    return {
        "type": kind,
        "path": unquote(parts.path),
        "query_string": parts.query.encode(),
        "headers": list(headers or ()),
    }


def _expect(event: Event, kind: str) -> None:
    if event["type"] != kind:
        raise AssertionError(f"expected {kind!r} from the application, got {event!r}")
