"""``manage.py trunkline``: the command line of Trunkline, with the project's settings."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import connections

_OF_DJANGO = ("--settings", "--pythonpath")
_FLAGS_OF_DJANGO = ("--no-color", "--force-color", "--skip-checks")


class Command(BaseCommand):  # type: ignore[misc]
    """Mounts the commands; their options are defined once, in ``trunkline.cli.commands``."""

    help = (
        "Send and listen on the project's channel layer, and run workers: see `manage.py trunkline --help`."
    )
    requires_system_checks: list[str] = []

    def run_from_argv(self, argv: list[str]) -> None:
        """Hand the words over as they are, except those Django has already obeyed."""
        obeyed = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        for option in _OF_DJANGO:
            obeyed.add_argument(option)
        for flag in _FLAGS_OF_DJANGO:
            obeyed.add_argument(flag, action="store_true")
        own, words = obeyed.parse_known_args(argv[2:])
        program = os.path.basename(argv[0])
        start = ["-m", "django"] if program == "__main__.py" else [argv[0]]
        path = ["--pythonpath", own.pythonpath] if own.pythonpath else []
        try:
            code = self._run(words, f"{program} {argv[1]}", [sys.executable, *start, argv[1], *path])
        except CommandError as error:
            self.stderr.write(str(error))
            code = error.returncode
        finally:
            connections.close_all()
        if code:
            sys.exit(code)

    def print_help(self, prog_name: str, subcommand: str) -> None:
        """Print what the commands are, not what Django adds to each of its own."""
        self._run(["--help"], f"{prog_name} {subcommand}", None)

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("words", nargs=argparse.REMAINDER, help="See `manage.py trunkline --help`.")

    def handle(self, *args: str, **options: Any) -> None:
        """Run by ``call_command("trunkline", "send", ...)``."""
        self.stdout.ending = self.stderr.ending = ""  # click ends its lines itself
        with contextlib.redirect_stdout(self.stdout), contextlib.redirect_stderr(self.stderr):
            code = self._run([*options["words"], *args], "trunkline", None)
        if code:
            raise CommandError(f"trunkline {' '.join(options['words'])}: exit code {code}", returncode=code)

    def _run(self, words: list[str], program: str, again: list[str] | None) -> int:
        try:
            from ....cli.running import run
        except ModuleNotFoundError as error:
            if error.name != "click":
                raise
            raise CommandError(
                "the command line needs click: pip install 'trunkline[cli]'", returncode=2
            ) from None
        return run(words, program, again)
