"""How a conformance class runs: promises, peers, links.

A promise is an ``async def`` method under ``@promise``; pytest sees a plain test function, so the kit needs no plugin. Each
runs in a new event loop with a deadline, and a task or node left behind is a failure of its own.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ClassVar, TypeVar

from ..errors import UsageError
from ..names import new_node
from ..transport import Transport

__all__ = ["Kit", "Link", "Peer", "eventually", "must_check", "promise", "refused", "together"]

T = TypeVar("T")
#: Seconds a promise may take; far above what any needs.
DEADLINE = 60.0


async def eventually(condition: Callable[[], object], timeout: float = 20.0, what: str = "") -> None:
    """Wait until a condition holds; fail after ``timeout`` seconds, which a busy machine may need."""
    deadline = asyncio.get_running_loop().time() + timeout
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"did not come true within {timeout:g} s: {what or condition}")
        await asyncio.sleep(0.005)


def must_check() -> None:
    """Refuse to prove nothing: python -O removes ``assert`` statements, but for those that pytest has rewritten."""
    try:
        assert not __name__  # noqa: S101
    except AssertionError:
        return
    raise UsageError(
        "python -O removes what the conformance kit checks, so it would prove nothing: run it without -O, "
        "and with PYTHONOPTIMIZE unset (unset PYTHONOPTIMIZE)"
    )


class NotOffered(Exception):
    """What is under test does not have the power that the promise is about."""


class Link:
    """The road between one node and the others: plain, slow, or cut for a while. The transport under test obeys it."""

    def __init__(self) -> None:
        #: Seconds each arrival takes.
        self.delay = 0.0
        self.down = False
        #: A cut breaks no connection: neither end is told, and what they send is gone. Proxies only.
        self.silent = False
        self.changed: list[Callable[[], object]] = []
        #: Called once the promise has ended.
        self.closing: list[Callable[[], object]] = []

    def cut(self) -> None:
        """Nothing arrives any more."""
        self.down = True
        for changed in self.changed:
            changed()

    def heal(self) -> None:
        """The road is open again."""
        self.down = False
        for changed in self.changed:
            changed()

    def close(self) -> None:
        """Take the road away."""
        for closing in self.closing:
            closing()


class Peer:
    """One node under test, and all that arrived at it."""

    def __init__(self, transport: Transport, link: Link, patience: float = 10.0) -> None:
        self.patience = patience
        self.transport = transport
        self.link = link
        self.node = new_node()
        self.frames: list[bytes] = []
        self.gaps: list[str | None] = []
        #: Frames that were delivered outside the loop that opened this node.
        self.strays = 0
        self._more = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def deliver(self, frame: bytes) -> None:
        # A future of the wrong thread would often work all the same, and sometimes hang: so it is asked for.
        if asyncio._get_running_loop() is not self._loop:
            self.strays += 1
        self.frames.append(bytes(frame))
        self._more.set()

    def gap(self, topic: str | None, reason: str) -> None:
        self.gaps.append(topic)

    async def has(self, count: int) -> list[bytes]:
        """Wait for that many frames, and return them."""
        async with asyncio.timeout(self.patience):
            while len(self.frames) < count:
                self._more.clear()
                await self._more.wait()
        return self.frames


class Kit:
    """What the conformance classes share."""

    #: Promises this implementation does not keep, with the reason. One that is kept after all fails the test.
    known_gaps: ClassVar[dict[str, str]] = {}
    #: Seconds within which what was sent must have arrived.
    patience: ClassVar[float] = 20.0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        promises = {name for base in cls.__mro__[1:] for name in vars(base) if name.startswith("test_")}
        overridden = [name for name in vars(cls) if name in promises]
        if overridden:
            raise TypeError(
                f"{cls.__name__} overrides {', '.join(overridden)}: a promise may not be rewritten; "
                "name it in known_gaps, with the reason"
            )
        unknown = set(cls.known_gaps) - promises - set(vars(cls))
        if unknown:
            raise TypeError(f"{cls.__name__}.known_gaps names no promise: {', '.join(sorted(unknown))}")

    async def set_up(self) -> None:
        """Called in the promise's loop before it runs."""
        self.unique = f"t{uuid.uuid4().hex[:12]}"
        self._counter = itertools.count()

    async def tear_down(self) -> None:
        """Called in the promise's loop after it ran, whatever came of it."""

    def fresh(self, stem: str) -> str:
        """A name no other test uses."""
        return f"{stem}.{self.unique}.{next(self._counter)}"

    @classmethod
    def promises(cls) -> dict[str, str]:
        """Name and claim of every promise, in the order written."""
        found: dict[str, str] = {}
        for base in reversed(cls.__mro__):
            for name, method in vars(base).items():
                if name.startswith("test_") and hasattr(method, "claim"):
                    found[name] = method.claim
        return found

    async def check(self, name: str) -> None:
        """Run one promise in the running loop; raises what it raises.

        Raises:
            UsageError: Under python -O nothing would be checked.
        """
        must_check()
        before = asyncio.all_tasks()
        await self.set_up()
        try:
            async with asyncio.timeout(DEADLINE):
                await getattr(self, name).body(self)
        finally:
            await self.tear_down()
        left = asyncio.all_tasks() - before
        if left:
            raise AssertionError(f"tasks were left behind: {left}")


def promise(body: Callable[[Any], Coroutine[Any, Any, None]]) -> Callable[[Any], None]:
    """Make a test function of an ``async def`` promise."""

    @functools.wraps(body)
    def test(self: Kit) -> None:
        reason = self.known_gaps.get(body.__name__)
        try:
            asyncio.run(self.check(body.__name__))
        except NotOffered as error:
            import pytest

            pytest.skip(str(error))
        except BaseException as error:
            if reason is None or isinstance(error, KeyboardInterrupt):
                raise
            import pytest

            pytest.xfail(reason)
        if reason is not None:
            raise AssertionError(f"kept after all; take {body.__name__} out of known_gaps")

    del test.__wrapped__  # or runners would look through and find a coroutine function
    test.body = body  # type: ignore[attr-defined]
    test.claim = (body.__doc__ or body.__name__).strip().partition("\n")[0]  # type: ignore[attr-defined]
    return test


async def together(*work: Awaitable[T]) -> list[T]:
    """Await several things at once; the first failure is raised after all have ended."""
    results: list[Any] = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


async def refused(
    error: type[Exception] | tuple[type[Exception], ...], *calls: Awaitable[object], naming: str = ""
) -> None:
    """Each call must raise that error, or one of those, with ``naming`` in its text."""
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if not isinstance(result, BaseException):
            raise AssertionError(f"not refused with {error}; the call returned {result!r}")
        if not isinstance(result, error):
            raise result
        if naming not in str(result):
            raise AssertionError(f"the error does not name {naming!r}: {result}") from result
