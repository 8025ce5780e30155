"""The clients of the chat: one process, many websockets in one room, every delivery verified.

``python -m bench.crowd``, with what to do as JSON on standard input; the figures come as JSON on standard output.

So that the servers are what is measured, frames are not parsed one by one: the numbers of all messages in a piece of the
stream are found with one search.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import os
import re
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop

__all__ = ["cpu_of"]

#: The number of a message, in the JSON of any of the servers, and something behind it so that it is whole.
_NUMBER = re.compile(rb'"n": ?(\d+)[,}]')
_MASK = b"\x00\x00\x00\x00"
#: Bytes that may belong to a number cut in two.
_TAIL = 32


def cpu_of(pids: list[int]) -> float:
    """CPU seconds these processes have used."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


class Socket(asyncio.Protocol):
    """One websocket, speaking plain frames or socket.io's."""

    def __init__(self, crowd: Crowd, port: int, socketio: bool) -> None:
        self._crowd = crowd
        self._socketio = socketio
        self._port = port
        self._tail = b""
        self.ready = asyncio.get_running_loop().create_future()
        self.got: list[bytes] = []
        self.at: list[tuple[float, int]] = []

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        path = "/socket.io/?EIO=4&transport=websocket" if self._socketio else "/"
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [
            f"GET {path} HTTP/1.1",
            f"Host: 127.0.0.1:{self._port}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
        ]
        transport.write("\r\n".join([*lines, "", ""]).encode())

    def data_received(self, data: bytes) -> None:
        if not self.ready.done():
            self._tail += data
            self._greet()
            return
        data = self._tail + data
        end = 0
        count = len(self.got)
        for match in _NUMBER.finditer(data):
            self.got.append(match[1])
            end = match.end()
        self._tail = data[max(end, len(data) - _TAIL) :]
        if count := len(self.got) - count:
            self.at.append((time.monotonic(), count))
            self._crowd.heard(count)

    def _greet(self) -> None:
        if b"\r\n\r\n" not in self._tail:
            return
        head, _, rest = self._tail.partition(b"\r\n\r\n")
        if b" 101 " not in head.split(b"\r\n")[0]:
            self.ready.set_exception(ConnectionError(head.split(b"\r\n")[0].decode()))
        elif not self._socketio:
            self._tail = rest
            self.ready.set_result(None)
        elif b'40{"sid"' in rest:
            self._tail = b""
            self.ready.set_result(None)
        elif b'0{"sid"' in rest and b"\0sent" not in head:
            self._tail = head + b"\0sent\r\n\r\n" + rest.replace(b'0{"sid"', b"")
            self.write(b"40")

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ready.done():
            self.ready.set_exception(ConnectionError("closed before it was ready"))
        self._crowd.lost += 1

    def write(self, text: bytes) -> None:
        head = (
            struct.pack("!BB", 0x81, 0x80 | len(text))
            if len(text) < 126
            else struct.pack("!BBH", 0x81, 0xFE, len(text))
        )
        self._transport.write(head + _MASK + text)

    def say(self, number: int, size: int) -> None:
        said = json.dumps({"n": number, "text": "x" * size})
        self.write((f'42["say",{said}]' if self._socketio else said).encode())

    def close(self) -> None:
        self._transport.abort()


