"""Redis and Valkey: every topic in one log and one pub/sub channel, chained by its senders.

What is published is appended to the topic's log and pushed, in one trip. Pushes are all that anybody reads until one is
missing: then the log is. Numbers in front of each frame (``trunkline.continuity``) tell what is missing, so the server
needs no memory that could be wrong after a crash or a failover.

Where it ends:

- A server that loses queues, or the end of them, may hand out a frame again or not at all: their readers keep no marks.
- A sender that dies within ``Pace.window`` seconds takes with it what its server then forgets.
- A process that is killed outright takes with it what its pulls were given: a frame each, of a quick reader up to eight.
- A large post that meets a server which begins or ends to refuse work in between its commands may count twice against
  its channel: one less fits into it.
- Right after somebody's ``SCRIPT FLUSH``, a post may arrive behind a publish that was sent after it.
- Order holds for the names of one server, or of one of the 256 partitions of a cluster, not between several.
"""

from .transport import RedisTransport

__all__ = ["RedisTransport"]
