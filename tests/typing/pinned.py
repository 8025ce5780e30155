"""What type checkers infer and refuse. Never run: mypy and pyright read it, and every ignored error must be one."""

from dataclasses import dataclass
from typing import Any, Literal, TypedDict, assert_type

import msgspec
import pydantic

import trunkline
from trunkline.consumers import AsyncConsumer, AsyncJsonWebsocketConsumer, SyncConsumer


@dataclass(frozen=True, slots=True)
class Said:
    text: str
    type: Literal["chat.said"] = "chat.said"


class SaidDict(TypedDict):
    type: Literal["dict.said"]
    text: str


class SaidStruct(msgspec.Struct, tag_field="type", tag="struct.said"):
    text: str


class SaidModel(pydantic.BaseModel):
    type: Literal["model.said"] = "model.said"
    text: str


async def sending(layer: trunkline.ChannelLayer, row: SaidDict) -> None:
    for name in ("jobs", "chat"):
        await layer.send(name, {"type": "plain", "n": 1})
        await layer.send(name, Said("hi"))
        await layer.send(name, row)
        await layer.group_send(name, SaidStruct("hi"))
        await layer.group_send(name, SaidModel(text="hi"))
    layer.sync.send("jobs", Said("hi"))
    layer.sync.group_send("chat", SaidModel(text="hi"))
    await layer.send("jobs", "text")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    await layer.send("jobs", [1])  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    await layer.group_send("chat", 7)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    layer.sync.send("jobs", None)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


async def receiving(layer: trunkline.ChannelLayer) -> None:
    assert_type(await layer.receive("jobs"), dict[str, Any])
    assert_type(layer.sync.receive("jobs", timeout=1), dict[str, Any])
    assert_type(await layer.new_channel(), str)


class Chat(AsyncJsonWebsocketConsumer):
    async def chat_said(self, event: Said) -> None:
        assert_type(event.text, str)
        assert_type(event.type, Literal["chat.said"])
        print(event.test)  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue]

    async def dict_said(self, event: SaidDict) -> None:
        assert_type(event["text"], str)

    async def on_invalid_event(self, error: trunkline.InvalidEvent) -> None:
        assert_type(error.field, str)


class Jobs(AsyncConsumer):
    async def struct_said(self, event: SaidStruct) -> None:
        assert_type(event.text, str)


class SyncJobs(SyncConsumer):
    def model_said(self, event: SaidModel) -> None:
        assert_type(event.text, str)

    async def on_invalid_event(self, error: trunkline.InvalidEvent) -> None:  # type: ignore[override] # pyright: ignore[reportIncompatibleMethodOverride]
        ...
