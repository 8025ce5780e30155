"""`trunkline doctor nats://…`: is the server there, is it fit for this, how quick is it, what should be changed.

Rules of this room: every complaint comes with the setting that mends it; nothing is left on the server.
"""

from __future__ import annotations

import asyncio
import ipaddress
import statistics
import time
from typing import Any

from ...errors import ConfigurationError, TransportUnavailable, TrunklineError
from ...names import new_node
from ...transport import Finding
from .link import Link
from .servers import Access
from .subjects import Subjects

__all__ = ["examine"]

_OLDEST = (2, 10)
_PINGS, _PINGING = 100, 2.0  # how many, for how many seconds at most
_SLOW = 0.005
_USUAL = 1 << 20


class _Nobody:
    """Gets what would arrive."""

    def deliver(self, frame: bytes) -> None:
        pass

    def gap(self, topic: str | None, reason: str) -> None:
        pass


async def examine(access: Access, prefix: str, *, deadline: float, recover: bool) -> list[Finding]:
    """Examine the server that answers first."""
    node = new_node()

    async def greet(first: bool) -> None:
        """A patient is not asked for anything before it is examined."""

    subjects = Subjects(prefix, node)
    link: Link | None = None
    try:
        link = Link(
            access,
            subjects,
            node,
            _Nobody(),
            recover=False,
            retention=60.0,
            deadline=deadline,
            greet=greet,
            delivered=lambda *message: None,
            control=lambda subject, payload: None,
            resumed=lambda: None,
            on_disconnect=lambda address: None,
            on_reconnect=lambda address: None,
        )
        await link.open(deadline)
        return [*_server(link), *_security(access), *await _jetstream(link, recover), *await _use(link)]
    except ConfigurationError as error:
        return [Finding("error", str(error), "mend that, and ask again")]
    except TransportUnavailable as error:
        what = f"{access.shown} cannot be reached: {error.__cause__ or error}"
        return [Finding("error", what, "start it, or correct the host and port; nats-server listens on 4222")]
    finally:
        if link is not None:
            await link.close()


def _server(link: Link) -> list[Finding]:
    info: dict[str, Any] = link.wire.info if link.wire is not None else {}
    version = str(info.get("version", "0"))
    found = [Finding("ok", f"{link.access.shown} is NATS {version}")]
    numbers = tuple(int(part) for part in version.split("-")[0].split(".")[:2] if part.isdigit())
    if numbers < _OLDEST:
        found = [
            Finding("error", f"{link.access.shown} is NATS {version}", "update it: 2.10 or newer is needed")
        ]
    if info.get("ldm"):
        found.append(
            Finding("warning", "it is in lame duck mode: it will stop soon", "name another server too")
        )
    size = int(info.get("max_payload", 0))
    if size < _USUAL:
        fix = "set max_payload: 1MB (8MB for larger messages; 64MB at most) in its configuration"
        found.append(Finding("warning", f"max_payload is {size}: larger messages are refused", fix))
    else:
        found.append(Finding("ok", f"messages of up to {size - 200} bytes can be sent (max_payload {size})"))
    if info.get("cluster"):
        others = len(set(info.get("connect_urls") or ()) | set(link.access.servers))
        what = f"it belongs to the cluster {info['cluster']!r}, of {others} servers that we know of"
        found.append(Finding("ok", what))
        if len(link.access.servers) == 1:
            what = "only one server of the cluster is named"
            found.append(
                Finding("warning", what, "name all: nats://a:4222,b:4222,c:4222, so that any may be down")
            )
    return found


def _security(access: Access) -> list[Finding]:
    if access.tls or all(_is_local(server) for server in access.servers):
        return []
    what = "messages, and any password, cross the network unencrypted"
    return [Finding("warning", what, "give the server a certificate (tls {…}) and write nats+tls://")]


def _is_local(server: str) -> bool:
    host = server.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _jetstream(link: Link, recover: bool) -> list[Finding]:
    need = "queues (channels without a process of their own), groups of them, histories" + (
        " and recover" if recover else ""
    )
    try:
        account = await link.api("INFO")
    except (TransportUnavailable, ConfigurationError) as error:
        account = {"error": {"description": str(error)}}
    if "error" in account:
        what = f"there is no JetStream for us, and no {need}: {account['error']['description']}"
        fix = 'start nats-server with -js, or put "jetstream {}" into its configuration'
        return [Finding("error" if recover else "warning", what, fix)]
    found = [Finding("ok", f"JetStream is there, for {need}")]
    for kind, used, limit in (
        ("memory", account.get("memory", 0), account.get("limits", {}).get("max_memory", -1)),
        ("file", account.get("storage", 0), account.get("limits", {}).get("max_storage", -1)),
    ):
        if limit >= 0 and used >= 0.8 * limit:
            what = f"JetStream's {kind} storage is used to {used} of {limit} bytes"
            found.append(
                Finding(
                    "warning", what, f"raise max_{'mem' if kind == 'memory' else 'file'} or delete streams"
                )
            )
    return found


async def _use(link: Link) -> list[Finding]:
    """Do what a layer does, and measure it."""
    found: list[Finding] = []
    topic = f"doctor.{link.node}"
    for what, call in (
        ("subscribe to groups", link.topics.subscribe(topic)),
        ("publish to groups", _publish(link, topic)),
        ("post to a process", _post(link)),
    ):
        try:
            async with asyncio.timeout(link.deadline):
                await call
        except (TrunklineError, TimeoutError) as error:
            allow = f'allow the user to publish and subscribe to "{link.subjects.root}.>" and to publish to "$JS.>"'
            found.append(Finding("error", f"it is not possible to {what}: {error or 'no answer'}", allow))
    link.topics.unsubscribe(topic)
    if not found:
        found.append(Finding("ok", f"we may publish and subscribe below {link.subjects.root}.>"))
    trips: list[float] = []
    began = time.monotonic()
    while len(trips) < _PINGS and time.monotonic() - began < _PINGING:
        start = time.perf_counter()
        await link.round_trip(link.deadline)
        trips.append(time.perf_counter() - start)
    median = statistics.median(trips)
    text = f"a round trip takes {median * 1000:.2f} ms, the slowest of {len(trips)} took {max(trips) * 1000:.2f} ms"
    slow = Finding(
        "warning", text, "every publish waits for one: bring server and application nearer to each other"
    )
    found.append(slow if median > _SLOW else Finding("ok", text))
    return found


async def _publish(link: Link, topic: str) -> None:
    await link.publish(topic, b"", link.deadline).future


async def _post(link: Link) -> None:
    if not await link.post(link.node, "doctor!1", b"", None, link.deadline).future:
        raise TransportUnavailable("nobody hears this node's own subject")
