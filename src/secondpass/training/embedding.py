"""Embedders that are trained: BGE-M3 with its three parts, and any encoder with one vector a text."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secondpass.atomic import whole_file
from secondpass.checkpoint.checkpoint import Checkpoint, open_checkpoint
from secondpass.checkpoint.layout import LENGTH
from secondpass.checkpoint.save import save_model
from secondpass.checkpoint.sentence_transformers import read_settings
from secondpass.checkpoint.weights import read_tensors, rename
from secondpass.engine.torch_encoder import load_linear
from secondpass.errors import UnknownModel
from secondpass.models.layers import Linear
from secondpass.models.text_encoder import TextEncoder
from secondpass.text.prompts import known_prompts, single_rows
from secondpass.training.bi_encoding import BiEncoding, TextRows
from secondpass.training.learner import DEFAULT_LENGTH
from secondpass.training.lora import add_lora, merged_tensors
from secondpass.training.model import FRESH_STD, Source, Trainable, load_float32, make_ready
from secondpass.training.reporting import Kind
from secondpass.training.settings import EmbedderSettings, TrainingSettings
from secondpass.training.vector_losses import EmbedderLoss

# The part of a score -> the encoder's output that it needs
OUTPUTS = {"dense": "pooled", "sparse": "weights", "colbert": "tokens"}
# The heads that BGE-M3 has beside its backbone's weights, by the output that they make.
HEAD_FILES = {"weights": "sparse_linear.pt", "tokens": "colbert_linear.pt"}
# Tokens that say nothing of a text and get no weight, as in FlagEmbedding.
WEIGHTLESS = ("<s>", "</s>", "<pad>", "<unk>")
_POOLER = re.compile(r"(?:\w+\.)?pooler\..*")
_POOLING_MODES = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "last": "pooling_mode_lasttoken",
}


def open_embedding(
    model: str | Path, settings: TrainingSettings, device: torch.device, dtype: torch.dtype
) -> BiEncoding:
    """An encoder with pooling, as its sentence-transformers files say or as asked, and BGE-M3's heads where needed.

    Raises UnknownModel for what is no encoder, CheckpointError for a damaged one, ValueError for a length or a
    dimension that it does not have.
    """
    assert settings.embedder is not None
    checkpoint = open_checkpoint(model)
    found = read_settings(checkpoint.folder)
    pooling = settings.embedder.pooling or found.pooling
    if pooling not in _POOLING_MODES or found.dense:
        has = f"{pooling} and a Dense layer" if found.dense else pooling
        known = ", ".join(_POOLING_MODES)
        raise UnknownModel(f"{checkpoint.name}: its pooling is {has}; training has one of {known} alone")
    trainable = open_encoder(checkpoint, settings, device, dtype, pooling=pooling)
    width = trainable.model.backbone.config.width
    if max(settings.embedder.dimensions, default=0) > width:
        raise ValueError(f"dimensions is {settings.embedder.dimensions}; {checkpoint.name} has vectors of {width}")
    reading = EmbedderReading(trainable, settings, settings.embedder)
    loss = EmbedderLoss(settings.embedder, settings.losses, temperature=settings.temperature)
    return BiEncoding(trainable, reading, loss, settings)


def open_encoder(
    checkpoint: Checkpoint,
    settings: TrainingSettings,
    device: torch.device,
    dtype: torch.dtype,
    *,
    pooling: str,
    token_width: int | None = None,
) -> Trainable[TextEncoder]:
    """The encoder of a checkpoint, whatever head that has."""
    with torch.device("meta"):
        net = TextEncoder(checkpoint.config, pooling=pooling, token_width=token_width)
    source = _EncoderSource(checkpoint, net, settings.seed)
    load_float32(net, checkpoint, source, net.ignored)
    fresh = [*source.fresh, *_add_heads(net, checkpoint, settings)]
    names = [re.sub(r"For\w+$|^HF_ColBERT$", "Model", name) for name in checkpoint.config.get("architectures") or ()]
    trainable = Trainable(
        checkpoint=checkpoint,
        model=net,
        config={**checkpoint.config, "architectures": names},
        naming=source.naming,
        fresh=tuple(fresh),
        device=device,
        dtype=dtype,
    )
    make_ready(
        trainable,
        has_frozen_words=settings.has_frozen_words,
        has_gradient_checkpointing=settings.has_gradient_checkpointing,
    )
    if settings.embedder is not None and settings.embedder.has_frozen_encoder:
        if settings.lora is not None:
            raise ValueError("has_frozen_encoder is set, and LoRA, which changes the encoder; leave one out")
        net.backbone.requires_grad_(False)
    if settings.lora is not None:
        if settings.lora.saves_adapter:
            raise ValueError("an adapter is saved of rerankers only; leave it out, the result is merged")
        add_lora(trainable, settings.lora, seed=settings.seed)
    return trainable


class _EncoderSource(Source):
    """The backbone's tensors of any checkpoint, and a projection of tokens where the model has one and it has not."""

    def __init__(self, checkpoint: Checkpoint, net: TextEncoder, seed: int) -> None:
        super().__init__(checkpoint, net, net.renames, None, seed)

    def changed(self, tensors: Any) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in super().changed(tensors):
            if rename(name, self.naming.renames).partition("@")[0] in self._shapes:  # not another model's head
                yield name, tensor
        if "head.tokens.weight" in self._shapes and "head.tokens.weight" not in self.naming.blocks:
            name, tensor = "linear.weight", self._drawn("head.tokens.weight", self._shapes["head.tokens.weight"])
            self.fresh.append("head.tokens.weight")
            self.naming.note(name, tensor)
            yield name, tensor


