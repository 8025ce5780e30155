"""``manage.py trunkline``: the same commands, with the project's settings and Django's manners."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command, get_commands

from frameworks.programs import ROOT, Program, environment, eventually

PROJECT = ROOT / "examples" / "django_chat"
Manage = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def manage(project_env: dict[str, str]) -> Manage:
    def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "manage.py", *words],
            cwd=PROJECT,
            env=environment(project_env, env),
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def test_it_is_a_command_of_the_app() -> None:
    """INSTALLED_APPS with "trunkline.django" is all it takes."""
    assert get_commands()["trunkline"] == "trunkline.django"


def test_help_shows_the_commands(manage: Manage) -> None:
    """`manage.py trunkline`, `… --help` and `manage.py help trunkline` show the same."""
    plain, asked, helped = (
        manage(*words) for words in (["trunkline"], ["trunkline", "-h"], ["help", "trunkline"])
    )
    assert plain.returncode == asked.returncode == helped.returncode == 0
    assert plain.stdout == asked.stdout == helped.stdout
    assert "group-send" in plain.stdout
    assert "usage: manage.py trunkline worker" in manage("trunkline", "worker", "--help").stdout.replace(
        "Usage", "usage"
    )


def test_messages_and_djangos_own_options(manage: Manage) -> None:
    """Options that Django obeys itself may stand anywhere; what is sent is listened to, on the project's layer."""
    sent = manage("trunkline", "send", "queue", '{"type": "a"}', "--settings=chatsite.settings", "--no-color")
    assert (sent.returncode, sent.stderr) == (0, "")
    heard = manage("trunkline", "listen", "queue", "--count", "1", "--timeout", "20", "--pythonpath", ".")
    assert json.loads(heard.stdout) == {"type": "a"}


def test_errors_are_one_line(manage: Manage) -> None:
    """With the program's name, and the exit codes of `trunkline`."""
    for words, code, text in (
        (["send", "queue", "{"], 2, "not JSON"),
        (["send", "queue", "{}", "--layer", "jobs"], 2, "no layer is configured as 'jobs'"),
        (["listen", "queue", "--timeout", "0.05"], 1, "nothing came"),
        (["worker", "chatsite.asgi:nothing", "queue"], 2, "chatsite.asgi has no 'nothing'"),
    ):
        done = manage("trunkline", *words)
        assert done.returncode == code, done.stderr
        assert text in done.stderr
        assert "Traceback" not in done.stderr
    assert "Traceback" in manage("trunkline", "send", "queue", "{", "--traceback").stderr


def test_several_processes_keep_djangos_options(tmp_path: Path, project_env: dict[str, str]) -> None:
    """A worker of `python -m django` started elsewhere hands --settings and --pythonpath on to its processes."""
    words = ["-m", "django", "trunkline", "worker", "thumbnails", "--processes", "2"]
    options = ["--settings", "chatsite.settings", "--pythonpath", str(PROJECT)]
    with Program([*words, *options], tmp_path, tmp_path / "log", project_env) as worker:
        eventually(lambda: worker.output.count("working on thumbnails") == 2, "both processes work")
        worker.process.send_signal(signal.SIGTERM)
        assert worker.ended() == 0
        assert "died" not in worker.output


def test_without_click() -> None:
    """One line that says what to install, and exit code 2."""
    code = (
        'import sys; sys.modules["click"] = None; from django.core.management import execute_from_command_line as run; '
        'run(["manage.py", "trunkline", "send", "a", "{}"])'
    )
    env = environment(DJANGO_SETTINGS_MODULE="chatsite.settings")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr == "the command line needs click: pip install 'trunkline[cli]'\n"


def test_checks_run_in_a_real_project(manage: Manage) -> None:
    """`manage.py check` is silent about the example, and `check --deploy` has nothing to say of its layer."""
    assert manage("check").returncode == 0
    assert "trunkline." not in manage("check", "--deploy").stderr


def test_call_command(layer: Any) -> None:
    """call_command works in a program: output goes to stdout=, an error is a CommandError."""
    call_command("trunkline", "send", "queue", '{"type": "a"}')
    out, err = io.StringIO(), io.StringIO()
    call_command("trunkline", "listen", "queue", "--count", "1", "--timeout", "10", stdout=out, stderr=err)
    assert out.getvalue() == '{"type": "a"}\n'
    with pytest.raises(CommandError, match="exit code 2") as failed:
        call_command("trunkline", "send", "queue", "[1]", stderr=err)
    assert failed.value.returncode == 2
    assert "dict" in err.getvalue()
    with pytest.raises(CommandError):
        call_command("trunkline", "worker", "--processes", "2", "thumbnails", stderr=err)
    assert "on the command line only" in err.getvalue()


async def test_call_command_leaves_the_servers_layer_open(layer: Any) -> None:
    """A view may call it: who waits on the same layer object goes on waiting, keeps its groups, and is reached."""
    channel = await layer.new_channel()
    await layer.group_add("g", channel)
    waiting = asyncio.create_task(layer.receive(channel))
    await asyncio.to_thread(call_command, "trunkline", "group-send", "g", '{"type": "a"}')
    await asyncio.to_thread(call_command, "trunkline", "send", channel, '{"type": "b"}')
    async with asyncio.timeout(10):
        assert [await waiting, await layer.receive(channel)] == [{"type": "a"}, {"type": "b"}]
