"""The HTTP consumer: one request in, one response out, at once or over time."""

from __future__ import annotations

import json

import pytest

from trunkline.consumers import AsyncHttpConsumer
from trunkline.testing.communicators import HttpCommunicator


class Answer(AsyncHttpConsumer):
    left = 0

    async def handle(self, body):
        await self.send_response(
            200, self.scope["method"].encode() + b" " + body, headers={"x-a": "1", b"x-b": b"2"}
        )

    async def disconnect(self):
        type(self).left += 1


async def test_a_request_gets_its_response(perhaps_layer):
    """Body in, status, headers (str or bytes) and body out; ``disconnect`` runs once; the consumer ends."""
    Answer.left = 0
    request = HttpCommunicator(Answer.as_asgi(), "post", "/path?q=1", body=b"hello")
    response = await request.get_response()
    assert response == {"status": 200, "headers": [(b"x-a", b"1"), (b"x-b", b"2")], "body": b"POST hello"}
    await request.wait()
    assert Answer.left == 1


async def test_a_body_in_parts_is_put_together(perhaps_layer):
    """``handle`` is called once, with the whole body."""
    request = HttpCommunicator(Answer.as_asgi(), "PUT", "/")
    request.sent_request = True
    await request.send_input({"type": "http.request", "body": b"a", "more_body": True})
    await request.send_input({"type": "http.request", "body": b"b", "more_body": True})
    await request.send_input({"type": "http.request"})
    assert (await request.get_response())["body"] == b"PUT ab"
    await request.wait()


async def test_a_response_may_be_sent_in_parts(perhaps_layer):
    """``more_body`` keeps it open until the last part."""

    class Parts(AsyncHttpConsumer):
        async def handle(self, body):
            await self.send_headers(headers=[(b"content-type", b"text/plain")])
            for part in (b"1", b"2"):
                await self.send_body(part, more_body=True)
            await self.send_body(b"3")

    async with HttpCommunicator(Parts.as_asgi(), "GET", "/") as request:
        assert (await request.get_response())["body"] == b"123"


async def test_a_body_that_is_not_bytes_is_refused(perhaps_layer):
    """The error says what to do."""

    class Wrong(AsyncHttpConsumer):
        async def handle(self, body):
            await self.send_response(200, "text")

    with pytest.raises(TypeError, match="bytes, not str: encode"):
        await HttpCommunicator(Wrong.as_asgi(), "GET", "/").get_response()


async def test_handle_must_be_written(perhaps_layer):
    """The error names the class."""

    class Nothing(AsyncHttpConsumer):
        pass

    with pytest.raises(NotImplementedError, match="Nothing"):
        await HttpCommunicator(Nothing.as_asgi(), "GET", "/").get_response()


async def test_disconnect_runs_when_handle_fails(perhaps_layer):
    """Clean-up does not depend on success."""

    class Fails(Answer):
        left = 0

        async def handle(self, body):
            raise LookupError("no")

    with pytest.raises(LookupError):
        await HttpCommunicator(Fails.as_asgi(), "GET", "/").get_response()
    assert Fails.left == 1


class LongPoll(Answer):
    """Answers when the layer has something to say."""

    left = 0

    async def handle(self, body):
        await self.channel_layer.group_add("poll", self.channel_name)
        await self.send_headers()
        await self.send_body(b"", more_body=True)

    async def poll_news(self, event):
        await self.send_body(json.dumps(event["news"]).encode(), more_body=event["more"])


async def test_an_open_response_is_continued_by_layer_events(layer):
    """After ``handle`` left the response open, layer events go on being handled until it is finished."""
    LongPoll.left = 0
    request = HttpCommunicator(LongPoll.as_asgi(), "GET", "/")
    await request.send_input({"type": "http.request"})
    assert (await request.receive_output())["type"] == "http.response.start"
    assert (await request.receive_output())["more_body"] is True
    for news, more in ((1, True), (2, False)):
        assert LongPoll.left == 0
        await layer.group_send("poll", {"type": "poll.news", "news": news, "more": more})
        part = await request.receive_output()
        assert (part["body"], part["more_body"]) == (str(news).encode(), more)
    await request.wait()
    assert LongPoll.left == 1


async def test_a_client_that_leaves_an_open_response_ends_it(layer):
    """``disconnect`` is called once."""
    LongPoll.left = 0
    async with HttpCommunicator(LongPoll.as_asgi(), "GET", "/") as request:
        await request.send_input({"type": "http.request"})
        await request.receive_output()
        await request.receive_output()
        assert LongPoll.left == 0
    assert LongPoll.left == 1


async def test_an_open_response_with_nobody_to_continue_it_ends():
    """Without a layer no event can come, so the consumer ends with ``handle``."""

    class Open(AsyncHttpConsumer):
        async def handle(self, body):
            await self.send_headers()
            await self.send_body(b"x", more_body=True)

    request = HttpCommunicator(Open.as_asgi(), "GET", "/")
    await request.send_input({"type": "http.request"})
    await request.wait()
