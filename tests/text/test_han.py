"""Chinese in one form: which pairs are read so, and that everything else of a reading stays."""

from __future__ import annotations

import pytest

from secondpass.checkpoint.checkpoint import open_checkpoint
from secondpass.text.han import has_other
from secondpass.text.reader import Reader
from tests.test_multilingual import MODEL

SIMPLIFIED = ("水龙头漏水", "关掉总阀门，再换垫圈。")
TRADITIONAL = ("水龍頭漏水", "關掉總閥門，再換墊圈。")


@pytest.mark.parametrize(
    ("text", "has_one"),
    [
        (TRADITIONAL[1], False),
        ("東京驛", False),
        ("東京の驛", True),
        ("ﾊﾟｯｷﾝ", True),
        ("서울驛", True),
        ("close the valve", False),
    ],
)
def test_what_has_kana_or_hangul_is_no_chinese(text: str, has_one: bool) -> None:
    assert has_other(text) == has_one


@pytest.mark.parametrize("has_windows", [False, True])
def test_a_reader_that_folds_reads_the_rows_of_simplified_pairs_for_the_pairs_as_they_are(
    has_windows: bool,
) -> None:
    checkpoint = open_checkpoint(MODEL)
    recipe, tokenizer = checkpoint.recipe, checkpoint.tokenizer

    def read(folds_han: bool, pairs: list[tuple[str, str]]) -> list[tuple[object, object, list[int]]]:
        reader = Reader(recipe=recipe, tokenizer=tokenizer, longest=16, has_windows=has_windows, folds_han=folds_han)
        limits = reader.limits(16, recipe.truncation)
        return [(each.pair, each.span, list(each.row.ids)) for each in reader.read(pairs, limits)]

    others = [(TRADITIONAL[0], "水龍頭のパッキン"), ("駅はどこ", "東京驛")]  # of which nothing is folded
    found = read(True, [TRADITIONAL, *others])
    assert {pair for pair, _, _ in found} == {TRADITIONAL, *others}
    wanted = [*read(False, [SIMPLIFIED]), *read(False, others)]
    assert [(span, ids) for _, span, ids in found] == [(span, ids) for _, span, ids in wanted]
    assert read(False, [TRADITIONAL])[0][2] != found[0][2]
