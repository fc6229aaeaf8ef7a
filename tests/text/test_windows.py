"""Windows over long documents, with trained tokenizers of every kind and with those of the reference checkpoints."""

from __future__ import annotations

import time
from functools import cache
from itertools import pairwise

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, trainers

from secondpass.text.tokenizer import Tokenizer
from secondpass.text.windows import windows
from tests.goldens import SHARED

ENGLISH = (
    "The river froze in winter. Was it 3.14 metres deep? See example.com for more! The bridge was old, and it fell."
)
CHINESE = "今天天气很好，我们去公园散步。然后回家吃饭！你想一起来吗？他说：“好的。”"
UNPUNCTUATED = "今天天气很好我们去公园散步然后回家吃饭"
ARABIC = "مَرْحَبًا بِالعَالَمِ. كَيْفَ حَالُكَ؟ أَنَا بِخَيْرٍ۔"
HINDI = "नमस्ते दुनिया। क्षत्रिय कैसे हैं आप।"
FAMILY = "👨\u200d👩\u200d👧\u200d👦"
FLAGS = "🇩🇪🇫🇷🇨🇳🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"
MARKED = "e\u0301a\u0308o\u0302\u0323 n\u0303 1\ufe0f\u20e3 ❤\ufe0f 👍🏽 ガッ ｶﾞ กำ"
JAMO = "\u1112\u1161\u11ab\u1100\u1173\u11af 한국어 각\u11a8가\u11a8"
SAMPLES = (ENGLISH, CHINESE, UNPUNCTUATED, ARABIC, HINDI, FAMILY * 3, FLAGS, MARKED, JAMO)
PIECES = [*SAMPLES, *"aé 中。.!?\n\r\t", "\n\n", "  ", "supercalifragilistic" * 8, "[SEP]", FAMILY, "🇩", "\u0301"]

GOLDENS = ("bert-cross-encoder", "xlm-roberta-cross-encoder", "modernbert-cross-encoder")
KINDS = ("word_piece", "byte_bpe", "unigram", *GOLDENS)

texts = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@cache
def tokenizer_of(kind: str) -> Tokenizer:
    if kind in GOLDENS:
        folder = SHARED / "golden" / kind
        if not folder.is_dir():
            pytest.skip("no reference checkpoints here")
        return Tokenizer.from_folder(folder)
    return Tokenizer(TRAINED[kind]())


def word_piece() -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    inner.train_from_iterator(
        SAMPLES, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    return inner


def byte_bpe() -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        SAMPLES[:4], trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    )
    return inner


def unigram() -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.Unigram())
    inner.normalizer = normalizers.NFKC()
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.train_from_iterator(
        SAMPLES,
        trainers.UnigramTrainer(vocab_size=220, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False),
    )
    return inner


TRAINED = {"word_piece": word_piece, "byte_bpe": byte_bpe, "unigram": unigram}


def clusters(text: str) -> list[tuple[int, int]]:
    """Extended grapheme clusters, by the `regex` package."""
    regex = pytest.importorskip("regex")
    return [match.span() for match in regex.finditer(r"\X", text)]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=texts, max_tokens=st.integers(1, 40), data=st.data())
def test_windows_cover_the_text_and_fit(kind: str, text: str, max_tokens: int, data: st.DataObject) -> None:
    tokenizer = tokenizer_of(kind)
    overlap = data.draw(st.integers(0, max_tokens - 1))
    spans = windows(text, tokenizer, max_tokens=max_tokens, overlap=overlap)
    if not text.strip() or len(tokenizer.encode(text)) <= max_tokens:
        assert spans == [(0, len(text))]
        return
    covered = 0
    for start, end in spans:
        assert start < end and not text[covered : max(start, covered)].strip()
        assert len(tokenizer.encode(text[start:end])) <= max_tokens or end == start + 1
        covered = end
    assert not text[covered:].strip()
    assert [start for start, _ in spans] == sorted({start for start, _ in spans})
    assert [end for _, end in spans] == sorted({end for _, end in spans})


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=texts, max_tokens=st.integers(2, 40), data=st.data())
def test_windows_cut_no_grapheme_cluster_that_fits(
    kind: str, text: str, max_tokens: int, data: st.DataObject
) -> None:
    tokenizer = tokenizer_of(kind)
    spans = windows(text, tokenizer, max_tokens=max_tokens, overlap=data.draw(st.integers(0, max_tokens - 1)))
    cuts = {place for span in spans for place in span}
    for start, end in clusters(text):
        if any(start < cut < end for cut in cuts) and not text[start:end].isspace():
            assert len(tokenizer.encode(text[start:end])) > max_tokens, text[start:end]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(text=texts, max_tokens=st.integers(2, 40), data=st.data())
def test_neighbours_share_at_most_overlap_tokens(kind: str, text: str, max_tokens: int, data: st.DataObject) -> None:
    tokenizer = tokenizer_of(kind)
    overlap = data.draw(st.integers(0, max_tokens - 1))
    spans = windows(text, tokenizer, max_tokens=max_tokens, overlap=overlap)
    offsets = tokenizer.encode_with_offsets(text)[1]
    for (_, end), (start, _) in pairwise(spans):
        # of the tokens of the whole text, those that touch the part that both windows have
        assert sum(max(a, start) < min(b, end) for a, b in offsets) <= overlap


