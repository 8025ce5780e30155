"""Where the files are, and who may touch them.

Whoever can write here can send any message, and a socket or a database followed through somebody else's symlink is
theirs: so every folder is ours, mode 0700, and no symlink, or we refuse.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import stat
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ...errors import ConfigurationError, TransportUnavailable

__all__ = ["default_root", "path_of_url", "prepare", "socket_address"]

#: Linux has 108 bytes for a socket's path, macOS 104, each with a closing zero.
_LONGEST_ADDRESS = 103


def default_root() -> Path:
    """The folder that all processes started in one project folder by one user share.

    It is ``$TRUNKLINE_DIR``, or ``<temp>/trunkline-<user id>/<project>-<hash of the working directory>``. Not
    ``$XDG_RUNTIME_DIR``: a service has none while the same user's shell has one, and it vanishes at log-out.
    """
    if chosen := os.environ.get("TRUNKLINE_DIR"):
        return Path(chosen).expanduser().absolute()
    project = Path.cwd()
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", project.name)[:24] or "root"
    digest = hashlib.blake2b(os.fsencode(project), digest_size=4).hexdigest()
    return Path(tempfile.gettempdir()) / f"trunkline-{os.geteuid()}" / f"{name}-{digest}"


def path_of_url(url: str) -> str | None:
    """The folder that a URL names; None for the default one.

    ``embedded://`` is the default folder, ``embedded:///var/lib/shop`` an absolute one, ``embedded://./run`` is
    relative to the working directory, ``embedded://~/run`` to the home folder.
    """
    parts = urlsplit(url)
    path = unquote(parts.netloc + parts.path)
    if parts.netloc not in ("", ".", "..", "~"):
        raise ConfigurationError(
            f"{url!r}: the embedded transport has no host; write {parts.scheme}:///{path} for an absolute folder, "
            f"{parts.scheme}://./{path} for a relative one, {parts.scheme}:// for the default"
        )
    return path or None


def prepare(root: Path, prefix: str) -> Path:
    """Make the folders that are missing, check all of them, and return the one of this prefix.

    Raises:
        ConfigurationError: A folder is a symlink, another user's, or open to others.
        TransportUnavailable: A folder cannot be made (read-only or full disk).
    """
    folder = root / prefix
    # Above the root only our own folder in the shared temp directory matters: elsewhere the user chose the place.
    ours = [root.parent] if root.parent.name == f"trunkline-{os.geteuid()}" else []
    for each in [*ours, root, folder, folder / "nodes"]:
        try:
            _make(each, parents=each is root)
            _check(each)
        except OSError as error:
            raise TransportUnavailable(f"cannot use the folder {each}: {error}") from error
    return folder


def _make(folder: Path, *, parents: bool) -> None:
    try:
        if parents:
            folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
    except FileExistsError:
        return
    folder.chmod(0o700)


def _check(folder: Path) -> None:
    found = folder.lstat()
    where = shlex.quote(str(folder))
    if stat.S_ISLNK(found.st_mode):
        raise ConfigurationError(
            f"{folder} is a symlink, which somebody else could turn; give the path it points to"
        )
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigurationError(f"{folder} is not a folder; move it away or choose another path")
    if found.st_uid != os.geteuid():
        raise ConfigurationError(
            f"{folder} belongs to user id {found.st_uid} and this process runs as {os.geteuid()}: run all processes "
            f"as one user, set TRUNKLINE_DIR to a folder of this user, or: sudo chown -R {os.geteuid()} {where}"
        )
    if found.st_mode & 0o077:
        raise ConfigurationError(
            f"{folder} is open to other users (mode {stat.S_IMODE(found.st_mode):04o}), who could read or forge "
            f"messages; to close it: chmod 700 {where}"
        )


def socket_address(nodes: Path, nodes_fd: int, node: str) -> str:
    """The address of a node's socket, through an open descriptor of the folder when the plain path is too long.

    Raises:
        ConfigurationError: The path is too long for a socket and this system has no ``/proc``.
    """
    plain = f"{nodes}/{node}.sock"
    if len(os.fsencode(plain)) <= _LONGEST_ADDRESS:
        return plain
    if not os.path.isdir(f"/proc/self/fd/{nodes_fd}"):
        raise ConfigurationError(
            f"{plain} is too long for a Unix socket (at most {_LONGEST_ADDRESS} bytes); choose a shorter folder, "
            "e.g. TRUNKLINE_DIR=/tmp/layer"
        )
    return f"/proc/self/fd/{nodes_fd}/{node}.sock"
