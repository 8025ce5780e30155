"""Players' processes, as the one that measures sees them.

A *part* is one participant of a scenario. Each has a process of its own; only the parts of a layer that cannot leave its
process share one. A request is a line of JSON, ``[id, part, method, arguments, options]``; its answer is
``[id, error, result]``.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from .contestants import Contestant, Place
from .players import LONGEST

__all__ = ["Failed", "Part", "Process"]

#: Seconds a player has to leave by itself.
_LEAVE = 3.0


class Failed(Exception):
    """A player could not do what it was told."""


class Process:
    """One player's process."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        input: asyncio.StreamWriter,
        output: asyncio.StreamReader,
        errors: Path,
    ) -> None:
        self._process = process
        self._input = input
        self._errors = errors
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._ids = itertools.count()
        self._reader = asyncio.create_task(self._read(output))

    @classmethod
    async def start(cls, contestant: Contestant, place: Place, uvloop: bool) -> Self:
        path = place.folder / f"errors-{time.monotonic_ns()}"
        command = [sys.executable, "-m", "bench.players", contestant.name, place.where, str(int(uvloop))]
        with path.open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                cwd=Path(__file__).parents[1],
                limit=LONGEST,
            )
        assert process.stdin is not None
        assert process.stdout is not None
        return cls(process, process.stdin, process.stdout, path)

    async def _read(self, output: asyncio.StreamReader) -> None:
        while line := await output.readline():
            id, error, result = json.loads(line)
            answer = self._answers.pop(id)
            if answer.done():
                continue
            if error is None:
                answer.set_result(result)
            else:
                answer.set_exception(Failed(error))
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(self._ended())

    def _ended(self) -> Failed:
        return Failed(f"a player ended: {self._errors.read_text()[-500:]}")

    async def ask(self, part: int, method: str, args: Any, options: Any) -> Any:
        """Have a part do something, and wait for the result.

        Raises:
            Failed: It could not.
        """
        if self._reader.done():
            raise self._ended()
        id = next(self._ids)
        answer = self._answers[id] = asyncio.get_running_loop().create_future()
        self._input.write(json.dumps([id, part, method, args, options]).encode() + b"\n")
        return await answer

    async def end(self) -> None:
        """Let it leave by itself, for a moment; then by its PID."""
        self._input.close()
        try:
            async with asyncio.timeout(_LEAVE):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await self._reader


class Part:
    """A participant, to be told what to do: any method of ``players.Actor``."""

    def __init__(self, process: Process, number: int) -> None:
        self.process = process
        self._number = number

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return lambda *args, **options: self.process.ask(self._number, method, args, options)