def _add_heads(net: TextEncoder, checkpoint: Checkpoint, settings: TrainingSettings) -> list[str]:
    """BGE-M3's heads for the parts that are trained, read from their files or drawn; returns what was drawn."""
    fresh = []
    parts = settings.embedder.parts if settings.embedder is not None else ()
    generator = torch.Generator().manual_seed(settings.seed)
    width = net.backbone.config.width
    for output, file in HEAD_FILES.items():
        if output not in [OUTPUTS[part] for part in parts]:
            continue
        if (checkpoint.folder / file).is_file():
            linear = load_linear(checkpoint.folder / file, width, None if output == "tokens" else 1)
        else:
            linear = Linear(width, width if output == "tokens" else 1)
            nn.init.normal_(linear.weight, std=FRESH_STD, generator=generator)
            nn.init.zeros_(linear.bias)  # type: ignore[arg-type]
            fresh.append(f"head.{output}")
        net.head[output] = linear
    return fresh


def encoder_tensors(trainable: Trainable[TextEncoder]) -> dict[str, Tensor]:
    """What is written: the encoder as it is, and the pooler of the base, which nothing here reads."""
    found = trainable.named(merged_tensors(trainable.model))
    for name, tensor in read_tensors(trainable.checkpoint.weight_files()):
        if _POOLER.fullmatch(name):
            found[name] = tensor
    return found


def lengths(trainable: Trainable[TextEncoder], settings: TrainingSettings, usual: int | None) -> tuple[int, int]:
    """(of a query, of a passage) in tokens. Raises ValueError for what the model cannot read."""
    longest = trainable.max_length
    length = settings.max_length or min(longest, usual or DEFAULT_LENGTH)
    query = settings.max_query_length or length
    least = shortest(trainable)
    for name, value in (("max_length", length), ("max_query_length", query)):
        if not least <= value <= longest:
            raise ValueError(f"{name} is {value}; {trainable.checkpoint.name} reads {least} to {longest} tokens")
    return query, length


def shortest(trainable: Trainable[Any]) -> int:
    """Tokens of a text of one token, with the special ones."""
    template = trainable.tokenizer.single_template
    return len(template.before) + len(template.after) + 1


