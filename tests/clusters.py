"""A cluster of real servers on free ports of the loopback, each ended by its PID."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from servers import Server, free_port

__all__ = ["Cluster", "Node"]

SLOTS = 16384


class Node(Server):
    """One node of a cluster."""

    def __init__(self, kind: str, directory: Path, **options: str) -> None:
        port, bus = free_port(), free_port()  # the bus has its own: the default, 10000 above, may be taken
        super().__init__(
            kind,
            directory,
            port=port,
            cluster_enabled="yes",
            cluster_port=str(bus),
            cluster_config_file="nodes.conf",
            **options,
        )
        self.bus = bus
        self.id = self.call("CLUSTER", "MYID").decode()

    def meet(self, other: Node) -> None:
        """Make two nodes know each other."""
        self.call("CLUSTER", "MEET", "127.0.0.1", other.port, other.bus)


class Cluster:
    """Masters, each with replicas: ready when every node calls the cluster well and all replicas are in step.

    Args:
        node_timeout: Milliseconds without an answer after which a node counts as down.
        options: Of the servers.
    """

    def __init__(
        self,
        kind: str,
        directory: Path,
        *,
        masters: int = 3,
        replicas: int = 1,
        node_timeout: int = 1500,
        password: str = "",
        **options: str,
    ) -> None:
        self.kind, self.directory = kind, directory
        self.options = {
            "cluster_node_timeout": str(node_timeout),
            "cluster_replica_validity_factor": "0",
            "repl_diskless_sync_delay": "0",
            **options,
        }
        if password:
            self.options |= {"requirepass": password, "masterauth": password}
        self.nodes: list[Node] = []
        try:
            self._start(masters, replicas)
        except BaseException:
            self.kill()
            raise

    def _start(self, masters: int, replicas: int) -> None:
        first = [self.start_node() for _ in range(masters)]
        bounds = [SLOTS * number // masters for number in range(masters + 1)]
        for number, node in enumerate(first):
            node.calls(
                ("CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1),
                ("CLUSTER", "SET-CONFIG-EPOCH", number + 1),
            )
        others = [self.start_node() for _ in range(masters * replicas)]
        for node in self.nodes[1:]:
            self.nodes[0].meet(node)
        until(
            "all know each other",
            lambda: all(len(self.table(node)) == len(self.nodes) for node in self.nodes),
        )
        for number, node in enumerate(others):
            self.follow(node, first[number % masters])
        until("replicas are known", lambda: all(len(row) == 2 + replicas for row in self.view(self.nodes[0])))
        self.settle()

    def start_node(self) -> Node:
        """One more server, which knows nobody yet."""
        node = Node(self.kind, self.directory / f"node{len(self.nodes)}", **self.options)
        self.nodes.append(node)
        return node

    def join(self, master: Node | None = None) -> Node:
        """Add a node: empty, or a replica."""
        node = self.start_node()
        self.nodes[0].meet(node)
        alive = self.alive()
        until("it is known", lambda: all(len(self.table(each)) >= len(alive) for each in alive))
        if master is not None:
            self.follow(node, master)
        self.settle()
        return node

    def leave(self, node: Node) -> None:
        """Take an empty node out, and end it."""
        self.nodes.remove(node)
        for other in self.alive():
            other.call("CLUSTER", "FORGET", node.id)
        node.kill()

    def follow(self, node: Node, master: Node) -> None:
        """Make a node the replica of a master."""
        until("the master is known", lambda: node.call("CLUSTER", "REPLICATE", master.id) == b"OK")

    def alive(self) -> list[Node]:
        """Nodes that answer."""
        return [node for node in self.nodes if _answers(node)]

    def settle(self, timeout: float = 20.0) -> None:
        """Wait until all that are alive call the cluster well, agree, and replicas are in step."""
        until("the cluster is well", self._well, timeout)

    def _well(self) -> bool:
        alive = self.alive()
        views = set()
        for node in alive:
            info, role = node.calls(("CLUSTER", "INFO"), ("ROLE",))
            if b"cluster_state:ok" not in info or (role[0] == b"slave" and role[3] != b"connected"):
                return False
            views.add(self.view(node))
        return len(views) == 1

    @staticmethod
    def table(node: Node) -> list[list[str]]:
        """``CLUSTER NODES``, row by row."""
        reply = node.call("CLUSTER", "NODES")
        return [line.split() for line in reply.decode().splitlines() if "handshake" not in line]

    @staticmethod
    def view(node: Node) -> tuple[Any, ...]:
        """Ranges of slots, each with the ports of its master and replicas, as this node has it."""
        rows = node.call("CLUSTER", "SLOTS")
        return tuple(
            sorted(
                (first, master[1], *sorted(one[1] for one in others)) for first, _, master, *others in rows
            )
        )

    def by_port(self, port: int) -> Node:
        return next(node for node in self.nodes if node.port == port)

    def owner(self, slot: int) -> Node:
        """The master that has a slot."""
        for first, last, (_, port, *_), *_ in self.alive()[0].call("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return self.by_port(port)
        raise LookupError(f"nobody has slot {slot}")

    def masters(self) -> list[Node]:
        """The masters that have slots."""
        ports = {port for _, _, (_, port, *_), *_ in self.alive()[0].call("CLUSTER", "SLOTS")}
        return [node for node in self.nodes if node.port in ports]

    def replica_of(self, master: Node) -> Node:
        """A replica that is alive."""
        for row in self.table(master):
            if row[3] == master.id and "fail" not in row[2]:
                return next(node for node in self.nodes if node.id == row[0])
        raise LookupError(f"no replica of {master.port}")

    def begin_to_migrate(self, slot: int, target: Node) -> Node:
        """From now on the slot is between two masters; returns the old one."""
        source = self.owner(slot)
        target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
        return source

    def move_keys(self, slot: int, source: Node, target: Node) -> None:
        """Move what is in a slot that is between two masters."""
        while keys := source.call("CLUSTER", "GETKEYSINSLOT", slot, 100):
            self.move(keys, source, target)

    def move(self, keys: list[bytes], source: Node, target: Node) -> None:
        """Move some of them."""
        auth = ("AUTH", password) if (password := self.options.get("requirepass")) else ()
        reply = source.call("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, *auth, "KEYS", *keys)
        if reply not in (b"OK", b"NOKEY"):
            raise RuntimeError(f"MIGRATE {keys}: {reply}")

    def end_migration(self, slot: int, source: Node, target: Node) -> None:
        """Give the slot to its new master, and tell all."""
        self.move_keys(slot, source, target)
        for node in (target, source, *self.masters()):
            node.call("CLUSTER", "SETSLOT", slot, "NODE", target.id)

    def migrate(self, slot: int, target: Node) -> None:
        """Move one slot, as resharding does."""
        if self.owner(slot) is not target:
            source = self.begin_to_migrate(slot, target)
            self.end_migration(slot, source, target)

    @property
    def url(self) -> str:
        """With two seeds."""
        password = self.options.get("requirepass")
        login = f":{password}@" if password else ""
        return f"{self.kind}+cluster://{login}" + ",".join(
            f"127.0.0.1:{node.port}" for node in self.nodes[:2]
        )

    def kill(self) -> None:
        """End all processes."""
        for node in self.nodes:
            node.kill()


def _answers(node: Node) -> bool:
    try:
        return bool(node.call("PING") == b"PONG")
    except (TimeoutError, OSError, EOFError):
        return False


def until(what: str, condition: Callable[[], Any], timeout: float = 20.0) -> None:
    """Wait for something to come true."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not in {timeout} s: {what}")
        time.sleep(0.03)
