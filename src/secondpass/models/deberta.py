"""DeBERTa-v2 and -v3 encoders: mxbai-rerank-xsmall-v1, -base-v1, -large-v1.

He et al. 2021: logits are the sum of content to content, content to position (c2p) and position to content (p2c),
with relative positions in logarithmic buckets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secondpass.errors import UnknownModel
from secondpass.models.attention import Attention
from secondpass.models.attention.deberta import DistanceBias, log_buckets
from secondpass.models.attention.reference import Rule
from secondpass.models.heads import ClassifierConfig
from secondpass.models.layers import EmbeddingTable, LayerNorm, Linear, activation_of
from secondpass.packed import Keep, Packed, sent

_LAYER = r"encoder\.layer\.(\d+)\."
# Hugging Face name (after the model's own prefix) -> ours; "@i" is the i-th block of rows of a joined matrix.
RENAMES = (
    (r"deberta\.(.*)", r"\1"),
    (r"embeddings\.(word|position|token_type)_embeddings\.(.*)", r"backbone.\1.\2"),
    (r"embeddings\.LayerNorm\.(.*)", r"backbone.norm.\1"),
    (r"encoder\.rel_embeddings\.(.*)", r"backbone.distance.\1"),
    (r"encoder\.LayerNorm\.(.*)", r"backbone.distance_norm.\1"),
    (_LAYER + r"attention\.self\.query_proj\.(.*)", r"backbone.layers.\1.qkv.\2@0"),
    (_LAYER + r"attention\.self\.key_proj\.(.*)", r"backbone.layers.\1.qkv.\2@1"),
    (_LAYER + r"attention\.self\.value_proj\.(.*)", r"backbone.layers.\1.qkv.\2@2"),
    (_LAYER + r"attention\.self\.pos_(query|key)_proj\.(.*)", r"backbone.layers.\1.distance_\2.\3"),
    (_LAYER + r"attention\.output\.dense\.(.*)", r"backbone.layers.\1.out.\2"),
    (_LAYER + r"attention\.output\.LayerNorm\.(.*)", r"backbone.layers.\1.attention_norm.\2"),
    (_LAYER + r"intermediate\.dense\.(.*)", r"backbone.layers.\1.up.\2"),
    (_LAYER + r"output\.dense\.(.*)", r"backbone.layers.\1.down.\2"),
    (_LAYER + r"output\.LayerNorm\.(.*)", r"backbone.layers.\1.mlp_norm.\2"),
    (r"pooler\.dense\.(.*)", r"head.dense.\1"),
    (r"classifier\.(.*)", r"head.out.\1"),
)
IGNORED = (r".*position_ids", r"cls\..*", r"(?:lm|mask)_predictions\..*")


@dataclass(frozen=True, kw_only=True)
class DebertaConfig:
    num_words: int
    num_positions: int  # 0 where there are relative positions only
    num_types: int
    max_length: int
    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    activation: str
    epsilon: float
    num_buckets: int  # on either side; 0 or less where every distance is its own
    max_distance: int
    terms: frozenset[str]  # of c2p and p2c
    is_key_shared: bool
    is_distance_normed: bool
    head_activation: str

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> DebertaConfig:
        _check(config)
        length, distance = config["max_position_embeddings"], config.get("max_relative_positions", -1)
        return cls(
            num_words=config["vocab_size"],
            num_positions=length if config.get("position_biased_input", True) else 0,
            num_types=config.get("type_vocab_size", 0),
            max_length=length,
            width=config["hidden_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            mlp_width=config["intermediate_size"],
            activation=activation_of(config.get("hidden_act", "gelu")),
            epsilon=config.get("layer_norm_eps", 1e-7),
            num_buckets=config.get("position_buckets", -1),
            max_distance=distance if distance > 0 else length,
            terms=_terms(config),
            is_key_shared=config.get("share_att_key", False),
            is_distance_normed="layer_norm" in config.get("norm_rel_ebd", "none").lower(),
            head_activation=activation_of(config.get("pooler_hidden_act", "gelu")),
        )

    @property
    def span(self) -> int:
        """Rows of the table of distances on either side of 0."""
        return self.num_buckets if self.num_buckets > 0 else self.max_distance

    @property
    def head_width(self) -> int:
        return self.width // self.num_heads

    @property
    def reads(self) -> ClassifierConfig:
        return ClassifierConfig(width=self.width, activation=self.head_activation)


def _terms(config: Mapping[str, Any]) -> frozenset[str]:
    terms = config.get("pos_att_type") or ()
    return frozenset(term.strip() for term in (terms.lower().split("|") if isinstance(terms, str) else terms))


def _check(config: Mapping[str, Any]) -> None:
    """Raises UnknownModel for what the published rerankers do not have, and neither has this backbone."""
    width = config["hidden_size"]
    wanted = {
        "conv_kernel_size": 0,  # the convolution of deberta-v2-xlarge and -xxlarge
        "embedding_size": width,
        "attention_head_size": width // config["num_attention_heads"],
        "relative_attention": True,
    }
    given = {"relative_attention": False} | dict(config)
    for key, value in wanted.items():
        if given.get(key, value) != value:
            raise UnknownModel(f"config.json: {key} is {given[key]!r}; for deberta-v2 only {value!r} is supported")
    if unknown := sorted(_terms(config) - {"c2p", "p2c"}):
        raise UnknownModel(f"config.json: pos_att_type names {', '.join(unknown)}; there are c2p and p2c")


@dataclass(frozen=True)
class Distances:
    """Vectors of the distances -L to L, L the longest row: an index (2L + 1,) into the rows of `states` (B, C)."""

    states: Tensor
    index: Tensor


class DebertaLayer(nn.Module):
    """One post-norm block with disentangled attention."""

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.activation = config.activation
        self.terms = config.terms
        self.is_key_shared = config.is_key_shared
        self.scale = 1 / math.sqrt(config.head_width * (1 + len(config.terms)))
        self.attention = Attention(Rule(scale=self.scale))
        self.qkv = Linear(config.width, 3 * config.width)
        own = frozenset() if config.is_key_shared else config.terms
        self.distance_key = Linear(config.width, config.width) if "c2p" in own else None
        self.distance_query = Linear(config.width, config.width) if "p2c" in own else None
        self.out = Linear(config.width, config.width)
        self.attention_norm = LayerNorm(config.width, epsilon=config.epsilon)
        self.up = Linear(config.width, config.mlp_width)
        self.down = Linear(config.mlp_width, config.width)
        self.mlp_norm = LayerNorm(config.width, epsilon=config.epsilon)

    def forward(self, x: Tensor, batch: Packed, distances: Distances, keep: Tensor | None) -> Tensor:
        q, k, v = self._heads(self.qkv(x), 3)
        mixed = self.attention(q, k, v, batch, keep=keep, bias=self._bias(distances) if self.terms else None)
        x = self.attention_norm(self.out(mixed.flatten(1), residual=x if keep is None else x[keep]))
        x = self.mlp_norm(self.down(self.up(x, activation=self.activation), residual=x))
        return x

    def _heads(self, joined: Tensor, count: int) -> list[Tensor]:
        return [x.reshape(x.shape[0], self.num_heads, -1) for x in joined.chunk(count, dim=-1)]

    def _bias(self, distances: Distances) -> DistanceBias:
        states, index = distances.states, distances.index
        key: Tensor | None = None
        query: Tensor | None = None
        if self.is_key_shared and self.terms:
            query, key, _ = self._heads(self.qkv(states), 3)
        if self.distance_key is not None:
            key = self._heads(self.distance_key(states), 1)[0]
        if self.distance_query is not None:
            query = self._heads(self.distance_query(states), 1)[0]
        return DistanceBias(
            None if key is None or "c2p" not in self.terms else (key * self.scale)[index.flip(0)].transpose(0, 1),
            None if query is None or "p2c" not in self.terms else (query * self.scale)[index].transpose(0, 1),
        )


class Deberta(nn.Module):
    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        self.config = config
        self.word = EmbeddingTable(config.num_words, config.width)
        self.position = EmbeddingTable(config.num_positions, config.width) if config.num_positions else None
        self.token_type = EmbeddingTable(config.num_types, config.width) if config.num_types else None
        self.norm = LayerNorm(config.width, epsilon=config.epsilon)
        self.distance = EmbeddingTable(2 * config.span, config.width)
        is_normed = config.is_distance_normed
        self.distance_norm = LayerNorm(config.width, epsilon=config.epsilon) if is_normed else None
        self.layers = nn.ModuleList(DebertaLayer(config) for _ in range(config.num_layers))

    def forward(self, batch: Packed, keep: Keep = "all") -> Tensor:
        """Hidden states (T, C), or (N, C) of each row's first or last token."""
        kept = batch.kept(keep)
        distances = self._distances(batch)
        x: Tensor = self.norm(self._embedded(batch))
        for layer in self.layers[:-1]:
            x = layer(x, batch, distances, None)
        x = self.layers[-1](x, batch, distances, kept)
        return x

    def _embedded(self, batch: Packed) -> Tensor:
        x: Tensor = self.word(batch.ids)
        if self.position is not None:
            x = x + self.position(batch.positions)
        if self.token_type is not None:
            # A table of one row is added everywhere, whatever the tokenizer says about types.
            x = x + (self.token_type.weight if self.config.num_types == 1 else self.token_type(batch.types))
        return x

    def _distances(self, batch: Packed) -> Distances:
        span = self.config.span
        # The padded form is traced, and there only the mask knows the length.
        longest = max(batch.lengths) if batch.mask is None else batch.mask.shape[1]
        buckets = log_buckets(torch.arange(-longest, longest + 1), self.config.num_buckets, self.config.max_distance)
        buckets = (buckets + span).clamp(0, 2 * span - 1)
        # Short rows need few of the vectors.
        first, last = (int(buckets[0]), int(buckets[-1]) + 1) if batch.mask is None else (0, 2 * span)
        states = self.distance.weight[first:last]
        if self.distance_norm is not None:
            states = self.distance_norm(states)
        return Distances(states, sent(buckets - first, batch.ids.device))
