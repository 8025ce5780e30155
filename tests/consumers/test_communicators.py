"""Communicators: waiting without ticks, the application's own errors, nothing left behind."""

from __future__ import annotations

import asyncio
import contextvars
import time

import pytest

from trunkline.testing.communicators import ApplicationCommunicator, HttpCommunicator, WebsocketCommunicator


async def echo(scope, receive, send):
    while True:
        event = await receive()
        if event["type"] in ("stop", "websocket.disconnect", "http.disconnect"):
            return
        if event["type"] == "crash":
            raise LookupError("the application's own")
        await send(event)


async def test_events_go_in_and_out_in_order():
    """What the application sends is received in its order."""
    async with ApplicationCommunicator(echo, {"type": "x"}) as client:
        for n in range(3):
            await client.send_input({"type": "n", "n": n})
        assert [(await client.receive_output())["n"] for _ in range(3)] == [0, 1, 2]


async def test_a_crash_fails_the_waiting_test_at_once_with_its_own_error():
    """The error comes from every method, long before the timeout, and after what was sent before it."""
    client = ApplicationCommunicator(echo, {"type": "x"})
    await client.send_input({"type": "said"})
    await client.send_input({"type": "crash"})
    started = time.monotonic()
    assert (await client.receive_output(timeout=30))["type"] == "said"
    for _ in range(2):
        with pytest.raises(LookupError, match="own"):
            await client.receive_output(timeout=30)
    with pytest.raises(LookupError):
        await client.receive_nothing(timeout=30)
    with pytest.raises(LookupError):
        await client.wait(timeout=30)
    with pytest.raises(LookupError):
        await client.send_input({"type": "more"})
    with pytest.raises(LookupError):
        client.stop()
    client.stop(exceptions=False)
    assert time.monotonic() - started < 10


async def test_an_application_that_ended_sends_nothing_more():
    """Waiting for it ends at once."""
    client = ApplicationCommunicator(echo, {"type": "x"})
    await client.send_input({"type": "stop"})
    with pytest.raises(TimeoutError, match="has ended"):
        await client.receive_output(timeout=30)
    assert await client.receive_nothing(timeout=30)


async def test_a_timeout_leaves_the_application_running():
    """A test may wait for nothing and go on."""
    async with ApplicationCommunicator(echo, {"type": "x"}) as client:
        with pytest.raises(TimeoutError, match=r"within 0\.01 s"):
            await client.receive_output(timeout=0.01)
        assert await client.receive_nothing(timeout=0.01, interval=0.001)
        await client.send_input({"type": "said"})
        assert not await client.receive_nothing(timeout=5)
        assert (await client.receive_output())["type"] == "said"


async def test_wait_cancels_an_application_that_does_not_end():
    """It says so, and the task is gone."""
    client = ApplicationCommunicator(echo, {"type": "x"})
    with pytest.raises(TimeoutError, match="did not end"):
        await client.wait(timeout=0.01)
    assert client.future.cancelled()


async def test_the_context_cancels_what_still_runs():
    """``async with`` leaves no task behind, also when the test fails inside."""
    with pytest.raises(ZeroDivisionError):
        async with ApplicationCommunicator(echo, {"type": "x"}) as client:
            await client.send_input({"type": "said"})
            raise ZeroDivisionError
    assert client.future.done()


async def test_the_context_raises_the_crash_that_nobody_asked_for():
    """A crash does not pass unseen, and is noted on the test's own failure."""
    with pytest.raises(LookupError):
        async with ApplicationCommunicator(echo, {"type": "x"}) as client:
            await client.send_input({"type": "crash"})
            await asyncio.wait([client.future])
    with pytest.raises(ZeroDivisionError) as caught:
        async with ApplicationCommunicator(echo, {"type": "x"}) as client:
            await client.send_input({"type": "crash"})
            await asyncio.wait([client.future])
            raise ZeroDivisionError
    assert "the application's own" in caught.value.__notes__[0]


async def test_the_application_starts_in_an_empty_context():
    """Context variables of the test do not leak into the application."""
    language = contextvars.ContextVar("language", default="none")

    async def tell(scope, receive, send):
        await send({"type": language.get()})

    language.set("set by the test")
    async with ApplicationCommunicator(tell, {}) as client:
        assert (await client.receive_output())["type"] == "none"


