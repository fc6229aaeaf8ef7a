"""Training of rerankers, embedders and late interaction, and mining of the hard negatives that they learn from.

>>> from secondpass.training import Trainer, TrainingSettings, read_data
>>> Trainer("BAAI/bge-reranker-base", read_data(["train.jsonl"]), "reranker").train()

Names are imported on first use: data can be read and mined without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from secondpass._lazy import lazy_names

_HOME = {
    "Collection": "mining",
    "Data": "data",
    "DevQuery": "dev",
    "DevSet": "dev",
    "Example": "data",
    "Judged": "mining",
    "CompressionSettings": "settings",
    "EmbedderSettings": "settings",
    "LateInteractionSettings": "settings",
    "LayerSettings": "settings",
    "LoraSettings": "settings",
    "MiningSettings": "mining",
    "PretrainingSettings": "settings",
    "Texts": "data",
    "Trainer": "trainer",
    "TrainingResult": "trainer",
    "TrainingSettings": "settings",
    "collection_of": "mining",
    "dev_queries": "dev",
    "dev_set": "dev",
    "mine": "mining",
    "read_data": "data",
    "save_data": "data",
    "taught": "mining",
}
__all__ = [
    "Collection",
    "CompressionSettings",
    "Data",
    "DevQuery",
    "DevSet",
    "EmbedderSettings",
    "Example",
    "Judged",
    "LateInteractionSettings",
    "LayerSettings",
    "LoraSettings",
    "MiningSettings",
    "PretrainingSettings",
    "Texts",
    "Trainer",
    "TrainingResult",
    "TrainingSettings",
    "collection_of",
    "dev_queries",
    "dev_set",
    "mine",
    "read_data",
    "save_data",
    "taught",
]

if TYPE_CHECKING:
    from secondpass.training.data import Data, Example, Texts, read_data, save_data
    from secondpass.training.dev import DevQuery, DevSet, dev_queries, dev_set
    from secondpass.training.mining import Collection, Judged, MiningSettings, collection_of, mine, taught
    from secondpass.training.settings import (
        CompressionSettings,
        EmbedderSettings,
        LateInteractionSettings,
        LayerSettings,
        LoraSettings,
        PretrainingSettings,
        TrainingSettings,
    )
    from secondpass.training.trainer import Trainer, TrainingResult

__getattr__ = lazy_names(__name__, _HOME)


def __dir__() -> list[str]:
    return list(__all__)
