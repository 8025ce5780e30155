"""Where the master is: asked of the sentinels, looked at, and followed while a link uses it.

Rules of this room: a sentinel's answer is a rumour until the server it names says that it is a master; what a sentinel
tells by itself is only a reason to ask. The sentinel that answered last is asked first. Nothing is known for longer
than one connection: each attempt to connect asks anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from ...errors import ConfigurationError, TransportUnavailable
from .connection import Connection, ReplyError, connect, pack, unavailable
from .hosts import Host

__all__ = ["Sentinels"]

log = logging.getLogger("trunkline.redis")

#: Seconds between two questions while nothing is told. A master that was left behind goes on answering, and what it
#: answers is sent again for ``Pace.window`` seconds only: this has to be well below.
POLL = 2.0

#: Seconds that one sentinel, or the server it names, has to answer.
_PATIENCE = 1.0

#: What is published when the address has changed: by all sentinels, and a little earlier by the one that changed it.
NEWS = ("+switch-master", "+promoted-slave")


class Sentinels:
    """The sentinels of one master, as one link asks them."""

    def __init__(self, host: Host, deadline: float) -> None:
        self._host = host
        self._order = list(host.sentinels)
        self._patience = min(_PATIENCE, deadline)
        self._open: set[Connection] = set()
        self._following: asyncio.Task[None] | None = None

    # -- finding

    async def find(self) -> Host:
        """The master: named by a sentinel, and a master by its own word.

        Raises:
            TransportUnavailable: No sentinel answers, or what they name is not a master now.
            ConfigurationError: It never will work: a name they do not know, a password they do not take.
        """
        troubles: list[tuple[Host, Exception]] = []
        looked_at: set[Host] = set()
        for sentinel in list(self._order):
            try:
                server = await self.ask(sentinel)
            except (TransportUnavailable, ConfigurationError) as error:
                troubles.append((sentinel, error))
                continue
            if server in looked_at:
                continue
            looked_at.add(server)
            try:
                await self._look_at(server)
            except TransportUnavailable as error:
                troubles.append((server, error))
                continue
            self._prefer(sentinel)
            return server
        raise self._explain(troubles)

    def _explain(self, troubles: list[tuple[Host, Exception]]) -> Exception:
        reasons = "; ".join(f"{host.address}: {error.__cause__ or error}" for host, error in troubles)
        if not all(isinstance(error, ConfigurationError) for _, error in troubles):
            return unavailable(self._host, ConnectionError(reasons))
        advice = (
            "check master_name, and the sentinels' own password in sentinel_kwargs (URL: sentinel_password)"
        )
        return ConfigurationError(f"{self._host.address} cannot be found: {reasons}. In hosts, {advice}")

    async def ask(self, sentinel: Host) -> Host:
        """The master, as this sentinel has it: a rumour.

        Raises:
            TransportUnavailable: The sentinel does not answer.
            ConfigurationError: It does not know the name, or refuses us.
        """
        line = await self._connect(sentinel)
        try:
            return await self._ask(line, sentinel)
        finally:
            line.drop()

    async def _ask(self, line: Connection, sentinel: Host) -> Host:
        name = self._host.master_name
        (reply,) = await line.call(("SENTINEL", "GET-MASTER-ADDR-BY-NAME", name))
        if isinstance(reply, ReplyError):
            raise unavailable(sentinel, reply)
        if reply is None:
            raise ConfigurationError(f"it watches no master of the name {name!r}")
        address, port = reply
        return self._host.at(address.decode(), int(port))

    async def _look_at(self, server: Host) -> None:
        line = await self._connect(server)
        try:
            (reply,) = await line.call(("ROLE",))
        finally:
            line.drop()
        # Whoever may not ask is told by INFO, or by the first write.
        if not isinstance(reply, ReplyError) and reply[0] != b"master":
            raise unavailable(
                server, ConnectionError("the sentinels call it the master, itself says replica")
            )

    def _prefer(self, sentinel: Host) -> None:
        self._order.remove(sentinel)
        self._order.insert(0, sentinel)

    async def _connect(
        self, host: Host, on_lost: Callable[[TransportUnavailable], None] | None = None
    ) -> Connection:
        made: list[Connection] = []

        def lost(error: TransportUnavailable) -> None:
            self._open.difference_update(made)
            if on_lost is not None:
                on_lost(error)

        made.append(await connect(host, name="trunkline-sentinel", deadline=self._patience, on_lost=lost))
        if not made[0].closed:
            self._open.add(made[0])
        return made[0]

    # -- following

    def follow(self, server: Host, moved: Callable[[Host], None]) -> None:
        """Call ``moved``, once, when the master is no longer ``server``."""
        self.stop()
        self._following = asyncio.get_running_loop().create_task(
            self._follow(server, moved), name=f"trunkline {self._host.address}"
        )

    async def _follow(self, server: Host, moved: Callable[[Host], None]) -> None:
        alone = False
        while True:
            for sentinel in list(self._order):
                try:
                    other = await self._listen(sentinel, server)
                except (TransportUnavailable, ConfigurationError) as error:
                    log.info("sentinel %s: %s", sentinel.address, error)
                    continue
                log.warning("%s moved from %s to %s", self._host.address, server.address, other.address)
                moved(other)
                return
            if not alone:
                log.warning("no sentinel of %s is of use; it stays %s", self._host.address, server.address)
            alone = True
            await asyncio.sleep(self._patience)

    async def _listen(self, sentinel: Host, server: Host) -> Host:
        """Ask one sentinel again and again, at once when it has news; returns the new master."""
        loop = asyncio.get_running_loop()
        news: asyncio.Future[None] = loop.create_future()

        def hear(reply: Any) -> None:
            if not news.done():
                news.set_result(None)

        def deaf(error: TransportUnavailable) -> None:
            line.drop(error.__cause__ or error)
            hear(error)

        line = await self._connect(sentinel)
        try:
            ears = await self._connect(sentinel, on_lost=deaf)
        except BaseException:
            line.drop()
            raise
        try:
            ears.listen(hear)
            ears.write(pack("SUBSCRIBE", *NEWS))
            while True:
                other = await self._ask(line, sentinel)
                if other != server:
                    await self._look_at(other)
                    return other
                await asyncio.wait([news], timeout=POLL)
                news = loop.create_future()
        finally:
            ears.drop()
            line.drop()

    def stop(self) -> None:
        """Follow no more."""
        if self._following is not None:
            self._following.cancel()
            self._following = None

    async def close(self) -> None:
        """Leave no task and no connection behind."""
        following = self._following
        self.stop()
        if following is not None:
            await asyncio.wait([following])

    def abandon(self) -> None:
        """Let go of sockets without a word."""
        if self._following is not None:
            self._following._log_destroy_pending = False  # type: ignore[attr-defined] # it ends here, and that is meant
        for connection in self._open:
            connection.abandon()
