"""The words of pub/sub: one server's, which knows one set of channels, or a cluster's, where each shard has its own."""

from __future__ import annotations

from dataclasses import dataclass

from .scripts import Script, load_commands

__all__ = ["PLAIN", "SHARDED", "Dialect"]


@dataclass(frozen=True)
class Dialect:
    """Which commands publish and subscribe, and what the server calls what it pushes."""

    sharded: bool
    publish: bytes
    subscribe: bytes
    unsubscribe: bytes
    #: Kinds of pushes.
    message: bytes
    subscribed: bytes
    unsubscribed: bytes

    def sha(self, script: Script) -> str:
        """How the server names a script that publishes by these words."""
        return script.sharded_sha if self.sharded else script.sha

    def load_commands(self) -> list[tuple[str, ...]]:
        """What teaches a server all scripts."""
        return load_commands(self.sharded)


PLAIN = Dialect(False, b"PUBLISH", b"SUBSCRIBE", b"UNSUBSCRIBE", b"message", b"subscribe", b"unsubscribe")
SHARDED = Dialect(
    True, b"SPUBLISH", b"SSUBSCRIBE", b"SUNSUBSCRIBE", b"smessage", b"ssubscribe", b"sunsubscribe"
)
