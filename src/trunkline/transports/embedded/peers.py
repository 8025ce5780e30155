"""The datagram sockets: push, and who is alive.

A node's bound socket is its lock: the kernel closes it however the process ends, and from then on sending to it fails
with "connection refused". A socket that is merely full belongs to a live node, stopped or busy; what it did not take
is in the log, and it is told so as soon as it reads again.

One datagram per node and loop tick, MessagePack: ``[epoch, sender, previous, last, frames or None, queues]``. ``last``
is the newest frame addressed to that node, ``previous`` the newest before those in this datagram: a node that has
everything up to ``previous`` need not look into the log. ``queues`` have work for an idle reader.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ormsgpack

from .directory import socket_address
from .store import Frame

__all__ = ["Arrived", "Peers"]

_log = logging.getLogger("trunkline.embedded")

#: Bytes of frames in one datagram; larger ones are fetched from the log. Default socket buffers take four of these.
_LARGEST_PUSH = 32 << 10
#: What the kernel may hold of one sender; it doubles what it is told. No datagram is larger.
_SEND_BUFFER = 104 << 10
#: Datagrams, and bytes of their frames, read before other callbacks have their turn.
_AT_ONCE = 32
_BYTES_AT_ONCE = 2 << 20
#: Seconds until a node is tried again on systems that cannot tell when its socket has room.
_LATER = 0.02
#: Names of dead nodes to remember, for calls on their way.
_GRAVES = 1024

#: What a datagram says: epoch, sender, previous, last, frames, queues. Returns how many bytes were delivered.
Arrived = Callable[[int, str, int, int, "list[list[Any]] | None", "list[str]"], int]


class _Peer:
    """Another node, as this one sends to it."""

    __slots__ = ("behind", "frames", "last", "previous", "queues", "size", "socket")

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        #: Ids of the newest frames addressed to it: staged, and in datagrams before.
        self.last = self.previous = 0
        self.frames: list[tuple[Any, ...]] = []
        self.size = 0
        self.queues: set[str] = set()
        #: Its socket was full: once it has room, it is told to read the log.
        self.behind = False


class Peers:
    """This node's own socket and one to each node it sends to."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        node: str,
        arrived: Arrived,
        died: Callable[[str, set[str]], None],
    ) -> None:
        self._loop = loop
        self._node = node
        self._arrived = arrived
        self._died = died
        self._epoch = 0
        self._nodes = Path()
        self._nodes_fd = -1
        self._own: socket.socket | None = None
        self._inode = 0
        self._peers: dict[str, _Peer] = {}
        self._staged: dict[str, _Peer] = {}
        self._dead: dict[str, None] = {}
        self._buffer = memoryview(bytearray(2 * _SEND_BUFFER))

    # Life

    def open(self, nodes: Path, epoch: int) -> None:
        """Bind this node's socket: from here on it is alive for all who know its name."""
        self.close()
        self._epoch, self._nodes = epoch, nodes
        self._nodes_fd = os.open(nodes, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        path = self._path(self._node)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        self._own = _datagram_socket()
        self._own.bind(socket_address(nodes, self._nodes_fd, self._node))
        path.chmod(0o600)
        self._inode = path.stat().st_ino
        self._loop.add_reader(self._own.fileno(), self._readable)

    def close(self) -> None:
        """Close every socket and remove this node's."""
        if self._own is not None:
            self._loop.remove_reader(self._own.fileno())
            if self.bound():
                with contextlib.suppress(OSError):
                    self._path(self._node).unlink()
        for peer in self._peers.values():
            if peer.behind:
                self._loop.remove_writer(peer.socket.fileno())
        self.abandon()

    def abandon(self) -> None:
        """Close the descriptors and nothing more: the socket file and the event loop belong to the parent."""
        for peer in self._peers.values():
            peer.socket.close()
        self._peers.clear()
        self._staged.clear()
        if self._own is not None:
            self._own.close()
            self._own = None
        if self._nodes_fd >= 0:
            os.close(self._nodes_fd)
            self._nodes_fd = -1

    def bound(self) -> bool:
        """Whether others can still find this node's socket."""
        try:
            return self._path(self._node).stat().st_ino == self._inode
        except OSError:
            return False

    def _path(self, node: str) -> Path:
        return self._nodes / f"{node}.sock"

    # Who is alive

    def is_dead(self, node: str) -> bool:
        return node in self._dead

    def probe(self, node: str) -> bool:
        """Whether the node is alive, without sending it anything."""
        try:
            self._connect(node).close()
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError as error:
            _log.warning("cannot tell whether node %s is alive: %s", node, error)
        return True

    def bury(self, node: str) -> None:
        """Remove a dead node's socket file."""
        with contextlib.suppress(FileNotFoundError):
            self._path(node).unlink()

    def forget(self, registered: Iterable[str]) -> None:
        """Close the sockets to nodes that have left."""
        for node in set(self._peers).difference(registered):
            self._drop(node)

    def orphans(self, registered: Iterable[str]) -> list[str]:
        """Nodes with a socket file, older than ten seconds, and no registration."""
        known = {f"{name}.sock" for name in registered}
        old = time.time() - 10  # a younger one may be about to register
        found = []
        with contextlib.suppress(FileNotFoundError), os.scandir(self._nodes) as entries:  # one left meanwhile
            for entry in entries:
                if entry.name not in known and entry.name.endswith(".sock") and entry.stat().st_mtime < old:
                    found.append(entry.name.removesuffix(".sock"))
        return found

    def _connect(self, node: str) -> socket.socket:
        made = _datagram_socket()
        try:
            made.connect(socket_address(self._nodes, self._nodes_fd, node))
        except BaseException:
            made.close()
            raise
        return made

    # Sending

    def _peer(self, node: str, queue: str | None = None) -> _Peer | None:
        peer = self._peers.get(node)
        if peer is None:
            try:
                peer = self._peers[node] = _Peer(self._connect(node))
            except (ConnectionRefusedError, FileNotFoundError):
                self._lose(node, {queue} if queue else set())
                return None
            except OSError as error:  # no descriptor left; the node looks into the log within a second
                _log.warning("cannot wake node %s: %s", node, error)
                return None
            self._dead.pop(node, None)
        self._staged[node] = peer
        return peer

    def stage(self, node: str, frame: Frame) -> None:
        """Have a committed frame pushed by the next ``send``."""
        peer = self._peer(node)
        if peer is None:
            return
        peer.last = frame.id
        peer.size += len(frame.body) + len(frame.topic) + len(frame.channel or "") + 32
        if peer.size <= _LARGEST_PUSH:
            peer.frames.append((frame.id, frame.topic, frame.channel, frame.capacity, frame.body))

    def wake(self, node: str, queue: str) -> None:
        """Have the node told by the next ``send`` that a queue has work."""
        peer = self._peer(node, queue)
        if peer is not None:
            peer.queues.add(queue)

    def send(self) -> None:
        """Push what is staged: one datagram to each node."""
        while self._staged:
            self._send(*self._staged.popitem())

    def _send(self, node: str, peer: _Peer) -> None:
        frames = peer.frames if peer.size <= _LARGEST_PUSH and not peer.behind else None
        previous, peer.previous = peer.previous, peer.last
        if peer.frames:
            peer.frames = []
        peer.size = 0
        if peer.behind:
            return
        parts = (self._epoch, self._node, previous, peer.last, frames or None, list(peer.queues))
        try:
            peer.socket.send(ormsgpack.packb(parts))
        except (ConnectionError, FileNotFoundError):
            self._lose(node, peer.queues)
        except OSError as error:
            if error.errno == errno.EMSGSIZE and frames:
                self._remind(node, peer)
                return
            peer.behind = True
            if isinstance(error, BlockingIOError):
                self._loop.add_writer(peer.socket.fileno(), self._has_room, node, peer)
            else:  # macOS says ENOBUFS when a socket is full
                self._loop.call_later(_LATER, self._has_room, node, peer)
        else:
            peer.queues.clear()

    def _has_room(self, node: str, peer: _Peer) -> None:
        if self._peers.get(node) is peer:
            self._loop.remove_writer(peer.socket.fileno())
            peer.behind = False
            self._remind(node, peer)

    def _remind(self, node: str, peer: _Peer) -> None:
        """Have the node read the log: a datagram without frames."""
        peer.size = _LARGEST_PUSH + 1
        self._send(node, peer)

    def _lose(self, node: str, queues: set[str]) -> None:
        self._drop(node)
        self._dead[node] = None
        if len(self._dead) > _GRAVES:
            del self._dead[next(iter(self._dead))]
        self._died(node, queues)

    def _drop(self, node: str) -> None:
        peer = self._peers.pop(node, None)
        self._staged.pop(node, None)
        if peer is not None:
            if peer.behind:
                self._loop.remove_writer(peer.socket.fileno())
            peer.socket.close()

    # Receiving

    def _readable(self) -> None:
        delivered = 0
        for _ in range(_AT_ONCE):
            if self._own is None or delivered > _BYTES_AT_ONCE:
                return
            try:
                size = self._own.recv_into(self._buffer)
            except (BlockingIOError, InterruptedError):
                return
            delivered += self._arrived(*ormsgpack.unpackb(self._buffer[:size]))


def _datagram_socket() -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    return made
