"""Redis and Valkey: every name in one log and one pub/sub channel, chained by its senders."""

from .transport import RedisTransport

__all__ = ["RedisTransport"]
