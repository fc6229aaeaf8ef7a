"""The multilingual model as it ships, by the package's path: both engines, everyday pairs, and what auto chooses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from secondpass import Embedder, Index, Memory, Reranker

PACKAGES = Path(__file__).parents[1] / "packages" / "multilingual" / "src"
MODEL = PACKAGES / "secondpass_multilingual" / "model"
MAX_BYTES = 65_000_000
# question, answer, another text in the same language
EVERYDAY = (
    ("长江有多长", "长江全长约6300公里。", "今天下雨。"),
    ("水龙头一直滴水怎么办", "关闭水阀，更换水龙头里的密封垫圈，就不会再漏水了。", "面包在烤箱里烤四十分钟。"),
    ("日本の首都はどこですか", "東京は日本の首都である。", "りんごは果物です。"),
    ("한국의 수도는 어디인가요", "서울은 대한민국의 수도이다.", "사과는 과일이다."),
    ("Какая река самая длинная в Европе", "Волга - самая длинная река Европы.", "Сегодня идёт дождь."),
    ("ما هي عاصمة مصر", "القاهرة هي عاصمة جمهورية مصر العربية.", "التفاح فاكهة لذيذة."),
    ("Wie lang ist die Donau", "Die Donau ist 2850 Kilometer lang.", "Heute regnet es."),
)


def test_the_package_is_small_and_says_where_it_comes_from() -> None:
    assert sum(file.stat().st_size for file in MODEL.rglob("*") if file.is_file()) < MAX_BYTES
    card = (MODEL / "README.md").read_text("utf-8")
    assert card.startswith("---\nlicense: mit") and "multilingual-e5-small (MIT)" in card


@pytest.mark.slow
def test_both_engines_say_the_same_and_the_answer_is_above_another_text() -> None:
    answers, others = ([(query, text[side]) for query, *text in EVERYDAY] for side in (0, 1))
    graph = Reranker(MODEL, engine="openvino", dtype="float32")
    right, wrong = graph.score_pairs(answers), graph.score_pairs(others)
    assert min(right) > max(wrong) + 1
    assert max(map(graph.probability, wrong)) < 0.02
    exact = Reranker(MODEL, engine="torch", dtype="float32", device="cpu").score_pairs(answers)
    assert right == pytest.approx(exact, abs=1e-3)


@pytest.mark.slow
def test_traditional_characters_score_as_simplified_ones() -> None:
    reranker = Reranker(MODEL)
    simplified = reranker.score("红烧肉怎么做", ["先把五花肉切块焯水，再用冰糖炒出糖色。"])
    for query in ("红烧肉怎么做", "紅燒肉怎麼做"):
        for text in ("先把五花肉切块焯水，再用冰糖炒出糖色。", "先把五花肉切塊焯水，再用冰糖炒出糖色。"):
            assert reranker.score(query, [text]) == pytest.approx(simplified, abs=1e-4)
    hits = reranker.rank("紅燒肉怎麼做", ["先把五花肉切塊焯水，再用冰糖炒出糖色。", "今天下雨。"])
    assert hits[0].document.text == "先把五花肉切塊焯水，再用冰糖炒出糖色。"  # as it was given


@pytest.mark.slow
def test_the_embedder_reads_texts_as_the_reranker_does() -> None:
    query, answer, other = EVERYDAY[0]
    embedder, reranker = Embedder(MODEL), Reranker(MODEL)
    (asked,), (found,) = embedder.rows([query], kind="query"), embedder.rows([answer], kind="document")
    (reading,) = reranker._scoring.reader.read([(query, answer)], reranker._scoring.limits)
    assert reading.row.ids == [*asked.ids, *found.ids]
    vectors = embedder.encode([answer, other])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-5)
    right, wrong = vectors @ embedder.encode([query], kind="query")[0]
    assert right > wrong + 0.05


@pytest.mark.slow
def test_auto_takes_it_for_other_scripts_and_languages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PACKAGES))
    reranker = Reranker()
    for query, answer, other in (EVERYDAY[0], EVERYDAY[-1]):
        ranking = reranker.rank(query, [other, answer])
        assert ranking.info is not None and ranking.info.model == "multilingual"
        assert ranking[0].document.text == answer and ranking.warnings == ()


NOTES = {
    "水龙头.md": "# 水龙头\n\n关闭水阀，更换水龙头里的密封垫圈，就不会再漏水了。\n",
    "长江.md": "# 长江\n\n长江全长约6300公里，是亚洲第一长河。\n",
    "baking.md": "# Bread\n\nBake the loaf for forty minutes.\n",
    "weather.md": "# Weather\n\nIt rained on Monday and was dry on Tuesday.\n",
}


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    for name, text in NOTES.items():
        (folder / name).write_text(text, "utf-8")
    return folder


def test_an_english_embedder_does_not_bury_what_words_find_in_another_script(notes: Path, tmp_path: Path) -> None:
    index = Index("notes", folder=tmp_path / "data", embedder="default", reranker=None, create=True)
    index.add(notes)
    found = index.search("长江全长多少公里", explain=True)
    assert found[0].document["path"].endswith("长江.md")
    assert all("dense_rank" not in (hit.parts or {}) for hit in found)
    (warning,) = found.warnings
    assert "'default' cannot read Chinese script" in warning and "words alone found the candidates" in warning
    english = index.search("how long does bread bake", explain=True)
    assert "dense_rank" in (english[0].parts or {}) and english.warnings == ()
    index.close()


def test_an_embedder_says_once_what_it_cannot_read(caplog: pytest.LogCaptureFixture) -> None:
    embedder = Embedder()
    embedder.encode(["how long is the river", "café"])
    assert not caplog.messages and not embedder.rank("how long", ["a river"]).warnings
    embedder.encode(["a river", "长江有多长"])
    (said,) = caplog.messages
    assert said.startswith("the embedder 'default' cannot read Chinese script, in which 1 of 2 passages are, so its")
    (warning,) = embedder.rank("长江有多长", ["a river"]).warnings
    assert "in which the query is" in warning and len(caplog.messages) == 1


@pytest.mark.slow
def test_an_index_of_another_script_gets_the_multilingual_embedder(
    notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(PACKAGES))
    index = Index("notes", folder=tmp_path / "data", create=True)
    index.add(notes)
    assert index.status().embedder == "multilingual"
    found = index.search("漏水怎么修", explain=True)
    assert found[0].document["path"].endswith("水龙头.md") and found.warnings == ()
    assert "dense_rank" in (found[0].parts or {})
    index.close()
    again = Index("notes", folder=tmp_path / "data", embedder="auto")
    (notes / "other.md").write_text("# Garden\n\nPrune roses in March.\n", "utf-8")
    again.update()
    assert again.status().embedder == "multilingual" and again.status().vectors == 5
    again.close()
    english = Index("english", folder=tmp_path / "data", create=True)
    english.add(notes / "baking.md", notes / "weather.md")
    assert english.status().embedder == "default"
    english.close()
    memory = Memory("memory", folder=tmp_path / "data")
    memory.remember("服务器的端口是2222")
    assert memory.index.status().embedder == "multilingual"
    memory.close()
