"""The commands and their options: one definition for ``trunkline`` and ``manage.py trunkline``."""

from __future__ import annotations

import asyncio
import base64
import importlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from .. import __version__
from ..worker import Worker, run_processes
from . import target
from . import top as top_screen

__all__ = ["trunkline"]

F = TypeVar("F", bound=Callable[..., Any])

_GENERAL: dict[str, dict[str, Any]] = {
    "--traceback": {"is_flag": True, "help": "Show where an error comes from."},
    "--layer": {"metavar": "ALIAS", "help": "Which of CHANNEL_LAYERS.  [default: default]"},
    "--url": {
        "metavar": "URL",
        "help": "The layer, e.g. embedded:///run/shop.  [default: in a Django project (DJANGO_SETTINGS_MODULE) "
        "its CHANNEL_LAYERS, elsewhere $TRUNKLINE_URL, else embedded:]",
    },
}


def general(command: F) -> F:
    """The options that every command takes, before its name or after it."""
    for name, about in _GENERAL.items():
        command = click.option(name, expose_value=False, callback=_remember, **about)(command)
    return command


def _remember(context: click.Context, option: click.Parameter, value: Any) -> None:
    if value:
        context.find_root().ensure_object(dict)[option.name] = value


def _layer(context: click.Context) -> Any:
    chosen = context.find_root().ensure_object(dict)
    return target.layer(chosen.get("url"), chosen.get("layer", "default"))


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="trunkline")
@general
def trunkline() -> None:
    """Channels, groups and work queues across the processes of one application.

    \b
    Examples:
      trunkline listen --group chat
      trunkline group-send chat '{"type": "chat.message", "text": "hello"}'
      trunkline worker mysite.asgi:application thumbnails
    """


@trunkline.command()
@click.argument("words", metavar="[MODULE:APPLICATION] CHANNEL...", nargs=-1, required=True)
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True, help="How many to run.")
@click.option(
    "--concurrency",
    metavar="[CHANNEL=]N",
    multiple=True,
    help="Messages of one channel handled at once, in each process; may be repeated.  [default: 1]",
)
@click.option(
    "--grace",
    type=click.FloatRange(0),
    metavar="SECONDS",
    default=10.0,
    show_default=True,
    help="What a handler at work gets to finish at the end.",
)
@click.option(
    "--ack",
    type=click.Choice(["before", "after"]),
    default="before",
    show_default=True,
    help="When a message is done: before it is handled (at most once), or after (at least once).",
)
@click.option(
    "--lease",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="With --ack after: when the message of a dead worker comes back.  [default: 30]",
)
@click.option(
    "--retries",
    type=click.IntRange(0),
    metavar="N",
    help="With --ack after: tries after the first.  [default: 3]",
)
@click.option(
    "--backoff",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="With --ack after: before the second try, doubled for each further one.  [default: 1]",
)
@click.option("--dead-letter", metavar="CHANNEL", help="With --ack after: gets what could not be handled.")
@general
@click.pass_context
def worker(
    context: click.Context,
    /,
    words: tuple[str, ...],
    processes: int,
    concurrency: tuple[str, ...],
    grace: float,
    **terms: Any,
) -> None:
    """Run an application for fixed channels.

    Each message sent to a CHANNEL is handled by one worker, until SIGTERM or Ctrl-C. In a Django project
    the application is ASGI_APPLICATION unless one is named.

    \b
    Examples:
      trunkline worker mysite.asgi:application thumbnails
      trunkline worker jobs:app thumbnails mails --processes 4 --concurrency 10
      trunkline worker jobs:app mails --ack after --retries 5 --dead-letter failed-mails
      python manage.py trunkline worker thumbnails
    """
    path, channels = (words[0], words[1:]) if ":" in words[0] else (target.django_application(), words)
    if path is None:
        raise target.Mistake(
            f"which application? name it first: {context.command_path} mysite.asgi:application {' '.join(words)}"
        )
    application, layer = target.application(path), _layer(context)
    _show_log()
    mine = Worker(application, layer, channels, grace, _concurrency(concurrency, channels), **terms)
    if processes > 1:
        asyncio.run(run_processes(_one_process(context), processes, grace))
    else:
        click.echo(f"working on {', '.join(channels)}", err=True)
        asyncio.run(mine.run())


