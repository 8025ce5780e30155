"""The demo without a browser: what its windows, its processes and its terminal see."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the demo needs: pip install 'trunkline[demo]'")
pytest.importorskip("PIL", reason="the demo needs: pip install 'trunkline[demo]'")

import websockets
from PIL import Image
from websockets.asyncio.client import ClientConnection

from browser.demo_process import Demo, alive, eventually, running
from trunkline.demo.app import Mistake, plain
from trunkline.demo.thumbnails import MAX_IMAGE, SIDE, WAITING, BadImage, shrink

SECONDS = 15


class Window:
    """A websocket that speaks as the page does."""

    def __init__(self, socket: ClientConnection, hello: dict[str, Any]) -> None:
        self.socket = socket
        self.hello = hello

    async def ask(self, **content: Any) -> None:
        await self.socket.send(json.dumps(content))

    async def line(self, **wanted: Any) -> dict[str, Any]:
        """Wait for a line that has these values; lines before it are skipped."""
        async with asyncio.timeout(SECONDS):
            while True:
                line: dict[str, Any] = json.loads(await self.socket.recv())
                if line.items() >= wanted.items():
                    return line

    async def until(self, **wanted: Any) -> list[dict[str, Any]]:
        """All lines up to one that has these values; pulses, and who is there, left out."""
        lines = []
        while True:
            line = await self.line()
            if line["is"] not in ("pulse", "who", "came", "gone"):
                lines.append(line)
            if line.items() >= wanted.items():
                return lines


@asynccontextmanager
async def window(demo: Demo, *, room: str = "", name: str = "Ada", not_on: int = 0) -> AsyncIterator[Window]:
    """A window, in a room unless that is empty, on any server but ``not_on``."""
    url = demo.url.replace("http:", "ws:") + "chat"
    for _ in range(60):
        async with websockets.connect(url) as opened:
            made = Window(opened, json.loads(await opened.recv()))
            if made.hello["server"] == not_on:
                continue
            if room:
                await made.ask(do="join", room=room, name=name)
                await made.line(**{"is": "joined", "by": made.hello["id"]})
            yield made
            return
    raise AssertionError(f"60 connections in a row went to server {not_on}")


@asynccontextmanager
async def two_windows(demo: Demo, room: str, other: str = "") -> AsyncIterator[tuple[Window, Window]]:
    """Windows of two people, served by two processes."""
    async with (
        window(demo, room=room, name="Ada") as ada,
        window(demo, room=other or room, name="Grace", not_on=ada.hello["server"]) as grace,
    ):
        yield ada, grace


def png(width: int = 800, height: int = 400, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, (width, height), "teal").save(out, "PNG")
    return out.getvalue()


# Between windows


async def test_a_message_crosses_processes(demo: Demo) -> None:
    """What one window says reaches a window of another server process, with the name and the process it came from."""
    async with two_windows(demo, "Zürich Süd · 日本") as (ada, grace):
        assert ada.hello["pid"] != grace.hello["pid"]
        await ada.ask(do="say", text="Grüezi\n<b>", ref=7)
        line = await grace.line(**{"is": "message"})
        assert line.pop("position").startswith("demo.room.")
        assert line == {
            "is": "message",
            "text": "Grüezi\n<b>",
            "ref": 7,
            "room": "Zürich Süd · 日本",
            "by": ada.hello["id"],
            "name": "Ada",
            "server": ada.hello["server"],
            "pid": ada.hello["pid"],
        }
        own = await ada.line(**{"is": "message"})
        assert own.pop("position")
        assert own == line


async def test_a_window_that_comes_back_gets_what_it_missed(demo: Demo) -> None:
    """It says where it was, to whichever process answers: the lines in between come once, before anything new."""
    async with window(demo, room="away", name="Grace") as grace:
        async with window(demo, room="away", name="Ada") as ada:
            await ada.ask(do="say", text="1")
            since = (await ada.line(text="1"))["position"]
        for number in range(2, 5):
            await grace.ask(do="say", text=str(number))
            await grace.line(text=str(number))
        for place in range(3):  # another process, more likely than not
            async with window(demo) as again:
                await again.ask(do="join", room="away", name="Ada", back=True, since=since)
                await grace.line(**{"is": "joined"})
                await grace.ask(do="say", text=f"new {place}")
                got = [line["text"] for line in await again.until(text=f"new {place}") if "text" in line]
                assert got == ["2", "3", "4", *(f"new {before}" for before in range(place + 1))]
        async with window(demo) as lost:
            await lost.ask(do="join", room="away", name="Ada", since="demo.room.away:1.abc")
            assert (await lost.line(**{"is": "here"}))["lost"] is True


async def test_a_slow_window_gets_the_newest_draft(demo: Demo) -> None:
    """However many drafts come at once, the last one arrives; a draft that is none is refused."""
    async with two_windows(demo, "typing") as (ada, grace):
        for number in range(2000):
            await ada.ask(do="draft", text=f"{number} " + "x" * 1500)
        await ada.ask(do="draft", text="done")
        await grace.line(**{"is": "draft", "text": "done"})
        await ada.ask(do="draft", text=7)
        assert "A draft is a text" in (await ada.line(**{"is": "error"}))["text"]


async def test_rooms_are_separate(demo: Demo) -> None:
    """A room hears its own lines only, also when the names differ by one letter that is not ASCII."""
    async with two_windows(demo, "Süd", "Sud") as (ada, grace):
        await ada.ask(do="say", text="to Süd")
        await ada.line(text="to Süd")
        await grace.ask(do="say", text="to Sud")
        assert [line["text"] for line in await grace.until(text="to Sud")] == ["to Sud"]


async def test_people_come_and_go(demo: Demo) -> None:
    """A room is told who joins, takes another name, leaves for another room, and closes the window."""
    async with window(demo, room="hall", name="Ada") as ada:
        async with window(demo, room="hall", name="Grace") as grace:
            assert (await ada.line(**{"is": "joined"}))["name"] == "Grace"
            await grace.ask(do="join", room="hall", name="Grace H.")
            assert (await ada.line(**{"is": "renamed"}))["before"] == "Grace"
            await grace.ask(do="join", room="elsewhere", name="Grace H.")
            assert (await ada.line(**{"is": "left"}))["name"] == "Grace H."
            await grace.ask(do="join", room="hall", name="Grace", back=True)
            assert (await ada.line(**{"is": "joined"}))["back"] is True
        assert (await ada.line(**{"is": "left"}))["name"] == "Grace"


async def test_a_room_shows_who_is_there(demo: Demo) -> None:
    """Somebody with two windows comes once and goes once; who enters sees who is there."""
    async with window(demo, room="salon", name="Ada") as ada:
        async with window(demo, room="salon", name="Grace") as grace:
            assert await ada.line(**{"is": "came", "who": "Grace"}) == {
                "is": "came",
                "who": "Grace",
                "room": "salon",
            }
            async with window(demo, room="salon", name="Ada"):
                await grace.ask(do="join", room="salon", name="Hopper")
                assert (await grace.line(**{"is": "who"}))["names"] == ["Ada", "Hopper"]
                assert (await ada.line(**{"is": "gone"}))["who"] == "Grace"
                assert (await ada.line(**{"is": "came"}))["who"] == "Hopper"
        assert (await ada.line(**{"is": "gone"}))["who"] == "Hopper"


async def test_an_announcement_reaches_every_room(demo: Demo) -> None:
    """The button starts a script in a process of its own, which reaches windows of all rooms and processes."""
    async with two_windows(demo, "north", "south") as (ada, grace):
        await ada.ask(do="announce", text="--help; it's $(tea)")
        lines = [await each.line(**{"is": "announcement"}) for each in (ada, grace)]
        assert lines[0] == lines[1]
        assert lines[0]["text"] == "--help; it's $(tea)"
        assert lines[0]["pid"] not in demo.pids()


async def test_a_script_of_the_user_reaches_everyone(demo: Demo) -> None:
    """The command that the demo prints works from another terminal."""
    async with window(demo, room="terminal") as ada:
        env = {**os.environ, "TRUNKLINE_URL": demo.layer}
        command = (sys.executable, "-m", "trunkline.demo.announce", "Hello")
        script = await asyncio.create_subprocess_exec(*command, env=env)
        line = await ada.line(**{"is": "announcement"})
        assert await script.wait() == 0
        assert (line["text"], line["pid"]) == ("Hello", script.pid)


async def test_every_process_has_a_pulse(demo: Demo) -> None:
    """Each window learns of both servers, the worker and the people in each room."""
    async with two_windows(demo, "pulse") as (ada, _):
        wanted = {demo.pid("server 1"): 1, demo.pid("server 2"): 1, demo.pid("worker"): None}
        seen: dict[int, Any] = {}
        async with asyncio.timeout(SECONDS):
            while seen != wanted:
                line = await ada.line(**{"is": "pulse"})
                seen[line["pid"]] = line.get("rooms", {}).get("pulse")


# The worker


async def test_a_thumbnail_comes_back_from_the_worker(demo: Demo) -> None:
    """A picture goes to the worker process, and its thumbnail to the whole room, naming the worker."""
    async with two_windows(demo, "gallery") as (ada, grace):
        await ada.socket.send(png())
        line = await grace.line(**{"is": "picture"})
        assert (line["name"], line["worker"]) == ("Ada", demo.pid("worker"))
        assert (line["width"], line["height"]) == (SIDE, SIDE // 2)
        assert line["image"].startswith("data:image/jpeg;base64,")


async def test_a_bad_picture_is_told_to_its_sender_alone(demo: Demo) -> None:
    """Bytes that are no picture, a picture cut short, and one that is too large each get a clear error."""
    async with two_windows(demo, "bad") as (ada, grace):
        for image in (b"", b"GIF89a", png()[:300]):
            await ada.socket.send(image)
            assert "no picture the worker can read" in (await ada.line(**{"is": "error"}))["text"]
        await ada.socket.send(bytes(MAX_IMAGE + 1))
        assert "at most 5 MB" in (await ada.line(**{"is": "error"}))["text"]
        await ada.ask(do="say", text="done")
        assert [line["is"] for line in await grace.until(text="done")] == ["message"]


async def test_a_full_queue_is_told_as_busy(demo: Demo) -> None:
    """When the worker stands still, senders are told that it is busy; when it goes on, it does what it had taken."""
    worker = demo.pid("worker")
    async with window(demo, room="busy") as ada:
        os.kill(worker, signal.SIGSTOP)
        try:
            for _ in range(WAITING + 3):
                await ada.socket.send(png(64, 64))
            assert "The worker is busy" in (await ada.line(**{"is": "error"}))["text"]
        finally:
            os.kill(worker, signal.SIGCONT)
        for _ in range(WAITING):
            await ada.line(**{"is": "picture"})
    assert demo.pid("worker") == worker


# What a window may send


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("{", "expects JSON"),
        ("[" * 100_000, "expects JSON"),
        ("[]", "knows: join, say, announce, draft"),
        ('{"do": ["say"]}', "knows: join, say, announce, draft"),
        ('{"do": "pulse"}', "knows: join, say, announce, draft"),
        ('{"do": "say", "text": "early"}', "Join a room first"),
        ('{"do": "join", "room": 5, "name": "Ada"}', "room is missing"),
        ('{"do": "join", "room": "\\u0000 \\u200d", "name": "Ada"}', "room is empty"),
        ('{"do": "join", "room": "r", "name": "' + 31 * "a" + '"}', "name has 31 characters"),
        ('{"do": "announce", "text": "' + 2001 * "a" + '"}', "text has 2001 characters"),
    ],
)
async def test_what_cannot_be_done_is_told(demo: Demo, asked: str, told: str) -> None:
    """A wrong request is answered with what is wrong, and the window stays."""
    async with window(demo) as ada:
        await ada.socket.send(asked)
        assert told in (await ada.line(**{"is": "error"}))["text"]
        await ada.ask(do="join", room="after", name="Ada")
        await ada.line(**{"is": "joined"})


async def test_pages_of_others_are_refused(demo: Demo) -> None:
    """Another site's page cannot open a chat in the user's name."""
    url = demo.url.replace("http:", "ws:") + "chat"
    for origin in ("http://evil.example", "null", demo.url.rstrip("/") + ".evil.example"):
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with websockets.connect(url, origin=websockets.Origin(origin)):
                pass
        assert refused.value.response.status_code == 403
    own = websockets.Origin(demo.url.rstrip("/"))
    async with websockets.connect(url, origin=own) as opened:
        assert json.loads(await opened.recv())["is"] == "hello"


def test_text_is_cleaned() -> None:
    """Control characters, lone surrogates and marks that turn text around are dropped; emoji and lines are kept."""
    assert plain({"text": " a\x00\ud800\u202eb\n👩\u200d🚀\t "}, "text", 20) == "ab\n👩\u200d🚀"
    assert plain({"name": "A\n \u3000B"}, "name", 20) == "A B"
    with pytest.raises(Mistake, match="empty"):
        plain({"name": "\u200d\n"}, "name", 20)


def test_thumbnails_keep_what_matters() -> None:
    """A thumbnail keeps proportions and transparency, never grows, and a picture of too many pixels is refused."""
    small = shrink(png(1000, 500, "RGBA"))
    assert (small["kind"], small["width"], small["height"]) == ("image/png", SIDE, SIDE // 2)
    assert Image.open(io.BytesIO(small["image"])).mode == "RGBA"
    assert shrink(png(10, 20))["width"] == 10
    with pytest.raises(BadImage, match="too many"):
        shrink(png(8000, 6000, "1"))


# The page


def lowercased(headers: Message) -> dict[str, str]:
    """Servers differ in how they write header names."""
    return {name.lower(): value for name, value in headers.items()}


def fetch(url: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=SECONDS) as answer:
            return answer.status, lowercased(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, lowercased(error.headers), error.read()


@pytest.mark.parametrize("path", ["", "app.js", "style.css", "icon.svg"])
def test_the_page_is_served(demo: Demo, path: str) -> None:
    """Each file of the page is served, and may load nothing from elsewhere."""
    status, headers, body = fetch(demo.url + path)
    assert (status, headers["content-length"]) == (200, str(len(body)))
    assert "default-src 'none'" in headers["content-security-policy"]
    assert not re.search(rb"(src|href)=.https?:|url\(|@import", body)


def test_nothing_else_is_served(demo: Demo) -> None:
    """Other paths, also clever ones, are not found, and nothing can be posted."""
    assert fetch(demo.url + "nothing")[0] == 404
    assert fetch(demo.url + "../app.py")[0] == 404
    assert fetch(demo.url + "page/%2e%2e/app.py")[0] == 404
    assert fetch(demo.url, "POST")[0] == 405


# Its processes


async def test_a_killed_server_is_replaced(demo: Demo) -> None:
    """After kill -9 of a server the others go on, one line tells it, and another takes its place."""
    async with two_windows(demo, "killed") as (ada, grace):
        number, pid = ada.hello["server"], ada.hello["pid"]
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(websockets.ConnectionClosed):
            await ada.line(never=True)
        await grace.ask(do="say", text="still here")
        await grace.line(text="still here")
        await asyncio.to_thread(demo.find, rf"^server {number} \(pid {pid}\) was ended by SIGKILL")
        await asyncio.to_thread(demo.find, rf"^server {number} is back as pid")
        async with window(demo, room="killed", name="Ada", not_on=grace.hello["server"]) as again:
            assert again.hello["pid"] == demo.pid(f"server {number}") != pid
            await again.ask(do="say", text="back")
            assert (await grace.line(text="back"))["pid"] == again.hello["pid"]


async def test_a_killed_worker_is_replaced(demo: Demo) -> None:
    """After kill -9 of the worker another takes its place and its jobs."""
    pid = demo.pid("worker")
    os.kill(pid, signal.SIGKILL)
    async with window(demo, room="killed worker") as ada:
        await asyncio.to_thread(demo.find, rf"^worker \(pid {pid}\) was ended by SIGKILL")
        await ada.socket.send(png())
        line = await ada.line(**{"is": "picture"})
        await asyncio.to_thread(demo.find, r"^worker is back as pid")
        assert line["worker"] == demo.pid("worker") != pid


async def test_ctrl_c_ends_everything() -> None:
    """Ctrl-C, with windows open, ends all processes, removes the layer's directory and says nothing but that."""
    with running() as demo:
        pids, folder = demo.pids(), Path(demo.layer.removeprefix("embedded://"))
        assert folder.stat().st_mode & 0o777 == 0o700
        assert len(re.findall(r"https?://", demo.output)) == 1
        async with two_windows(demo, "last") as (ada, _):
            assert await asyncio.to_thread(demo.close) == 0
            with pytest.raises(websockets.ConnectionClosed):
                await ada.line(never=True)
            assert ada.socket.close_code == 1012
        assert not any(alive(pid) for pid in pids)
        assert not folder.exists()
        assert demo.output.splitlines()[-2:] == ["", "Ending the servers and the worker."]


