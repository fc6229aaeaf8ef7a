"""Rows of single texts, for models that read the query and the documents apart."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from secondpass.text.recipe import part
from secondpass.text.tokenizer import Tokenizer
from secondpass.types import Row

_BGE_EN = {"query": "Represent this sentence for searching relevant passages: "}
_E5 = {"query": "query: ", "document": "passage: "}
# What is written before a text, by the last part of a model's name. A checkpoint's own prompts come first.
PROMPTS_BY_NAME: tuple[tuple[str, Mapping[str, str]], ...] = (
    (r"bge-(?:small|base|large)-en(?:-v1\.5)?", _BGE_EN),
    (r"bge-(?:small|base|large)-zh(?:-v1\.5)?", {"query": "为这个句子生成表示以用于检索相关文章："}),
    (r"(?:multilingual-)?e5-(?:small|base|large)(?:-v2)?", _E5),
)
PROMPTS_BY_MODEL_TYPE: Mapping[str, Mapping[str, str]] = {
    "nomic_bert": {"query": "search_query: ", "document": "search_document: "},
}


def known_prompts(name: str, model_type: str) -> dict[str, str]:
    """Prompts of a known model by kind ("query", "document"); empty for a model that needs none."""
    tail = name.rstrip("/").rsplit("/", 1)[-1].lower()
    for pattern, prompts in PROMPTS_BY_NAME:
        if re.fullmatch(pattern, tail):
            return dict(prompts)
    return dict(PROMPTS_BY_MODEL_TYPE.get(model_type, {}))


def single_rows(
    tokenizer: Tokenizer, texts: Sequence[str], *, max_length: int, marker: int | None = None
) -> list[Row]:
    """`[CLS] text [SEP]` of each text, cut to max_length tokens, specials included, on the tokenizer's side.

    marker: an id put after the first special token; ColBERT tells queries from documents by it.
    """
    template = tokenizer.single_template
    before = template.before if marker is None else (*template.before, marker)
    room = max(max_length - len(before) - len(template.after), 0)
    rows = []
    for ids in tokenizer.encode_batch(texts):
        kept = [*before, *part(ids, room, tokenizer.keeps_end), *template.after]
        if not kept:
            raise ValueError("a text is empty, and the model has no special token to read in its place; leave it out")
        rows.append(Row(ids=kept, passage=(len(kept), len(kept)), cut=(0, max(len(ids) - room, 0))))
    return rows
