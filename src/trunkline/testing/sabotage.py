"""Planted faults: each breaks one promise of a working transport, and the kit must notice.

A conformance suite is worth what it catches. Every fault here was made by a real channel layer, or nearly.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import ChannelFull
from ..transport import Leased, Transport
from .kit import Link, must_check
from .transport_conformance import TransportConformance

__all__ = ["FAULTS", "caught_by"]

Fault = Callable[[Any, Link], None]


def subscribe_returns_early(transport: Any, link: Link) -> None:
    """subscribe returns before the broker confirmed it."""
    real = transport.subscribe

    async def subscribe(topic: str) -> None:
        asyncio.get_running_loop().call_later(0.01, lambda: asyncio.ensure_future(real(topic)))

    transport.subscribe = subscribe


def publish_loses(transport: Any, link: Link) -> None:
    """One publish in a hundred is lost."""
    real, count = transport.publish, itertools.count(1)

    async def publish(topic: str, frame: bytes, ttl: float) -> Sequence[str]:
        return [] if next(count) % 100 == 0 else await real(topic, frame, ttl)

    transport.publish = publish


def publish_doubles(transport: Any, link: Link) -> None:
    """One publish in a hundred is sent again, as after a lost reply."""
    real, count = transport.publish, itertools.count(1)

    async def publish(topic: str, frame: bytes, ttl: float) -> Sequence[str]:
        if next(count) % 100 == 0:
            await real(topic, frame, ttl)
        return await real(topic, frame, ttl)  # type: ignore[no-any-return]

    transport.publish = publish


def publish_overtakes(transport: Any, link: Link) -> None:
    """A publish now and then takes a slower road than the ones after it."""
    real, count = transport.publish, itertools.count(1)

    async def publish(topic: str, frame: bytes, ttl: float) -> Sequence[str]:
        if next(count) % 50 == 0:
            asyncio.get_running_loop().call_later(
                0.01, lambda: asyncio.ensure_future(real(topic, frame, ttl))
            )
            return []
        return await real(topic, frame, ttl)  # type: ignore[no-any-return]

    transport.publish = publish


def publish_skips_its_own_node(transport: Any, link: Link) -> None:
    """The sender's own node is left out."""
    real_publish, real_open = transport.publish, transport.open
    own: list[bytes] = []

    class Deaf:
        def __init__(self, arrivals: Any) -> None:
            self.gap, self._deliver = arrivals.gap, arrivals.deliver

        def deliver(self, frame: bytes) -> None:
            if frame in own:
                own.remove(frame)
            else:
                self._deliver(frame)

    async def open_(node: str, arrivals: Any) -> None:
        await real_open(node, Deaf(arrivals))

    async def publish(topic: str, frame: bytes, ttl: float) -> Sequence[str]:
        own.append(frame)
        return await real_publish(topic, frame, ttl)  # type: ignore[no-any-return]

    transport.open, transport.publish = open_, publish


def unsubscribe_does_nothing(transport: Any, link: Link) -> None:
    """unsubscribe is forgotten."""

    async def unsubscribe(topic: str) -> None:
        return None

    transport.unsubscribe = unsubscribe


def post_ignores_capacity(transport: Any, link: Link) -> None:
    """Every post is taken."""
    real = transport.post

    async def post(node: str, channel: str, frame: bytes, capacity: int | None, ttl: float) -> bool:
        return await real(node, channel, frame, None, ttl)  # type: ignore[no-any-return]

    transport.post = post


def post_checks_then_adds(transport: Any, link: Link) -> None:
    """Room is checked in one step and taken in another, so a race gets past it."""
    real, mine = transport.post, {"n": 0}

    async def post(node: str, channel: str, frame: bytes, capacity: int | None, ttl: float) -> bool:
        if capacity is not None and mine["n"] >= capacity:
            raise ChannelFull(channel)
        await asyncio.sleep(0)
        mine["n"] += 1
        return await real(node, channel, frame, None, ttl)  # type: ignore[no-any-return]

    transport.post = post


def post_to_nobody_succeeds(transport: Any, link: Link) -> None:
    """A post to a node that is gone returns True."""
    real = transport.post

    async def post(node: str, channel: str, frame: bytes, capacity: int | None, ttl: float) -> bool:
        await real(node, channel, frame, capacity, ttl)
        return True

    transport.post = post


def taken_is_forgotten(transport: Any, link: Link) -> None:
    """What the owner took is never reported."""
    transport.taken = lambda channel, count: None


