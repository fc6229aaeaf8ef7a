"""The known families and checkpoints: data only. A new checkpoint of a known family is a row here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from secondpass.errors import UnknownModel
from secondpass.text.recipe import Recipe

# model_type in config.json -> recipe
RECIPES: dict[str, Recipe] = {
    "bert": Recipe(family="bert"),
    "roberta": Recipe(family="roberta"),
    # FlagEmbedding is the reference of bge-reranker-base, -large and -v2-m3
    "xlm-roberta": Recipe(family="xlm-roberta", truncation="only_second"),
}


@dataclass(frozen=True, kw_only=True)
class Known:
    """What `secondpass models` shows of a checkpoint."""

    name: str
    family: str
    languages: str
    parameters: str
    max_length: int
    licence: str
    use: str


KNOWN = (
    Known(
        name="default",
        family="bert",
        languages="English",
        parameters="23M",
        max_length=512,
        licence="Apache-2.0",
        use="embedded: works offline at once, without torch",
    ),
    Known(
        name="BAAI/bge-reranker-base",
        family="xlm-roberta",
        languages="Chinese, English",
        parameters="278M",
        max_length=512,
        licence="MIT",
        use="Chinese and English on a CPU",
    ),
    Known(
        name="BAAI/bge-reranker-large",
        family="xlm-roberta",
        languages="Chinese, English",
        parameters="560M",
        max_length=512,
        licence="MIT",
        use="as base, better and three times slower",
    ),
    Known(
        name="BAAI/bge-reranker-v2-m3",
        family="xlm-roberta",
        languages="over 100",
        parameters="568M",
        max_length=8192,
        licence="Apache-2.0",
        use="many languages, long passages",
    ),
    Known(
        name="cross-encoder/ms-marco-MiniLM-L6-v2",
        family="bert",
        languages="English",
        parameters="23M",
        max_length=512,
        licence="Apache-2.0",
        use="fast English on a CPU",
    ),
    Known(
        name="cross-encoder/ms-marco-MiniLM-L12-v2",
        family="bert",
        languages="English",
        parameters="33M",
        max_length=512,
        licence="Apache-2.0",
        use="English; twice the cost of L6 for little",
    ),
)


def recipe_for(config: Mapping[str, Any]) -> Recipe:
    """The recipe that a checkpoint's config.json asks for. Raises UnknownModel where there is none."""
    model_type = str(config.get("model_type"))
    if model_type not in RECIPES:
        known = ", ".join(sorted(RECIPES))
        raise UnknownModel(f"no recipe for model_type {model_type!r}; there are {known}")
    labels = num_labels(config)
    if labels != 1:
        raise UnknownModel(
            f"config.json names {labels} labels; a reranker has one, and which of {labels} means 'relevant' "
            "cannot be known from the checkpoint"
        )
    return RECIPES[model_type]


def num_labels(config: Mapping[str, Any]) -> int:
    """Labels of a classifier; transformers means two where the config says nothing."""
    if "num_labels" in config:
        return int(config["num_labels"])
    return len(config["id2label"]) if "id2label" in config else 2
