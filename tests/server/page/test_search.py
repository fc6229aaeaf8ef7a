"""The page's search of a served index: what is found, and why, as a person sees it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from secondpass.search.index import Index
from tests.server.live import serving
from tests.server.page.browser import MODEL, Open, ask, ranked
from tests.server.page.test_looks import TEXTS_SEEN, contrast, overflow

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow
KEY = "a-key-of-the-test"
QUERY = "which ssh port does the server use"
NOTES = {
    "2023-02-01 server.md": "# Server\n\n## Access\n\nThe ssh port of the server is 2222. Keys are kept by Ada.\n",
    "2026-10-01 server.md": "# Server\n\n## Access\n\n"
    "Since the move the ssh port of the server is 2244. <b>Bo</b> has keys.\n",
    "tea.md": "# Tea\n\nGreen tea wants eighty degrees.\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("searched")
    (place / "notes").mkdir()
    for name, text in NOTES.items():
        (place / "notes" / name).write_text(text)
    index = Index("notes", folder=place / "data", create=True)
    index.add(place / "notes")
    index.close()
    return place / "data"


@pytest.fixture(scope="module")
def indexed(folder: Path) -> Iterator[str]:
    with serving(models=(MODEL,), index="notes", index_folder=str(folder)) as url:
        yield url


def search(page: Page, query: str = QUERY) -> None:
    page.get_by_label("Index “notes”").check()
    page.get_by_label("Query").fill(query)
    page.get_by_role("button", name="Search").click()
    page.wait_for_selector("#found:not([hidden])")


def test_without_an_index_there_is_nothing_to_choose(visit: Open) -> None:
    page = visit()
    assert not page.locator("#sources").is_visible()


def test_what_the_model_cannot_read_is_said(visit: Open, indexed: str) -> None:
    page = visit(indexed)
    search(page, "ssh 服务器使用哪个端口")
    assert "Beware: " in page.locator("#found-line").inner_text()
    page.get_by_label("Your texts").check()
    ask(page, "服务器使用哪个端口", "服务器使用哪个端口\n今天天气很好")
    assert len(ranked(page)) == 2
    assert "cannot read Chinese" in page.locator("#meaning").inner_text()


def test_what_is_found_is_shown_with_every_stage(visit: Open, indexed: str) -> None:
    body = {"query": QUERY, "top_n": 10, "explain": True, "sentences": True}
    results = httpx.post(f"{indexed}/v1/index/search", json=body, timeout=60).json()["results"]
    page = visit(indexed)
    search(page)
    cards = page.locator("#hits .card")
    assert cards.count() == len(results)
    assert page.locator("#hits .file").all_text_contents() == [f"{hit['file']}:{hit['line']}" for hit in results]
    first, parts = results[0], results[0]["parts"]
    assert cards.first.locator("mark").inner_text() == first["text"][slice(*first["sentence"])]
    names, figures = (page.locator(f".card:first-child .why {at}").all_text_contents() for at in ("th", ".figure"))
    rows = dict(zip(names, figures, strict=True))
    assert rows["Words"] == f"1st, {parts['bm25_score']:.2f}"
    assert rows["Meaning"].endswith(f", {parts['dense_score']:.2f}")
    assert rows["Joined"] == f"{parts['fused']:.2f}"
    assert f"{100 * first['probability']:.1f} %, score +{first['score']:.2f}" == rows["Read together"]
    assert set(rows) == {"Words", "Meaning", "Joined", "Read together"}
    width = "r => r.firstChild.getBoundingClientRect().width / r.getBoundingClientRect().width"
    page.wait_for_timeout(500)  # the bars grow
    assert page.locator("#hits .why .rail").nth(3).evaluate(width) == pytest.approx(first["probability"], abs=0.01)
    assert f"{len(results)} passages found in" in page.get_by_role("status").inner_text()
    assert "<b>Bo</b>" in page.locator("#hits").inner_text()


def test_filters_and_cognitive_scoring_are_sent_and_shown(visit: Open, indexed: str) -> None:
    page = visit(indexed)
    page.get_by_label("Index “notes”").check()
    page.get_by_label("Recency, use and confidence count").check()
    page.get_by_label("One passage of each file").check()
    page.get_by_label("Only files").fill("server")
    page.get_by_label("Written since").fill("2023-01-01")
    page.get_by_label("Show the best").fill("2")
    with page.expect_request("**/v1/index/search") as asked:
        search(page)
    sent = json.loads(asked.value.post_data or "")
    filters = {"cognitive": True, "diversity": "file", "path": "server", "since": "2023-01-01", "top_n": 2}
    assert sent.items() >= filters.items()
    assert page.locator("#hits .file").count() == 2
    assert "2026-10-01" in page.locator("#hits .file").first.inner_text()
    why = page.locator("#hits .why").first.inner_text()
    assert "newer than most" in why and "Recency" in why and "to the score" in why
    assert page.locator("#hits .sides").count() > 0
    with page.expect_response("**/v1/index/feedback") as answered:
        page.get_by_role("button", name="Useful", exact=True).first.click()
    assert answered.value.json() == {"recorded": "used"}
    page.get_by_role("button", name="Noted").wait_for()
    page.get_by_label("Your texts").check()
    assert page.get_by_label("Passages", exact=True).is_visible()
    assert not page.get_by_label("Only files").is_visible()


def test_nothing_found_and_a_bad_filter_are_said(visit: Open, indexed: str) -> None:
    page = visit(indexed, may_fail=True)
    page.get_by_label("Index “notes”").check()
    page.get_by_label("Only files").fill("nowhere")
    search(page)
    assert "Nothing was found" in page.locator("#found-line").inner_text()
    page.get_by_label("Show the best").fill("1000")
    page.get_by_role("button", name="Search").click()
    assert "Top_n is 1000; it should be less than or equal to 100." in page.get_by_role("alert").inner_text()
    page.get_by_label("Query").fill("")
    page.get_by_role("button", name="Search").click()
    assert "There is no query" in page.get_by_role("alert").inner_text()


def test_a_search_needs_the_key_of_the_server(visit: Open, folder: Path) -> None:
    with serving(models=(MODEL,), keys=(KEY,), index="notes", index_folder=str(folder)) as url:
        page = visit(url, may_fail=True)
        assert not page.locator("#sources").is_visible()  # without the key not even its name is said
        page.locator("#key").fill(KEY)
        page.locator("#key").blur()
        search(page)
        assert page.locator("#hits .card").count() > 0
        page.locator("#key").fill("another")
        page.get_by_role("button", name="Search").click()
        assert "asks for a key" in page.get_by_role("alert").inner_text()


@pytest.mark.parametrize(("width", "scheme"), [(320, "light"), (1280, "dark")])
def test_it_is_read_by_everyone(visit: Open, indexed: str, width: int, scheme: str) -> None:
    page = visit(indexed, viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.get_by_label("Index “notes”").check()
    page.get_by_label("Recency, use and confidence count").check()
    search(page)
    page.wait_for_timeout(500)
    assert overflow(page) == 0
    seen = page.evaluate(TEXTS_SEEN)
    assert [(text, ink, paper) for text, ink, paper in seen if contrast(ink, paper) < 4.5] == []
    for control in page.locator("#found button:visible, #found summary:visible").all():
        box = control.bounding_box()
        assert box is not None and box["height"] >= 24, control.inner_text()
