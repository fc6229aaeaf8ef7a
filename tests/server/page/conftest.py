"""A browser, a server, and pages that must neither complain nor ask anything of another place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.server.live import serving
from tests.server.page.browser import MODEL, Open, chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving(models=(MODEL,)) as url:
        yield url


@pytest.fixture
def visit(browser: Browser, server: str) -> Iterator[Open]:
    """Opens the page; at the end nothing may have been written to the console or asked of another place."""
    said: list[str] = []
    contexts = []

    def opened(url: str = server, *, may_fail: bool = False, **options: Any) -> Page:
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        if not may_fail:
            page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(f"dialog {dialog.message}"))
        page.on("request", lambda asked: None if asked.url.startswith(url) else said.append(asked.url))
        page.goto(url)
        page.wait_for_load_state("networkidle")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []
