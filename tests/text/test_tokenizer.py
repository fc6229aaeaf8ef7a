"""The tokenizer under threads, from both kinds of file, and with damaged ones."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tokenizers

from secondpass.errors import CheckpointError
from secondpass.text.families import recipe_for
from secondpass.text.recipe import Limits
from secondpass.text.tokenizer import Tokenizer
from tests.checkpoints import SPECIAL, WORDS, word_piece

VOCABULARY = list(dict.fromkeys((*SPECIAL, *WORDS.split(), "天", "cafe", "Cafe", "é", "##é")))
TEXTS = (
    "The river in winter",
    "Café cafe CAFÉ e\u0301",
    "今天 天天 river天water",
    "a.b, c-d? [SEP] [MASK]x",
    "  \t\n\u00a0 a\u0000b\ufffd ",
    "x" * 101 + " a",
    "İstanbul ß ﬁ",
    "",
)


def folder_of(
    folder: Path, *, tokenizer: str | None = None, vocabulary: bool = False, settings: dict[str, object] | None = None
) -> Path:
    if tokenizer is not None:
        (folder / "tokenizer.json").write_text(tokenizer, "utf-8")
    if vocabulary:
        (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", "utf-8")
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    return folder


def test_sixteen_threads_read_the_same_ids_as_one() -> None:
    tokenizer = Tokenizer(word_piece(VOCABULARY))
    words, draw = WORDS.split(), random.Random(0)
    texts = [" ".join(draw.choices(words, k=draw.randint(0, 60))) for _ in range(160)]
    expected = [tokenizer.encode(text) for text in texts]
    offsets = [tokenizer.encode_with_offsets(text) for text in texts]
    template = tokenizer.pair_template

    def read(part: int) -> None:
        for _ in range(8):
            own = slice(part * 10, part * 10 + 10)
            assert [tokenizer.encode(text) for text in texts[own]] == expected[own]
            assert tokenizer.encode_batch(texts[own]) == expected[own]
            assert [tokenizer.encode_with_offsets(text) for text in texts[own]] == offsets[own]
            assert tokenizer.pair_template == template

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(read, range(16)))


def test_the_first_pair_template_may_be_asked_for_by_many_threads() -> None:
    tokenizer = Tokenizer(word_piece(VOCABULARY))
    with ThreadPoolExecutor(16) as pool:
        templates = set(pool.map(lambda _: tokenizer.pair_template, range(64)))
    assert len(templates) == 1


def test_truncation_and_padding_of_the_file_are_off() -> None:
    inner = word_piece(VOCABULARY)
    inner.enable_truncation(4)
    inner.enable_padding(length=16)
    assert len(Tokenizer(inner).encode("river " * 9)) == 9


def test_offsets_are_those_of_the_characters() -> None:
    ids, offsets = Tokenizer(word_piece(VOCABULARY)).encode_with_offsets("the 天river")
    assert len(ids) == len(offsets) == 3
    assert offsets == [(0, 3), (4, 5), (5, 10)]


def test_the_pair_template_holds_the_special_tokens() -> None:
    template = Tokenizer(word_piece(VOCABULARY)).pair_template
    assert (template.before, template.between, template.after) == ((2,), (3,), (3,))
    assert template.num_special == 3


def test_a_tokenizer_that_reads_nothing_has_no_template_for_pairs() -> None:
    with pytest.raises(CheckpointError, match="template for pairs"):
        _ = Tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE())).pair_template


@pytest.mark.parametrize(
    "settings",
    [
        {"do_lower_case": True},
        {"do_lower_case": False},
        {"do_lower_case": True, "strip_accents": False},
        {"do_lower_case": False, "strip_accents": True},
        {"do_lower_case": True, "tokenize_chinese_chars": False},
    ],
)
def test_vocab_txt_reads_as_in_transformers(tmp_path: Path, settings: dict[str, object]) -> None:
    from transformers import BertTokenizerFast

    folder = folder_of(tmp_path, vocabulary=True, settings=settings)
    reference = BertTokenizerFast(str(folder / "vocab.txt"), **settings)
    tokenizer = Tokenizer.from_folder(folder).reading("parse")
    for text in TEXTS:
        assert tokenizer.encode(text) == reference(text, add_special_tokens=False)["input_ids"], text
    special = tokenizer.pair_template
    pair = [*special.before, *tokenizer.encode("river"), *special.between, *tokenizer.encode("sea"), *special.after]
    assert pair == reference(["river"], ["sea"])["input_ids"][0]


def test_a_word_that_the_model_has_not_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, tokenizer=word_piece([*VOCABULARY, "extra"]).to_str())
    first = Tokenizer.from_folder(folder, num_ids=len(VOCABULARY))
    for tokenizer in (first, first.reading("parse"), first.lowered()):
        assert tokenizer.encode_batch(["the river"]) == [tokenizer.encode("the river")]
        message = f"makes 'extra' of a text, with the id {len(VOCABULARY)}"
        with pytest.raises(CheckpointError, match=message):
            tokenizer.encode_batch(["the river", "the extra river"])
        with pytest.raises(CheckpointError, match=message):
            tokenizer.encode_with_offsets("the extra river")


def test_added_tokens_json_is_read_beside_vocab_txt(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, vocabulary=True)
    (folder / "added_tokens.json").write_text(json.dumps({"[Q]": len(VOCABULARY)}), "utf-8")
    assert Tokenizer.from_folder(folder).encode("the [Q]")[-1] == len(VOCABULARY)


@pytest.mark.parametrize(
    "settings",
    [
        {"truncation_side": "middle"},
        {"added_tokens_decoder": {"x": {}}},
        {"added_tokens_decoder": {"1": {"special": True}}},
        {"added_tokens_decoder": [1]},
        {"additional_special_tokens": [3]},
        {"tokenizer_class": "BertTokenizer", "do_lower_case": "yes"},
    ],
)
def test_a_damaged_tokenizer_config_is_named(tmp_path: Path, settings: dict[str, object]) -> None:
    folder = folder_of(tmp_path, tokenizer=word_piece(VOCABULARY).to_str(), settings=settings)
    with pytest.raises(CheckpointError, match=r"tokenizer"):
        Tokenizer.from_folder(folder)


def test_types_of_another_form_are_refused() -> None:
    inner = word_piece(VOCABULARY)
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS]:1 $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    with pytest.raises(CheckpointError, match="token types"):
        _ = Tokenizer(inner).pair_template
    assert not Tokenizer(inner, has_types=False).pair_template.is_typed


def test_tokenizer_json_goes_before_vocab_txt(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, tokenizer=word_piece([*SPECIAL, "river"]).to_str(), vocabulary=True)
    assert Tokenizer.from_folder(folder).token_id("water") is None


@pytest.mark.parametrize("content", ["", "{", "{}", '{"model": {"type": "Nonsense"}}', "[1, 2]"])
def test_a_damaged_tokenizer_json_is_named(tmp_path: Path, content: str) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.from_folder(folder_of(tmp_path, tokenizer=content))


def test_a_folder_without_a_tokenizer_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("settings", "max_length"),
    [
        (None, None),
        ({}, None),
        ({"model_max_length": 512}, 512),
        ({"model_max_length": 8192.0}, 8192),
        ({"model_max_length": int(1e30)}, None),
        ({"model_max_length": 1e30}, None),
        ({"model_max_length": 1000000000000000019884624838656}, None),
        ({"model_max_length": None}, None),
    ],
)
def test_model_max_length_is_read_where_it_is_a_limit(
    tmp_path: Path, settings: dict[str, object] | None, max_length: int | None
) -> None:
    folder = folder_of(tmp_path, tokenizer=word_piece(VOCABULARY).to_str(), settings=settings)
    assert Tokenizer.from_folder(folder).max_length == max_length


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 7),
        ({"bos_token": "[CLS]"}, SPECIAL.index("[CLS]")),
        ({"bos_token": {"content": "[CLS]"}, "pad_token": "[PAD]"}, SPECIAL.index("[CLS]")),
        ({"bos_token": None}, None),
        ({"bos_token": "[PAD]", "pad_token": {"content": "[PAD]"}}, None),
    ],
)
def test_a_decoder_begins_with_what_the_tokenizer_names(
    settings: dict[str, object], expected: int | None, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path, tokenizer=word_piece(VOCABULARY).to_str(), settings=settings)
    tokenizer = Tokenizer.from_folder(folder)
    recipe = recipe_for({"model_type": "llama", "bos_token_id": 7})
    for each in (tokenizer, tokenizer.reading("parse")):
        row = recipe.rows(each, "the river", ["the water"], Limits(max_length=64, truncation="only_second"))[0]
        words = each.encode("A: the river")
        assert row.ids[: row.ids.index(words[-1]) + 1] == [*([] if expected is None else [expected]), *words]
