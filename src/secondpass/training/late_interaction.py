"""Late interaction that is trained: ColBERT, in the layout of colbert-ai, which PyLate reads too."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secondpass.checkpoint.checkpoint import open_checkpoint
from secondpass.checkpoint.layout import COLBERT
from secondpass.checkpoint.save import save_model
from secondpass.errors import CheckpointError
from secondpass.json_file import read_json
from secondpass.models.text_encoder import TextEncoder
from secondpass.text.families import saved_head
from secondpass.text.prompts import single_rows
from secondpass.training.bi_encoding import BiEncoding, TextRows
from secondpass.training.embedding import encoder_tensors, open_encoder, shortest
from secondpass.training.model import Trainable
from secondpass.training.reporting import Kind
from secondpass.training.settings import LateInteractionSettings, TrainingSettings
from secondpass.training.vector_losses import ColbertLoss
from secondpass.types import Row

DOCUMENT_LENGTH = 180  # of ColBERT v2
MARKERS = {"query_token_id": "[unused0]", "doc_token_id": "[unused1]"}
# What colbert-ai wants to find in its file, where a base has none.
_NEW: Mapping[str, Any] = {
    "query_token": "[Q]",
    "doc_token": "[D]",
    "similarity": "cosine",
    "attend_to_mask_tokens": False,
    "mask_punctuation": True,
    "interaction": "colbert",
}


def open_late_interaction(
    model: str | Path, settings: TrainingSettings, device: torch.device, dtype: torch.dtype
) -> BiEncoding:
    """A ColBERT as it is, or a plain encoder with a new projection. Raises as `open_embedding` does."""
    assert settings.colbert is not None
    checkpoint = open_checkpoint(model)
    file = checkpoint.folder / COLBERT
    metadata = read_json(file) if file.is_file() else None
    width = settings.colbert.token_width if metadata is None else int(metadata.get("dim", 128))
    trainable = open_encoder(checkpoint, settings, device, dtype, pooling="cls", token_width=width)
    reading = ColbertReading(trainable, settings, settings.colbert, metadata)
    loss = ColbertLoss(settings.colbert, settings.losses, temperature=settings.temperature)
    return BiEncoding(trainable, reading, loss, settings)


class ColbertReading:
    """Queries filled up with [MASK], passages without punctuation in the maximum, both with their marker."""

    outputs = ("tokens",)

    def __init__(
        self,
        trainable: Trainable[TextEncoder],
        settings: TrainingSettings,
        colbert: LateInteractionSettings,
        metadata: Mapping[str, Any] | None,
    ) -> None:
        self._trainable = trainable
        known = {
            **_NEW,
            **MARKERS,
            "dim": colbert.token_width,
            "query_maxlen": colbert.query_length,
            **(metadata or {}),
        }
        longest = trainable.max_length
        known["doc_maxlen"] = settings.max_length or min(known.get("doc_maxlen", DOCUMENT_LENGTH), longest)
        known["query_maxlen"] = settings.max_query_length or known["query_maxlen"]
        least = shortest(trainable) + 1  # the marker
        for key in ("query_maxlen", "doc_maxlen"):
            if not least <= known[key] <= longest:
                raise ValueError(
                    f"{key} is {known[key]}; {trainable.checkpoint.name} reads {least} to {longest} tokens"
                )
        self._metadata = known
        self._query_marker, self._document_marker = (self._token(known[key]) for key in MARKERS)
        self._mask, self._pad = self._token("[MASK]", "<mask>"), self._token("[PAD]", "<pad>")
        characters = trainable.tokenizer.encode_batch(list(string.punctuation))
        skipped = {ids[0] for ids in characters if ids} if known["mask_punctuation"] else set()
        self._skipped = skipped | {self._pad}

    @property
    def kind(self) -> Kind:
        return Kind(
            family="colbert",
            title="A late-interaction model",
            does="It makes a vector of each token; a query's tokens look for the nearest of a passage's.",
            loads=[
                "```python\nfrom secondpass import ColBERT\n\nColBERT(folder).rank(query, passages, top_n=5)\n```",
                "It is in the layout of colbert-ai, which PyLate reads as well.",
            ],
            tags=["ColBERT", "late-interaction"],
            pipeline="sentence-similarity",
            max_length=self._metadata["doc_maxlen"],
            facts={"query_maxlen": self._metadata["query_maxlen"], "dim": self._metadata["dim"]},
        )

    def queries(self, texts: Sequence[str]) -> TextRows:
        length = self._metadata["query_maxlen"]
        rows = single_rows(self._trainable.tokenizer, texts, max_length=length, marker=self._query_marker)
        filled = []
        for row in rows:
            ids = [*row.ids, *[self._pad] * (length - len(row))]
            ids = [self._mask if token == self._pad else token for token in ids]
            filled.append(Row(ids=ids, passage=(length, length), cut=row.cut))
        visible = None if self._metadata["attend_to_mask_tokens"] else [len(row) for row in rows]
        return TextRows(rows=filled, counts=[[True] * length for _ in rows], visible=visible)

    def passages(self, texts: Sequence[str]) -> TextRows:
        length = self._metadata["doc_maxlen"]
        rows = single_rows(self._trainable.tokenizer, texts, max_length=length, marker=self._document_marker)
        return TextRows(rows=rows, counts=[[token not in self._skipped for token in row.ids] for row in rows])

    def finished(self, name: str, values: Tensor, ids: Tensor) -> Tensor:
        return values

    def save(self, folder: Path, texts: Mapping[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        trainable = self._trainable
        layout = saved_head(trainable.checkpoint.config)
        tensors = {
            name if name.startswith("linear.") else layout.full_name(name): tensor
            for name, tensor in encoder_tensors(trainable).items()
        }
        save_model(
            folder,
            config={**trainable.config, "architectures": ["HF_ColBERT"]},
            tensors=tensors,
            base=trainable.checkpoint.folder,
            texts={**texts, COLBERT: json.dumps(self._metadata, indent=2) + "\n"},
        )

    def _token(self, *names: str) -> int:
        for name in names:
            found = self._trainable.tokenizer.token_id(name)
            if found is not None:
                return found
        raise CheckpointError(f"the tokenizer has no {' or '.join(names)}, which ColBERT needs")
