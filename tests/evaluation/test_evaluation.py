"""Evaluations of scorers whose figures are known, and their reports."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from secondpass.errors import DataError, SecondpassError
from secondpass.evaluation import bm25_run, compare, evaluate, rendering
from secondpass.evaluation.evaluation import timed
from secondpass.evaluation.first_stage import given_run, vector_run
from secondpass.evaluation.measures import parse, ranked
from secondpass.evaluation.report import Report, as_dict, rows, summary, verdict, worst_hurt
from secondpass.types import DocumentLike
from tests.evaluation.sets import NUM_QUERIES, Foolish, Wise, small_set
from tests.retrieval.test_bm25 import Letters

NDCG = parse("nDCG@10")


@pytest.fixture(scope="module")
def report() -> Report:
    return compare({"wise": Wise(), "foolish": Foolish()}, [small_set(), small_set("second")], depths=[6, 3])


def test_the_answer_is_last_before_and_first_after(report: Report) -> None:
    (evaluation, _) = report.of("wise")
    assert evaluation.depths == (3, 6)
    assert evaluation.before(NDCG, 6) == pytest.approx([1 / 2.807354922057604] * NUM_QUERIES, abs=1e-12)
    assert evaluation.after(NDCG, 6) == pytest.approx([1.0] * NUM_QUERIES)
    assert evaluation.before(NDCG, 3).tolist() == evaluation.after(NDCG, 3).tolist() == [0.0] * NUM_QUERIES
    assert report.change([evaluation], NDCG, 6).verdict == "helps"
    assert report.change([evaluation], NDCG, 3).verdict == "cannot be told"


def test_figures_are_asked_for_by_a_measures_name_too(report: Report) -> None:
    (evaluation, _) = report.of("foolish")
    assert evaluation.after("ndcg@10", 6).tolist() == evaluation.after(NDCG, 6).tolist()
    assert evaluation.before("RR@10", 3).tolist() == evaluation.before(parse("MRR@10"), 3).tolist()
    with pytest.raises(ValueError, match=r"nDCG@10 at depth 7 was not evaluated; there are nDCG@10, .* at 3, 6"):
        evaluation.after(NDCG, 7)
    with pytest.raises(ValueError, match=r"recall@5 at depth 6 was not evaluated"):
        evaluation.before("recall@5", 6)


def test_a_notebook_does_not_show_all_texts_and_scores(report: Report) -> None:
    dataset = report.evaluations[0].dataset
    shown = repr(report)
    assert "foolish" in shown and f"{NUM_QUERIES} queries" in shown
    assert not any(text in shown for text in (*dataset.queries.values(), *dataset.documents.values()))
    assert len(shown) < 10_000


def test_one_depth_that_is_no_list_is_refused_in_words() -> None:
    with pytest.raises(TypeError, match=r"depths is a int; give a list, \[20\] for one"):
        evaluate(Wise(), small_set(), depths=20)  # type: ignore[arg-type]


def test_lesser_depths_are_cut_from_one_scoring() -> None:
    scorer = Wise()
    evaluate(scorer, small_set(), depths=[2, 4, 6], is_timed=False)
    assert scorer.asked == [1, *[6] * NUM_QUERIES]  # one pair to warm up


def test_latency_is_measured_at_every_depth() -> None:
    scorer = Wise()
    evaluation = evaluate(scorer, small_set(), depths=[2, 6])
    assert set(scorer.asked) == {1, 2, 6}
    assert evaluation.latency[6].num_queries == NUM_QUERIES and evaluation.latency[2].num_queries == 10
    assert 0 < evaluation.latency[6].p50_s <= evaluation.latency[6].p95_s
    assert set(timed(replace(evaluation, latency={}), scorer).latency) == {2, 6}


def test_queries_without_candidates_count_as_0() -> None:
    dataset = small_set()
    run = {query: scores for query, scores in bm25_run(dataset, 6).items() if query != "q3"}
    evaluation = evaluate(Wise(), dataset, first_stage=run, depths=[6])
    assert evaluation.after(NDCG, 6).mean() == pytest.approx(1 - 1 / NUM_QUERIES)
    assert evaluation.notes == ("the first stage found nothing for 1 of 12 queries, which count as 0",)


def test_candidates_are_ranked_among_themselves() -> None:
    dataset = replace(small_set(), candidates={f"q{n}": [f"r{n}", "o1-0", "o1-1"] for n in range(NUM_QUERIES)})
    assert set(bm25_run(dataset, 9)["q5"]) == {"r5", "o1-0", "o1-1"}
    assert ranked(bm25_run(dataset, 2)["q1"]) == ["o1-0", "o1-1"]
    assert len(vector_run(dataset, Letters(), 2)["q1"]) == 2


def test_a_run_of_another_set_is_refused() -> None:
    with pytest.raises(DataError, match=r"has none of its queries \(one is 'x1' there, 'q0' here\)"):
        given_run(small_set(), {"x1": {"r1": 1.0}}, 5)
    with pytest.raises(DataError, match="'zz', ranked for q1, is not among the documents"):
        given_run(small_set(), {"q1": {"zz": 1.0}}, 5)


class Odd:
    def __init__(self, scores: Sequence[float]) -> None:
        self.scores = list(scores)

    def score(self, query: str, documents: Sequence[DocumentLike]) -> list[float]:
        return self.scores


@pytest.mark.parametrize(("scores", "message"), [([], "0 scores for 1"), ([float("nan")], "gave NaN for")])
def test_a_broken_scorer_is_named(scores: list[float], message: str) -> None:
    with pytest.raises(SecondpassError, match=message):
        evaluate(Odd(scores), small_set(), depths=[1])


@pytest.mark.parametrize("depths", [[], [0], [5, -1], [1.5], ["5"]])
def test_depths_are_checked(depths: list[int]) -> None:
    with pytest.raises(ValueError, match="depths are"):
        evaluate(Wise(), small_set(), depths=depths)


def test_the_worst_hurt_are_shown_with_their_texts(report: Report) -> None:
    evaluation = evaluate(Foolish(), small_set(), first_stage={"q1": {"r1": 2.0, "o1-0": 1.0}}, depths=[5])
    (example,) = worst_hurt(evaluation)
    assert (example.query, example.rank_before, example.rank_after) == ("river1 bridge1 c", 1, 2)
    assert example.relevant == "river1 is the answer" and example.first_now.startswith("river1 bridge1 stone")
    assert example.before == 1.0 and example.after == pytest.approx(0.6309297535714575)
    assert all(worst_hurt(each) == [] for each in report.of("wise"))


def test_verdicts_are_sentences(report: Report) -> None:
    every = rows(report)
    wise, foolish = (verdict(report, row) for row in summary(report, every))
    assert wise.startswith(
        "wise: helps. nDCG@10 on the average of 2 sets goes from 0.3562 to 1.0000 when the first 6"
    )
    assert "24 queries are better, 0 worse, 0 equal" in wise
    assert foolish.startswith("foolish: it cannot be told whether it helps.")
    assert "24 equal" in foolish  # the answer was last already


def test_json_holds_the_figures(report: Report) -> None:
    found = json.loads(json.dumps(as_dict(report), allow_nan=False))
    assert len(found["results"]) == 2 * 3 * 2 and len(found["queries"]) == 2 * 2 * NUM_QUERIES
    assert found["measured"][1]["after"] == {
        "nDCG@10": 1.0,
        "MRR@10": 1.0,
        "recall@10": 1.0,
        "MAP": 1.0,
        "hit_rate@1": 1.0,
    }
    (pair,) = found["between_models"]
    assert (pair["from"], pair["to"], pair["verdict"]) == ("wise", "foolish", "hurts")


def test_markdown_columns_line_up(report: Report) -> None:
    text = rendering.markdown(report)
    assert "| average" in text and "## Models against each other" in text
    assert "1 / " not in text
    table = rendering.table(["a", "文字"], [["x|y", "b"]]).splitlines()
    assert table == ["| a    | 文字 |", "|------|------|", "| x\\|y | b    |"]


NASTY = "<script>alert(1)</script><img src=x onerror=alert(1)> $\\frac{1}{2}$ \"' & | `x` 中文 \x1b[31m\u202e"


class Page(HTMLParser):
    """The elements of a page and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.images: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        assert not any(name.startswith("on") for name in given)
        if "src" in given:
            assert tag == "img" and str(given["src"]).startswith("data:image/svg+xml;base64,")
            self.images.append(str(given["src"]))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.mark.slow
