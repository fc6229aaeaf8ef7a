"""The multilingual model as it ships, by the package's path: both engines, everyday pairs, and what auto chooses."""

from __future__ import annotations

from pathlib import Path

import pytest

from secondpass import Reranker

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
def test_auto_takes_it_for_other_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PACKAGES))
    query, answer, other = EVERYDAY[0]
    ranking = Reranker().rank(query, [other, answer])
    assert ranking.info is not None and ranking.info.model == "multilingual"
    assert ranking[0].document.text == answer and ranking.warnings == ()
