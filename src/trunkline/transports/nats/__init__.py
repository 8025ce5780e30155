"""NATS: topics and posts over core NATS, shared queues and, where wanted, a log of the topics in JetStream.

What a turn of the loop sends to one topic, or to one node, is one ``PUB``. Publishes are confirmed by a ``PONG`` that all
of a turn share. A post is a request that its node answers: the owner counts, so capacity is exact, and NATS itself says when
there is no such node. A queue is a JetStream work queue. Numbers in front of each frame (``trunkline.continuity``) tell
what was missed; with ``recover`` it is read from the log, without it is told as a gap.

Rooms: ``wire`` is the connection; ``link`` says and asks, in order, and again when it must; ``topics`` hears what is
published, and has ``reading`` read what was missed; ``inbox`` takes posts; ``queues``, ``history`` and ``interest`` stand
on the link.

Where it ends:

- Without ``recover``, what a node missed while its connection was down is lost, and told.
- A loss between two servers of a cluster is seen with the same sender's next frame for that topic, not before.
- A post that waits for its node to come back arrives behind what was published meanwhile.
- A pull that is killed between its acknowledgement and its caller takes the frame with it.
"""

from .transport import NatsTransport

__all__ = ["NatsTransport"]