async def test_the_layer_may_be_another(tmp_path: Path) -> None:
    """TRUNKLINE_URL names the layer to use; the demo says so and leaves what it found in place."""
    url = f"embedded://{tmp_path}/mine"
    with running(TRUNKLINE_URL=url) as demo:
        assert demo.layer == url
        async with two_windows(demo, "mine") as (ada, grace):
            await ada.ask(do="announce", text="heard")
            assert (await grace.line(**{"is": "announcement"}))["text"] == "heard"
        assert demo.close() == 0
    assert (tmp_path / "mine").is_dir()


async def test_servers_take_turns_where_the_kernel_does_not_spread() -> None:
    """On systems other than Linux the servers inherit one listening socket, and each still gets connections."""
    code = "import sys, types; import trunkline.demo.serve as serve; "
    code += (
        "serve.sys = types.SimpleNamespace(platform='darwin', executable=sys.executable, stdout=sys.stdout); "
    )
    with running(code + "serve.run(port=0)") as demo:
        async with two_windows(demo, "turns") as (ada, grace):
            await ada.ask(do="say", text="your turn")
            await grace.line(text="your turn")


def test_what_dies_again_and_again_is_given_up() -> None:
    """When a part keeps dying right after its start, the demo says so, ends the others, and has exit status 1."""
    with running() as demo:
        pids, killed = demo.pids(), 0
        while demo.process.poll() is None:
            if (pid := demo.pid("server 1")) != killed:
                os.kill(pid, signal.SIGKILL)
                killed = pid
            time.sleep(0.02)
        assert demo.close() == 1
        assert demo.output.endswith("server 1 was ended by SIGKILL 5 times in a row; giving up.\n")
        assert not any(alive(pid) for pid in pids)


