"""GTE encoders ("new" of Alibaba-NLP/new-impl, "gte" of transformers 5): gte-multilingual-reranker-base.

Zhang et al. 2024, "mGTE": BERT's post-norm blocks with rotary positions, NTK scaling and a gated MLP.
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

_LAYER = r"(?:encoder\.layer|layers)\.(\d+)\."
_ATTENTION = _LAYER + r"(?:attention|self_attn)\."
# Hugging Face name (after the model's own prefix) -> ours; "@i" is the i-th block of rows of a joined matrix.
RENAMES = (
    (r"(?:new|gte)\.(.*)", r"\1"),
    (r"embeddings\.word_embeddings\.(.*)", r"backbone.word.\1"),
    (r"embeddings\.token_type_embeddings\.(.*)", r"backbone.token_type.\1"),
    (r"embeddings\.LayerNorm\.(.*)", r"backbone.norm.\1"),
    (_ATTENTION + r"qkv_proj\.(.*)", r"backbone.layers.\1.qkv.\2"),
    (_ATTENTION + r"q_proj\.(.*)", r"backbone.layers.\1.qkv.\2@0"),
    (_ATTENTION + r"k_proj\.(.*)", r"backbone.layers.\1.qkv.\2@1"),
    (_ATTENTION + r"v_proj\.(.*)", r"backbone.layers.\1.qkv.\2@2"),
    (_ATTENTION + r"o_proj\.(.*)", r"backbone.layers.\1.out.\2"),
    (_LAYER + r"(?:attn_ln|post_attention_layernorm)\.(.*)", r"backbone.layers.\1.attention_norm.\2"),
    (_LAYER + r"mlp\.up_gate_proj\.(.*)", r"backbone.layers.\1.up_gate.\2"),
    (_LAYER + r"mlp\.up_proj\.(.*)", r"backbone.layers.\1.up_gate.\2@0"),
    (_LAYER + r"mlp\.gate_proj\.(.*)", r"backbone.layers.\1.up_gate.\2@1"),
    (_LAYER + r"mlp\.down_proj\.(.*)", r"backbone.layers.\1.down.\2"),
    (_LAYER + r"(?:mlp_ln|post_mlp_layernorm)\.(.*)", r"backbone.layers.\1.mlp_norm.\2"),
    (r"pooler\.dense\.(.*)", r"head.dense.\1"),
    (r"classifier\.(.*)", r"head.out.\1"),
)
IGNORED = (r".*position_ids", r".*(?:inv_freq|cos_cached|sin_cached)", r"lm_head\..*")
# Settings of the remote code that no published checkpoint uses -> the value that is supported
SUPPORTED = {
    "position_embedding_type": "rope",
    "layer_norm_type": "layer_norm",
    "logn_attention_scale": False,
}


@dataclass(frozen=True, kw_only=True)
class GteConfig:
    num_words: int
    num_types: int
    max_length: int
    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    activation: str
    epsilon: float
    theta: float
    slowdown: float  # what the frequencies are divided by

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> GteConfig:
        for key, value in SUPPORTED.items():
            if config.get(key, value) != value:
                raise UnknownModel(f"config.json: {key} is {config[key]!r}; for GTE only {value!r} is supported")
        theta, slowdown = _rope(config)
        return cls(
            num_words=config["vocab_size"],
            num_types=config.get("type_vocab_size", 1),
            max_length=config["max_position_embeddings"],
            width=config["hidden_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            mlp_width=config["intermediate_size"],
            activation=activation_of(config.get("hidden_act", "gelu")),
            epsilon=config.get("layer_norm_eps", 1e-12),
            theta=theta,
            slowdown=slowdown,
        )

    @property
    def head_width(self) -> int:
        return self.width // self.num_heads

    @property
    def reads(self) -> ClassifierConfig:
        return ClassifierConfig(width=self.width)


def _rope(config: Mapping[str, Any]) -> tuple[float, float]:
    """Theta, and what the frequencies are divided by.

    NTK (bloc97 2023; Su 2023, kexue.fm/archives/9706, equation 6) multiplies theta by the factor and divides by
    factor^(2/D), for short texts as well. transformers 5 writes the same as a linear scaling.
    """
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    type_ = rope.get("rope_type", rope.get("type", "default"))
    theta = float(rope.get("rope_theta", config.get("rope_theta", 10000.0)))
    factor = float(rope.get("factor", 1.0))
    if type_ == "ntk" and rope.get("mixed_b") is None:
        return theta * factor, factor ** (2 / (config["hidden_size"] // config["num_attention_heads"]))
    if type_ in ("default", "linear"):
        return theta, factor if type_ == "linear" else 1.0
    known = "default, linear, and ntk without mixed_b"
    raise UnknownModel(f"config.json: rope scaling {dict(rope)} is not known for GTE; there are {known}")


class GteLayer(nn.Module):
    """One post-norm block with a gated MLP."""

    def __init__(self, config: GteConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.activation = config.activation
        self.qkv = Linear(config.width, 3 * config.width)
        self.attention = Attention(Rule(scale=config.head_width**-0.5))
        self.out = Linear(config.width, config.width)
        self.attention_norm = LayerNorm(config.width, epsilon=config.epsilon)
        self.up_gate = Linear(config.width, 2 * config.mlp_width, has_bias=False)
        self.down = Linear(config.mlp_width, config.width)
        self.mlp_norm = LayerNorm(config.width, epsilon=config.epsilon)

    def forward(self, x: Tensor, batch: Packed, table: tuple[Tensor, Tensor], keep: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        q, k = rotate(q, *table), rotate(k, *table)
        mixed = self.attention(q, k, v, batch, keep=keep)
        x = self.attention_norm(self.out(mixed.flatten(1), residual=x if keep is None else x[keep]))
        up, gate = self.up_gate(x).chunk(2, dim=-1)
        x = self.mlp_norm(self.down(ACTIVATIONS[self.activation](gate) * up, residual=x))
        return x


class Gte(nn.Module):
    def __init__(self, config: GteConfig) -> None:
        super().__init__()
        self.config = config
        self.word = EmbeddingTable(config.num_words, config.width)
        self.token_type = EmbeddingTable(config.num_types, config.width) if config.num_types else None
        self.norm = LayerNorm(config.width, epsilon=config.epsilon)
        self.layers = nn.ModuleList(GteLayer(config) for _ in range(config.num_layers))

    def forward(self, batch: Packed, keep: Keep = "all") -> Tensor:
        """Hidden states (T, C), or (N, C) of each row's first or last token."""
        kept = batch.kept(keep)
        inv_freq = inverse_frequencies(self.config.head_width, self.config.theta, device=batch.positions.device)
        table = rotary_table(batch.positions, inv_freq / self.config.slowdown)
        x: Tensor = self.norm(self._embedded(batch))
        for layer in self.layers[:-1]:
            x = layer(x, batch, table, None)
        x = self.layers[-1](x, batch, table, kept)
        return x

    def _embedded(self, batch: Packed) -> Tensor:
        words: Tensor = self.word(batch.ids)
        if self.token_type is None:
            return words
        # A table of one row is added everywhere, whatever the tokenizer says about types.
        return words + (self.token_type.weight if self.config.num_types == 1 else self.token_type(batch.types))