class EmbedderReading:
    """Texts with the model's prompts, pooled; token vectors and weights where they are trained."""

    def __init__(
        self, trainable: Trainable[TextEncoder], settings: TrainingSettings, embedder: EmbedderSettings
    ) -> None:
        self._trainable, self._parts = trainable, embedder.parts
        checkpoint = trainable.checkpoint
        self._known = read_settings(checkpoint.folder)
        named = known_prompts(checkpoint.name, str(checkpoint.config.get("model_type")))
        self._prompts = {**named, **self._known.prompts}
        self._lengths = lengths(trainable, settings, self._known.max_length)
        tokens = [trainable.tokenizer.token_id(token) for token in WEIGHTLESS]
        self._weightless = torch.tensor([t for t in tokens if t is not None] or [-1], device=trainable.device)

    @property
    def outputs(self) -> Sequence[str]:
        return [OUTPUTS[part] for part in self._parts]

    @property
    def kind(self) -> Kind:
        name = "SentenceTransformer" if self._parts == ("dense",) else "FlagEmbedding's BGEM3FlagModel"
        return Kind(
            family=str(self._trainable.checkpoint.config.get("model_type")),
            title="An embedder",
            does="It makes a vector of a text; a query lies near the passages that answer it.",
            loads=[
                "```python\nfrom secondpass import Embedder\n\nEmbedder(folder).encode(texts)\n```",
                f"It loads as {name} as well.",
            ],
            tags=["sentence-transformers", "sentence-similarity", "feature-extraction"],
            pipeline="sentence-similarity",
            max_length=self._lengths[1],
        )

    def queries(self, texts: Sequence[str]) -> TextRows:
        return self._rows(texts, "query", self._lengths[0])

    def passages(self, texts: Sequence[str]) -> TextRows:
        return self._rows(texts, "document", self._lengths[1])

    def finished(self, name: str, values: Tensor, ids: Tensor) -> Tensor:
        if name != "weights":
            return values
        return values.squeeze(-1).masked_fill(torch.isin(ids, self._weightless), 0.0)

    def save(self, folder: Path, texts: Mapping[str, str]) -> None:
        base = self._trainable.checkpoint.folder
        for name in HEAD_FILES.values():
            if (base / name).is_file():
                folder.mkdir(parents=True, exist_ok=True)
                with whole_file(folder / name) as partial:
                    shutil.copyfile(base / name, partial)
        heads = {output: file for output, file in HEAD_FILES.items() if output in self._trainable.model.head}
        written = dict(texts) | self._sentence_files()
        for name in written:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        for output, file in heads.items():
            state = {k: x.detach().cpu().clone() for k, x in self._trainable.model.head[output].named_parameters()}
            with whole_file(folder / file) as partial:
                torch.save(state, partial)
        save_model(
            folder,
            config=self._trainable.config,
            tensors=encoder_tensors(self._trainable),
            base=base,
            max_length=self._lengths[1],
            texts=written,
        )

    def _rows(self, texts: Sequence[str], kind: str, max_length: int) -> TextRows:
        prompted = [self._prompts.get(kind, "") + text for text in texts]
        rows = single_rows(self._trainable.tokenizer, prompted, max_length=max_length)
        return TextRows(rows=rows, counts=[[True] * len(row) for row in rows])

    def _sentence_files(self) -> dict[str, str]:
        """What sentence-transformers reads: pooling, normalisation, prompts, and the length."""
        pooling = {_POOLING_MODES[mode]: mode == self._trainable.model.pooling for mode in _POOLING_MODES}
        width = {"word_embedding_dimension": self._trainable.model.backbone.config.width}
        kinds = ("", "1_Pooling", "2_Normalize")
        modules = [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}
            for index, (path, name) in enumerate(zip(kinds, ("Transformer", "Pooling", "Normalize"), strict=True))
        ]
        prompts = {"query": self._prompts.get("query", ""), "document": self._prompts.get("document", "")}
        found = {
            "modules.json": modules,
            "1_Pooling/config.json": width | pooling,
            LENGTH: {"max_seq_length": self._lengths[1], "do_lower_case": False},
            "config_sentence_transformers.json": {"prompts": prompts, "similarity_fn_name": "cosine"},
        }
        return {name: json.dumps(value, indent=2) + "\n" for name, value in found.items()}