class Crowd:
    """All of them."""

    def __init__(self, senders: int, size: int) -> None:
        self.sockets: list[Socket] = []
        self.lost = 0
        self._senders = senders
        self._size = size
        self._deliveries = 0
        self._next = 0
        self._sent_at: list[float] = []
        self._on_heard: Callable[[], None] = lambda: None

    async def connect(self, ports: list[int], count: int, socketio: bool) -> None:
        loop = asyncio.get_running_loop()
        for number in range(count):
            port = ports[number % len(ports)]
            socket = Socket(self, port, socketio)
            await loop.create_connection(lambda socket=socket: socket, "127.0.0.1", port)  # type: ignore[misc]
            self.sockets.append(socket)
            await asyncio.wait_for(socket.ready, 10)

    def heard(self, count: int) -> None:
        self._deliveries += count
        self._on_heard()

    def say(self) -> None:
        # Neighbours are on different servers.
        self._sent_at.append(time.monotonic())
        self.sockets[self._next % self._senders].say(self._next, self._size)
        self._next += 1

    async def settle(self, patience: float) -> None:
        newest, since = -1, time.monotonic()
        while self._deliveries < self._next * len(self.sockets):
            if self._deliveries != newest:
                newest, since = self._deliveries, time.monotonic()
            elif time.monotonic() - since > patience:
                return
            await asyncio.sleep(0.01)

    async def saturate(self, seconds: float, window: int, patience: float) -> float:
        """Keep ``window`` messages on their way; returns the seconds from the first send to the last delivery."""
        began = time.monotonic()
        until = began + seconds

        def more() -> None:
            if time.monotonic() < until:
                while self._next * len(self.sockets) < self._deliveries + window * len(self.sockets):
                    self.say()

        self._on_heard = more
        more()
        await asyncio.sleep(seconds)
        await self.settle(patience)
        self._on_heard = lambda: None
        return max(socket.at[-1][0] for socket in self.sockets if socket.at) - began

    async def pace(self, rate: float, seconds: float, patience: float) -> None:
        """Send so many messages a second, whatever comes back."""
        began = time.monotonic()
        for number in range(max(1, int(rate * seconds))):
            delay = began + number / rate - time.monotonic()
            if delay > 0:
                await asyncio.sleep(delay)
            self.say()
        await self.settle(patience)

    def delays(self) -> list[float]:
        found = []
        for socket in self.sockets:
            numbers = iter(map(int, socket.got))
            for at, count in socket.at:
                found += [at - self._sent_at[next(numbers)] for _ in range(count)]
        return sorted(found)

    def mishaps(self) -> list[int]:
        """What all sockets lost, got twice, and got in another order than its sender's."""
        lost = doubled = reordered = 0
        for socket in self.sockets:
            counts = Counter(map(int, socket.got))
            lost += self._next - len(counts)
            doubled += sum(counts.values()) - len(counts)
            newest = [-1] * self._senders
            for number in map(int, socket.got):
                sender = number % self._senders
                reordered += number < newest[sender]
                newest[sender] = max(newest[sender], number)
        return [lost, doubled, reordered]

    def clear(self) -> None:
        for socket in self.sockets:
            socket.got.clear()
            socket.at.clear()
        self._deliveries = self._next = 0
        self._sent_at.clear()


async def play(order: dict[str, Any]) -> dict[str, Any]:
    crowd = Crowd(order["senders"], order["size"])
    await crowd.connect(order["ports"], order["sockets"], order["socketio"])
    seconds, patience = order["seconds"], order["patience"]
    mishaps: list[list[int]] = []
    for warm in (True, False):
        crowd.clear()
        gc.collect()
        server, own = cpu_of(order["pids"]), time.process_time()
        took = await crowd.saturate(seconds / 3 if warm else seconds, order["window"], patience)
        server, own = cpu_of(order["pids"]) - server, time.process_time() - own
        mishaps.append(crowd.mishaps())
    deliveries = sum(len(socket.got) for socket in crowd.sockets)
    rate = deliveries / took
    crowd.clear()
    await crowd.pace(rate / 2 / len(crowd.sockets), seconds, patience)
    mishaps.append(crowd.mishaps())
    delays = crowd.delays()
    closed = crowd.lost
    for socket in crowd.sockets:
        socket.close()
    return {
        "rate": rate,
        "cpu": server / max(deliveries, 1),
        "own": own / max(deliveries, 1),
        "busy": server / took,
        "p50": delays[len(delays) // 2],
        "p99": delays[int(len(delays) * 0.99)],
        "mishaps": [sum(some) for some in zip(*mishaps, strict=True)],
        "closed": closed,
    }


def main() -> None:
    gc.disable()
    order = json.loads(sys.stdin.readline())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(play(order))))


if __name__ == "__main__":
    main()