def taken_counts_double(transport: Any, link: Link) -> None:
    """What the owner took is counted twice."""
    real = transport.taken
    transport.taken = lambda channel, count: real(channel, 2 * count)


def push_ignores_capacity(transport: Any, link: Link) -> None:
    """Every push is taken."""
    real = transport.push

    async def push(queue: str, frame: bytes, capacity: int, ttl: float) -> None:
        await real(queue, frame, 10**6, ttl)

    transport.push = push


def push_drops_when_full(transport: Any, link: Link) -> None:
    """A push to a full queue is dropped without a word."""
    real = transport.push

    async def push(queue: str, frame: bytes, capacity: int, ttl: float) -> None:
        with contextlib.suppress(ChannelFull):
            await real(queue, frame, capacity, ttl)

    transport.push = push


def push_never_expires(transport: Any, link: Link) -> None:
    """ttl is ignored."""
    real = transport.push

    async def push(queue: str, frame: bytes, capacity: int, ttl: float) -> None:
        await real(queue, frame, capacity, 3600)

    transport.push = push


def pull_copies(transport: Any, link: Link) -> None:
    """Now and then a frame is handed to two takers."""
    real, count = transport.pull, itertools.count(1)

    async def pull(queue: str) -> bytes:
        frame: bytes = await real(queue)
        if next(count) % 40 == 0:
            await transport.push(queue, frame, 10**6, 30)
        return frame

    transport.pull = pull


def pull_prefetches(transport: Any, link: Link) -> None:
    """A frame taken for a pull that was cancelled is lost."""
    real = transport.pull

    async def pull(queue: str) -> bytes:
        task = asyncio.ensure_future(real(queue))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            asyncio.get_running_loop().call_later(0.002, task.cancel)
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise

    transport.pull = pull


def pull_polls(transport: Any, link: Link) -> None:
    """Nobody is woken; readers look again every second."""
    real = transport.pull

    async def pull(queue: str) -> bytes:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.005):
                    return await real(queue)  # type: ignore[no-any-return]
            await asyncio.sleep(1)

    transport.pull = pull


def bind_is_forgotten(transport: Any, link: Link) -> None:
    """unbind leaves the binding."""

    async def unbind(topic: str, queue: str) -> None:
        return None

    transport.unbind = unbind


def bind_counts_later(transport: Any, link: Link) -> None:
    """bind returns before it is in force."""
    real, tasks = transport.bind, []

    async def bind(topic: str, queue: str, capacity: int, ttl: float) -> None:
        async def soon() -> None:
            await asyncio.sleep(1.5)
            await real(topic, queue, capacity, ttl)

        tasks.append(asyncio.create_task(soon()))

    transport.bind = bind


def bind_never_ends(transport: Any, link: Link) -> None:
    """A binding's ttl is ignored."""
    real = transport.bind

    async def bind(topic: str, queue: str, capacity: int, ttl: float) -> None:
        await real(topic, queue, capacity, 3600)

    transport.bind = bind


def flush_keeps_everything(transport: Any, link: Link) -> None:
    """flush does nothing."""

    async def flush() -> None:
        return None

    transport.flush = flush


def close_stays(transport: Any, link: Link) -> None:
    """A closed node is still there for others."""
    real, waiting = transport.close, []

    async def close() -> None:
        waiting.append(transport)
        if len(waiting) > 2:  # let the test itself tidy up
            await real()

    transport.close = close


def frames_are_text(transport: Any, link: Link) -> None:
    """Bytes are carried as text."""
    real = transport.publish

    async def publish(topic: str, frame: bytes, ttl: float) -> Sequence[str]:
        return await real(topic, frame.decode("utf-8", "replace").encode(), ttl)  # type: ignore[no-any-return]

    transport.publish = publish


def clock_is_local(transport: Any, link: Link) -> None:
    """Each node reads its own clock, and they differ."""
    real, skew = transport.now, next(_skew)
    transport.now = lambda: real() + skew


_skew = itertools.count(0, 7)


def publish_returns_before_its_own_copy(transport: Any, link: Link) -> None:
    """The sender's own copy takes the long way round."""
    real_open = transport.open

    class Late:
        def __init__(self, arrivals: Any) -> None:
            self.gap, self._deliver = arrivals.gap, arrivals.deliver
            self._loop = asyncio.get_running_loop()

        def deliver(self, frame: bytes) -> None:
            self._loop.call_soon(self._deliver, frame)

    async def open_(node: str, arrivals: Any) -> None:
        await real_open(node, Late(arrivals))

    transport.open = open_