def test_nothing_outlives_the_demo(tmp_path: Path) -> None:
    """When the demo itself is killed, its servers and its worker end too."""
    demo, pids = Demo(TMPDIR=str(tmp_path)), [0]
    try:
        pids = demo.pids()
        demo.process.kill()
        eventually(lambda: not any(alive(pid) for pid in pids[1:]))
    finally:
        for pid in filter(alive, pids[1:]):
            os.kill(pid, signal.SIGKILL)
        demo.close()


@pytest.mark.parametrize(
    ("port", "env", "told"),
    [
        ("taken", {}, r"Cannot serve on 127.0.0.1 port \d+ \(.*\); choose another: --port \d+\n"),
        ("70000", {}, r"Cannot serve on 127.0.0.1 port 70000 \(.*\); choose another: --port \d+\n"),
        (
            "0",
            {"TRUNKLINE_URL": "memory://"},
            r"TRUNKLINE_URL is memory://, which ends at each process; .*\n",
        ),
        (
            "0",
            {"TRUNKLINE_URL": "pigeon://"},
            r"The channel layer cannot be used: no transport for pigeon.*\n",
        ),
    ],
)
def test_what_keeps_it_from_starting_is_one_line(port: str, env: dict[str, str], told: str) -> None:
    """A taken or impossible port and an unusable layer are told in one line, with exit status 1."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as other:
        code = f"from trunkline.demo.serve import run; run(port={other.getsockname()[1] if port == 'taken' else port})"
        ended = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env={**os.environ, **env},
            timeout=30,
        )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert re.fullmatch(told, ended.stderr), ended.stderr
