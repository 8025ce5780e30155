"""What one node's layer asks of another's: to change a membership, to forget everything, to say how it does.

Requests travel as frames of kind CONTROL, always in msgpack, under the same encryption as messages.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

from . import names
from .envelope import CONTROL, FrameError, Message, Seal, encode
from .errors import LayerClosed, TransportUnavailable
from .logs import logger
from .settings import Settings
from .transport import Transport

__all__ = ["Requests"]

#: Seconds a node has to confirm what was asked of it.
_CONFIRM = 10.0
#: What a request is posted to, in place of a channel.
_ADDRESS = "!layer"


class Requests:
    """One node's requests to others, and theirs to it."""

    def __init__(
        self,
        node: str,
        seal: Seal,
        settings: Settings,
        transport: Transport,
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        change: Callable[..., Coroutine[Any, Any, None]],
        flush: Callable[[], None],
        report: Callable[[], Message],
    ) -> None:
        self._node = node
        self._seal = seal
        self._settings = settings
        self._transport = transport
        self._spawn = spawn
        self._change = change
        self._flush = flush
        self._report = report
        self._answers: dict[int, list[Message]] = {}
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._last = 0

    async def ask(self, owner: str, op: str, group: str, channel: str, **more: Any) -> bool:
        """Have the owner of a channel ``join`` it to a group, or ``leave``, and wait until it is done.

        ``more`` are keyword arguments of what it does then.

        Returns:
            False when the owner is gone.

        Raises:
            TransportUnavailable: It was not asked, or did not confirm.
        """
        self._last += 1
        number = self._last
        done = self._waiting[number] = asyncio.get_running_loop().create_future()
        request = {"op": op, "group": group, "channel": channel, "from": self._node, "number": number}
        if more:
            request["more"] = more
        try:
            if not await self._post(owner, request):
                return False
            async with asyncio.timeout(_CONFIRM):
                await done
        except TimeoutError:
            raise TransportUnavailable(
                f"the process that owns {channel} did not confirm within {_CONFIRM:g} s: is it stopped or overloaded?"
            ) from None
        finally:
            del self._waiting[number]
        return True

    async def ask_all(self, seconds: float) -> list[Message]:
        """Have every node, this one too, report on itself; what has come after so many seconds.

        Raises:
            TransportUnavailable: Nobody was asked.
        """
        self._last += 1
        number = self._last
        answers = self._answers[number] = []
        request = {"op": "report", "from": self._node, "number": number}
        try:
            await self._transport.publish(names.ALL_NODES, self._frame(request), max(seconds, 1.0))
            await asyncio.sleep(seconds)
        finally:
            del self._answers[number]
        return answers

    async def tell_all_to_flush(self) -> None:
        """Have every other node forget what waits there."""
        expiry = self._settings.expiry
        await self._transport.publish(
            names.ALL_NODES, self._frame({"op": "flush", "from": self._node}), expiry
        )

    def obey(self, content: Message) -> None:
        """Do what another node asks, or take its answer.

        Raises:
            FrameError: It is no request this version knows.
        """
        op = content.get("op")
        if op in ("join", "leave"):
            self._spawn(self._comply(content))
        elif op == "done":
            waiting = self._waiting.get(content.get("number", 0))
            if waiting is not None and not waiting.done():
                waiting.set_result(None)
        elif op == "report":
            self._spawn(self._answer(content))
        elif op == "reported":
            answers = self._answers.get(content.get("number", 0))
            if answers is not None:
                answers.append(content.get("report", {}))
        elif op == "flush":
            if content.get("from") != self._node:
                self._flush()
        else:
            raise FrameError(f"unknown request {op!r} from another node; is it of a newer version?")

    async def _comply(self, content: Message) -> None:
        try:
            more = content.get("more", {})
            await self._change(content["op"], content["group"], content["channel"], **more)
            await self._post(content["from"], {"op": "done", "number": content["number"]})
        except (TransportUnavailable, LayerClosed) as error:
            # Not answered: whoever asked waits in vain, and gets the error that it would get anyway.
            logger.warning("could not %s %s: %s", content["op"], content["group"], error)

    async def _answer(self, content: Message) -> None:
        answer = {"op": "reported", "number": content["number"], "report": self._report()}
        with contextlib.suppress(
            TransportUnavailable, LayerClosed
        ):  # then it is missed, which is a report too
            await self._post(content["from"], answer)

    async def _post(self, node: str, content: Message) -> bool:
        return await self._transport.post(node, _ADDRESS, self._frame(content), None, self._settings.expiry)

    def _frame(self, content: Message) -> bytes:
        expires = self._transport.now() + self._settings.expiry
        return self._seal.frame(CONTROL, expires, "", encode(content, 2**62))
