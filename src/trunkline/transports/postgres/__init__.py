"""PostgreSQL: an unlogged table is the log, NOTIFY is the push, one batching writer per process and loop is the pace.

All that a node does in one turn of the loop is one call of one function on the server, sent again until it is answered:
the server counts it once by its number. What is published is put into the log and notified in the same transaction, so
a committed frame is pushed however late its commit. Frames carry the chain of ``trunkline.continuity``, as on Redis.

Rooms: ``transport`` (the contract) - ``link`` (one supervisor, two connections) - ``outbox`` (what we write) - ``inflow``
(what we hear) - ``readers`` (pulls) - ``records`` (what we keep beside topics) - ``inbox`` (counts of what was posted to
us) - ``driver`` (the only room that knows a driver) - ``schema`` (tables and functions) - ``doctor``.

Where it ends:

- Unlogged tables are empty after a crash and on a promoted standby. Senders repeat their last ``Pace.window`` seconds;
  what is missing then is told as a gap. Queues lose what waited in them.
- A process that is killed outright takes with it what its pulls were given: a quick one up to sixteen frames.
- LISTEN belongs to a session: a pooler in transaction mode cannot carry it, and is refused with a clear text.
"""

from .schema import schema_sql
from .transport import PostgresTransport

__all__ = ["PostgresTransport", "schema_sql"]