def test_the_page_is_safe_and_stands_alone() -> None:
    """Names and texts with markup in them stay texts, in the page, in the plots and in Markdown."""
    pytest.importorskip("matplotlib")
    clean = small_set()
    dataset = replace(
        clean,
        name=NASTY,
        queries={query: f"{text} {NASTY}" for query, text in clean.queries.items()},
        documents={name: f"{text} {NASTY}" for name, text in clean.documents.items()},
    )
    run = {f"q{n}": {f"r{n}": 2.0, f"o{n}-0": 1.0} for n in range(NUM_QUERIES)}
    evaluation = evaluate(Foolish(), dataset, first_stage=run, depths=[1, 2], model=NASTY)
    report = Report(evaluations=(evaluation,), infos={NASTY: {"device": NASTY}})
    text = rendering.html(report)
    parser = Page()
    parser.feed(text)
    assert len(parser.images) == 2
    assert "<script>alert(1)</script><img src=x onerror=alert(1)>" in "".join(parser.texts)
    assert set(parser.tags).isdisjoint({"script", "link", "iframe", "object", "a", "form", "base"})
    for image in parser.images:
        svg = base64.b64decode(image.partition("base64,")[2]).decode()
        assert "<script" not in svg and "<image" not in svg and "</svg>" in svg
    markdown = rendering.markdown(report)
    assert "<script>" not in markdown.replace("\\<", "") and "\x1b" not in markdown and "\u202e" not in markdown
