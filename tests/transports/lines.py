"""What the tests of queues do on each transport whose readers are lines."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from faults.redis_load import TTL, unique

__all__ = ["numbers", "opened", "push"]

_Node = TypeVar("_Node", bound=contextlib.AbstractAsyncContextManager[Any])


@contextlib.asynccontextmanager
async def opened(make: Callable[[str], _Node], count: int) -> AsyncIterator[list[_Node]]:
    """So many nodes of one prefix, which ``make`` gets."""
    prefix = unique()
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(make(prefix)) for _ in range(count)]


async def push(node: Any, first: int, count: int, capacity: int = 1000, queue: str = "jobs") -> list[Any]:
    """Push so many numbers in one turn of the loop; returns what became of each."""
    pushes = [node.transport.push(queue, frame, capacity, TTL) for frame in numbers(first, count)]
    return await asyncio.gather(*pushes, return_exceptions=True)


def numbers(first: int, count: int) -> list[bytes]:
    return [b"%03d" % number for number in range(first, first + count)]
