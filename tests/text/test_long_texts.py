"""Texts of a million characters: no more of them is tokenised than can be used, and what is read is the same."""

from __future__ import annotations

from dataclasses import replace

import pytest

from secondpass.reranker import Reranker
from secondpass.text.reader import CHARACTERS, Reader, beginning, end, part_of
from secondpass.text.recipe import Limits

TEXTS = {
    "words": "the old bridge in the city " * 20_000,
    "chinese": "好的文章" * 100_000,
    "one word": "x" * 300_000 + " and the answer at the end",
    "words without end": ("x" * 150 + " ") * 4_000,
    "code": "def f(a):\n\treturn a[0] ** 2\n\n" * 10_000,
    "emoji": "👩‍👩‍👧 é " * 40_000,
    "spaces": " " * 100_000 + "river " * 50_000,
}


@pytest.fixture(scope="module")
def reranker() -> Reranker:
    return Reranker("default")


@pytest.fixture(scope="module")
def reader(reranker: Reranker) -> Reader:
    return reranker._scoring.reader


def limits(reranker: Reranker) -> Limits:
    return reranker._scoring.limits


@pytest.mark.parametrize(
    "name", ["words", "chinese", *(pytest.param(name, marks=pytest.mark.slow) for name in [*TEXTS][2:])]
)
def test_it_is_read_as_if_all_of_it_had_been_tokenised(reranker: Reranker, reader: Reader, name: str) -> None:
    text = TEXTS[name]
    frame = reader.recipe.frame(reader.tokenizer, "where is the bridge", limits(reranker))
    whole = frame.rows(reader.tokenizer, [text])[0]
    (found,) = reader.read([("where is the bridge", text)], limits(reranker))
    assert found.row.ids == whole.ids
    assert found.row.passage == whole.passage
    assert bool(found.row.cut[1]) is bool(whole.cut[1])


@pytest.mark.promise("docs/security.md", "no more of it is tokenised than can be used")
@pytest.mark.parametrize("name", ["words", "chinese", "code", "emoji"])
def test_little_of_a_long_text_goes_to_the_tokenizer(reader: Reader, name: str) -> None:
    assert len(beginning(TEXTS[name], reader.tokenizer, 512)) < 5 * CHARACTERS * 600
    assert len(end(TEXTS[name], reader.tokenizer, 512)) < 5 * CHARACTERS * 600


def test_short_texts_are_left_alone(reader: Reader) -> None:
    assert beginning("a river", reader.tokenizer, 512) == "a river"
    assert part_of("a river", reader.tokenizer, 5, keeps_end=False).text == "a river"


def test_the_first_windows_are_those_of_all_windows(reranker: Reranker, reader: Reader) -> None:
    text = TEXTS["words"][:60_000]
    every = replace(reader, has_windows=True).read([("q", text)], limits(reranker))
    some = replace(reader, has_windows=True, max_windows=3).read([("q", text)], limits(reranker))
    assert [(one.span, one.row.ids) for one in some] == [(one.span, one.row.ids) for one in every[:3]]
    assert all(one.row.cut[1] for one in some)
    assert not any(one.row.cut[1] for one in every)


def test_windows_that_nobody_keeps_are_not_made(
    reranker: Reranker, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    inner = type(reader.tokenizer).encode_with_offsets

    def counting(self: object, text: str) -> object:
        lengths.append(len(text))
        return inner(self, text)  # type: ignore[arg-type]

    monkeypatch.setattr(type(reader.tokenizer), "encode_with_offsets", counting)
    some = replace(reader, has_windows=True, max_windows=2).read([("q", TEXTS["chinese"])], limits(reranker))
    assert len(some) == 2
    assert max(lengths) < 40_000


@pytest.mark.parametrize("keeps_end", [False, True])
def test_the_first_or_the_last_tokens_are_kept(reranker: Reranker, reader: Reader, keeps_end: bool) -> None:
    text = "one two three four five six seven eight nine ten " * 30
    short = replace(reader, max_document_length=7, keeps_end=keeps_end)
    (found,) = short.read([("q", text)], limits(reranker))
    start, stop = found.row.passage
    ids = reader.tokenizer.encode(text)
    assert found.row.ids[start:stop] == (ids[-7:] if keeps_end else ids[:7])
    assert found.row.cut[1] > 0
    assert found.pair == ("q", text)


def test_the_span_of_a_window_is_of_the_whole_text(reranker: Reranker, reader: Reader) -> None:
    text = "river " * 3000 + "the answer"
    last = replace(reader, has_windows=True, max_document_length=900, keeps_end=True)
    spans = [one.span for one in last.read([("q", text)], limits(reranker))]
    assert spans[-1] is not None and spans[-1][1] == len(text)
    assert all(span is not None and text[span[0] : span[1]].strip() for span in spans)