def _concurrency(words: tuple[str, ...], channels: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for word in sorted(words, key=lambda word: "=" in word):  # what names a channel goes before what does not
        channel, named, count = word.rpartition("=")
        if not count.isdecimal() or int(count) < 1:
            raise target.Mistake(f"--concurrency is a number above 0, or CHANNEL=number, not {word!r}")
        found |= dict.fromkeys([channel] if named else channels, int(count))
    return found


def _show_log() -> None:
    """Show Trunkline's own log lines, unless the application has decided where they go."""
    log = logging.getLogger("trunkline")
    if not log.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)


def _one_process(context: click.Context) -> list[str]:
    again = context.find_root().ensure_object(dict).get("again")
    if again is None:
        raise target.Mistake("--processes works on the command line only: run `trunkline worker`")
    return [*again, "--processes", "1"]


@trunkline.command()
@click.argument("channel")
@click.argument("message")
@general
@click.pass_context
def send(context: click.Context, channel: str, message: str) -> None:
    """Send a message to one channel.

    MESSAGE is JSON; a lone - reads it from standard input.

    \b
    Examples:
      trunkline send thumbnails '{"type": "thumbnail.make", "id": 7}'
      echo '{"type": "thumbnail.make", "id": 7}' | trunkline send thumbnails -
    """
    layer, content = _layer(context), target.message(message)
    asyncio.run(layer.send(channel, content))


@trunkline.command("group-send")
@click.argument("group")
@click.argument("message")
@general
@click.pass_context
def group_send(context: click.Context, group: str, message: str) -> None:
    """Send a message to everyone in a group.

    MESSAGE is JSON; a lone - reads it from standard input.

    \b
    Example:
      trunkline group-send chat '{"type": "chat.system_message", "text": "back in 5 minutes"}'
    """
    layer, content = _layer(context), target.message(message)
    asyncio.run(layer.group_send(group, content))


@trunkline.command()
@click.argument("channel", required=False)
@click.option("--group", metavar="GROUP", help="Join this group instead of taking from a channel.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N messages.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="End when nothing came for so long; exit code 1 if that was before --count (default 1) messages.",
)
@general
@click.pass_context
def listen(
    context: click.Context, channel: str | None, group: str | None, count: int | None, timeout: float | None
) -> int:
    """Print what comes, one line of JSON each.

    Bytes are printed as {"base64": ...}. A group's members still get theirs. From a channel such as
    "thumbnails" the messages are taken: workers miss them.

    \b
    Examples:
      trunkline listen --group chat
      trunkline listen thumbnails --count 1 --timeout 10
    """
    if (channel is None) == (group is None):
        raise target.Mistake("name either a CHANNEL or a --group GROUP")
    return asyncio.run(_listen(_layer(context), channel, group, count, timeout))


async def _listen(
    layer: Any, channel: str | None, group: str | None, count: int | None, timeout: float | None
) -> int:
    if channel is None:
        channel = await layer.new_channel()
        await layer.group_add(group, channel)
    click.echo(f"listening on {f'group {group}' if group else channel}", err=True)
    seen = 0
    while count is None or seen < count:
        try:
            async with asyncio.timeout(timeout):
                event = await layer.receive(channel)
        except TimeoutError:
            click.echo(f"nothing came for {timeout:g} s", err=True)
            return 0 if seen >= (count or 1) else 1
        click.echo(json.dumps(event, default=_printable, ensure_ascii=False))
        seen += 1
    return 0


def _printable(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"base64": base64.b64encode(value).decode()}
    return repr(value)