async def websocket_echo(scope, receive, send):
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept", "subprotocol": None, "headers": [(b"a", b"b")]})
    while (event := await receive())["type"] == "websocket.receive":
        await send({**event, "type": "websocket.send"})
    await send({"type": "left", "code": event["code"]})


async def test_a_websocket_scope_is_built_from_the_path():
    """Path decoded, query string, headers and subprotocols as a server gives them."""
    ws = WebsocketCommunicator(websocket_echo, "/r%C3%A9/?q=%20", [(b"h", b"v")], ["p"], spec_version="2.4")
    assert ws.scope == {
        "type": "websocket",
        "path": "/ré/",
        "query_string": b"q=%20",
        "headers": [(b"h", b"v")],
        "subprotocols": ["p"],
        "spec_version": "2.4",
    }


async def test_a_websocket_conversation():
    """Connect, text, bytes, JSON, disconnect with a code."""
    ws = WebsocketCommunicator(websocket_echo, "/")
    assert await ws.connect() == (True, None)
    assert ws.response_headers == [(b"a", b"b")]
    await ws.send_to(text_data="t")
    assert await ws.receive_from() == "t"
    await ws.send_to(bytes_data=b"b")
    assert await ws.receive_from() == b"b"
    await ws.send_json_to({"a": 1})
    assert await ws.receive_json_from() == {"a": 1}
    assert await ws.receive_nothing()
    await ws.disconnect(code=4001)
    assert (await ws.receive_output())["code"] == 4001


async def test_leaving_the_context_disconnects():
    """The application gets its disconnect event and ends by itself."""
    async with WebsocketCommunicator(websocket_echo, "/") as ws:
        await ws.connect()
    assert not ws.future.cancelled()
    assert (await ws.receive_output())["code"] == 1000


@pytest.mark.parametrize("arguments", [{}, {"text_data": "a", "bytes_data": b"b"}])
async def test_a_frame_is_text_or_bytes(arguments):
    """Both or neither is the test's own mistake."""
    ws = WebsocketCommunicator(websocket_echo, "/")
    with pytest.raises(ValueError, match="exactly one"):
        await ws.send_to(**arguments)
    with pytest.raises(TypeError):
        await ws.send_to(text_data=b"bytes")
    with pytest.raises(TypeError):
        await ws.send_to(bytes_data="text")


@pytest.mark.parametrize(
    "event",
    [
        {"type": "websocket.close"},
        {"type": "websocket.send"},
        {"type": "websocket.send", "text": "a", "bytes": b"b"},
        {"type": "websocket.send", "text": b"a"},
        {"type": "websocket.send", "bytes": "b"},
    ],
)
async def test_an_answer_that_is_no_frame_is_an_assertion_error(event):
    """The application's mistake fails the test."""

    async def wrong(scope, receive, send):
        await send(event)

    async with WebsocketCommunicator(wrong, "/") as ws:
        with pytest.raises(AssertionError):
            await ws.receive_from()


async def test_a_refused_websocket_tells_its_code():
    """(False, code), 1000 if there is none."""

    async def refuse(scope, receive, send):
        await receive()
        await send({"type": "websocket.close", **scope["close"]})

    for close, code in (({}, 1000), ({"code": 4003}, 4003)):
        async with WebsocketCommunicator(refuse, "/") as ws:
            ws.scope["close"] = close
            assert await ws.connect() == (False, code)


async def test_an_http_exchange():
    """Method, path and body go in; status, headers and the joined body come out."""

    async def app(scope, receive, send):
        request = await receive()
        assert (scope["method"], scope["path"], scope["query_string"]) == ("POST", "/a b", b"c=d")
        await send({"type": "http.response.start", "status": 201, "headers": [(b"x", b"y")]})
        await send({"type": "http.response.body", "body": request["body"], "more_body": True})
        await send({"type": "http.response.body"})

    async with HttpCommunicator(app, "post", "/a%20b?c=d", body=b"in") as request:
        assert await request.get_response() == {"status": 201, "headers": [(b"x", b"y")], "body": b"in"}
    with pytest.raises(TypeError, match="body is bytes"):
        HttpCommunicator(app, "GET", "/", body="text")


async def test_a_communicator_that_is_dropped_cancels_its_application():
    """Even a test that forgets it leaves no task behind."""
    client = ApplicationCommunicator(echo, {"type": "x"})
    task = client.future
    del client
    await asyncio.wait([task], timeout=10)
    assert task.cancelled()
