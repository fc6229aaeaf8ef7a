"""The page in headless Chromium: what a person does with it, sees in it, and hears of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from secondpass import Reranker
from secondpass.server.dialects.native import NATIVE
from secondpass.server.settings import ModelSource
from secondpass.wire.calls import Fault, Refusal
from tests.server.live import serving
from tests.server.page.browser import QUERY, TEXTS, Open, ask, ranked

pytestmark = pytest.mark.slow
KEY = "a-key-of-the-test"
MODELS = (ModelSource(name="first", path="default"), ModelSource(name="second", path="default", max_length=64))


def test_the_order_and_the_figures_are_the_models(visit: Open) -> None:
    page = visit()
    ask(page)
    expected = Reranker(dtype="float32").rank(QUERY, TEXTS)
    assert ranked(page) == expected.texts
    assert page.locator("#before .text").all_text_contents() == TEXTS
    shown = [float(text.replace("−", "-").split()[1]) for text in page.locator(".logit").all_text_contents()]
    assert shown == pytest.approx([hit.score for hit in expected], abs=0.006)
    percents = [float(text.strip("<> %")) for text in page.locator(".percent").all_text_contents()]
    assert percents == pytest.approx([100 * hit.probability for hit in expected], abs=0.11)
    assert page.locator("#links path").count() == len(TEXTS)
    rises = [hit.index + 1 - hit.rank for hit in expected]
    assert page.locator(".move.up").count() == sum(rise > 0 for rise in rises)
    assert f"{sum(rise != 0 for rise in rises)} passages moved" in page.locator("#moved").inner_text()
    assert f"{len(TEXTS)} passages ranked in" in page.get_by_role("status").inner_text()
    facts = page.locator("#facts").inner_text()
    assert str(expected.usage.tokens) in facts and "0\npassages cut" in facts


def test_bars_are_as_long_as_probabilities(visit: Open) -> None:
    page = visit()
    ask(page)
    ranked(page)
    page.wait_for_timeout(500)  # the bars grow
    script = "rails => rails.map(r => r.firstChild.getBoundingClientRect().width / r.getBoundingClientRect().width)"
    widths = page.eval_on_selector_all("#after .rail", script)
    expected = [max(hit.probability, 0.006) for hit in Reranker(dtype="float32").rank(QUERY, TEXTS)]
    assert widths == pytest.approx(expected, abs=0.01)


@pytest.mark.promise("docs/security.md", "texts are data: the page sets them as text only")
def test_markup_in_texts_stays_text(visit: Open) -> None:
    page = visit()
    evil = [
        "<img src=x onerror=\"document.title='owned'\">",
        "<script>document.title='owned'</script>",
        '"><svg onload=alert(1)>',
        "</textarea><iframe src=javascript:alert(1)>",
        "javascript:alert(1) {{7*7}} ${alert(1)}",
    ]
    ask(page, "<b>bold</b>", "\n".join(evil))
    assert sorted(ranked(page)) == sorted(evil)
    for name in ("curl", "Python", "Cohere"):
        page.get_by_role("tab", name=re.compile(name)).click()
    assert page.title() == "secondpass"
    assert page.locator("#answer :is(img, script, iframe, b)").count() == 0


def test_examples_rank_at_once(visit: Open) -> None:
    page = visit()
    page.get_by_role("button", name="Try an example").click()
    assert len(ranked(page)) == 6
    names = page.locator("#example option").all_text_contents()[1:]
    for name in names:
        with page.expect_response("**/api/rank"):
            page.get_by_label("Load an example").select_option(label=name)
        assert ranked(page)


@pytest.mark.parametrize(
    ("name", "content", "passages"),
    [
        ("a.jsonl", '{"text": "one"}\n\n"two"\n{"content": "drei", "text": 3}\n', ["one", "two", "drei"]),
        ("a.json", '[{"text": "one"},\n "two"]', ["one", "two"]),
        ("a.md", "# Title\nof it\n\nA paragraph\nof two lines.\n \n\n\nAnother.", 3),
        ("a.txt", "one\r\ntwo\r\n\n", 2),
        ("a.txt", "[not json] one\n{two}", 2),
    ],
)
def test_dropped_files_become_passages(visit: Open, name: str, content: str, passages: list[str] | int) -> None:
    page = visit()
    script = """([name, content]) => {
        const data = new DataTransfer();
        data.items.add(new File([content], name));
        const drop = new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true});
        document.getElementById("passages").dispatchEvent(drop);
    }"""
    page.evaluate(script, [name, content])
    count = passages if isinstance(passages, int) else len(passages)
    page.get_by_text(f"{count} passages", exact=True).wait_for()
    if isinstance(passages, list):
        page.get_by_label("Query").fill("q")
        page.get_by_role("button", name="Rank").click()
        assert sorted(ranked(page)) == sorted(passages)


def test_a_file_can_be_chosen(visit: Open, tmp_path: Path) -> None:
    file = tmp_path / "passages.txt"
    file.write_text("one\ntwo\nthree", "utf-8")
    page = visit()
    page.locator("#file").set_input_files(file)
    page.get_by_text("3 passages", exact=True).wait_for()


@pytest.mark.parametrize(
    ("query", "passages", "mode", "said"),
    [
        ("", "a", "Line", "There is no query"),
        ("q", " \n ", "Line", "There are no passages"),
        ("q", '{"text": "a"}\n{"text": ', "JSONL", "Line 2 is not JSON."),
        ("q", '{"title": "a"}', "JSONL", "Line 1 has no “text”."),
    ],
)
def test_what_cannot_be_sent_is_said(visit: Open, query: str, passages: str, mode: str, said: str) -> None:
    page = visit()
    page.on("request", lambda asked: pytest.fail(asked.url))
    page.get_by_label("Query").fill(query)
    page.get_by_label("Passages", exact=True).fill(passages)
    page.get_by_label(mode, exact=True).check()
    page.get_by_role("button", name="Rank").click()
    assert said in page.get_by_role("alert").inner_text()


def test_a_key_is_asked_for_and_kept_in_memory_only(visit: Open) -> None:
    stored = "() => JSON.stringify([Object.values(sessionStorage), Object.values(localStorage), document.cookie])"
    with serving(keys=(KEY,)) as url:
        page = visit(url, may_fail=True)
        ask(page)
        assert "asks for a key" in page.get_by_role("alert").inner_text()
        assert page.evaluate("document.activeElement.id") == "key"
        page.keyboard.type(KEY)
        page.keyboard.press("Enter")
        assert len(ranked(page)) == len(TEXTS)
        assert not page.get_by_role("alert").is_visible()
        assert KEY not in page.locator("#code").inner_text()
        assert KEY not in page.url and KEY not in page.evaluate(stored)
        page.reload()
        assert page.locator("#key").input_value() == ""
        page.locator("#key-box").evaluate("box => (box.open = true)")
        page.locator("#key").fill(KEY)
        page.get_by_label("Keep it until this tab is closed").check()
        page.reload()
        assert page.locator("#key").input_value() == KEY
        page.get_by_label("Keep it until this tab is closed").uncheck()
        assert KEY not in page.evaluate(stored)


def test_too_much_is_said(visit: Open) -> None:
    with serving(max_documents=3) as url:
        page = visit(url, may_fail=True)
        ask(page)
        alert = page.get_by_role("alert").inner_text()
    assert "more than this server takes at once" in alert and "takes 3 in one request" in alert


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            Refusal(Fault.overloaded, "the queue is full", retry_after=3.0),
            "The queue is full. Try again in 3 seconds.",
        ),
        (Refusal(Fault.unavailable, "the server is loading its models", retry_after=1.0), "not ready"),
        (Refusal(Fault.deadline, "not done by the deadline"), "It took too long"),
        (Refusal(Fault.internal, "internal error"), "The server failed (500)"),
    ],
)
def test_failures_are_said_and_can_be_tried_again(visit: Open, fault: Refusal, said: str) -> None:
    page = visit(may_fail=True)
    reply = NATIVE.refuse(fault, "request-1")
    body = {"status": reply.status, "headers": dict(reply.headers), "body": json.dumps(reply.body)}
    page.route("**/api/rank", lambda route: route.fulfill(**body))
    ask(page)
    page.get_by_role("alert").wait_for()
    assert said in page.get_by_role("alert").inner_text()
    page.unroute("**/api/rank")
    page.get_by_role("button", name="Try again").click()
    assert len(ranked(page)) == len(TEXTS)
    assert not page.get_by_role("alert").is_visible()


def test_a_server_that_is_gone_is_said(visit: Open) -> None:
    with serving() as url:
        page = visit(url, may_fail=True)
    ask(page)
    page.get_by_text("No answer from the server").wait_for()


def test_a_page_of_html_in_place_of_an_answer_is_said(visit: Open) -> None:
    page = visit(may_fail=True)
    page.route("**/api/rank", lambda route: route.fulfill(status=200, body="<h1>Log in</h1>"))
    ask(page)
    page.get_by_text("The answer could not be read").wait_for()


def test_a_call_can_be_stopped(visit: Open) -> None:
    page = visit(may_fail=True)
    page.route("**/api/rank", lambda route: None)
    ask(page)
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Rank").wait_for()
    assert page.get_by_role("status").inner_text() == "Stopped."


def test_the_chosen_model_is_asked(visit: Open) -> None:
    with serving(models=MODELS) as url:
        page = visit(url)
        page.get_by_label("Model").select_option("second")
        with page.expect_request("**/api/rank") as asked:
            ask(page)
        assert json.loads(asked.value.post_data or "")["model"] == "second"
        ranked(page)
        assert '"model": "second"' in page.locator("#code").inner_text()


def test_below_a_prefix(visit: Open) -> None:
    with serving(root_path="/tools/rank") as url:
        page = visit(f"{url}/tools/rank/")
        ask(page)
        assert len(ranked(page)) == len(TEXTS)
        assert f"'{url}/tools/rank/api/rank'" in page.locator("#code").inner_text()


def test_what_was_cut_is_marked(visit: Open) -> None:
    page = visit()
    ask(page, QUERY, "short\n" + "the river is long " * 500)
    ranked(page)
    assert page.locator(".cut").count() == 1
    assert "1\npassage cut" in page.locator("#facts").inner_text()
    page.get_by_role("button", name="Show more").click()
    assert page.get_by_role("button", name="Show less").get_attribute("aria-expanded") == "true"


def test_a_thousand_passages_are_shown_in_two_steps(visit: Open) -> None:
    page = visit()
    ask(page, QUERY, "\n".join(f"passage {i}" for i in range(300)))
    assert len(ranked(page)) == 60
    page.get_by_role("button", name="Show all 300").click()
    assert page.locator("#after .card").count() == page.locator("#before .card").count() == 300


@pytest.mark.parametrize("tab", ["curl", "Python", "Cohere’s client"])
def test_the_code_on_the_page_runs(visit: Open, server: str, tab: str) -> None:
    texts = ['it\'s "quoted" $HOME `id` \\n', "JSON", "naïve 面包 \u2028 🙂", "the long river", "'''"]
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    ask(page, "which 'river' is \"long\"?", "\n".join(texts))
    ranked(page)
    order = [int(index) for index in page.eval_on_selector_all("#after .card", "l => l.map(c => c.dataset.index)")]
    page.get_by_role("tab", name=tab).click()
    page.get_by_role("button", name="Copy").click()
    code = page.evaluate("navigator.clipboard.readText()")
    if tab == "Cohere’s client":
        pytest.importorskip("cohere")
    command = ["bash", "-c", code] if tab == "curl" else [sys.executable, "-c", code]
    shown = subprocess.run(command, capture_output=True, check=True, encoding="utf-8", timeout=120).stdout
    if tab == "curl":
        assert [result["index"] for result in json.loads(shown)["results"]] == order
    elif tab == "Python":
        sent = [texts[index].strip() for index in order]
        assert [line.split("  ", 2)[2] for line in shown.split("\n") if line] == sent
    else:
        assert [int(line.split()[1]) for line in shown.splitlines()] == order


LONG = "The committee met on Tuesday to discuss the budget of the city library. " * 60 + "The river is very long."


@pytest.mark.parametrize("in_windows", [False, True])
@pytest.mark.parametrize("tab", ["curl", "Python"])
def test_the_code_gives_the_scores_of_the_page(visit: Open, tab: str, in_windows: bool) -> None:
    """Of a document whose answer is at its end, where reading in windows makes all the difference."""
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    if in_windows:
        page.get_by_label("Read long passages in windows").check()
    ask(page, QUERY, "\n".join([LONG, "bread is baked", "a river"]))
    ranked(page)
    scores = page.eval_on_selector_all(
        "#after .card",
        "l => l.map(c => c.querySelector('.logit').textContent.replace('score ', '').replace('−', '-'))",
    )
    page.get_by_role("tab", name=tab).click()
    page.get_by_role("button", name="Copy").click()
    code = page.evaluate("navigator.clipboard.readText()")
    command = ["bash", "-c", code] if tab == "curl" else [sys.executable, "-c", code]
    shown = subprocess.run(command, capture_output=True, check=True, encoding="utf-8", timeout=120).stdout
    if tab == "curl":
        found = [f"{result['score']:+.2f}" for result in json.loads(shown)["results"]]
    else:
        found = [line.split("  ")[1] for line in shown.splitlines() if line]
    assert found == scores


def test_the_window_that_won_is_marked(visit: Open) -> None:
    page = visit()
    page.get_by_label("Read long passages in windows").check()
    ask(page, QUERY, f"{LONG}\nbread is baked")
    ranked(page)
    assert "The river is very long." in page.locator("#after mark").inner_text()
    assert page.locator(".cut").count() == 0


def test_the_best_few_and_those_that_reach_a_threshold(visit: Open) -> None:
    page = visit()
    page.get_by_label("Show the best").fill("3")
    ask(page)
    assert len(ranked(page)) == 3
    page.locator("#threshold").fill("50")
    below = page.locator("#after .card.below").count()
    assert f"{3 - below} of 3" in page.locator("#moved").inner_text()
    assert "reach 50.0 %" in page.locator("#moved").inner_text()
    page.locator("#threshold").fill("0")
    assert page.locator("#after .card.below").count() == 0


def test_two_models_are_compared(visit: Open) -> None:
    with serving(models=MODELS) as url:
        page = visit(url)
        page.get_by_label("Compare with").select_option("second")
        ask(page)
        ranked(page)
        assert page.locator("#after .other").count() == len(TEXTS)
        assert "second: place 1" in page.locator("#after .other").first.inner_text()
        assert "are among the first of second" in page.locator("#meaning").inner_text()
