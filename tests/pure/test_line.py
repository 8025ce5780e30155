"""Lines: what becomes of pulls that are cancelled, whatever the server does. No server: what it is asked is looked at."""

from __future__ import annotations

import asyncio
from typing import Any

from trunkline.line import Answer, Line

#: What an answer ends with when there is more, of which nobody else was told.
MORE = b"more"


class _Request:
    def __init__(self, count: int, answer: Answer) -> None:
        self.seq = 0
        self.count = count
        self.future: asyncio.Future[Any] = answer


class _Line(Line[bytes, bytes]):
    """One whose requests and returns are kept."""

    def __init__(self) -> None:
        super().__init__(asyncio.get_running_loop())
        self.requests: list[_Request] = []
        self.returned: list[tuple[list[bytes], bool]] = []

    def _request(self, count: int) -> _Request:
        self.requests.append(_Request(count, Answer(self, self._loop)))
        return self.requests[-1]

    def answered(self, result: list[bytes]) -> None:
        more = result[-1:] == [MORE]
        frames = result[: len(result) - more]
        self._give(frames, listed=len(frames) < self.requests[-1].count, more=more)

    def _return(self, hand: list[bytes], *, listed: bool) -> None:
        self.returned.append((hand, listed))

    def _size(self, given: bytes) -> int:
        return len(given)

    def _open(self, given: bytes) -> bytes:
        return given


async def _pull(line: _Line) -> asyncio.Task[bytes]:
    task = asyncio.create_task(line.pull())
    await asyncio.sleep(0)
    return task


async def _cancel(task: asyncio.Task[bytes]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_what_was_not_sent_is_withdrawn_and_asked_once_more() -> None:
    """The request of a cancelled pull is cancelled; those after it share one, which nothing of the first disturbs."""
    line = _Line()
    (await _pull(line)).cancel()
    pulls = [await _pull(line), await _pull(line)]
    first, second = line.requests
    assert first.future.cancelled()
    second.future.set_result([b"a"])
    assert await pulls[0] == b"a"
    line.requests[-1].future.set_result([b"b"])
    assert await pulls[1] == b"b"


async def test_what_comes_for_nobody_goes_back() -> None:
    """The request was sent: its answer, and the place on the list that it may have brought, are given back in order."""
    line = _Line()
    pull = await _pull(line)
    line.requests[0].seq = 1
    await _cancel(pull)
    assert not line.returned
    line.requests[0].future.set_result([b"a"])
    assert line.returned == [([b"a"], False)]
    assert line.idle


async def test_what_a_cancelled_pull_was_given_is_for_the_next() -> None:
    """Cancelled in the turn in which its frame came: the next one has it, or it goes back in front of younger ones."""
    line = _Line()
    pulls = [await _pull(line) for _ in range(3)]
    line.requests[0].future.set_result([b"a"])
    line.requests[1].future.set_result([b"b"])
    await _cancel(pulls[1])
    assert [await pulls[0], await pulls[2]] == [b"a", b"b"]
    assert line.returned == [([], True)]
    last = await _pull(line)
    line.requests[2].future.set_result([b"c", b"d", b"e"])
    await _cancel(last)
    assert line.returned[1:] == [([b"c", b"d", b"e"], False)]


async def test_a_refusal_is_told_to_those_who_wait_and_the_next_asks_anew() -> None:
    line = _Line()
    pulls = [await _pull(line), await _pull(line)]
    line.requests[0].future.set_exception(OSError("no"))
    assert [str(each) for each in await asyncio.gather(*pulls, return_exceptions=True)] == ["no", "no"]
    pull = await _pull(line)
    line.requests[1].future.set_result([b"a"])
    assert await pull == b"a"


async def test_more_that_nobody_was_told_of_is_asked_for_or_passed_on() -> None:
    """Whoever comes back asks for it; when nobody does, another reader is told."""
    line = _Line()
    pull = await _pull(line)
    line.requests[0].future.set_result([b"a", MORE])
    assert await pull == b"a"
    pull = await _pull(line)
    line.requests[1].future.set_result([b"b", MORE])
    assert await pull == b"b"
    assert not line.returned
    async with asyncio.timeout(10):
        while not line.returned:
            await asyncio.sleep(0.001)
    assert line.returned == [([], True)]
    assert len(line.requests) == 2
