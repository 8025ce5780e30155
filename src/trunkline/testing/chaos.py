"""A layer that is unkind on purpose: it loses, delays, refuses and cuts, the same way each time for one seed.

For tests of what an application does then. It takes no liberties with what a layer promises: nothing is doubled,
nothing overtakes, an error means that nothing was sent. What it lost is on record.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import re
import weakref
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlunsplit

from .. import names
from ..envelope import Message, encode
from ..errors import ChannelFull, ConfigurationError, LayerClosed, TransportUnavailable
from ..layer import ChannelLayer
from ..leases import Lease
from ..node import Node
from ..opening import layer_from_url, make_layer
from ..settings import split_url
from ..transport import Server
from ..typed import MessageLike

__all__ = ["ChaosLayer", "Mishap", "layer_of_url"]

#: Mishaps on record; older ones are forgotten.
_RECORD = 100_000
_OPTIONS = ("seed", "drop", "delay", "full", "cut", "outage")
_without_node = re.compile(r"\.[0-9a-f]{20}!.*").sub

Span = float | tuple[float, float]


class Mishap(NamedTuple):
    """One thing that was done on purpose."""

    what: Literal["drop", "delay", "full", "cut"]
    #: The channel or group that was sent to.
    address: str
    message: Any
    #: How long it took, for a delay and a cut.
    seconds: float = 0.0


class _Fate(NamedTuple):
    """What is decided for one send."""

    delay: float
    drop: bool
    full: bool
    #: Seconds of the outage that begins; 0: none does.
    outage: float


class _Chaos:
    """What is decided, and whether the link is cut: shared by the nodes of one layer, and holding none of them."""

    def __init__(self, seed: int, drop: float, delay: Span, full: float, cut: float, outage: Span) -> None:
        self.seed = seed
        self.mishaps: deque[Mishap] = deque(maxlen=_RECORD)
        self.nodes: weakref.WeakSet[_ChaosNode] = weakref.WeakSet()
        self._drop, self._full, self._cut = _chance("drop", drop), _chance("full", full), _chance("cut", cut)
        self._delay, self._outage = _span("delay", delay), _span("outage", outage)
        self._sent: Counter[str] = Counter()
        #: Outages that have not ended.
        self.outages = 0

    def fate(self, what: str, address: str) -> _Fate:
        """Decide: by the seed, the name, and how many went there before; not by who else sends meanwhile."""
        # The random part of a channel's name would make every run another one.
        name = f"{what} {_without_node('', address)}"
        self._sent[name] += 1
        dice = random.Random(f"{self.seed} {name} {self._sent[name]}")
        drop, full, cut = dice.random(), dice.random(), dice.random()
        delay, outage = dice.uniform(*self._delay), dice.uniform(*self._outage)
        return _Fate(delay, drop < self._drop, full < self._full, outage if cut < self._cut else 0.0)

    def begin(self) -> None:
        self.outages += 1

    def end(self) -> None:
        if self.outages:
            self.outages -= 1
        if not self.outages:
            for node in list(self.nodes):
                with contextlib.suppress(RuntimeError):  # its loop has ended
                    node.loop.call_soon_threadsafe(node.let_in)


class _ChaosNode(Node):
    """A node whose sends have a fate, and whose arrivals wait while the link is cut."""

    def __init__(self, chaos: _Chaos, *args: Any) -> None:
        super().__init__(*args)
        self._chaos = chaos
        self._held: deque[bytes] = deque()
        self._until_healed: list[asyncio.Future[None]] = []
        chaos.nodes.add(self)

    async def _send(self, channel: str, message: MessageLike, chosen: Mapping[str, Any]) -> None:
        await self._risk("send", channel, message, chosen, super()._send)

    async def _send_later(
        self, channel: str, message: MessageLike, chosen: Mapping[str, Any], *, delay: float
    ) -> None:
        work = functools.partial(super()._send_later, delay=delay)
        await self._risk("send", channel, message, chosen, work)

    async def _group_send(self, group: str, message: MessageLike, chosen: Mapping[str, Any]) -> None:
        await self._risk("group_send", group, message, chosen, super()._group_send)

    async def _risk(
        self,
        what: str,
        address: str,
        message: MessageLike,
        chosen: Mapping[str, Any],
        work: Callable[[str, MessageLike, Mapping[str, Any]], Coroutine[Any, Any, None]],
    ) -> None:
        (names.channel if what == "send" else names.group)(address)  # a mistake is one whatever the fate
        encode(message, self._settings.max_message_size, self._settings.codec)
        chaos = self._chaos
        fate = chaos.fate(what, address)
        if fate.delay:
            chaos.mishaps.append(Mishap("delay", address, message, fate.delay))
            await asyncio.sleep(fate.delay)
        if fate.outage:
            chaos.mishaps.append(Mishap("cut", address, message, fate.outage))
            chaos.begin()
            self.loop.call_later(fate.outage, chaos.end)
        self._check_link()
        if what == "send" and fate.full:
            chaos.mishaps.append(Mishap("full", address, message))
            self._refused(address)
            raise ChannelFull(f"{address} is full, on purpose")
        if fate.drop:
            chaos.mishaps.append(Mishap("drop", address, message))
            return
        await work(address, message, chosen)

    def _check_link(self) -> None:
        if self._chaos.outages:
            raise TransportUnavailable("the link is cut, on purpose")

    async def group_add(self, group: str, channel: str, *args: Any, **options: Any) -> None:
        self._check_link()
        await super().group_add(group, channel, *args, **options)

    async def group_discard(self, group: str, channel: str) -> None:
        self._check_link()
        await super().group_discard(group, channel)

    # Arrivals

    def deliver(self, frame: bytes) -> None:
        if self._chaos.outages or self._held:
            self._held.append(frame)
        else:
            super().deliver(frame)

    def let_in(self) -> None:
        """The link is there again: what was held comes now, in its order."""
        while self._held and not self._chaos.outages:
            super().deliver(self._held.popleft())
        self._wake()

    def _wake(self) -> None:
        waiting, self._until_healed = self._until_healed, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def _receive_queue(self, queue: str) -> Message:
        await self._link_healed(queue)
        return await super()._receive_queue(queue)

    async def lease(self, queue: str, seconds: float) -> Lease:
        await self._link_healed(queue)
        return await super().lease(queue, seconds)

    async def _link_healed(self, queue: str) -> None:
        while self._chaos.outages and not self.closed:
            future: asyncio.Future[None] = self.loop.create_future()
            self._until_healed.append(future)
            await future
        if self.closed:
            raise LayerClosed(f"the layer was closed while waiting on {queue}")

    def _stop(self) -> None:
        super()._stop()
        self._wake()

    def servers(self) -> list[Server]:
        found = super().servers()
        if self._chaos.outages:
            return [server._replace(up=False, trouble="cut on purpose") for server in found]
        return found


class ChaosLayer(ChannelLayer):
    """A peer of a layer, of the same transport and settings, that loses, delays, refuses and cuts on purpose.

    Args:
        layer: A layer, its URL, or an entry as in ``CHANNEL_LAYERS``. It stays as it is; the two hear each other.
        seed: Makes the same decisions each time, for each name by the number of the send; None: any, see ``seed``.
        drop: The part of sends and group sends that are lost without a word, 0 to 1.
        delay: Seconds that each send takes more, or the least and the most.
        full: The part of sends that raise ``ChannelFull``. A group send never does.
        cut: The part of sends that begin an outage: until its end, sends and memberships raise ``TransportUnavailable``,
            and what others send waits.
        outage: Seconds that one takes, or the least and the most.

    Raises:
        ConfigurationError: A value is out of range.
    """

    def __init__(
        self,
        layer: ChannelLayer | str | Mapping[str, Any],
        *,
        seed: int | None = None,
        drop: float = 0.0,
        delay: Span = 0.0,
        full: float = 0.0,
        cut: float = 0.0,
        outage: Span = (0.05, 0.2),
    ) -> None:
        made = layer if isinstance(layer, ChannelLayer) else make_layer("chaos", layer)
        if not isinstance(made, ChannelLayer):
            raise ConfigurationError(
                f"chaos needs a layer of Trunkline, not {type(made).__module__}.{type(made).__qualname__}"
            )
        if seed is not None and type(seed) is not int:
            raise ConfigurationError(f"seed is a whole number, not {seed!r}")
        self._chaos = _Chaos(
            random.SystemRandom().getrandbits(32) if seed is None else seed, drop, delay, full, cut, outage
        )
        super().__init__(made._make_transport, made._settings, made.on_gap)

    def __repr__(self) -> str:
        return f"<ChaosLayer seed={self.seed} mishaps={len(self.mishaps)} nodes={len(self._nodes)}>"

    def _make_node(self, on_gap: Callable[..., object], on_closed: Callable[..., object]) -> Node:
        return _ChaosNode(self._chaos, self._settings, self._seal, self._make_transport(), on_gap, on_closed)

    @property
    def seed(self) -> int:
        """What makes it decide the same again."""
        return self._chaos.seed

    @property
    def mishaps(self) -> list[Mishap]:
        """What was done on purpose so far, in order; the last 100,000."""
        return list(self._chaos.mishaps)

    @property
    def dropped(self) -> list[tuple[str, Any]]:
        """What was lost: channel or group, and message."""
        return [(mishap.address, mishap.message) for mishap in self.mishaps if mishap.what == "drop"]

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """Cut the link for as long as the block takes."""
        self._chaos.begin()
        try:
            yield
        finally:
            self._chaos.end()

    def gap(self, group: str | None = None, reason: str = "lost on purpose") -> None:
        """Tell that messages to a group (None: to anybody) were lost: ``layer.gap`` events, and ``on_gap``."""
        for node in list(self._nodes.values()):
            node.loop.call_soon_threadsafe(node.gap, group, reason)


def layer_of_url(url: str, **options: Any) -> ChaosLayer:
    """Make one of ``chaos+SCHEME://…?drop=0.1&delay=0.01,0.05``; the rest is the URL of the layer.

    Raises:
        ConfigurationError: A value is wrong, or the layer's URL is.
    """
    parts = split_url(url, "the URL of a layer")
    given = {name: options.pop(name) for name in _OPTIONS if name in options}
    kept = []
    for key, text in parse_qsl(parts.query, keep_blank_values=True):
        if key in _OPTIONS:
            given.setdefault(key, _read(key, text))
        else:
            kept.append((key, text))
    bare = parts._replace(scheme=parts.scheme.removeprefix("chaos+"), query=urlencode(kept))
    return ChaosLayer(layer_from_url(urlunsplit(bare), **options), **given)


def _read(key: str, text: str) -> Any:
    try:
        if key == "seed":
            return int(text)
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        raise ConfigurationError(f"chaos: {key} is a number, not {text!r}") from None
    return tuple(numbers) if len(numbers) > 1 else numbers[0]


def _chance(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ConfigurationError(f"chaos: {name} is a part of all sends, from 0 to 1, not {value!r}")
    return value


def _span(name: str, value: Any) -> tuple[float, float]:
    low, high = value if isinstance(value, (tuple, list)) and len(value) == 2 else (value, value)
    numbers = all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in (low, high))
    if not numbers or not 0 <= low <= high < float("inf"):
        raise ConfigurationError(
            f"chaos: {name} is seconds, or the least and the most of them, not {value!r}"
        )
    return low, high
