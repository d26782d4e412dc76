"""Headless Chromium for the tests of the report page."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser. Without one the tests are skipped; with CI=true they fail."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        reason = "no Chromium on PATH: `make browser` installs it, as root, where apt-get is"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


class Reader:
    """A page that is open in the browser, and what went wrong in it.

    problems: what its console reports as an error, its scripts' errors, and requests that leave it.
    """

    def __init__(self, browser: Browser, path: Path, *, width: int = 1280, scheme: str = "light"):
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, accept_downloads=True
        )
        self.page: Page = self.context.new_page()
        self.page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
        self.problems: list[str] = []
        self.page.on("console", self._read_console)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self._note(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready]", state="attached", timeout=120_000)
        self.page.set_default_timeout(60_000)

    def _read_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(message.text)

    def _note(self, address: str) -> None:
        if not address.startswith(("file:", "data:", "blob:")):
            self.problems.append(address)

    def download(self, selector: str, folder: Path) -> Path:
        """What a click on a button saves."""
        with self.page.expect_download() as waited:
            self.page.click(selector)
        path = folder / waited.value.suggested_filename
        waited.value.save_as(path)
        return path