@trunkline.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to serve on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free one."
)
@click.option("--servers", type=click.IntRange(1), default=2, show_default=True, help="Server processes.")
@click.option("--browser/--no-browser", default=True, show_default=True, help="Open the browser.")
@click.pass_context
def demo(context: click.Context, host: str, port: int, servers: int, browser: bool) -> int:
    """See a chat across processes in your browser.

    It starts several server processes and a worker, which talk through the embedded layer.

    \b
    Example:
      trunkline demo --port 8080 --servers 4
    """
    if url := context.find_root().ensure_object(dict).get("url"):
        os.environ["TRUNKLINE_URL"] = url  # for the processes it starts
    run = _needs("demo", "trunkline.demo.serve", "run")
    return run(host, port, servers, browser) or 0


@trunkline.command()
@click.argument("url")
def conform(url: str) -> int:
    """Check a transport, print what it promises.

    It runs the public conformance suite. It writes to the server of the URL, under prefixes of its own,
    and cuts its own connections to it.

    \b
    Example:
      trunkline conform embedded:
    """
    run_conform = _needs("testing", "trunkline.testing.conform", "run_conform")
    logging.getLogger("trunkline").setLevel(logging.CRITICAL)  # the suite provokes what is warned of
    return int(run_conform(url, click.echo))


_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "red")}


@trunkline.command()
@click.argument("address", metavar="[URL]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of {level, what, fix}.")
@general
@click.pass_context
def doctor(context: click.Context, address: str | None, as_json: bool) -> int:
    """Look for what is wrong with a layer.

    It examines what is behind the layer (the server, or the folder) and changes nothing. Each finding is a
    line, with what to do about it below. Exit code 1 when there is an error; warnings alone are 0.

    \b
    Examples:
      trunkline doctor redis://localhost:6379
      python manage.py trunkline doctor
    """
    if address:
        context.find_root().ensure_object(dict)["url"] = address
    findings = asyncio.run(target.examine(_layer(context)))
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in findings], ensure_ascii=False, indent=1))
    else:
        for finding in findings:
            mark, colour = _MARKS[finding.level]
            click.echo(f"{click.style(mark, fg=colour)} {finding.what}")
            if finding.fix:
                click.echo(f"    {finding.fix}")
    return int(any(finding.level == "error" for finding in findings))


@trunkline.command()
@click.argument("address", metavar="[URL]", required=False)
@click.option("--once", is_flag=True, help="Print one look and end; exit code 1 when a process is down.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON; with --once.")
@click.option(
    "--interval",
    type=click.FloatRange(0.2),
    default=2.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option(
    "--wait",
    type=click.FloatRange(0, 60, min_open=True),
    default=0.5,
    show_default=True,
    help="Seconds that processes have to answer.",
)
@general
@click.pass_context
def top(
    context: click.Context, address: str | None, once: bool, as_json: bool, interval: float, wait: float
) -> int:
    """Watch every process of the deployment.

    It shows what each process counts and holds, whatever carries its messages: rates, drops, gaps, and the
    channels that are slow. It asks the processes themselves; one that does not answer in time is missing.

    \b
    Examples:
      trunkline top redis://localhost:6379
      trunkline top --once --json
    """
    if as_json and not once:
        raise target.Mistake("--json is one look: write --once --json")
    if address:
        context.find_root().ensure_object(dict)["url"] = address
    layer = _layer(context)
    if not hasattr(layer, "survey"):
        kind = f"{type(layer).__module__}.{type(layer).__qualname__}"
        raise target.Mistake(f"{kind} cannot be asked: give a URL, as in: trunkline top redis://…")
    if not as_json:
        _needs("top", "rich", "__name__")
    if once:
        return asyncio.run(top_screen.once(layer, wait, as_json, click.echo))
    try:
        return asyncio.run(top_screen.watch(layer, wait, interval))
    except KeyboardInterrupt:
        return 0


def _needs(extra: str, module: str, name: str) -> Callable[..., Any]:
    """Import a part that comes with an extra."""
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("trunkline"):
            raise
        raise click.ClickException(
            f"this command needs {error.name}, which is not installed: pip install 'trunkline[{extra}]'"
        ) from error
    return found
