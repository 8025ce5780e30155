"""The demo in a real browser: what a stranger sees in the first minute."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

pytest.importorskip("uvicorn", reason="the demo needs: pip install 'trunkline[demo]'")
pytest.importorskip("PIL", reason="the demo needs: pip install 'trunkline[demo]'")

from PIL import Image

import trunkline
from browser.demo_process import Demo

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
ARGUMENTS += ["--disable-background-networking", "--disable-component-update"]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
REQUIRED = "browser" in os.environ.get("TRUNKLINE_REQUIRE", "")

if not REQUIRED:
    for package in ("playwright", "axe_playwright_python"):
        pytest.importorskip(package, reason=f"the browser tests need: pip install {package}")
    if CHROMIUM is None:
        pytest.skip("no Chromium; install it, e.g.: apt install chromium", allow_module_level=True)

from axe_playwright_python.async_playwright import Axe  # noqa: E402
from playwright.async_api import Browser, BrowserContext, Page, async_playwright, expect  # noqa: E402

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    assert CHROMIUM, "TRUNKLINE_REQUIRE has 'browser', and there is no Chromium: apt install chromium"
    async with (
        async_playwright() as playwright,
        await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS) as browser,
    ):
        yield browser


@asynccontextmanager
async def visit(browser: Browser, *, width: int = 1280, lost: bool = False) -> AsyncIterator[BrowserContext]:
    """A fresh browser profile; what goes wrong in its pages fails the test.

    ``lost``: a server is killed, so the browser itself notes that a connection failed.
    """
    async with await browser.new_context(viewport={"width": width, "height": 800}, locale="en-GB") as context:
        context.set_default_timeout(10_000)
        wrong: list[str] = []
        context.on("weberror", lambda error: wrong.append(str(error.error)))
        context.on(
            "console", lambda line: wrong.append(line.text) if line.type in ("error", "warning") else None
        )
        yield context
        assert [line for line in wrong if not (lost and line.startswith("WebSocket connection to"))] == []


async def server_of(page: Page) -> int:
    """The number of the server that answers this window."""
    state = page.locator("#state")
    await expect(state).to_have_text(re.compile(r"connected to server \d"))
    return int((await state.inner_text())[-1])


async def call(page: Page, name: str) -> None:
    await page.get_by_label("You are").fill(name)
    await page.get_by_label("You are").press("Enter")
    await expect(page.get_by_role("log")).to_contain_text(f"is now {name}")


async def say(page: Page, text: str) -> None:
    await page.get_by_label("Message", exact=True).fill(text)
    await page.get_by_label("Message", exact=True).press("Enter")


#: A page with this can be unplugged: it reaches no server by a new connection.
PLUG = """const Real = WebSocket;
window.WebSocket = function (url) { return new Real(window.unplugged ? `ws://${location.host}/nowhere` : url); };"""


async def plug(page: Page, plugged: bool) -> None:
    await page.evaluate(f"window.unplugged = {str(not plugged).lower()}")


@asynccontextmanager
async def two_windows(
    browser: Browser, demo: Demo, room: str, **how: bool
) -> AsyncIterator[tuple[Page, Page]]:
    """Anna's window, and Greta's: opened by the link in Anna's, so another server answers it."""
    async with visit(browser, **how) as context:
        anna = await context.new_page()
        await anna.goto(f"{demo.url}?room={room}")
        number = await server_of(anna)
        await expect(anna.locator(f"#second[href*='not={number}']")).to_be_visible()
        async with context.expect_page() as opened:
            await anna.get_by_role("link", name="Second window").click()
        greta = await opened.value
        assert await server_of(greta) != number
        await call(anna, "Anna")
        await call(greta, "Greta")
        yield anna, greta


async def accessible(page: Page) -> None:
    """Names, roles, contrast and focus, as far as a program can tell."""
    found = await Axe().run(page)
    assert not found.response["violations"], found.generate_report()


