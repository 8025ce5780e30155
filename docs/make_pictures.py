"""Takes the pictures of the documentation from programs that run: `make pictures`. It needs Chromium, as the tests do."""

import asyncio
import contextlib
import io
import re
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.async_api import Browser, Page, async_playwright, expect

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from browser.demo_process import running  # noqa: E402
from frameworks.programs import Program  # noqa: E402

FOLDER = ROOT / "docs" / "pictures"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


async def say(page: Page, text: str) -> None:
    await page.get_by_label("Message", exact=True).fill(text)
    await page.get_by_label("Message", exact=True).press("Enter")
    await expect(page.get_by_role("log")).to_contain_text(text)


async def demo(browser: Browser) -> None:
    """A wide window and a telephone on two server processes, a picture by the worker, an announcement by a script."""
    with running() as site:
        async with (
            await browser.new_context(viewport={"width": 1180, "height": 800}, color_scheme="light") as wide,
            await browser.new_context(viewport={"width": 390, "height": 800}, color_scheme="dark") as narrow,
        ):
            ada, bob = await wide.new_page(), await narrow.new_page()
            await ada.goto(f"{site.url}?room=kitchen")
            state = ada.locator("#state")
            await expect(state).to_have_text(re.compile(r"connected to server \d"))
            await bob.goto(f"{site.url}?room=kitchen&not={(await state.inner_text())[-1]}")
            for page, name in ((ada, "Ada"), (bob, "Bob")):
                await page.get_by_label("You are").fill(name)
                await page.get_by_label("You are").press("Enter")
                await expect(page.get_by_role("log")).to_contain_text(f"is now {name}")
            await ada.get_by_role("button", name="Sample").click()
            await expect(bob.locator(".picture img")).to_have_js_property("naturalWidth", 320)
            await say(ada, "Which process are you on?")
            await say(bob, "Another one than you.")
            await bob.get_by_role("button", name="Announce").click()
            await bob.get_by_label("Announcement").fill("Tea is ready")
            for key in ("Tab", "Tab", "Enter"):  # to the second of its buttons
                await bob.keyboard.press(key)
            for page in (ada, bob):
                await expect(page.locator(".announcement")).to_contain_text("Tea is ready")
            await bob.get_by_label("Message", exact=True).focus()
            await asyncio.sleep(2.5)  # every process has had its pulse
            await side_by_side([ada, bob], "demo.png")


@contextlib.contextmanager
def example(name: str) -> Iterator[int]:
    """The port of an example that runs."""
    with tempfile.TemporaryDirectory(prefix="trunkline-") as folder:
        words = ["-m", "uvicorn", "main:app", "--workers", "2", "--port", "0"]
        env = {"TRUNKLINE_DIR": folder}
        with Program(words, ROOT / "examples" / name, Path(folder) / "log", env) as program:
            program.printed(r"(?s)(startup complete.*){2}")
            yield program.port()


async def cursors(browser: Browser) -> None:
    """Three people on a board, seen by one of them."""
    with example("presence_cursors") as port:
        async with contextlib.AsyncExitStack() as stack:
            pages = [
                await stack.enter_async_context(window(browser, port, who)) for who in ("Ada", "Bob", "Zoë")
            ]
            for page, x, y in zip(pages, (90, 300, 180), (255, 170, 220), strict=True):
                await page.mouse.move(x, y)
                await page.mouse.move(x + 20, y + 10)
            for page in pages:
                await expect(page.locator(".cursor:visible")).to_have_count(3)
            await asyncio.sleep(0.5)  # they have glided to their places
            await pages[1].mouse.down()
            await asyncio.sleep(0.25)  # he waves
            await side_by_side(pages[:2], "cursors.png")


@contextlib.asynccontextmanager
async def window(browser: Browser, port: int, who: str) -> AsyncIterator[Page]:
    scheme: Any = "dark" if who == "Bob" else "light"
    size: Any = {"width": 560, "height": 340}
    async with await browser.new_context(viewport=size, color_scheme=scheme) as context:
        page = await context.new_page()
        await page.goto(f"http://127.0.0.1:{port}/?who={who}")
        await expect(page.locator("#there")).to_contain_text(who)
        yield page


async def side_by_side(pages: list[Page], name: str) -> None:
    shots = [Image.open(io.BytesIO(await page.screenshot())).convert("RGB") for page in pages]
    gap = 16
    whole = Image.new(
        "RGB", (sum(shot.width + gap for shot in shots) - gap, max(shot.height for shot in shots)), "#8a979c"
    )
    left = 0
    for shot in shots:
        whole.paste(shot, (left, 0))
        left += shot.width + gap
    whole.quantize(128).save(FOLDER / name, optimize=True)
    print(f"docs/pictures/{name}: {(FOLDER / name).stat().st_size // 1000} kB")  # noqa: T201


async def main() -> None:
    if CHROMIUM is None:
        sys.exit("make pictures needs Chromium: apt install chromium")
    FOLDER.mkdir(exist_ok=True)
    arguments = ["--no-sandbox", "--disable-gpu"]
    async with (
        async_playwright() as playwright,
        await playwright.chromium.launch(executable_path=CHROMIUM, args=arguments) as browser,
    ):
        await demo(browser)
        await cursors(browser)


if __name__ == "__main__":
    asyncio.run(main())
