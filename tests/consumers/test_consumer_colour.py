"""Handlers of the wrong colour are refused when the class is made; everything else is left alone."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async

from trunkline.consumers import (
    AsyncConsumer,
    AsyncJsonWebsocketConsumer,
    AsyncWebsocketConsumer,
    SyncConsumer,
    WebsocketConsumer,
)
from trunkline.testing.communicators import ApplicationCommunicator


def make(base: type, **body: Any) -> type:
    return type("Chat", (base,), body)


def plain(self, event):
    self.send(text_data=event["text"])


async def coroutine(self, event):
    await self.send(text_data=event["text"])


@pytest.mark.parametrize("base", [AsyncConsumer, AsyncWebsocketConsumer])
def test_a_plain_handler_in_an_async_consumer_is_refused(base):
    """The error names class and method, and says what to write."""
    with pytest.raises(
        TypeError, match=r"Chat\.chat_message must be `async def`.*Write `async def chat_message"
    ):
        make(base, chat_message=plain)


@pytest.mark.parametrize("base", [SyncConsumer, WebsocketConsumer])
def test_a_coroutine_handler_in_a_sync_consumer_is_refused(base):
    """The error names class and method, and says what to write."""
    with pytest.raises(TypeError, match=r"Chat\.chat_message must be `def`.*Write `def chat_message"):
        make(base, chat_message=coroutine)


@pytest.mark.parametrize("name", ["connect", "disconnect", "receive", "accept", "send", "close", "dispatch"])
def test_an_overridden_method_keeps_its_colour(name):
    """Each method of the framework, in both trees."""

    def sync_method(self, *args):
        pass

    async def async_method(self, *args):
        pass

    with pytest.raises(TypeError, match=rf"Chat\.{name} must be `async def`: it overrides .*\.{name}"):
        make(AsyncWebsocketConsumer, **{name: sync_method})
    make(AsyncWebsocketConsumer, **{name: async_method})
    if name == "dispatch":  # awaited in both trees
        with pytest.raises(TypeError, match=r"must be `async def`.*Write `async def dispatch\(...\)`\.$"):
            make(WebsocketConsumer, dispatch=sync_method)
        make(WebsocketConsumer, dispatch=async_method)
    else:
        with pytest.raises(TypeError, match=rf"Chat\.{name} must be `def`: it overrides .*\.{name}"):
            make(WebsocketConsumer, **{name: async_method})
        make(WebsocketConsumer, **{name: sync_method})


def test_a_class_method_keeps_its_colour_too():
    """``encode_json`` is awaited in the async tree."""
    with pytest.raises(TypeError, match="encode_json must be `async def`"):

        class Chat(AsyncJsonWebsocketConsumer):
            @classmethod
            def encode_json(cls, content):
                return ""


def test_a_mixin_that_replaces_a_method_is_checked():
    """What counts is the method that wins, wherever it was written."""

    class Logged:
        def connect(self):
            pass

    with pytest.raises(TypeError, match=r"Chat\.connect must be `async def`"):
        type("Chat", (Logged, AsyncWebsocketConsumer), {})
    type("Chat", (AsyncWebsocketConsumer, Logged), {})
    type("Chat", (Logged, WebsocketConsumer), {})


def test_users_own_coroutine_overridden_by_a_plain_method_is_refused():
    """The rule holds below the framework too."""

    class Room(AsyncWebsocketConsumer):
        async def greet(self, name):
            pass

    with pytest.raises(TypeError, match=r"Chat\.greet must be `async def`: it overrides Room\.greet"):
        make(Room, greet=lambda self, name: None)


def test_ordinary_helpers_are_left_alone():
    """Plain methods that are no handlers may have any colour."""

    class Chat(AsyncWebsocketConsumer):
        groups = ["g"]

        def render(self, event):  # gives something back
            return str(event)

        def format_message(self, message):
            return f"<{message}>"

        def count_message(self, message):  # called by the consumer itself
            self.count = len(message)

        def log(self, message):  # takes a message, and is named like a helper
            print(message)

        def two_things(self, event, more):
            print(event, more)

        def _private_note(self, event):
            print(event)

        def to_be_written(self, event):
            raise NotImplementedError

        @staticmethod
        def shout(message):
            print(message)

        @property
        def title(self):
            return "x"

        async def chat_message(self, event):
            def inner():
                self.count_message(event["text"])

            inner()

    class SyncChat(WebsocketConsumer):
        async def fetch(self, event):
            return event

        async def push_event(self, event):
            print(event)

        def chat_message(self, event):
            async_to_sync(self.push_event)(event)


def test_wrapped_handlers_are_left_to_their_wrappers():
    """``sync_to_async`` objects count as async; a decorator may do as it likes."""

    def returns_the_coroutine(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            return function(*args, **kwargs)

        return wrapper

    make(AsyncConsumer, chat_message=sync_to_async(plain))
    make(AsyncConsumer, chat_message=returns_the_coroutine(coroutine))
    make(SyncConsumer, chat_message=returns_the_coroutine(coroutine))
    make(SyncConsumer, chat_message=async_to_sync(coroutine))
    make(AsyncWebsocketConsumer, connect=functools.partialmethod(coroutine))


@pytest.mark.parametrize(("base", "word"), [(AsyncConsumer, "async def"), (SyncConsumer, "def")])
async def test_what_could_not_be_seen_is_refused_at_dispatch(base, word):
    """A handler added later, or hidden behind a decorator, gets the same error when its first event comes."""
    consumer = make(base)
    consumer.chat_message = (lambda self, event: None) if base is AsyncConsumer else coroutine
    client = ApplicationCommunicator(consumer.as_asgi(), {"type": "test"})
    await client.send_input({"type": "chat.message", "text": "x"})
    with pytest.raises(TypeError, match=rf"Chat\.chat_message must be `{word}`: it handles 'chat\.message'"):
        await client.wait()