@pytest.mark.parametrize("kind", KINDS)
def test_windows_share_what_overlap_asks_for(kind: str) -> None:
    text = "the old bridge over the river fell " * 40
    tokenizer = tokenizer_of(kind)
    spans = windows(text, tokenizer, max_tokens=60, overlap=30)
    shared = [len(tokenizer.encode(text[b:a])) for (_, a), (b, _) in pairwise(spans)]
    assert len(shared) > 3
    assert min(shared) >= 18


def cut(text: str, max_tokens: int, *, kind: str = "word_piece", overlap: int = 0) -> list[str]:
    spans = windows(text, tokenizer_of(kind), max_tokens=max_tokens, overlap=overlap)
    return [text[start:end] for start, end in spans]


def test_a_cut_falls_at_the_end_of_a_paragraph_before_that_of_a_sentence() -> None:
    text = "a b c d e f\n\na b. a b c d e f g h"
    assert cut(text, 10) == ["a b c d e f", "a b. a b c d e f g", "h"]


def test_a_cut_falls_at_the_end_of_a_sentence_in_the_second_half() -> None:
    assert cut('a b c d e f g." a b c d e f g h', 12) == ['a b c d e f g."', "a b c d e f g h"]
    assert cut("a b. a b c d e f g h i j", 8) == ["a b. a b c d e", "f g h i j"]


def test_numbers_and_addresses_end_no_sentence() -> None:
    assert cut("a a a 3.14 a a a a", 9)[0] == "a a a 3.14 a a a"
    assert cut("a a a a a a example.com/?q=1", 8, kind="byte_bpe")[0] == "a a a a"


def test_chinese_is_cut_after_its_full_stops() -> None:
    assert cut("今天很好。我们回家！然后吃饭？“好的。”今天", 12) == [
        "今天很好。我们回家！",
        "然后吃饭？“好的。”今天",
    ]


def test_chinese_without_punctuation_is_cut_between_characters() -> None:
    parts = cut(UNPUNCTUATED, 8)
    assert "".join(parts) == UNPUNCTUATED
    assert [len(part) for part in parts] == [8, 8, 3]


def test_a_full_stop_or_bracket_is_not_left_alone() -> None:
    assert cut("今天天气很好，我们回家", 6) == ["今天天气很", "好，我们回家"]
    assert cut("今天天气很（我们）回家", 6) == ["今天天气很", "（我们）回家"]


def test_english_words_within_chinese_are_kept_whole() -> None:
    for max_tokens in range(12, 30):
        parts = cut("今天天气很好example今天天气很好", max_tokens, kind="byte_bpe")
        assert any("example" in part for part in parts), max_tokens


def test_a_word_that_is_too_long_is_cut_between_characters() -> None:
    parts = cut("a " + "x" * 50 + " b", 10, kind="byte_bpe")
    assert parts[0] == "a" and parts[-1].endswith("b")
    assert "".join(parts).replace(" ", "") == "a" + "x" * 50 + "b"


@pytest.mark.parametrize(
    "unit", [FAMILY, "🇩🇪", "e\u0301\u0323", "\u1112\u1161\u11ab", "क्षि", "👍🏽", "1\ufe0f\u20e3"]
)
def test_a_run_of_clusters_is_cut_between_them(unit: str) -> None:
    text = unit * 30
    parts = cut(text, 40, kind="byte_bpe", overlap=10)
    assert len(parts) > 3
    assert all(len(part) % len(unit) == 0 and part.startswith(unit) for part in parts)


def test_a_cluster_with_too_many_tokens_is_cut_between_its_characters() -> None:
    parts = cut("e" + "\u0301" * 100, 7, kind="byte_bpe")
    assert "".join(parts) == "e" + "\u0301" * 100
    assert all(len(tokenizer_of("byte_bpe").encode(part)) <= 7 for part in parts)


def test_one_character_is_never_cut_though_it_is_too_long() -> None:
    assert cut("丂丄", 1, kind="byte_bpe") == ["丂", "丄"]


def test_a_space_that_carries_a_mark_is_kept() -> None:
    text = "aaaa \u0301bbbb \u0301cccc"
    assert "".join(cut(text, 3, kind="byte_bpe")) == text


@pytest.mark.parametrize("text", ["", " ", "\n\n \t" * 50])
def test_a_text_without_words_is_one_window(text: str) -> None:
    assert windows(text, tokenizer_of("byte_bpe"), max_tokens=3, overlap=1) == [(0, len(text))]


def test_a_text_that_fits_is_one_window_with_its_white_space() -> None:
    assert windows("  a b \n", tokenizer_of("word_piece"), max_tokens=2, overlap=1) == [(0, 7)]


@pytest.mark.parametrize(("max_tokens", "overlap"), [(0, 0), (-1, 0), (4, 4), (4, 5), (4, -1)])
def test_windows_reject_limits_that_make_no_progress(max_tokens: int, overlap: int) -> None:
    with pytest.raises(ValueError, match=r"max_tokens|overlap"):
        windows("a b c", tokenizer_of("word_piece"), max_tokens=max_tokens, overlap=overlap)


@pytest.mark.parametrize("text", [ENGLISH, UNPUNCTUATED, "x", "🇩🇪", FAMILY, "e" + "\u0301" * 60_000, ". ", "\n"])
@pytest.mark.slow
def test_time_grows_with_the_length_of_the_text(text: str) -> None:
    text = (text * (60_000 // len(text) + 1))[:60_000]
    tokenizer = tokenizer_of("byte_bpe")
    started = time.process_time()
    windows(text, tokenizer, max_tokens=200, overlap=20)
    # 60,000 characters take about 0.1 s; quadratic work takes minutes
    assert time.process_time() - started < 5
