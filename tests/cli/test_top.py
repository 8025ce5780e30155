"""`trunkline top`: one look, as JSON and as tables, and the live screen; on every transport."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import trunkline
from frameworks.programs import environment, eventually
from servers import Server, servers
from trunkline.cli.top import _tables
from trunkline.stats import Health, Pattern, Report, Slow, Stats

SCRIPT = str(Path(sys.executable).with_name("trunkline"))


@pytest.fixture(params=["embedded", *sorted(servers())[:1]])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "embedded":
        yield f"embedded://{tmp_path}/layer"
        return
    server = Server(request.param, tmp_path / "server")
    yield server.url
    server.kill()


@pytest.fixture
def layer(url: str) -> Iterator[trunkline.ChannelLayer]:
    """A process of the deployment: this one."""
    made = trunkline.layer_from_url(url)
    yield made
    made.sync.close()


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, "top", *words],
        env=environment(COLUMNS="160"),
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_once(url: str, layer: trunkline.ChannelLayer) -> None:
    """Another process's counts and slow channels, as JSON and as tables; the asking process is not among them."""
    channel = layer.sync.new_channel("slow")
    layer.sync.group_add("room", channel)
    layer.sync.group_send("room", {"type": "x"})

    def look() -> dict[str, object] | None:
        done = run(url, "--once", "--json")
        assert done.returncode == 0, done.stderr
        (node,) = json.loads(done.stdout)["nodes"] or [None]
        return node  # type: ignore[no-any-return]

    node = eventually(look, "an answer")
    assert node["pid"] == os.getpid()
    assert node["health"]["state"] == "ok"
    assert (node["stats"]["group_sent"], node["stats"]["waiting"]) == (1, 1)
    assert node["stats"]["slowest"][0]["channel"] == channel

    def tables() -> bool:
        shown = run(url, "--once").stdout
        return channel in shown and str(os.getpid()) in shown and "slow.*" in shown

    eventually(tables, "the same as tables")


def test_live(url: str, layer: trunkline.ChannelLayer) -> None:
    """The screen is drawn again and again with rates, until Ctrl-C, and that is no error."""
    layer.sync.new_channel()
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, SCRIPT, "top", url, "--interval", "0.2", "--wait", "0.1"],
        env=environment(COLUMNS="160", LINES="40", TERM="xterm"),
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    os.set_blocking(master, False)
    seen = b""

    def rates() -> bool:
        nonlocal seen
        try:
            seen += os.read(master, 1 << 20)
        except BlockingIOError:
            pass
        assert process.poll() is None, seen
        layer.sync.send(layer.sync.new_channel(), {"type": "x"})
        text = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", seen).decode(errors="replace")
        row = re.findall(rf"{os.getpid()}@\S+ +ok +(\d+) +\d+ +(\d+)", text)
        return any(int(sends) > 0 for _, sends in row)

    try:
        eventually(rates, "a rate on the screen")
        process.send_signal(2)
        assert process.wait(20) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(master)


def test_mistakes(tmp_path: Path) -> None:
    """One line that says what to write; nobody there is not an error."""
    assert "write --once --json" in run("--json").stderr
    nobody = run(f"embedded://{tmp_path}/x", "--once")
    assert (nobody.returncode, "nobody else" in nobody.stdout) == (0, True)
    gone = run("redis://127.0.0.1:1?connect_timeout=0.1", "--once")
    assert gone.returncode == 1
    assert "127.0.0.1:1" in gone.stderr


def test_without_rich_it_says_what_to_install() -> None:
    """JSON needs nothing more."""
    code = 'import sys; sys.modules["rich"] = None; from trunkline.cli import main; main()'
    done = subprocess.run(
        [sys.executable, "-c", code, "top", "memory:", "--once"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "pip install 'trunkline[top]'" in done.stderr


def test_a_process_in_trouble() -> None:
    """Its reasons stand below the table; text from others is never markup."""
    from rich.console import Console

    stats = Stats(
        sent=7, patterns={"[bold]*": Pattern(1, 2, 3, 4, 5, 6.0)}, slowest=[Slow("[red]", 4, 5, 6.0)]
    )
    report = Report("n", "h", 1, "[blink]web", 0.0, stats, Health("down", ["redis is [b]down"], 0.0, []))
    console = Console(width=160, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    for table in _tables([report], {"n": Stats(sent=3)}, 2.0):
        console.print(table)
    console.file.close()
    text = console.export_text()
    for shown in ("[blink]web 1@h", "redis is [b]down", "[bold]*", "[red]", "4/5"):
        assert shown in text
    assert re.search(r"down +0 +0 +2 ", text)