def deliver_in_any_thread(transport: Any, link: Link) -> None:
    """Frames are delivered in the thread of whoever sends them."""
    real_open = transport.open

    class Stray:
        def __init__(self, arrivals: Any) -> None:
            self.gap, self._deliver = arrivals.gap, arrivals.deliver

        def deliver(self, frame: bytes) -> None:
            thread = threading.Thread(target=self._deliver, args=(frame,))
            thread.start()
            thread.join()

    async def open_(node: str, arrivals: Any) -> None:
        await real_open(node, Stray(arrivals))

    transport.open = open_


def cut_loses(transport: Any, link: Link) -> None:
    """What arrives while the link is cut is lost, as with bare publish/subscribe."""
    real_open = transport.open

    class Gap:
        def __init__(self, arrivals: Any) -> None:
            self.gap, self._deliver = arrivals.gap, arrivals.deliver
            self._lost = False
            link.changed.insert(0, self._mark)

        def _mark(self) -> None:
            self._lost = True
            asyncio.get_running_loop().call_later(0.002, self._clear)

        def _clear(self) -> None:
            self._lost = link.down

        def deliver(self, frame: bytes) -> None:
            if not self._lost:
                self._deliver(frame)

    async def open_(node: str, arrivals: Any) -> None:
        await real_open(node, Gap(arrivals))

    transport.open = open_


def lease_is_a_pull(transport: Any, link: Link) -> None:
    """A leased frame is gone: it does not come back."""
    real = transport.lease

    async def lease(queue: str, seconds: float, ttl: float) -> Leased:
        taken: Leased = await real(queue, 1000 * seconds, ttl)
        return taken

    transport.lease = lease


def lease_forgets_tries(transport: Any, link: Link) -> None:
    """Every lease is said to be the first."""
    real = transport.lease

    async def lease(queue: str, seconds: float, ttl: float) -> Leased:
        taken: Leased = await real(queue, seconds, ttl)
        return taken._replace(tries=1)

    transport.lease = lease


def cancelled_lease_counts(transport: Any, link: Link) -> None:
    """What a cancelled lease was given goes back as if it had been tried."""
    real = transport.lease

    async def lease(queue: str, seconds: float, ttl: float) -> Leased:
        taken: Leased = await real(queue, seconds, ttl)
        try:
            await asyncio.sleep(0.0005)
        except asyncio.CancelledError:
            await transport.hold(queue, taken.token, 0)
            raise
        return taken

    transport.lease = lease


def settle_does_nothing(transport: Any, link: Link) -> None:
    """settle says yes and forgets it."""

    async def settle(queue: str, token: str) -> bool:
        return True

    transport.settle = settle


def hold_revives(transport: Any, link: Link) -> None:
    """hold says yes to a lease that has ended."""
    real = transport.hold

    async def hold(queue: str, token: str, seconds: float) -> bool:
        await real(queue, token, seconds)
        return True

    transport.hold = hold


def push_later_at_once(transport: Any, link: Link) -> None:
    """The delay is ignored."""

    async def push_later(queue: str, frame: bytes, capacity: int, ttl: float, delay: float) -> None:
        await transport.push(queue, frame, capacity, ttl)

    transport.push_later = push_later


def push_later_in_the_sender(transport: Any, link: Link) -> None:
    """The delay is a timer of the sender, and dies with it."""

    async def push(*arguments: Any) -> None:
        with contextlib.suppress(Exception):
            await transport.push(*arguments)

    async def push_later(queue: str, frame: bytes, capacity: int, ttl: float, delay: float) -> None:
        asyncio.get_running_loop().call_later(
            delay, lambda: asyncio.ensure_future(push(queue, frame, capacity, ttl))
        )

    transport.push_later = push_later


def push_later_without_bound(transport: Any, link: Link) -> None:
    """Any number of frames may be put off."""
    real = transport.push_later

    async def push_later(queue: str, frame: bytes, capacity: int, ttl: float, delay: float) -> None:
        await real(queue, frame, 2**31, ttl, delay)

    transport.push_later = push_later


