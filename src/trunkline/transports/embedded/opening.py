"""Opening the log: made fresh by whoever comes first, moved aside when it is not ours.

Processes that open at the same time take turns, by a file lock that the kernel drops with its holder.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from ...errors import ConfigurationError, TransportUnavailable
from .store import PAGE, Identity, Store, beside, close_inherited, identity, is_busy, is_corrupt

__all__ = ["VERSION", "Busy", "open_store"]

_log = logging.getLogger("trunkline.embedded")

_SCHEMA = Path(__file__).with_name("schema.sql")
#: Of the schema.
VERSION = 4
_APPLICATION = 0x54524E4B  # "TRNK"


class Busy(Exception):
    """Another process holds the lock right now."""


def open_store(folder: Path, max_size: int, condemned: Identity | None = None) -> Store:
    """Open the log of a folder, made fresh where there is none.

    A file that is not ours is moved aside, and so is ``condemned``, found corrupt.

    Raises:
        Busy: Another process is opening it; try again.
        TransportUnavailable: The file cannot be opened.
        ConfigurationError: A newer version of Trunkline wrote it.
    """
    path = folder / "layer.db"
    close_inherited()
    with _opening_lock(folder / "lock"):
        if condemned is not None and identity(path) == condemned:
            _move_aside(path, "it is corrupt")
        try:
            found = _connect(path, max_size)
            if isinstance(found, str):
                _move_aside(path, found)
                found = _connect(path, max_size)
        except (sqlite3.Error, OSError) as error:
            if is_busy(error):
                raise Busy from error
            raise TransportUnavailable(f"cannot open {path}: {error}") from error
        if isinstance(found, str):
            raise TransportUnavailable(f"{path} cannot be made: {found}")
        try:
            return Store(found, path, max_size)
        except (sqlite3.Error, OSError) as error:
            found.close()
            if is_busy(error):
                raise Busy from error
            raise TransportUnavailable(f"cannot open {path}: {error}") from error


@contextlib.contextmanager
def _opening_lock(path: Path) -> Iterator[None]:
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise TransportUnavailable(f"cannot open {path}: {error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise Busy from error
    finally:
        os.close(lock)


def _connect(path: Path, max_size: int) -> sqlite3.Connection | str:
    """A connection to a file with our schema, or why the file is not ours."""
    connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    kept = False
    try:
        path.chmod(0o600)  # before the -wal and -shm files, which inherit it
        problem = _adopt(connection, path)
        if problem is not None:
            return problem
        connection.execute("PRAGMA synchronous = OFF")  # a power cut may lose the messages of that moment
        connection.execute("PRAGMA secure_delete = OFF")
        connection.execute("PRAGMA wal_autocheckpoint = 0")  # the store sees to it
        connection.execute(f"PRAGMA max_page_count = {max(64, max_size // PAGE)}")
        connection.execute(f"PRAGMA journal_size_limit = {16 << 20}")
        kept = True
        return connection
    except sqlite3.DatabaseError as error:
        if is_corrupt(error):
            return str(error)
        raise
    finally:
        if not kept:
            connection.close()


def _adopt(connection: sqlite3.Connection, path: Path) -> str | None:
    def pragma(name: str) -> int:
        value: int = connection.execute(f"PRAGMA {name}").fetchone()[0]
        return value

    application, version = pragma("application_id"), pragma("user_version")
    if application == 0 and version == 0 and not pragma("schema_version"):
        connection.execute(f"PRAGMA page_size = {PAGE}")
        connection.execute("PRAGMA journal_mode = WAL")
        _make(beside(path))
        connection.executescript(
            f"BEGIN IMMEDIATE; {_SCHEMA.read_text('utf-8')} PRAGMA application_id = {_APPLICATION};"
            f" PRAGMA user_version = {VERSION}; COMMIT;"
        )
        return None
    if application != _APPLICATION:
        return "another program wrote it"
    if version > VERSION:
        raise ConfigurationError(
            f"{path} was written by a newer Trunkline (schema {version}, this one knows {VERSION}): run one version "
            "in all processes, or give this one a folder of its own"
        )
    if version < VERSION:
        return f"an older Trunkline wrote it (schema {version})"
    if not beside(path).exists():
        return f"{beside(path).name}, which holds its large messages, was deleted"
    return None


def _make(path: Path) -> None:
    """Make an empty file; one that is there belongs to a log that is gone, which others may not have noticed."""
    path.unlink(missing_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))


def _move_aside(path: Path, reason: str) -> None:
    aside = path.with_name(f"{path.name}.aside-{time.time_ns()}")
    for end in ("", "-wal", "-shm", "-large"):
        with contextlib.suppress(FileNotFoundError):
            os.replace(f"{path}{end}", f"{aside}{end}")
    _log.warning("%s was moved aside to %s and a fresh one made: %s", path, aside, reason)
