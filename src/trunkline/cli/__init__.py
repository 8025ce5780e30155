"""The command line: ``trunkline``, and ``manage.py trunkline`` in a Django project.

Rules of this room:

- One definition of commands and options serves both (``commands``); each of them uses the public API only.
- What goes wrong is one line on stderr and an exit code: 2 for the caller's mistake, 1 for the rest, 130 for Ctrl-C.
- Results go to stdout, everything else to stderr. Packages that a command needs are imported when it runs.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """The script ``trunkline``."""
    try:
        import click  # noqa: F401
    except ModuleNotFoundError:
        print("the command line needs click: pip install 'trunkline[cli]'", file=sys.stderr)
        raise SystemExit(2) from None
    from .running import run

    raise SystemExit(run(sys.argv[1:], "trunkline", [sys.executable, "-m", "trunkline.cli"]))
