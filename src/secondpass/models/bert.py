"""BERT and XLM-RoBERTa encoders: MS MARCO MiniLM, bge-reranker-base, -large, -v2-m3, BGE-M3, all-MiniLM.

Devlin et al. 2019; Conneau et al. 2020. The two differ in how positions are counted and in the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secondpass.errors import UnknownModel
from secondpass.models.attention import Attention
from secondpass.models.attention.reference import Rule
from secondpass.models.heads import ClassifierConfig
from secondpass.models.layers import EmbeddingTable, LayerNorm, Linear, activation_of
from secondpass.packed import Keep, Packed

_LAYER = r"encoder\.layer\.(\d+)\."
# Hugging Face name (after the model's own prefix) -> ours; "@i" is the i-th block of rows of a joined matrix.
RENAMES = (
    (r"(?:bert|roberta(?!\.pooler))\.(.*)", r"\1"),  # RoBERTa's classifier has a dense layer in place of the pooler
    (r"(.*LayerNorm)\.gamma", r"\1.weight"),  # as TensorFlow's weights were named
    (r"(.*LayerNorm)\.beta", r"\1.bias"),
    (r"embeddings\.(word|position|token_type)_embeddings\.(.*)", r"backbone.\1.\2"),
    (r"embeddings\.LayerNorm\.(.*)", r"backbone.norm.\1"),
    (_LAYER + r"attention\.self\.query\.(.*)", r"backbone.layers.\1.qkv.\2@0"),
    (_LAYER + r"attention\.self\.key\.(.*)", r"backbone.layers.\1.qkv.\2@1"),
    (_LAYER + r"attention\.self\.value\.(.*)", r"backbone.layers.\1.qkv.\2@2"),
    (_LAYER + r"attention\.output\.dense\.(.*)", r"backbone.layers.\1.out.\2"),
    (_LAYER + r"attention\.output\.LayerNorm\.(.*)", r"backbone.layers.\1.attention_norm.\2"),
    (_LAYER + r"intermediate\.dense\.(.*)", r"backbone.layers.\1.up.\2"),
    (_LAYER + r"output\.dense\.(.*)", r"backbone.layers.\1.down.\2"),
    (_LAYER + r"output\.LayerNorm\.(.*)", r"backbone.layers.\1.mlp_norm.\2"),
    (r"pooler\.dense\.(.*)", r"head.dense.\1"),
    (r"classifier\.(weight|bias)", r"head.out.\1"),
    (r"classifier\.dense\.(.*)", r"head.dense.\1"),
    (r"classifier\.out_proj\.(.*)", r"head.out.\1"),
)
# What old versions of transformers saved: buffers, heads of the pre-training, RoBERTa's pooler beside its own head.
IGNORED = (r".*position_ids", r"cls\..*", r"lm_head\..*", r"roberta\.pooler\..*")
# Settings that no published reranker uses -> the value that is supported
SUPPORTED = {"position_embedding_type": "absolute", "is_decoder": False}


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    num_words: int
    num_positions: int
    num_types: int
    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    activation: str
    epsilon: float
    pad_id: int | None  # set where positions are counted over the ids that are not padding (RoBERTa)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> BertConfig:
        for key, value in SUPPORTED.items():
            if config.get(key, value) != value:
                raise UnknownModel(f"config.json: {key} is {config[key]!r}; for BERT only {value!r} is supported")
        is_roberta = config["model_type"] in ("xlm-roberta", "roberta")
        return cls(
            num_words=config["vocab_size"],
            num_positions=config["max_position_embeddings"],
            num_types=config.get("type_vocab_size", 2),
            width=config["hidden_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            mlp_width=config["intermediate_size"],
            activation=activation_of(config.get("hidden_act", "gelu")),
            epsilon=config.get("layer_norm_eps", 1e-12),
            pad_id=config.get("pad_token_id", 1) if is_roberta else None,
        )

    @property
    def max_length(self) -> int:
        """Longest input in tokens; RoBERTa's table starts with pad_id + 1 rows that no token uses."""
        return self.num_positions - (0 if self.pad_id is None else self.pad_id + 1)

    @property
    def head_width(self) -> int:
        return self.width // self.num_heads

    @property
    def reads(self) -> ClassifierConfig:
        return ClassifierConfig(width=self.width)


class BertLayer(nn.Module):
    """One post-norm transformer block."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.activation = config.activation
        self.qkv = Linear(config.width, 3 * config.width)
        self.attention = Attention(Rule(scale=config.head_width**-0.5))
        self.out = Linear(config.width, config.width)
        self.attention_norm = LayerNorm(config.width, epsilon=config.epsilon)
        self.up = Linear(config.width, config.mlp_width)
        self.down = Linear(config.mlp_width, config.width)
        self.mlp_norm = LayerNorm(config.width, epsilon=config.epsilon)

    def forward(self, x: Tensor, batch: Packed, keep: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        mixed = self.attention(q, k, v, batch, keep=keep)
        x = self.attention_norm(self.out(mixed.flatten(1), residual=x if keep is None else x[keep]))
        x = self.mlp_norm(self.down(self.up(x, activation=self.activation), residual=x))
        return x


class Bert(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.word = EmbeddingTable(config.num_words, config.width)
        self.position = EmbeddingTable(config.num_positions, config.width)
        self.token_type = EmbeddingTable(config.num_types, config.width)
        self.norm = LayerNorm(config.width, epsilon=config.epsilon)
        self.layers = nn.ModuleList(BertLayer(config) for _ in range(config.num_layers))

    def forward(self, batch: Packed, keep: Keep = "all") -> Tensor:
        """Hidden states (T, C), or (N, C) of each row's first or last token."""
        kept = batch.kept(keep)
        x = self.embed(batch)
        for layer in self.layers[:-1]:
            x = layer(x, batch, None)
        states: Tensor = self.layers[-1](x, batch, kept)
        return states

    def embed(self, batch: Packed, words: Tensor | None = None) -> Tensor:
        """The states (T, C) that enter the first layer, of these words (T, C) in the place of those of the ids."""
        words = self.word(batch.ids) if words is None else words
        x: Tensor = self.norm(words + self.position(self.positions(batch)) + self._types(batch))
        return x

    def _types(self, batch: Packed) -> Tensor:
        # A table of one row is added everywhere, whatever the tokenizer says about types.
        if self.config.num_types == 1:
            return self.token_type.weight
        types: Tensor = self.token_type(batch.types)
        return types

    def positions(self, batch: Packed) -> Tensor:
        """The row (T,) of the table of positions for each token."""
        pad_id = self.config.pad_id
        if pad_id is None:
            return batch.positions
        # As in fairseq: a literal <pad> in the text keeps position pad_id and does not advance the count.
        is_token = (batch.ids != pad_id).long()
        total = torch.cumsum(is_token, 0)
        before = (total - is_token)[batch.first()]
        return (total - before[batch.rows]) * is_token + pad_id
