"""NATS: topics and posts over core NATS, shared queues and, where wanted, a log of the topics in JetStream.

A publish is one ``PUB``, confirmed by a ``PONG`` that all publishes of a turn of the loop share. A post is a request that
its node answers: the owner counts, so capacity is exact, and NATS itself says when there is no such node. A queue is a
JetStream work queue. Numbers in front of each frame (``trunkline.continuity``) tell what was missed; with ``recover`` it
is read from the log, without it is told as a gap.

Where it ends:

- Without ``recover``, what a node missed while its connection was down is lost, and told.
- A loss between two servers of a cluster is seen with the same sender's next frame for that topic, not before.
- A post that waits for its node to come back arrives behind what was published meanwhile.
- A pull that is killed between its acknowledgement and its caller takes the frame with it.
"""

from .transport import NatsTransport

__all__ = ["NatsTransport"]
