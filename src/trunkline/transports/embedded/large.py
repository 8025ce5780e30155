"""The bodies of large frames: in one file beside the log, whose rows say where.

In SQLite a megabyte is 256 pages, each written with a checksum, copied once more by the checkpoint and read one by one.
Here it is written once and read once; and a place that is free again is written over, which costs less than a new file.

What is free is decided by the log alone: a place belongs to a body from the commit of its row until the commit that
deletes it. So a process that is killed in between leaves nothing behind, and nobody has to tidy up. A body is written
under the log's write lock. A reader without the lock asks afterwards whether the row is still there: then nobody can
have begun to write over it.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from ...errors import TransportUnavailable

__all__ = ["LARGE", "Body", "Large", "LargeFull", "end_of", "length"]

#: Bytes from which on the body of a frame is here.
LARGE = 64 << 10
#: Places are multiples of so many bytes.
_PAGE = 4096
#: Bytes that the file keeps for what comes next.
_SLACK = 16 << 20
#: Gaps that are looked at before a body goes behind all others.
_PROBES = 16

#: A frame as its row holds it: its bytes, or the place of its body here: in hexadecimal digits its page, its size,
#: and a random stamp that is written before and after it.
Body = bytes | str


class LargeFull(sqlite3.OperationalError):
    """No room here, which to whoever writes is the same as no room in the log."""

    sqlite_errorcode = sqlite3.SQLITE_FULL


def length(body: Body) -> int:
    """The bytes of a frame."""
    return len(body) if isinstance(body, bytes) else int(body[10:18], 16)


def end_of(place: str) -> int:
    """The byte behind a place; 0 for none, which is ""."""
    return _end(place) * _PAGE if place else 0


def _start(place: str) -> int:
    return int(place[:10], 16)


def _end(place: str) -> int:
    return _start(place) + _pages(length(place))


def _pages(size: int) -> int:
    return (size + 8 + _PAGE - 1) // _PAGE


class Large:
    """The file of one log."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)

    def find(self, size: int, taken: Iterable[str] | None, last: str, limit: int) -> str:
        """A free place for so many bytes, as low as a short look tells.

        Args:
            taken: The places that are not free, in order; None: only behind the last there is a free one.
            last: The last of them; "" for none.
            limit: Bytes that the file may grow to.

        Raises:
            LargeFull: There is none.
        """
        pages = _pages(size)
        highest = limit // _PAGE - pages
        behind = end_of(last) // _PAGE
        page = behind if taken is None else 0
        for probe, place in enumerate(taken or ()):
            if _start(place) - page >= pages:
                break
            page = _end(place)
            if probe == _PROBES and behind <= highest:
                page = behind
                break
        if page > highest:
            raise LargeFull(f"{self.path} may not grow beyond {limit} bytes")
        return f"{page:010x}{size:08x}{os.urandom(4).hex()}"

    def write(self, place: str, frame: bytes) -> None:
        """Write a body to its place.

        Raises:
            LargeFull: The disk has no room.
            TransportUnavailable: It cannot be written.
        """
        stamp = bytes.fromhex(place[18:])
        try:
            done = os.pwritev(self._file, (stamp, frame, stamp), _start(place) * _PAGE)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise LargeFull(str(error)) from error
            raise TransportUnavailable(f"cannot write to {self.path}: {error}") from error
        if done < len(frame) + 8:
            raise LargeFull(f"there was room for {done} bytes of {len(frame) + 8}")

    def read(self, place: str) -> bytes | None:
        """The body at a place; None when it is not there: deleted, cut short, never written before a power cut."""
        start, size, stamp = _start(place) * _PAGE, length(place), bytes.fromhex(place[18:])
        try:
            frame = os.pread(self._file, size, start + 4)
            before, after = os.pread(self._file, 4, start), os.pread(self._file, 4, start + 4 + size)
        except OSError:
            return None
        return frame if before == after == stamp and len(frame) == size else None

    def excess(self, last: str) -> bool:
        """Whether the file is larger than it need be."""
        return os.fstat(self._file).st_size > max(end_of(last), _SLACK)

    def shrink(self, last: str) -> None:
        """Cut off what is behind the last place that is taken."""
        if self.excess(last):
            os.ftruncate(self._file, end_of(last))

    def moved(self) -> bool:
        """Whether the path no longer leads to the open file."""
        try:
            return not os.path.samestat(os.stat(self.path), os.fstat(self._file))
        except OSError:
            return True

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