async def test_two_windows_talk_across_processes(browser: Browser, demo: Demo) -> None:
    """A message shows who said it and from which process, in a window that another process serves; text stays text."""
    async with two_windows(browser, demo, "talk") as (anna, greta):
        number = await server_of(anna)
        await say(anna, "<img src=x onerror=alert(1)><b>bold</b>")
        for page in (anna, greta):
            message = page.locator(".message")
            await expect(message.locator(".body")).to_have_text("<img src=x onerror=alert(1)><b>bold</b>")
            await expect(message.locator("bdi")).to_have_text("Anna")
            label = f"server {number} · pid {demo.pid(f'server {number}')}"
            await expect(message.locator(".label")).to_have_text(label)
        await call(greta, "<script>alert(2)</script>")
        await say(greta, "Hello, Anna")
        await expect(anna.locator(".message bdi")).to_have_text(["Anna", "<script>alert(2)</script>"])
        await expect(anna.locator("[data-part=layer]")).to_contain_text(re.compile(r"embedded · [\d.]+ ms"))


async def test_rooms_are_separate_and_announcements_are_not(browser: Browser, demo: Demo) -> None:
    """A message stays in its room, an announcement reaches the windows of all rooms, and a room keeps its lines."""
    async with two_windows(browser, demo, "left") as (anna, greta):
        await greta.get_by_label("Name of a new room").fill("Raum für Tee 茶")
        await greta.get_by_label("Name of a new room").press("Enter")
        await expect(greta.get_by_role("heading", name="Raum für Tee 茶")).to_be_visible()
        await expect(anna.get_by_role("log")).to_contain_text("Greta left")
        await say(anna, "only for left")
        await expect(anna.get_by_role("log")).to_contain_text("only for left")
        await anna.get_by_role("button", name="Announce").click()
        await anna.get_by_label("Announcement").fill("Tea is ready")
        await anna.get_by_label("Announcement").press("Tab")
        await anna.keyboard.press("Tab")
        await anna.keyboard.press("Enter")
        for page in (anna, greta):
            await expect(page.locator(".announcement")).to_contain_text("Tea is ready")
        await expect(greta.locator(".message")).to_have_count(0)
        await anna.get_by_role("button", name=re.compile("Raum für Tee 茶")).click()
        await say(anna, "me too")
        await expect(greta.locator(".message .body")).to_have_text(["me too"])
        await anna.get_by_role("button", name=re.compile("^left")).click()
        await expect(anna.locator(".message .body")).to_have_text(["only for left"])


async def test_a_picture_goes_to_the_worker_and_comes_back(
    browser: Browser, demo: Demo, tmp_path: Path
) -> None:
    """A drawn sample and a file become thumbnails that name the worker; a file that is no picture is told as such."""
    file, large = tmp_path / "teal.png", tmp_path / "large.png"
    Image.new("RGB", (640, 640), "teal").save(file)
    large.write_bytes(bytes(6 * 2**20))
    async with two_windows(browser, demo, "pictures") as (anna, greta):
        await anna.get_by_role("button", name="Sample").click()
        await expect(greta.locator(".picture img")).to_have_js_property("naturalWidth", 320)
        await expect(greta.locator(".picture .label").last).to_contain_text(
            f"worker · pid {demo.pid('worker')}"
        )
        await greta.locator("#file").set_input_files(file)
        await expect(anna.get_by_alt_text("Thumbnail of a picture from Greta")).to_be_visible()
        await anna.locator("#file").set_input_files(
            [{"name": "x.png", "mimeType": "image/png", "buffer": b"no"}]
        )
        await expect(anna.get_by_role("alert")).to_contain_text("no picture the worker can read")
        await anna.get_by_role("button", name="Dismiss").click()
        await expect(anna.get_by_role("alert")).to_be_hidden()
        await anna.locator("#file").set_input_files(large)
        await expect(anna.get_by_role("alert")).to_contain_text("6.0 MB; at most 5 MB")
        await expect(greta.locator(".picture")).to_have_count(2)


