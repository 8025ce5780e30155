"""One command line, from its words to its exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from ..errors import TrunklineError, UsageError
from .commands import trunkline

__all__ = ["run"]


def run(words: Sequence[str], program: str, again: Sequence[str] | None = None) -> int:
    """Run one command line; an error becomes one line on stderr.

    Args:
        words: What follows the program's name.
        program: Its name, for messages.
        again: The command that runs ``words`` in another process; None if there is none.

    Returns:
        The exit code: 2 for a wrong command line, name, message or setting, 1 for other errors, 130 for Ctrl-C.
    """
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` and uvicorn do: the project is where one stands
    command = None if again is None else [*again, *words]
    try:
        result = trunkline.main(
            list(words) or ["--help"], prog_name=program, standalone_mode=False, obj={"again": command}
        )
        return result or 0
    except click.Abort:
        return 130
    except click.ClickException as error:
        if "--traceback" in words and error.__cause__ is not None:
            raise
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else program
        usage = f" (see: {path} --help)" if isinstance(error, click.UsageError) else ""
        return _fail(program, error.format_message() + usage, error.exit_code)
    except TrunklineError as error:
        if "--traceback" in words:
            raise
        return _fail(program, str(error), 2 if isinstance(error, UsageError) else 1)


def _fail(program: str, text: str, code: int) -> int:
    click.echo(f"{program}: {' '.join(text.split())}", err=True)
    return code
