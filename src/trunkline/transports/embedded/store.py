"""The log: one SQLite file, every statement one method.

SQLite allows one writer at a time, so ids are given and committed in the same order and nothing can slip in behind a
reader. Methods that write belong between ``begin`` and ``commit``. ``begin`` never sleeps: the event loop does not wait
for another process.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .large import LARGE, Body, Large, end_of

__all__ = [
    "PAGE",
    "Frame",
    "Identity",
    "Store",
    "beside",
    "close_inherited",
    "identity",
    "is_busy",
    "is_corrupt",
    "is_full",
]

_log = logging.getLogger("trunkline.embedded")

#: Bytes of a page of the file.
PAGE = 4096
#: Seconds that an expired frame stays for a node that is only late.
_GRACE = 5.0
#: Seconds that what a topic remembers stays when nothing new comes.
_DAY = 86_400.0
#: Commits, and bytes of frames, after which the write-ahead log is copied into the file.
_CHECKPOINT = 250
_CHECKPOINT_BYTES = 4 << 20
#: Seconds after which records that were left behind are deleted though nobody has told of it; and which keepers that
#: concerns: what was reaped is remembered for a day, for a node that comes back.
_UNTOLD = 600.0
_UNREAPED = "until <= ? AND (mark <> 1 OR n > 0 OR until <= ?)"
#: Seconds that ``begin`` may keep the event loop.
_SPIN = 0.00015

#: A row of a queue: its id, when it expires, what it holds, and how often it was leased.
Queued = tuple[int, float, Body, int]

#: Connections of the parent of this forked process.
_inherited: list[sqlite3.Connection] = []

Identity = tuple[int, int]


class Frame(NamedTuple):
    """One row of the log."""

    id: int
    topic: str
    sender: str
    #: The channel whose depth it counts for; None: it is not counted.
    channel: str | None
    capacity: int | None
    body: Body


def _code(error: BaseException) -> int:
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def is_busy(error: BaseException) -> bool:
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_full(error: BaseException) -> bool:
    return _code(error) == sqlite3.SQLITE_FULL


def is_corrupt(error: BaseException) -> bool:
    return _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Store:
    """One node's connection to the log."""

    def __init__(self, connection: sqlite3.Connection, path: Path, max_size: int) -> None:
        self._connection = connection
        self._do = connection.execute
        self.path = path
        self.max_size = max_size
        self.identity = identity(path)
        self.epoch: int = self._one("SELECT epoch FROM meta")
        lock = path.with_name("checkpoint")
        self._lock = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._commits = self._bytes = 0
        self._process = os.getpid()
        self._seen_version = -1
        self._large = Large(beside(path))
        #: Places that this transaction has given up: until it is committed they are not free.
        self._gone: set[str] = set()
        connection.create_function("let_go", 1, self._gone.add)
        #: A body was not where its row said: somebody has deleted it, or a power cut has.
        self.robbed = False
        self._debt = self._debt_bytes = 0

    def _one(self, sql: str, *values: Any) -> Any:
        row = self._do(sql, values).fetchone()
        return None if row is None else row[0]

    # Transactions

    def begin(self) -> bool:
        """Take the write lock; False when another process holds it and does not let go within 0.15 ms."""
        until = time.perf_counter() + _SPIN
        while True:
            try:
                self._do("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if not is_busy(error):
                    raise
                if time.perf_counter() > until:
                    return False
                os.sched_yield()
            else:
                return True

    def commit(self) -> None:
        self._do("COMMIT")
        self._gone.clear()
        self._commits += 1
        if self._commits >= _CHECKPOINT or self._bytes >= _CHECKPOINT_BYTES:
            self._checkpoint()

    def _checkpoint(self) -> None:
        """Copy the write-ahead log into the file, one process at a time.

        SQLite before 3.51.3 can lose pages when a checkpoint starts in the instant another connection starts the log
        over. It is only started over once all of it was copied: so copy under a lock, and first write something that
        needs copying.
        """
        self._commits = self._bytes = 0
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # another process is at it
        try:
            if self.begin():
                self._do("UPDATE meta SET checkpoints = checkpoints + 1")
                self._share_room()
                self._do("COMMIT")
                self._do("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as error:
            self.rollback()
            if not (is_busy(error) or is_full(error)):
                _log.warning("cannot checkpoint %s: %s", self.path, error)
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def rollback(self) -> None:
        if self._connection.in_transaction:  # some errors have rolled back already
            with contextlib.suppress(sqlite3.Error):
                self._do("ROLLBACK")
        self._gone.clear()

    def close(self) -> None:
        self._close_descriptors()
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()

    def abandon(self) -> None:
        """Close; in a forked child, put off until this process opens a store of its own."""
        if os.getpid() == self._process:
            self.close()
        else:
            self._close_descriptors()
            _inherited.append(self._connection)

    def _close_descriptors(self) -> None:
        self._large.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def moved(self) -> bool:
        """Whether the path no longer leads to the open file, or the one beside it is gone."""
        return identity(self.path) != self.identity or self._large.moved()

    def changed(self) -> bool:
        """Whether another connection has committed since the last call."""
        version = self._one("PRAGMA data_version")
        changed: bool = version != self._seen_version
        self._seen_version = version
        return changed

    # Bodies

    def _keep(self, body: Body) -> Body:
        """A body as its row is to hold it; a large one has its place from here on, one with a place stays there."""
        if isinstance(body, bytes):
            if len(body) < LARGE:
                self._bytes += len(body)
                return body
            frame, body = body, self._find_place(len(body))
            self._large.write(body, frame)
        else:
            self._gone.discard(body)
        self._do("INSERT INTO large VALUES (?)", (body,))
        return body

    def _find_place(self, size: int) -> str:
        pages = self._one("PRAGMA page_count") - self._one("PRAGMA freelist_count")
        last, limit = self._last_place(), self.max_size - pages * PAGE
        if self._gone:
            return self._large.find(size, None, max(last, *self._gone), limit)
        taken = (row[0] for row in self._do("SELECT place FROM large ORDER BY place"))
        return self._large.find(size, taken, last, limit)

    def _share_room(self) -> None:
        """Leave to the file what the large bodies leave of ``max_size``: done now and then, for it is no exact bound."""
        room = self.max_size - end_of(self._last_place())
        self._do(f"PRAGMA max_page_count = {max(64, room // PAGE)}")

    def _last_place(self) -> str:
        last: str = self._one("SELECT max(place) FROM large") or ""
        return last

    def _has_frame(self, id: int) -> bool:
        return self._one("SELECT 1 FROM frame WHERE id = ?", id) is not None

    def load(self, id: int, place: str) -> bytes | None:
        """The large body of a row of the log; None when the row was deleted meanwhile, or the body is lost."""
        frame = self._large.read(place)
        if not self._has_frame(id):  # so another body may be at its place
            return None
        self.robbed = self.robbed or frame is None
        return frame

    def _fetch(self, body: Body) -> bytes | None:
        """The frame that a row holds, in a transaction; None when its body is lost."""
        if isinstance(body, bytes):
            return body
        frame = self._large.read(body)
        self.robbed = self.robbed or frame is None
        return frame

    # Nodes

    def register(self, node: str) -> int:
        """Add a node; returns the watermark it starts from."""
        last = self.last()
        self._do("INSERT OR REPLACE INTO node VALUES (?, ?, 0)", (node, last))
        return last

    def unregister(self, node: str) -> None:
        self._do("DELETE FROM node WHERE name = ?", (node,))
        self._do("DELETE FROM subscription WHERE node = ?", (node,))
        self._do("DELETE FROM waiting WHERE node = ?", (node,))
        self._do("DELETE FROM depth WHERE node = ?", (node,))
        self._do("UPDATE keeper SET until = min(until, ?) WHERE node = ?", (time.time(), node))
        if self._one("SELECT 1 FROM node LIMIT 1") is None:
            self._forget("true")

    def nodes(self) -> list[str]:
        return [row[0] for row in self._do("SELECT name FROM node")]

    def has_node(self, node: str) -> bool:
        return self._one("SELECT 1 FROM node WHERE name = ?", node) is not None

    def missed(self, node: str) -> int | None:
        """The last frame that expired before the node read it; None when the node is not registered."""
        found: int | None = self._one("SELECT missed FROM node WHERE name = ?", node)
        return found

    def set_watermark(self, node: str, watermark: int) -> bool:
        """Tell how far the node has read; False when the node is not registered."""
        done = self._do("UPDATE node SET watermark = ? WHERE name = ?", (watermark, node))
        return done.rowcount > 0

    # Topics

    def last(self) -> int:
        """The id of the newest frame."""
        return self._one("SELECT seq FROM sqlite_sequence WHERE name = 'frame'") or 0

    def subscribe(self, topic: str, node: str) -> int:
        """Subscribe; returns the id up to which frames were published before."""
        since = self.last()
        self._do("INSERT OR IGNORE INTO subscription VALUES (?, ?, ?)", (topic, node, since))
        return since

    def unsubscribe(self, topic: str, node: str) -> None:
        self._do("DELETE FROM subscription WHERE topic = ? AND node = ?", (topic, node))

    def subscribers(self, topic: str) -> list[str]:
        return [row[0] for row in self._do("SELECT node FROM subscription WHERE topic = ?", (topic,))]

    def append(
        self, topic: str, sender: str, channel: str | None, capacity: int | None, expires: float, frame: bytes
    ) -> Frame:
        """Add a frame to the log and purge about as much as was added."""
        body = self._keep(frame)
        row = (topic, sender, channel, capacity, expires, body)
        done = self._do(
            "INSERT INTO frame (topic, sender, channel, capacity, expires, body) VALUES (?, ?, ?, ?, ?, ?)",
            row,
        )
        self._debt += 1
        self._debt_bytes += len(frame)
        if self._debt_bytes >= 1 << 20:
            self._purge_settled(2 * self._debt)
        if self._debt >= 32 or self._debt_bytes >= 1 << 20:
            self.purge(2 * self._debt, time.time() - _GRACE)
            self._debt = self._debt_bytes = 0
        return Frame(done.lastrowid or 0, topic, sender, channel, capacity, body)

    def unread(self, node: str, watermark: int, up_to: int) -> Iterator[Frame]:
        """The frames of others for this node, after ``watermark``, oldest first."""
        rows = self._do(
            "SELECT f.id, f.topic, f.sender, f.channel, f.capacity, f.body FROM frame f"
            " JOIN subscription s ON s.topic = f.topic AND s.node = ?"
            " WHERE f.id > ? AND f.id <= ? AND f.id > s.since AND f.sender <> ? ORDER BY f.id",
            (node, watermark, up_to, node),
        )
        return map(Frame._make, rows)

    def purge(self, count: int, stale: float) -> None:
        """Delete up to ``count`` of the oldest frames: read by every node, or expired before ``stale``."""
        oldest = self._one("SELECT min(id) FROM frame")
        if oldest is None:
            return
        read = self._read_by_all()
        if read >= oldest:
            self._forget("id <= ?", min(read, oldest + count))
            return
        head = self._do("SELECT id, expires FROM frame ORDER BY id LIMIT ?", (count,)).fetchall()
        fresh = next((index for index, (_, expires) in enumerate(head) if expires > stale), len(head))
        if fresh == 0:
            return
        cut = head[fresh - 1][0]
        self._do(
            "UPDATE node SET missed = :cut WHERE watermark < :cut AND EXISTS (SELECT 1 FROM frame f"
            " JOIN subscription s ON s.topic = f.topic AND s.node = node.name"
            " WHERE f.id <= :cut AND f.id > node.watermark AND f.id > s.since AND f.sender <> node.name)",
            {"cut": cut},
        )
        self._forget("id <= ?", cut)

    def _purge_settled(self, count: int) -> None:
        """Delete those of the oldest frames that all have read whom they concern; others may not have looked yet."""
        self._forget(
            "id < (SELECT min(id) FROM frame) + ? AND NOT EXISTS ("
            " SELECT 1 FROM subscription s JOIN node n ON n.name = s.node"
            " WHERE s.topic = frame.topic AND s.since < frame.id AND n.watermark < frame.id AND n.name <> frame.sender)",
            count,
        )

    def _forget(self, which: str, *values: Any) -> None:
        """Delete frames of the log, with their bodies."""
        if self._one("SELECT 1 FROM large LIMIT 1") is not None:
            self._do(
                "DELETE FROM large WHERE place IN"
                f" (SELECT body FROM frame WHERE typeof(body) = 'text' AND {which})",
                values,
            )
        self._do(f"DELETE FROM frame WHERE {which}", values)

    # Depth: posted frames that wait

    def depth(self, node: str, channel: str) -> int:
        return self._one("SELECT n FROM depth WHERE node = ? AND channel = ?", node, channel) or 0

    def set_depth(self, node: str, channel: str, n: int) -> None:
        if n > 0:
            self._do("INSERT OR REPLACE INTO depth VALUES (?, ?, ?)", (node, channel, n))
        else:
            self._do("DELETE FROM depth WHERE node = ? AND channel = ?", (node, channel))

    def forget_depths(self, node: str) -> None:
        self._do("DELETE FROM depth WHERE node = ?", (node,))

    # Queues

    def room(self, queue: str, capacity: int) -> bool:
        """Whether the queue holds fewer live frames than its capacity."""
        held: int = self._one("SELECT n FROM backlog WHERE queue = ?", queue) or 0
        if held < capacity:
            return True
        gone = self._do("DELETE FROM queue WHERE queue = ? AND expires <= ?", (queue, time.time())).rowcount
        return held - gone < capacity

    def enqueue(self, queue: str, expires: float, body: Body, row: int | None = None, tries: int = 0) -> None:
        """Add a frame to a queue; with ``row``, back where it was."""
        body = self._keep(body)
        self._do("INSERT INTO queue VALUES (?, ?, ?, ?, ?)", (row, queue, expires, body, tries))

    def dequeue(self, queue: str, count: int) -> list[tuple[Queued, bytes]]:
        """Take the oldest live frames, each with its row."""
        now = time.time()
        taken: list[tuple[Queued, bytes]] = []
        while len(taken) < count:
            rows = self._do(
                "SELECT id, expires, body, tries FROM queue WHERE queue = ? ORDER BY id LIMIT ?",
                (queue, count - len(taken)),
            ).fetchall()
            if not rows:
                break
            self._do("DELETE FROM queue WHERE queue = ? AND id <= ?", (queue, rows[-1][0]))
            for row in rows:
                if row[1] > now and (frame := self._fetch(row[2])) is not None:
                    taken.append((row, frame))
        return taken

    def has_work(self, queue: str) -> bool:
        if self._one("SELECT 1 FROM backlog WHERE queue = ?", queue) is not None:
            return True
        due = self._next_due(queue)
        return due is not None and due <= time.time()

    # Frames that are put off

    def put_off(self, queue: str, due: float, ttl: float, body: Body, tries: int) -> int:
        """Keep a frame until it is due; returns its token."""
        body = self._keep(body)
        done = self._do(
            "INSERT INTO put_off (queue, due, ttl, body, tries) VALUES (?, ?, ?, ?, ?)",
            (queue, due, ttl, body, tries),
        )
        return done.lastrowid or 0

    def count_put_off(self, queue: str) -> int:
        self.bring(queue)
        held: int = self._one("SELECT count(*) FROM put_off WHERE queue = ?", queue)
        return held

    def _next_due(self, queue: str) -> float | None:
        due: float | None = self._one("SELECT min(due) FROM put_off WHERE queue = ?", queue)
        return due

    def hold(self, queue: str, token: int, due: float) -> float | None:
        """Put a frame off until another time; returns when it was due, None when it was due already."""
        before = self._due_of(queue, token)
        if before is not None:
            self._do("UPDATE put_off SET due = ? WHERE token = ?", (due, token))
        return before

    def settle(self, queue: str, token: int) -> bool:
        """Forget a frame that is put off; False when it was due already."""
        if self._due_of(queue, token) is None:
            return False
        self._do("DELETE FROM put_off WHERE token = ?", (token,))
        return True

    def _due_of(self, queue: str, token: int) -> float | None:
        sql = "SELECT due FROM put_off WHERE token = ? AND queue = ? AND due > ?"
        due: float | None = self._one(sql, token, queue, time.time())
        return due

    def bring(self, queue: str) -> float | None:
        """Move what is due to the front of its queue, the longest due first; returns when the next is due."""
        now = time.time()
        first = self._next_due(queue)
        if first is None or first > now:
            return first
        due = self._do(
            "SELECT token, due + ttl, body, tries FROM put_off WHERE queue = ? AND due <= ? ORDER BY due DESC",
            (queue, now),
        ).fetchall()
        for token, expires, body, tries in due:
            self._do("DELETE FROM put_off WHERE token = ?", (token,))
            front: int = self._one("UPDATE meta SET front = front - 1 RETURNING front")
            self.enqueue(queue, expires, body, front, tries)
        return self._next_due(queue)

    def await_work(self, queue: str, node: str) -> None:
        """Note that a reader of this node is idle, behind those already waiting."""
        self._do("INSERT OR IGNORE INTO waiting (queue, node) VALUES (?, ?)", (queue, node))

    def next_waiting(self, queue: str) -> str | None:
        """Take the node that has waited longest for this queue."""
        found: str | None = self._one(
            "DELETE FROM waiting WHERE id = (SELECT id FROM waiting WHERE queue = ? ORDER BY id LIMIT 1)"
            " RETURNING node",
            queue,
        )
        return found

    def bind(self, topic: str, queue: str, capacity: int, expires: float) -> None:
        self._do("INSERT OR REPLACE INTO binding VALUES (?, ?, ?, ?)", (topic, queue, capacity, expires))

    def unbind(self, topic: str, queue: str) -> None:
        self._do("DELETE FROM binding WHERE topic = ? AND queue = ?", (topic, queue))

    def bound(self, topic: str) -> list[tuple[str, int]]:
        """The queues bound to a topic, each with its capacity."""
        return self._do(
            "SELECT queue, capacity FROM binding WHERE topic = ? AND expires > ?", (topic, time.time())
        ).fetchall()

    # History

    def remember(self, topic: str, frame: bytes, mark: str, size: int, seconds: float) -> tuple[int, str]:
        """Append to what a topic remembers; returns the place, and the mark of the row before it."""
        now = time.time()
        newest = self._do(
            "SELECT place, mark FROM history WHERE topic = ? ORDER BY place DESC LIMIT 1", (topic,)
        ).fetchone()
        place, before = (newest[0] + 1, newest[1]) if newest else (1, "")
        body = self._keep(frame)
        self._do("INSERT INTO history VALUES (?, ?, ?, ?, ?)", (topic, place, now + seconds, mark, body))
        self._do(
            "DELETE FROM history WHERE topic = ? AND (place <= ? OR (expires <= ? AND place < ?))",
            (topic, place - size, now, place),
        )
        return place, before

    def recall(self, topic: str, first: int | None, count: int) -> list[tuple[int, bytes]]:
        """What a topic remembers from a place on, or the newest of it, oldest first."""
        if first is None:
            found = self._do(
                "SELECT place, body FROM history WHERE topic = ? ORDER BY place DESC LIMIT ?", (topic, count)
            ).fetchall()[::-1]
        else:
            found = self._do(
                "SELECT place, body FROM history WHERE topic = ? AND place >= ? ORDER BY place LIMIT ?",
                (topic, first, count),
            ).fetchall()
        return [(place, frame) for place, body in found if (frame := self._fetch(body)) is not None]

    # Records

    def mark(self, topic: str, node: str) -> int | None:
        """Whether something was reaped or lost of what a node keeps; None when it keeps nothing."""
        found: int | None = self._one("SELECT mark FROM keeper WHERE topic = ? AND node = ?", topic, node)
        return found

    def keep(self, topic: str, node: str, until: float, mark: int, key: str, tag: str, value: bytes) -> int:
        """Keep a record; returns how many have its tag, 0 if it was there already."""
        self._do(
            "INSERT INTO keeper VALUES (?, ?, ?, ?, 0)"
            " ON CONFLICT (topic, node) DO UPDATE SET until = excluded.until, mark = excluded.mark",
            (topic, node, until, mark),
        )
        there = self._do(
            "UPDATE record SET value = ? WHERE topic = ? AND node = ? AND key = ?", (value, topic, node, key)
        )
        if there.rowcount:
            return 0
        self._do("INSERT INTO record VALUES (?, ?, ?, ?, ?)", (topic, node, key, tag, value))
        return self._tagged(topic, tag)

    def drop(self, topic: str, node: str, key: str) -> int | None:
        """Delete a record; returns how many others have its tag, None when there is no such record."""
        tag = self._one(
            "DELETE FROM record WHERE topic = ? AND node = ? AND key = ? RETURNING tag", topic, node, key
        )
        return None if tag is None else self._tagged(topic, tag)

    def _tagged(self, topic: str, tag: str) -> int:
        return self._one("SELECT n FROM tagged WHERE topic = ? AND tag = ?", topic, tag) or 0

    def forget_keeper(self, topic: str, node: str) -> bool:
        """Forget a node that keeps nothing any more, unless it is still to be told that it was reaped."""
        done = self._do(
            "DELETE FROM keeper WHERE topic = ? AND node = ? AND n = 0 AND mark = 0", (topic, node)
        )
        return done.rowcount > 0

    def renew(self, topics: Iterable[str], node: str, until: float) -> None:
        self._connection.executemany(
            "UPDATE keeper SET until = ? WHERE topic = ? AND node = ?",
            [(until, topic, node) for topic in topics],
        )

    def kept(self, node: str) -> dict[str, int]:
        """The topics beside which a node keeps something, each with its mark."""
        return dict(self._do("SELECT topic, mark FROM keeper WHERE node = ?", (node,)).fetchall())

    def lapsed(self, node: str) -> set[str]:
        """Topics beside which others left something behind."""
        sql = "SELECT DISTINCT topic FROM keeper WHERE until <= ? AND n > 0 AND node <> ?"
        return {row[0] for row in self._do(sql, (time.time(), node))}

    def records(self, topic: str, node: str) -> list[tuple[str, str, str, bytes]]:
        """The records of nodes whose lease has not ended, and of this one: node, key, tag, value."""
        return self._do(
            "SELECT r.node, r.key, r.tag, r.value FROM record r JOIN keeper k ON k.topic = r.topic AND k.node = r.node"
            " WHERE r.topic = ? AND (k.until > ? OR k.node = ?)",
            (topic, time.time(), node),
        ).fetchall()

    def count_records(self, topic: str) -> tuple[int, int]:
        records = self._one("SELECT sum(n) FROM keeper WHERE topic = ?", topic)
        return records or 0, self._one("SELECT n FROM tags WHERE topic = ?", topic) or 0

    def left_behind(self, topic: str, node: str, count: int) -> list[tuple[str, str, str, bytes]]:
        """Some of the records of other nodes whose lease has ended: node, key, tag, value."""
        return self._do(
            "SELECT r.node, r.key, r.tag, r.value FROM keeper k CROSS JOIN record r ON r.topic = k.topic AND r.node = k.node"
            " WHERE k.topic = ? AND k.node <> ? AND k.until <= ? LIMIT ?",
            (topic, node, time.time(), count),
        ).fetchall()

    def reap(self, topic: str, node: str, key: str) -> int:
        """Delete a record that was left behind; returns how many others have its tag."""
        self._do("UPDATE keeper SET mark = 1 WHERE topic = ? AND node = ? AND mark <> 1", (topic, node))
        return self.drop(topic, node, key) or 0

    # Upkeep

    def has_waste(self) -> bool:
        """Whether there is something to delete. Takes no lock."""
        now = time.time()
        head = self._do("SELECT id, expires FROM frame ORDER BY id LIMIT 1").fetchone()
        return (
            (head is not None and (head[1] < now - _GRACE or head[0] <= self._read_by_all()))
            or self._one("SELECT 1 FROM queue WHERE expires <= ? LIMIT 1", now) is not None
            or self._one("SELECT 1 FROM put_off WHERE due + ttl <= ? LIMIT 1", now) is not None
            or self._one("SELECT 1 FROM binding WHERE expires <= ? LIMIT 1", now) is not None
            or self._one("SELECT 1 FROM history WHERE expires <= ? LIMIT 1", now - _DAY) is not None
            or self._one(f"SELECT 1 FROM keeper WHERE {_UNREAPED} LIMIT 1", now - _UNTOLD, now - _DAY)
            is not None
            or self._large.excess(self._last_place())
        )

    def drop_older_half(self) -> None:
        """Delete the older half of the log, read or not; nodes that had not read it are told."""
        self.purge(self._one("SELECT count(*) FROM frame") // 2 + 1, float("inf"))

    def clean(self, count: int = 1 << 30) -> None:
        """Delete up to ``count`` frames of the log and of the queues that nobody will read, and expired bindings."""
        now = time.time()
        if not self._gone:
            self._large.shrink(self._last_place())
            self._share_room()
        self.purge(count, now - _GRACE)
        self._do(
            "DELETE FROM queue WHERE id IN (SELECT id FROM queue WHERE expires <= ? LIMIT ?)", (now, count)
        )
        self._do("DELETE FROM put_off WHERE due + ttl <= ?", (now,))
        self._do("DELETE FROM binding WHERE expires <= ?", (now,))
        self._do("DELETE FROM history WHERE expires <= ?", (now - _DAY,))
        old = now - _UNTOLD, now - _DAY
        self._do(
            f"DELETE FROM record WHERE (topic, node) IN (SELECT topic, node FROM keeper WHERE {_UNREAPED})",
            old,
        )
        self._do(f"DELETE FROM keeper WHERE n = 0 AND {_UNREAPED}", old)

    def _read_by_all(self) -> int:
        # Only nodes have watermarks: what a removed node has not read holds nothing up.
        return self._one("SELECT min(watermark) FROM node") or 0

    def flush(self) -> None:
        self._forget("true")
        for table in ("queue", "put_off", "binding", "depth", "history", "record", "keeper"):
            self._do(f"DELETE FROM {table}")


def beside(path: Path) -> Path:
    """The file with the bodies of large frames, beside a log."""
    return path.with_name(f"{path.name}-large")


def identity(path: Path) -> Identity | None:
    """What tells this file from another at the same path; None when none can be reached there."""
    try:
        found = path.stat()
    except OSError:  # whoever then opens it learns the reason
        return None
    return found.st_dev, found.st_ino


def close_inherited() -> None:
    """Close what a forked process got from its parent.

    SQLite counts locks per process: as long as a connection of the parent is known here, a new one would believe that
    it has the parent's locks, and the kernel knows better. Locks of the parent are not touched by closing.
    """
    while _inherited:
        connection = _inherited.pop()
        if (
            connection.in_transaction
        ):  # forked by another thread in mid-write: closing would undo the parent's work
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
        else:
            connection.close()
