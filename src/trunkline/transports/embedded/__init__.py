"""Every process of one machine, no server: SQLite is the log, a Unix datagram is the push.

A frame is committed to the log first and pushed second, so whatever the push loses, the log still has. No process is
special: any of them may be killed at any moment. The rooms:

- ``directory``  where the files are, and who may touch them
- ``opening``    the log: made, or moved aside when it is not ours
- ``store``      the log: every SQL statement, one method each
- ``large``      the bodies of large frames, in a file beside the log
- ``writer``     writes of one loop tick, one transaction
- ``peers``      the datagram sockets: push, and who is alive
- ``inbox``      what this node has read: at most once each, in each sender's order
- ``depths``     posted frames that count against a capacity
- ``pulls``      the local readers of shared queues
- ``node``       joined, cut off, joined again; what arrives
- ``records``    what this node keeps beside topics
- ``transport``  the contract
"""

from __future__ import annotations

import os
import socket

from ...errors import ConfigurationError

if os.name == "nt" or not hasattr(socket, "AF_UNIX"):
    raise ConfigurationError(
        "embedded:// needs Unix datagram sockets, which this system does not have: use memory:// in one process, "
        "redis:// between several"
    )

from .transport import EmbeddedTransport

__all__ = ["EmbeddedTransport"]
