"""A headless Chromium for the page's tests, and what every one of them does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from secondpass.server.settings import ModelSource

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

Open = Callable[..., "Page"]
MODEL = ModelSource(name="default", path="default", dtype="float32")
QUERY = "which river is long"
TEXTS = ["a bridge", "bread is baked", "the river is very long", "winter light", "the water of the long river"]
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser that was installed as a package or by Playwright; without one the test is skipped."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    with playwright.sync_playwright() as driver:
        if path is None and not os.path.exists(driver.chromium.executable_path):
            pytest.skip("needs Chromium")
        # A container seldom gives Chromium's sandbox its rights, and little shared memory; only the page is opened.
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            yield browser
        finally:
            browser.close()


def ask(page: Page, query: str = QUERY, passages: str = "\n".join(TEXTS)) -> None:
    page.get_by_label("Query").fill(query)
    page.get_by_label("Passages", exact=True).fill(passages)
    page.keyboard.press("Control+Enter")


def ranked(page: Page) -> list[str]:
    page.wait_for_selector("#answer:not([hidden])")
    page.wait_for_selector("#results[aria-busy=false]")
    return page.locator("#after .text").all_text_contents()