#: Each fault, and a promise that must notice it.
def history_repeats_a_place(transport: Any, link: Link) -> None:
    """A place is asked for and then taken, in two steps: nodes that append at the same time share one."""
    real_recall, real = transport.recall, transport.remember
    given: dict[str, str] = {}

    async def remember(topic: str, frame: bytes, mark: str, size: int, seconds: float) -> tuple[int, str]:
        newest = await real_recall(topic, None, 1)
        await asyncio.sleep(0)
        await real(topic, frame, mark, size, seconds)
        before, given[topic] = given.get(topic, ""), mark
        return (newest[-1][0] + 1 if newest else 1), before

    transport.remember = remember


def history_forgets_the_one_before(transport: Any, link: Link) -> None:
    """The mark of the frame before is that of this node's own last one, not of the last one of all."""
    real = transport.remember
    own: dict[str, str] = {}

    async def remember(topic: str, frame: bytes, mark: str, size: int, seconds: float) -> tuple[int, str]:
        place, _ = await real(topic, frame, mark, size, seconds)
        before, own[topic] = own.get(topic, ""), mark
        return place, before

    transport.remember = remember


def history_grows(transport: Any, link: Link) -> None:
    """What is too much or too old is only left out of the answer when somebody thinks of it."""
    real = transport.remember

    async def remember(topic: str, frame: bytes, mark: str, size: int, seconds: float) -> tuple[int, str]:
        return await real(topic, frame, mark, 1 << 30, 1e6)  # type: ignore[no-any-return]

    transport.remember = remember


FAULTS: dict[Fault, str] = {
    history_repeats_a_place: "test_places_are_given_once",
    history_forgets_the_one_before: "test_what_is_remembered_has_places",
    history_grows: "test_a_history_is_bounded",
    subscribe_returns_early: "test_nothing_is_missed_after_subscribe",
    publish_loses: "test_order_of_concurrent_calls",
    publish_doubles: "test_order_of_concurrent_calls",
    publish_overtakes: "test_order_of_one_sender",
    publish_skips_its_own_node: "test_publish_reaches_every_subscriber_once",
    unsubscribe_does_nothing: "test_publish_reaches_nobody_else",
    post_ignores_capacity: "test_post_stops_at_capacity",
    post_checks_then_adds: "test_capacity_is_exact_in_a_race",
    post_to_nobody_succeeds: "test_post_reaches_its_node_only",
    taken_is_forgotten: "test_taken_makes_room",
    taken_counts_double: "test_taken_makes_room",
    push_ignores_capacity: "test_push_stops_at_capacity",
    push_drops_when_full: "test_push_stops_at_capacity",
    push_never_expires: "test_stale_frames_are_forgotten",
    pull_copies: "test_each_frame_has_one_taker",
    pull_prefetches: "test_a_cancelled_pull_takes_nothing",
    pull_polls: "test_a_waiting_pull_is_woken",
    bind_is_forgotten: "test_bound_queue_gets_publishes",
    bind_counts_later: "test_a_bind_counts_at_once",
    bind_never_ends: "test_binding_ends_after_its_ttl",
    flush_keeps_everything: "test_flush_forgets",
    close_stays: "test_close_leaves_nothing",
    frames_are_text: "test_bytes_travel_unchanged",
    clock_is_local: "test_clocks_agree",
    publish_returns_before_its_own_copy: "test_the_own_copy_comes_first",
    deliver_in_any_thread: "test_loops_and_threads",
    cut_loses: "test_cut_link",
    lease_is_a_pull: "test_a_lease_that_ends_comes_back",
    lease_forgets_tries: "test_a_lease_that_ends_comes_back",
    cancelled_lease_counts: "test_a_cancelled_lease_takes_nothing",
    settle_does_nothing: "test_a_settled_lease_is_done",
    hold_revives: "test_a_lease_can_be_prolonged",
    push_later_at_once: "test_a_delayed_frame_waits",
    push_later_in_the_sender: "test_a_delay_survives_its_sender",
    push_later_without_bound: "test_delayed_frames_come_by_time",
}


async def caught_by(kit: type[TransportConformance], fault: Fault, promise: str) -> BaseException | None:
    """Run one promise of a kit with the fault planted in every transport; the failure, or None if it went unnoticed."""
    must_check()

    class Sabotaged(kit):  # type: ignore[misc, valid-type]
        patience = 1.0

        def make_transport(self, link: Link, prefix: str) -> Transport:
            transport: Transport = super().make_transport(link, prefix)
            fault(transport, link)
            return transport

    try:
        await Sabotaged().check(promise)
    except Exception as error:
        return error
    return None
