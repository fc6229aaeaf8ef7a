"""PyTerrier, BEIR, rerankers, txtai and ranx: rankings there are the library's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from secondpass import Reranker
from tests.integrations.question import ANSWER, PASSAGES, QUERY, assert_best_first

pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def expected() -> dict[str, float]:
    return {hit.document.text: hit.score for hit in Reranker().rank(QUERY, PASSAGES)}


def test_pyterrier_ranks_in_a_declared_pipeline(expected: dict[str, float]) -> None:
    pt = pytest.importorskip("pyterrier")
    import pandas as pd

    from secondpass.integrations.pyterrier import Secondpass

    results = pd.DataFrame(
        [(str(q), QUERY, f"d{i}", text, 5.0 - i, i) for q in (1, 2) for i, text in enumerate(PASSAGES)],
        columns=["qid", "query", "docno", "text", "score", "rank"],
    )
    pipeline = pt.Transformer.from_df(results) % 4 >> Secondpass()
    found = pipeline(results[["qid", "query"]].drop_duplicates())
    assert len(found) == 8
    assert dict(zip(found["text"], found["score"], strict=True)) == {text: expected[text] for text in PASSAGES[:4]}
    assert set(found[found["rank"] == 0]["text"]) == {ANSWER}
    assert list(Secondpass()(results.iloc[:0]).columns)  # as PyTerrier looks at what a pipeline makes
    one = Secondpass(scorer=Reranker()).transform(results)
    assert one[one["rank"] == 0]["docno"].tolist() == ["d2", "d2"]
    with pytest.raises(Exception, match="text"):
        Secondpass().transform(results.drop(columns=["text"]))


def test_pyterrier_scores_rows_by_position_and_ranks_those_without_text(expected: dict[str, float]) -> None:
    pytest.importorskip("pyterrier")
    import pandas as pd

    from secondpass.integrations.pyterrier import Secondpass

    names = ["qid", "query", "docno", "text"]
    one = pd.DataFrame([("1", QUERY, "a", ANSWER), ("1", QUERY, "b", "")], columns=names)
    two = pd.DataFrame([("2", "museum", "c", PASSAGES[4]), ("2", "museum", "d", PASSAGES[0])], columns=names)
    both = pd.concat([one, two])  # the labels 0 and 1 twice
    found = Secondpass(scorer=Reranker()).transform(both)
    assert found["rank"].tolist() == [0, 1, 0, 1]
    assert found["score"].tolist()[:2] == [expected[ANSWER], expected[ANSWER] - 1]
    assert found["score"].tolist()[2:] == Secondpass().transform(both)["score"].tolist()[2:]


def test_beir_reranks_its_results(expected: dict[str, float]) -> None:
    pytest.importorskip("beir")
    from beir.reranking import Rerank

    from secondpass.integrations.beir import SecondpassModel

    corpus = {f"d{i}": {"title": "", "text": text} for i, text in enumerate(PASSAGES)}
    results = {"q": {f"d{i}": 5.0 - i for i in range(len(PASSAGES))}}
    found = Rerank(SecondpassModel(), batch_size=2).rerank(corpus, {"q": QUERY}, results, top_k=4)
    assert {PASSAGES[int(name[1:])]: score for name, score in found["q"].items()} == pytest.approx(
        {text: expected[text] for text in PASSAGES[:4]}
    )


def test_rerankers_opens_the_class_by_its_name(expected: dict[str, float]) -> None:
    rerankers = pytest.importorskip("rerankers")
    from secondpass.integrations.rerankers import register

    register()
    ranker = rerankers.Reranker("default", model_type="SecondpassRanker", verbose=0)
    found = ranker.rank(QUERY, PASSAGES, doc_ids=list("abcde"), metadata=[{"page": i} for i in range(5)])
    assert_best_first([each.text for each in found.results], [each.score for each in found.results], 5)
    assert found.top_k(1)[0].doc_id == "c" and found.top_k(1)[0].metadata == {"page": 2}
    raw = rerankers.Reranker("default", model_type="SecondpassRanker", verbose=0, raw_scores=True)
    assert raw.score(QUERY, ANSWER) == pytest.approx(expected[ANSWER], abs=0.02)
    assert ranker.rank(QUERY, []).results == []
    assert [each.score for each in ranker.rank(QUERY, [""])] == [None]


def test_txtai_takes_it_as_a_similarity() -> None:
    pytest.importorskip("txtai")
    from secondpass.integrations.txtai import Similarity

    similarity = Similarity()
    found = similarity(QUERY, PASSAGES)
    assert_best_first([PASSAGES[index] for index, _ in found], [score for _, score in found], 5)
    assert similarity([QUERY, QUERY], PASSAGES, multilabel=False) == [found, found]
    assert similarity(QUERY, []) == []
    assert similarity(QUERY, [""]) == [(0, 0.0)]  # a number, which its Reranker sorts by


def test_runs_go_to_ranx_and_back(tmp_path: Path) -> None:
    ranx = pytest.importorskip("ranx")
    from secondpass.evaluation import read_run

    ranking = Reranker().rank(QUERY, PASSAGES)
    lines = [f"q Q0 d{hit.index} {rank} {hit.score!r} secondpass" for rank, hit in enumerate(ranking, 1)]
    (tmp_path / "run.trec").write_text("\n".join(lines) + "\n")
    run = ranx.Run.from_file(str(tmp_path / "run.trec"), kind="trec")
    assert ranx.evaluate(ranx.Qrels({"q": {"d2": 1}}), run, "mrr") == 1.0
    run.save(str(tmp_path / "back.trec"), kind="trec")
    assert next(iter(read_run(tmp_path / "back.trec")["q"])) == "d2"