async def test_a_window_survives_its_server(browser: Browser, demo: Demo) -> None:
    """After kill -9 of its server a window reconnects by itself, rejoins its room, and the chat goes on both ways."""
    async with two_windows(browser, demo, "survivors", lost=True) as (anna, greta):
        number = await server_of(anna)
        pid = demo.pid(f"server {number}")
        os.kill(pid, signal.SIGKILL)
        await expect(greta.get_by_role("log")).to_contain_text("Anna is back")
        await expect(anna.get_by_role("log")).to_contain_text(f"server {number} (pid {pid}) was lost")
        await server_of(anna)
        await say(greta, "Are you there?")
        await expect(anna.locator(".message .body")).to_have_text(["Are you there?"])
        await say(anna, "Of course")
        await expect(greta.locator(".message .body")).to_have_text(["Are you there?", "Of course"])
        await expect(greta.locator(".message .label").last).not_to_contain_text(str(pid))
        await asyncio.to_thread(demo.find, rf"^server {number} \(pid {pid}\) was ended by SIGKILL")
        await asyncio.to_thread(demo.find, rf"^server {number} is back as pid (?!{pid})")
        await expect(greta.locator(f"[data-part='server {number}']")).to_contain_text(
            str(demo.pid(f"server {number}"))
        )


async def test_a_draft_is_seen_by_the_others(browser: Browser, demo: Demo) -> None:
    """What Anna writes is shown to Greta, in the end as it stands; not to Anna herself, and not once it is sent."""
    async with two_windows(browser, demo, "drafts") as (anna, greta):
        await greta.set_viewport_size({"width": 800, "height": 400})
        text = "one letter after the other, and each replaces the one before"
        await anna.get_by_label("Message", exact=True).press_sequentially(text)
        await expect(greta.locator("#draft")).to_have_text(f"Anna is writing: {text}")
        await expect(greta.locator(".note").last).to_be_in_viewport(ratio=1)  # it covers nothing
        await expect(anna.locator("#draft")).to_be_hidden()
        await anna.get_by_label("Message", exact=True).press("Enter")
        await expect(greta.locator(".message .body")).to_have_text([text])
        await expect(greta.locator("#draft")).to_be_hidden()


async def test_nothing_is_missed_while_unplugged(browser: Browser, demo: Demo) -> None:
    """A window whose server was killed, and which cannot reach another for a while, then has all that was said, in order."""
    async with visit(browser, lost=True) as here, visit(browser) as there:
        await here.add_init_script(PLUG)
        anna, greta = await here.new_page(), await there.new_page()
        await anna.goto(f"{demo.url}?room=unplugged")
        number = await server_of(anna)
        await greta.goto(f"{demo.url}?room=unplugged&not={number}")
        await server_of(greta)
        await call(greta, "Greta")
        await say(greta, "one")
        await expect(anna.locator(".message .body")).to_have_text(["one"])
        await plug(anna, False)
        os.kill(demo.pid(f"server {number}"), signal.SIGKILL)
        await expect(anna.locator("#state")).to_contain_text("reconnecting")
        for text in ("two", "three", "four"):
            await say(greta, text)
            await expect(greta.locator(".message .body").last).to_have_text(text)
        await plug(anna, True)
        await server_of(anna)
        await say(greta, "five")
        await expect(anna.locator(".message .body")).to_have_text(["one", "two", "three", "four", "five"])
        await asyncio.to_thread(demo.find, rf"^server {number} is back as pid")


