"""Chinese in one form: which pairs are read so, and that everything else of a reading stays."""

from __future__ import annotations

import pytest

from secondpass.checkpoint.checkpoint import open_checkpoint
from secondpass.text.han import both_simplified
from secondpass.text.reader import Reader
from tests.test_multilingual import MODEL

SIMPLIFIED = ("水龙头漏水", "关掉总阀门，再换垫圈。")
TRADITIONAL = ("水龍頭漏水", "關掉總閥門，再換墊圈。")


@pytest.mark.parametrize(
    ("pair", "read"),
    [
        (TRADITIONAL, SIMPLIFIED),
        ((TRADITIONAL[0], SIMPLIFIED[1]), SIMPLIFIED),
        ((SIMPLIFIED[0], TRADITIONAL[1]), SIMPLIFIED),
        (("東京の駅", "東京駅"), ("東京の駅", "東京駅")),
        (("東京駅", "東京駅は大きい"), ("東京駅", "東京駅は大きい")),
        (("東京驛", "서울驛"), ("東京驛", "서울驛")),
        (("tap leaks", "close the valve"), ("tap leaks", "close the valve")),
        (("⻄湖", "西湖"), ("西湖", "西湖")),
    ],
)
def test_a_pair_is_simplified_unless_one_of_it_is_japanese_or_korean(
    pair: tuple[str, str], read: tuple[str, str]
) -> None:
    assert both_simplified(*pair) == read


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

    kana = (TRADITIONAL[0], "水龍頭のパッキン")
    found = read(True, [TRADITIONAL, kana])
    assert {pair for pair, _, _ in found} == {TRADITIONAL, kana}
    wanted = [*read(False, [SIMPLIFIED]), *read(False, [kana])]
    assert [(span, ids) for _, span, ids in found] == [(span, ids) for _, span, ids in wanted]
    assert read(False, [TRADITIONAL])[0][2] != found[0][2]
