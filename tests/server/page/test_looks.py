"""The page for every reader: directions of script, small screens, keyboards, contrast, names that are read aloud."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.server.page.browser import QUERY, TEXTS, Open, ask, ranked

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow
ARABIC = "احفظ القهوة المطحونة في وعاء محكم الإغلاق"
HEBREW = "הנהר ארוך מאוד"
CHINESE = "冲泡绿茶以八十度左右的水为宜，水温过高会把嫩叶烫熟。"

# Each text of the page with its colour, the colour behind it, its size and its weight.
TEXTS_SEEN = """() => {
    const seen = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const behind = (node) => {
        for (let at = node; at; at = at.parentElement) {
            const colour = getComputedStyle(at).backgroundColor;
            if (!/, 0\\)$/.test(colour) && colour !== "transparent") return colour;
        }
        return "rgb(255, 255, 255)";
    };
    while (walker.nextNode()) {
        const text = walker.currentNode.textContent.trim();
        const parent = walker.currentNode.parentElement;
        if (!text || !parent.checkVisibility() || parent.closest(".hidden, option, noscript, .skip")) continue;
        seen.push([text.slice(0, 40), getComputedStyle(parent).color, behind(parent)]);
    }
    return seen;
}"""


def luminance(colour: str) -> float:
    """Relative luminance of rgb(...), as WCAG 2 defines it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def overflow(page: Page) -> int:
    """Pixels by which the page is wider than the screen, or what asks for the query wider than its sheet."""
    width: int = page.evaluate(
        "Math.max(...[...document.querySelectorAll('html, .ask')].map(e => e.scrollWidth - e.clientWidth))"
    )
    return width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_enough_contrast(visit: Open, scheme: str) -> None:
    page = visit(color_scheme=scheme)
    idle = page.evaluate(TEXTS_SEEN)
    ask(page, QUERY, "\n".join([*TEXTS, "the river is long " * 500]))
    ranked(page)
    page.get_by_role("button", name="Rank").click()
    ranked(page)
    page.get_by_label("Query").fill("")
    page.get_by_role("button", name="Rank").click()
    page.get_by_role("alert").wait_for()
    page.wait_for_timeout(500)  # what comes in softly is there
    seen = [*idle, *page.evaluate(TEXTS_SEEN)]
    assert len(seen) > 40
    low = [(text, round(contrast(ink, paper), 2)) for text, ink, paper in seen if contrast(ink, paper) < 4.5]
    assert low == []


@pytest.mark.parametrize("width", [320, 390, 768, 1024, 1280, 1920])
def test_nothing_is_wider_than_the_screen(visit: Open, width: int) -> None:
    page = visit(viewport={"width": width, "height": 800})
    assert overflow(page) == 0
    ask(page, "x" * 200, "\n".join([*TEXTS, "y" * 3000, CHINESE * 20, ARABIC * 20]))
    ranked(page)
    assert overflow(page) == 0
    assert page.locator("#links").is_visible() == (width > 720)


def test_what_is_touched_on_a_phone_is_large_enough(visit: Open) -> None:
    page = visit(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page.get_by_role("button", name="Try an example").tap()
    ranked(page)
    for control in page.locator("button:visible, select:visible, summary:visible, .segments label:visible").all():
        box = control.bounding_box()
        assert box is not None and box["height"] >= 24 and box["width"] >= 24, control.inner_text()


def test_scripts_have_their_direction(visit: Open) -> None:
    page = visit()
    ask(page, ARABIC, "\n".join([ARABIC, HEBREW, CHINESE, "the river"]))
    texts = ranked(page)
    directions = page.eval_on_selector_all("#after .text", "l => l.map(p => getComputedStyle(p).direction)")
    assert dict(zip(texts, directions, strict=True)) == {
        ARABIC: "rtl",
        HEBREW: "rtl",
        CHINESE: "ltr",
        "the river": "ltr",
    }
    assert page.get_by_label("Query").evaluate("field => getComputedStyle(field).direction") == "rtl"
    assert page.locator("html").evaluate("html => getComputedStyle(html).direction") == "ltr"


def test_all_of_it_works_without_a_mouse(visit: Open) -> None:
    page = visit()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
    order = []
    for _ in range(11):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.value || 'summary'"))
    assert order == [
        "query",
        "lines",
        "passages",
        "open",
        "clear",
        "top",
        "threshold",
        "windows",
        "summary",
        "run",
        "example",
    ]
    page.get_by_label("Query").focus()
    page.keyboard.type(QUERY)
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert page.get_by_label("Paragraph").is_checked()
    page.keyboard.press("Tab")
    page.keyboard.insert_text("\n\n".join(TEXTS))
    page.keyboard.press("Control+Enter")
    assert len(ranked(page)) == len(TEXTS)
    page.get_by_role("tab", name="curl").focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("tab", name="Python").get_attribute("aria-selected") == "true"
    assert "RemoteReranker" in page.get_by_role("tabpanel").inner_text()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert "cohere" in page.get_by_role("tabpanel").inner_text()


def test_every_control_has_a_name(visit: Open) -> None:
    page = visit()
    ask(page)
    ranked(page)
    page.locator("#key-box").evaluate("box => (box.open = true)")
    snapshot = page.locator("body").aria_snapshot()
    unnamed = re.findall(r"- (?:button|textbox|combobox|checkbox|radio|tab|link|list)\b(?! \")[^\n]*", snapshot)
    assert unnamed == []
    for role in ("main", "banner"):
        assert page.get_by_role(role).count() == 1
    assert 'heading "Ranked"' in snapshot and 'list "Ranked"' in snapshot


def test_the_focus_is_seen(visit: Open) -> None:
    page = visit()
    for _ in range(9):
        page.keyboard.press("Tab")
        seen = page.evaluate(
            """() => [document.activeElement, document.activeElement.nextElementSibling].filter(Boolean)
                .some(at => getComputedStyle(at).outlineStyle === "solid")"""
        )
        assert seen, page.evaluate("document.activeElement.outerHTML")