@pytest.mark.parametrize("width", [1280, 390, 320])
async def test_every_part_has_its_place(browser: Browser, demo: Demo, width: int) -> None:
    """On wide and narrow screens nothing is cut off, each control has a name, and all five parts are shown alive."""
    async with visit(browser, width=width) as context:
        page = await context.new_page()
        await page.goto(demo.url)
        await server_of(page)
        await expect(page.get_by_label("Message", exact=True)).to_be_focused()
        assert await page.evaluate("document.documentElement.scrollWidth") == width
        for name in ("Announce", "Picture", "Sample", "Send"):
            await expect(page.get_by_role("button", name=name)).to_be_in_viewport(ratio=1)
        await expect(page.get_by_role("link", name="Second window")).to_be_in_viewport(ratio=1)
        for part in ("window", "server 1", "server 2", "layer", "worker"):
            shown = page.locator(f"[data-part='{part}']")
            await expect(shown).to_be_in_viewport(ratio=1)
            await expect(shown).not_to_have_class(re.compile("gone"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_everybody_can_use_it(browser: Browser, demo: Demo, scheme: str) -> None:
    """With the keyboard alone one names oneself, opens a room, says and announces something. Nothing is wrong with names,
    roles or contrast, in either scheme and at two widths."""
    async with visit(browser) as context:
        page = await context.new_page()
        await page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        await page.goto(demo.url)
        await server_of(page)

        async def press(*keys: str) -> None:
            for key in keys:
                await page.keyboard.press(key)

        await press("Shift+Tab")
        await page.keyboard.type("Zoë")
        await press("Enter")
        await expect(page.get_by_role("log")).to_contain_text("is now Zoë")
        await page.get_by_label("Name of a new room").focus()
        await page.keyboard.type(f"quiet {scheme}")
        await press("Enter")
        await expect(page.locator("#room")).to_have_text(f"quiet {scheme}")
        await page.keyboard.type("hello")
        await press("Enter", "Shift+Tab", "Shift+Tab", "Shift+Tab", "Shift+Tab", "Enter")
        await page.keyboard.type("Tea is ready")
        await accessible(page)
        await press("Tab", "Tab", "Enter")
        await expect(page.locator(".announcement")).to_contain_text("Tea is ready")
        await page.evaluate("complain('Something went wrong.')")
        for width in (1280, 390):
            await page.set_viewport_size({"width": width, "height": 800})
            await accessible(page)


EXAMPLES = [*Path(__file__).parents[2].glob("examples/*/index.html")]


async def test_everybody_can_use_the_other_pages(browser: Browser) -> None:
    """Nothing is wrong with names, roles or contrast of the dashboard and of the examples' pages."""
    dashboard = Path(trunkline.__file__).parent / "dashboard" / "page.html"
    for scheme in ("light", "dark"):
        async with await browser.new_context(color_scheme=scheme) as context:  # type: ignore[arg-type]
            page = await context.new_page()
            for path in (dashboard, *EXAMPLES):
                await page.set_content(path.read_text())
                # The checker takes the ground for white where a page leaves it to the browser.
                await page.add_style_tag(content="html { background: Canvas }")
                await accessible(page)


async def test_who_was_on_a_killed_server_leaves_the_list(browser: Browser, demo: Demo) -> None:
    """The list of people follows who comes and goes; kill -9 of a server takes its people off it within 15 seconds."""
    async with visit(browser, lost=True) as context, visit(browser, lost=True) as other:
        anna = await context.new_page()
        await anna.goto(f"{demo.url}?room=salon")
        number = await server_of(anna)
        await call(anna, "Anna")
        people = anna.get_by_role("list", name="Who is here").get_by_role("listitem")
        await expect(people).to_have_text(["Anna"])
        greta = await other.new_page()
        await greta.goto(f"{demo.url}?room=salon&not={number}")
        doomed = await server_of(greta)
        assert doomed != number
        await call(greta, "Greta")
        await expect(people).to_have_text(["Anna", "Greta"])
        await other.set_offline(True)  # or the page would be back at once, over another server
        await greta.evaluate("connect = () => {}")
        pid = demo.pid(f"server {doomed}")
        os.kill(pid, signal.SIGKILL)
        await expect(people).to_have_text(["Anna"], timeout=30_000)
        await anna.get_by_label("You are").fill("Anne")
        await anna.get_by_label("You are").press("Enter")
        await expect(people).to_have_text(["Anne"])
    await asyncio.to_thread(demo.find, rf"^server {doomed} is back as pid (?!{pid})")
