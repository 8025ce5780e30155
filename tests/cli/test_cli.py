"""The command line, run as users run it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import trunkline
from frameworks.programs import Program, environment, eventually

SCRIPT = str(Path(sys.executable).with_name("trunkline"))
COMMANDS = ("worker", "send", "group-send", "listen", "demo", "doctor", "conform", "top")
APP = """
import asyncio, os, pathlib
from trunkline.consumers import AsyncConsumer

class Job(AsyncConsumer):
    async def job_do(self, event):
        done, gate = pathlib.Path(event["file"]), event.get("gate")
        done.with_suffix(".begun").write_text(str(os.getpid()))
        while gate and not pathlib.Path(gate).exists():
            await asyncio.sleep(0.01)
        done.write_text(str(os.getpid()))

app = Job.as_asgi()
number = 7
"""


class Result(NamedTuple):
    code: int
    out: str
    err: str


class Shell:
    """A folder with an application in it, and a layer of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {"TRUNKLINE_DIR": str(folder / "layer")}
        (folder / "jobs.py").write_text(APP)

    def __call__(self, *words: str, stdin: str = "", env: dict[str, str] | None = None) -> Result:
        done = subprocess.run(
            [sys.executable, SCRIPT, *words],
            cwd=self.folder,
            env=environment(self.env, env),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def start(self, *words: str) -> Program:
        return Program(
            ["-m", "trunkline.cli", *words], self.folder, self.folder / f"{words[0]}.log", self.env
        )


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def layer(shell: Shell) -> Iterator[Any]:
    """The test's own end of the layer that the commands use by default."""
    made = trunkline.layer_from_url(f"embedded://{shell.env['TRUNKLINE_DIR']}")
    yield made
    made.sync.close()


# What it says about itself


def test_version(shell: Shell) -> None:
    """--version names the version."""
    assert trunkline.__version__ in shell("--version").out


def test_without_a_command_it_shows_them_all(shell: Shell) -> None:
    """`trunkline` alone is its help, and every command is in it."""
    done = shell()
    assert done.code == 0
    assert all(f"  {name} " in done.out for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(shell: Shell, command: str) -> None:
    """--help of a command shows how it is used."""
    done = shell(command, "--help")
    assert done.code == 0
    assert "Example" in done.out
    assert f"trunkline {command} " in done.out.partition("Example")[2]


def test_without_click_it_says_what_to_install() -> None:
    """One line and exit code 2."""
    code = 'import sys; sys.modules["click"] = None; from trunkline.cli import main; main()'
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "the command line needs click: pip install 'trunkline[cli]'\n"


def test_a_demo_without_its_packages_says_what_to_install() -> None:
    """`trunkline demo` where uvicorn is missing ends with the command that installs it."""
    code = """
import importlib.util, sys
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "uvicorn" else real(name, package)
sys.modules["uvicorn"] = None
sys.argv = ["trunkline", "demo", "--no-browser", "--port", "0"]
from trunkline.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "uvicorn" in done.stderr
    assert "pip install 'trunkline[demo]'" in done.stderr


# Errors

ERRORS: dict[str, tuple[list[str], int, str]] = {
    "unknown command": (["sendd"], 2, "No such command 'sendd'"),
    "missing argument": (["send", "a"], 2, "Missing argument 'MESSAGE'. (see: trunkline send --help)"),
    "unknown option": (["send", "--fast", "a", "{}"], 2, "No such option"),
    "not JSON": (["send", "a", '{"type": oops}'], 2, 'at line 1 column 10: Expecting value: {"type": ⟶oops}'),
    "JSON but no dict": (["send", "a", "[1]"], 2, "dict"),
    "bad channel name": (["send", "a b", '{"type": "x"}'], 2, "'a b' is not a channel name"),
    "bad group name": (["group-send", "a b", '{"type": "x"}'], 2, "safe_group_name"),
    "unknown scheme": (["--url", "embeded:", "send", "a", "{}"], 2, "did you mean 'embedded'"),
    "unknown setting": (["send", "a", "{}", "--url", "embedded:?capasity=3"], 2, "did you mean 'capacity'"),
    "unknown alias": (["send", "a", "{}", "--layer", "jobs"], 2, "no layer is configured as 'jobs'"),
    "unusable path": (["send", "a", "{}", "--url", "embedded:///dev/null/x"], 1, "/dev/null"),
    "listen to nothing": (["listen"], 2, "name either a CHANNEL or a --group"),
    "listen to both": (["listen", "a", "--group", "b"], 2, "name either a CHANNEL or a --group"),
    "zero processes": (["worker", "jobs:app", "a", "--processes", "0"], 2, "--processes"),
    "no application": (["worker", "a"], 2, "which application? name it first: trunkline worker mysite.asgi:"),
    "no channels": (["worker", "jobs:app"], 2, "at least one channel"),
    "wrong concurrency": (["worker", "jobs:app", "a", "--concurrency", "a=b"], 2, "not 'a=b'"),
    "concurrency of a stranger": (
        ["worker", "jobs:app", "a", "--concurrency", "b=2"],
        2,
        "names 'b', a channel",
    ),
    "retries at most once": (["worker", "jobs:app", "a", "--retries", "2"], 2, 'retries needs ack="after"'),
    "half an application": (["worker", "jobs:", "a"], 2, "'jobs:' is not MODULE:APPLICATION"),
    "no such module": (
        ["worker", "jops:app", "a"],
        2,
        "no module 'jops': looked for jops.py and jops/__init__.py in ",
    ),
    "no such name": (["worker", "jobs:ap", "a"], 2, "jobs has no 'ap': did you mean 'app'?"),
    "no application but a number": (
        ["worker", "jobs:number", "a"],
        2,
        "not an ASGI application but an object of type int",
    ),
    "bad settings": (["send", "a", "{}"], 2, "DJANGO_SETTINGS_MODULE=absent.settings"),
}


@pytest.mark.parametrize(("words", "code", "text"), ERRORS.values(), ids=ERRORS)
def test_an_error_is_one_line_and_an_exit_code(shell: Shell, words: list[str], code: int, text: str) -> None:
    """On stderr, after the program's name: no traceback, nothing on stdout; 2 is the caller's mistake."""
    env = {"DJANGO_SETTINGS_MODULE": "absent.settings"} if "absent.settings" in text else {}
    done = shell(*words, env=env)
    assert text in done.err
    assert (done.code, done.out, done.err.count("\n")) == (code, "", 1)
    assert done.err.startswith("trunkline: ")


def test_a_module_that_fails_says_where(shell: Shell) -> None:
    """An error inside the imported module is named with its file and line, and shown whole with --traceback."""
    (shell.folder / "broken.py").write_text("import trunkline\n\napp = undefined\n")
    done = shell("worker", "broken:app", "a")
    assert done.code == 2
    assert "importing broken failed: NameError: name 'undefined' is not defined (broken.py:3)" in done.err
    assert done.err.count("\n") == 1
    (shell.folder / "nested.py").write_text("import no_such_package\n")
    assert (
        "importing nested failed: ModuleNotFoundError: No module named 'no_such_package'"
        in shell("worker", "nested:app", "a").err
    )
    shown = shell("worker", "broken:app", "a", "--traceback")
    assert "Traceback" in shown.err
    assert 'broken.py", line 3' in shown.err


def test_a_full_channel_is_exit_code_1(shell: Shell) -> None:
    """The send after the last that fits says so; nothing is lost or printed twice."""
    url = ["--url", f"embedded://{shell.folder}/small?capacity=1"]
    assert shell("send", "queue", '{"type": "a"}', *url).code == 0
    done = shell("send", "queue", '{"type": "b"}', *url)
    assert done.code == 1
    assert "queue" in done.err
    assert done.err.count("\n") == 1


def test_an_in_memory_layer_is_pointed_out(shell: Shell) -> None:
    """A send that can reach nobody says so."""
    done = shell("send", "a", "{}", "--url", "memory:")
    assert "no other process" in done.err


# send, group-send, listen


def test_what_is_sent_is_listened_to(shell: Shell) -> None:
    """send keeps a message for a later listen, which prints one line of JSON for each and stops after --count."""
    for number in range(3):
        assert shell("send", "queue", json.dumps({"type": "n", "n": number, "text": "Zürich"})) == (0, "", "")
    done = shell("listen", "queue", "--count", "2", "--timeout", "20")
    assert done.code == 0
    assert [json.loads(line) for line in done.out.splitlines()] == [
        {"type": "n", "n": number, "text": "Zürich"} for number in range(2)
    ]
    assert "Zürich" in done.out
    rest = shell("listen", "queue", "--timeout", "1")
    assert (rest.code, json.loads(rest.out)["n"]) == (0, 2)
    empty = shell("listen", "queue", "--timeout", "0.1")
    assert (empty.code, empty.out) == (1, "")
    assert "nothing came for 0.1 s" in empty.err


def test_a_message_from_standard_input(shell: Shell, layer: Any) -> None:
    """`-` reads the message from a pipe."""
    assert shell("send", "queue", "-", stdin='{"type": "piped"}\n').code == 0
    assert layer.sync.receive("queue", timeout=10) == {"type": "piped"}
    assert "line 2 column 1" in shell("send", "queue", "-", stdin='{"type":\n}').err


def test_listening_to_a_group(shell: Shell, layer: Any) -> None:
    """listen --group joins as one more member: it prints what group-send sends, bytes too, and Ctrl-C ends it."""
    with shell.start("listen", "--group", "chat") as listener:
        listener.printed("listening on group chat")
        member = layer.sync.new_channel()
        layer.sync.group_add("chat", member)
        assert shell("group-send", "chat", '{"type": "hello"}').code == 0
        listener.printed('{"type": "hello"}')
        assert layer.sync.receive(member, timeout=10) == {"type": "hello"}
        layer.sync.group_send("chat", {"type": "raw", "data": b"\x00\xff"})
        listener.printed('{"type": "raw", "data": {"base64": "AP8="}}')
        listener.process.send_signal(signal.SIGINT)
        assert listener.ended() == 130
        assert "Traceback" not in listener.output


def test_a_closed_pipe_ends_listen(shell: Shell) -> None:
    """`trunkline listen … | head -1` ends without a traceback."""
    for _ in range(3):
        shell("send", "queue", '{"type": "a"}')
    command = f"{sys.executable} {SCRIPT} listen queue --timeout 2 | head -1"
    done = subprocess.run(
        command,
        shell=True,
        cwd=shell.folder,
        env=environment(shell.env),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == '{"type": "a"}\n'
    assert "Traceback" not in done.stderr


# Which layer


def test_which_layer_is_used(shell: Shell) -> None:
    """--url, before or after the command, outranks TRUNKLINE_URL, which outranks the embedded layer of the folder."""
    one, two = (f"embedded://{shell.folder}/{name}" for name in ("one", "two"))
    environment = {"TRUNKLINE_URL": one}
    shell("send", "queue", '{"type": "default"}')
    shell("send", "queue", '{"type": "variable"}', env=environment)
    shell("--url", two, "send", "queue", '{"type": "option"}', env=environment)
    take: Callable[..., Any] = lambda *words, **kwargs: json.loads(  # noqa: E731
        shell("listen", "queue", "--count", "1", "--timeout", "20", *words, **kwargs).out
    )
    assert take("--url", two, env=environment) == {"type": "option"}
    assert take(env=environment) == {"type": "variable"}
    assert take() == {"type": "default"}


def test_djangos_settings_outrank_the_variable(shell: Shell) -> None:
    """As for the application itself: with DJANGO_SETTINGS_MODULE the layer is that of CHANNEL_LAYERS, by alias."""
    backend = '"BACKEND": "trunkline.layers.EmbeddedChannelLayer"'
    (shell.folder / "mysettings.py").write_text(
        f'SECRET_KEY = "k"\nCHANNEL_LAYERS = {{"default": {{{backend}, "CONFIG": {{"path": "./one"}}}}, '
        f'"jobs": {{{backend}, "CONFIG": {{"path": "./two"}}}}}}\n'
    )
    env = {"DJANGO_SETTINGS_MODULE": "mysettings", "TRUNKLINE_URL": f"embedded://{shell.folder}/three"}
    assert shell("send", "queue", '{"type": "default"}', env=env).code == 0
    assert shell("send", "queue", '{"type": "jobs"}', "--layer", "jobs", env=env).code == 0
    for name, kind in (("one", "default"), ("two", "jobs")):
        done = shell(
            "listen", "queue", "--count", "1", "--timeout", "20", "--url", f"embedded://{shell.folder}/{name}"
        )
        assert json.loads(done.out) == {"type": kind}


def test_a_django_project_without_layers_has_none(shell: Shell) -> None:
    """Its consumers could not hear what the command says on some other layer: that is refused, with the fix."""
    (shell.folder / "mysettings.py").write_text('SECRET_KEY = "k"\n')
    done = shell("send", "queue", "{}", env={"DJANGO_SETTINGS_MODULE": "mysettings"})
    assert done.code == 2
    assert "no layer is configured as 'default': add it to CHANNEL_LAYERS" in done.err


# worker


def job(file: Path, gate: Path | None = None) -> dict[str, Any]:
    """A message for the application: write the file, once the gate is there."""
    return {"type": "job.do", "file": str(file), "gate": str(gate) if gate else None}


def test_a_worker_runs_the_application_of_this_folder(shell: Shell, layer: Any) -> None:
    """The job at work when SIGTERM comes is finished within the grace; one not begun is left for others; exit code 0."""
    quick, slow, late, gate = (shell.folder / name for name in ("quick", "slow", "late", "gate"))
    with shell.start("worker", "jobs:app", "queue", "--grace", "20") as worker:
        worker.printed("working on queue")
        assert shell("send", "queue", json.dumps(job(quick))).code == 0
        layer.sync.send("queue", job(slow, gate))
        layer.sync.send("queue", job(late))
        eventually(slow.with_suffix(".begun").exists, "the slow job is at work")
        worker.process.send_signal(signal.SIGTERM)
        gate.touch()
        assert worker.ended() == 0
        assert quick.read_text() == slow.read_text() == str(worker.process.pid)
        assert "Traceback" not in worker.output
    # It may just have been begun when the signal came; then it was finished too.
    assert late.exists() or layer.sync.receive("queue", timeout=10)["file"] == str(late)


def test_a_worker_stops_waiting_after_its_grace(shell: Shell, layer: Any) -> None:
    """A job longer than --grace is cancelled, and named."""
    never = shell.folder / "never"
    with shell.start("worker", "jobs:app", "queue", "--grace", "0.1") as worker:
        layer.sync.send("queue", job(never, shell.folder / "no gate"))
        eventually(never.with_suffix(".begun").exists, "the job is at work")
        worker.process.send_signal(signal.SIGINT)
        assert worker.ended() == 0
        assert "'job.do' on channel 'queue' did not finish within 0.1 s" in worker.output
    assert not never.exists()


def test_several_processes_with_several_jobs_each(shell: Shell, layer: Any) -> None:
    """--processes 2 --concurrency 2: of five jobs four are at work at once, two in each process, none in the parent."""
    gate, files = shell.folder / "gate", [shell.folder / f"{number}.done" for number in range(5)]
    words = ("worker", "jobs:app", "queue", "--processes", "2", "--concurrency", "2", "--grace", "20")
    with shell.start(*words) as worker:
        for file in files:
            layer.sync.send("queue", job(file, gate))

        def begun() -> list[str]:
            return [text for file in shell.folder.glob("*.begun") if (text := file.read_text())]

        pids = Counter(eventually(lambda: (found := begun())[3:] and found, "four jobs at work"))
        assert sorted(pids.values()) == [2, 2]
        assert str(worker.process.pid) not in pids
        gate.touch()
        eventually(lambda: all(file.exists() and file.read_text() for file in files), "all five done")
        worker.process.send_signal(signal.SIGTERM)
        assert worker.ended() == 0
        assert worker.output.count("working on queue") == 2


def test_a_worker_that_acknowledges_after(shell: Shell, layer: Any) -> None:
    """What fails goes to the dead letters after its retries; --concurrency may name a channel."""
    words = ["--ack", "after", "--retries", "1", "--backoff", "0", "--lease", "5", "--dead-letter", "dead"]
    with shell.start("worker", "jobs:app", "queue", "other", "--concurrency", "queue=2", *words) as worker:
        worker.printed("working on queue, other")
        layer.sync.send("queue", {"type": "job.do", "file": 7})
        letter = layer.sync.receive("dead", timeout=20)
        assert (letter["channel"], letter["tries"]) == ("queue", 2)
        worker.process.send_signal(signal.SIGTERM)
        assert worker.ended() == 0


def test_conform_prints_a_table(shell: Shell) -> None:
    """`trunkline conform memory:` runs the suite, prints each promise on stdout and exits with 0."""
    done = shell("conform", "memory:", env={"PYTHONOPTIMIZE": ""})
    assert done.code == 0, done.out
    assert done.out.count("✓") > 30
    assert done.err == ""


def test_conform_refuses_to_prove_nothing(shell: Shell) -> None:
    """Under python -O, which removes its checks, it says so and what to do."""
    done = shell("conform", "memory:", env={"PYTHONOPTIMIZE": "1"})
    assert (done.code, done.out) == (2, "")
    assert "unset PYTHONOPTIMIZE" in done.err
