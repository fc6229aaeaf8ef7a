"""ModernBERT encoders: gte-reranker-modernbert-base.

Warner et al. 2024: rotary positions, gated MLP, norms before each branch, and in most layers a local window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from secondpass.errors import UnknownModel
from secondpass.models.attention import Attention
from secondpass.models.attention.reference import Rule
from secondpass.models.heads import ClassifierConfig
from secondpass.models.layers import (
    ACTIVATIONS,
    EmbeddingTable,
    LayerNorm,
    Linear,
    activation_of,
    inverse_frequencies,
    rotary_table,
    rotate,
)
from secondpass.packed import Keep, Packed

_LAYER = r"layers\.(\d+)\."
# Hugging Face name (after the model's own prefix) -> ours.
RENAMES = (
    (r"model\.(.*)", r"\1"),
    (r"embeddings\.tok_embeddings\.(.*)", r"backbone.word.\1"),
    (r"embeddings\.norm\.(.*)", r"backbone.norm.\1"),
    (_LAYER + r"attn_norm\.(.*)", r"backbone.layers.\1.attention_norm.\2"),
    (_LAYER + r"attn\.Wqkv\.(.*)", r"backbone.layers.\1.qkv.\2"),
    (_LAYER + r"attn\.Wo\.(.*)", r"backbone.layers.\1.out.\2"),
    (_LAYER + r"mlp_norm\.(.*)", r"backbone.layers.\1.mlp_norm.\2"),
    (_LAYER + r"mlp\.Wi\.(.*)", r"backbone.layers.\1.up.\2"),
    (_LAYER + r"mlp\.Wo\.(.*)", r"backbone.layers.\1.down.\2"),
    (r"final_norm\.(.*)", r"backbone.final_norm.\1"),
    (r"classifier\.(.*)", r"head.out.\1"),
)
IGNORED = (r".*position_ids", r".*inv_freq")
# classifier_pooling -> the tokens that the head reads
POOLINGS: dict[str, Keep] = {"cls": "first", "mean": "all"}
# As transformers names the two kinds of layers from version 5 on
GLOBAL, LOCAL = "full_attention", "sliding_attention"
# What transformers takes where config.json says nothing
THETAS = {"global_rope_theta": 160000.0, "local_rope_theta": 10000.0}


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """Where a layer looks: theta of its rotary positions, and its window or None."""

    theta: float
    window: int | None


@dataclass(frozen=True, kw_only=True)
class ModernBertConfig:
    num_words: int
    max_length: int
    width: int
    num_heads: int
    mlp_width: int
    activation: str
    epsilon: float
    attention_has_bias: bool
    mlp_has_bias: bool
    norm_has_bias: bool
    layers: tuple[LayerConfig, ...]
    pooling: Keep
    head_activation: str
    head_has_bias: bool

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ModernBertConfig:
        pooling = config.get("classifier_pooling", "cls")
        if pooling not in POOLINGS:
            raise UnknownModel(f"config.json: classifier_pooling is {pooling!r}; there are {', '.join(POOLINGS)}")
        return cls(
            num_words=config["vocab_size"],
            max_length=config["max_position_embeddings"],
            width=config["hidden_size"],
            num_heads=config["num_attention_heads"],
            mlp_width=config["intermediate_size"],
            activation=activation_of(config.get("hidden_activation", "gelu")),
            epsilon=config.get("norm_eps", 1e-5),
            attention_has_bias=config.get("attention_bias", False),
            mlp_has_bias=config.get("mlp_bias", False),
            norm_has_bias=config.get("norm_bias", False),
            layers=_layers(config),
            pooling=POOLINGS[pooling],
            head_activation=activation_of(config.get("classifier_activation", "gelu")),
            head_has_bias=config.get("classifier_bias", False),
        )

    @property
    def head_width(self) -> int:
        return self.width // self.num_heads

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def reads(self) -> ClassifierConfig:
        return ClassifierConfig(
            width=self.width,
            activation=self.head_activation,
            pooling=self.pooling,
            has_bias=self.head_has_bias,
            norm_epsilon=self.epsilon,
            norm_has_bias=self.norm_has_bias,
        )


def _layers(config: Mapping[str, Any]) -> tuple[LayerConfig, ...]:
    every = config.get("global_attn_every_n_layers", 3)
    counted = [LOCAL if i % every else GLOBAL for i in range(config["num_hidden_layers"])]
    kinds = config.get("layer_types") or counted
    settings = {
        GLOBAL: LayerConfig(theta=_theta(config, GLOBAL, "global_rope_theta"), window=None),
        LOCAL: LayerConfig(
            theta=_theta(config, LOCAL, "local_rope_theta"), window=config.get("local_attention", 128) // 2
        ),
    }
    unknown = sorted(set(kinds) - set(settings))
    if unknown or len(kinds) != config["num_hidden_layers"]:
        raise UnknownModel(
            f"config.json: layer_types names {len(kinds)} layers, {', '.join(unknown) or 'all known'}; "
            f"{config['num_hidden_layers']} of {GLOBAL} or {LOCAL} are needed"
        )
    return tuple(settings[kind] for kind in kinds)


def _theta(config: Mapping[str, Any], kind: str, key: str) -> float:
    rope = (config.get("rope_parameters") or {}).get(kind) or config.get("rope_scaling") or {}
    type_ = rope.get("rope_type", rope.get("type", "default"))
    if type_ != "default":
        raise UnknownModel(f"config.json: rope type {type_!r} of {kind} is not known for modernbert, only default")
    theta = rope.get("rope_theta", config.get(key, THETAS[key]))
    # null in place of a local theta means the global one
    return float(config["global_rope_theta"] if theta is None else theta)


class ModernBertLayer(nn.Module):
    """One pre-norm block; the first layer has no norm before its attention."""

    def __init__(self, config: ModernBertConfig, index: int) -> None:
        super().__init__()
        epsilon, has_bias = config.epsilon, config.norm_has_bias
        self.num_heads = config.num_heads
        self.activation = config.activation
        self.attention_norm = LayerNorm(config.width, epsilon=epsilon, has_bias=has_bias) if index else None
        self.qkv = Linear(config.width, 3 * config.width, has_bias=config.attention_has_bias)
        self.attention = Attention(Rule(scale=config.head_width**-0.5, window=config.layers[index].window))
        self.out = Linear(config.width, config.width, has_bias=config.attention_has_bias)
        self.mlp_norm = LayerNorm(config.width, epsilon=epsilon, has_bias=has_bias)
        self.up = Linear(config.width, 2 * config.mlp_width, has_bias=config.mlp_has_bias)
        self.down = Linear(config.mlp_width, config.width, has_bias=config.mlp_has_bias)

    def forward(self, x: Tensor, batch: Packed, table: tuple[Tensor, Tensor], keep: Tensor | None) -> Tensor:
        normed = x if self.attention_norm is None else self.attention_norm(x)
        q, k, v = self.qkv(normed).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        q, k = rotate(q, *table), rotate(k, *table)
        mixed = self.attention(q, k, v, batch, keep=keep)
        x = self.out(mixed.flatten(1), residual=x if keep is None else x[keep])
        inner, gate = self.up(self.mlp_norm(x)).chunk(2, dim=-1)
        x = self.down(ACTIVATIONS[self.activation](inner) * gate, residual=x)
        return x


class ModernBert(nn.Module):
    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.config = config
        self.word = EmbeddingTable(config.num_words, config.width)
        self.norm = LayerNorm(config.width, epsilon=config.epsilon, has_bias=config.norm_has_bias)
        self.layers = nn.ModuleList(ModernBertLayer(config, index) for index in range(len(config.layers)))
        self.final_norm = LayerNorm(config.width, epsilon=config.epsilon, has_bias=config.norm_has_bias)

    def forward(self, batch: Packed, keep: Keep = "all") -> Tensor:
        """Hidden states (T, C), or (N, C) of each row's first or last token."""
        kept = batch.kept(keep)
        tables = {theta: self._table(batch, theta) for theta in {layer.theta for layer in self.config.layers}}
        x = self.embed(batch)
        for layer, settings in zip(self.layers[:-1], self.config.layers, strict=False):
            x = layer(x, batch, tables[settings.theta], None)
        x = self.layers[-1](x, batch, tables[self.config.layers[-1].theta], kept)
        states: Tensor = self.final_norm(x)
        return states

    def embed(self, batch: Packed, words: Tensor | None = None) -> Tensor:
        """The states (T, C) that enter the first layer, of these words (T, C) in the place of those of the ids."""
        x: Tensor = self.norm(self.word(batch.ids) if words is None else words)
        return x

    def _table(self, batch: Packed, theta: float) -> tuple[Tensor, Tensor]:
        inv_freq = inverse_frequencies(self.config.head_width, theta, device=batch.positions.device)
        return rotary_table(batch.positions, inv_freq)
