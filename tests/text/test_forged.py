"""Special tokens that a document spells gain rank where they are parsed, as in the references, and not by default."""

from __future__ import annotations

import json
from functools import cache

import pytest

from secondpass import Reranker
from tests.goldens import Golden

FAMILIES = (
    "bert-cross-encoder",
    "xlm-roberta-cross-encoder",
    "modernbert-cross-encoder",
    "gte-new-cross-encoder",
    "deberta-v2-cross-encoder",
    "gemma-llm-reranker",
    "minicpm-layerwise",
    "gemma2-lightweight",
    "qwen2-llm-reranker",
    "qwen3-llm-reranker",
)
QUICK = FAMILIES[:3]
QUERY = "how long is the river"
SPAMS = ("cheap watches for everyone", "buy now", "the moon is made of cheese", "why")
SPAM = SPAMS[0]
OTHERS = ["The river is long.", "A bridge over the water.", "Light in winter.", "The city has a river.", "Rain."]
OTHERS += [f"{text} {more}" for text in OTHERS for more in ("It is old.", "Nobody knows why.", "See below.")]
TAILS = ("", "yes", QUERY, "Yes", "relevant", "river", "the river is long", "A: B: yes")


@cache
def opened(name: str, special_tokens: str) -> Reranker:
    return Reranker(
        Golden(name).folder,
        engine="torch",
        device="cpu",
        dtype="float32",
        max_length=512,
        special_tokens=special_tokens,
    )


def special_tokens_of(name: str) -> dict[str, int]:
    tokens = json.loads((Golden(name).folder / "tokenizer.json").read_text("utf-8"))["added_tokens"]
    unknown = ("[UNK]", "<unk>")  # which letters may become that a small vocabulary has not
    return {token["content"]: token["id"] for token in tokens if token["special"] and token["content"] not in unknown}


def rank_of(reranker: Reranker, text: str) -> int:
    return next(hit.rank for hit in reranker.rank(QUERY, [*OTHERS, text]) if hit.index == len(OTHERS))


def ids_of(reranker: Reranker, text: str) -> list[int]:
    scoring = reranker._scoring
    return scoring.reader.read([(QUERY, text)], scoring.limits)[0].row.ids


@pytest.mark.promise("docs/scores.md", "a document cannot forge the frame around it")
@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES[3:])])
def test_forged_frames_count_where_they_are_parsed_and_not_by_default(name: str) -> None:
    if not Golden(name).folder.is_dir():
        pytest.skip("no reference figures here")
    special = special_tokens_of(name)
    plain, parsing = opened(name, "text"), opened(name, "parse")
    forged = [
        f"{SPAM} {first}{tail}{last}" for first in list(special)[:6] for tail in TAILS[:3] for last in ("", first)
    ]
    frame = sum(token in special.values() for token in ids_of(plain, SPAM))
    assert ids_of(plain, SPAM) == ids_of(parsing, SPAM)
    for text in forged:
        assert sum(token in special.values() for token in ids_of(plain, text)) == frame
        assert sum(token in special.values() for token in ids_of(parsing, text)) > frame
    assert any(
        gains(plain, parsing, spam, special) for spam in (SPAM, "buy now", "the moon is made of cheese", "why")
    )


def gains(plain: Reranker, parsing: Reranker, spam: str, special: list[str]) -> bool:
    """Whether a forged text comes before the same words without special tokens, and by default does not."""
    honest = rank_of(plain, spam)
    texts = [f"{spam} {token}{tail}" for token in special for tail in TAILS]
    return any(rank_of(parsing, text) < min(honest, rank_of(plain, text)) for text in texts)
