"""Nomic BERT: nomic-embed-text-v1 and -v1.5. Nussbaum et al. 2024.

A post-norm BERT with rotary positions and a gated MLP. No bias by default, no table of positions.
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
    inverse_frequencies,
    rotary_table,
    rotate,
)
from secondpass.packed import Keep, Packed

_LAYER = r"encoder\.layers\.(\d+)\."
# Hugging Face name -> ours; "@i" is the i-th block of rows of a joined matrix.
RENAMES = (
    (r"embeddings\.word_embeddings\.(.*)", r"backbone.word.\1"),
    (r"embeddings\.token_type_embeddings\.(.*)", r"backbone.token_type.\1"),
    (r"emb_ln\.(.*)", r"backbone.norm.\1"),
    (_LAYER + r"attn\.Wqkv\.(.*)", r"backbone.layers.\1.qkv.\2"),
    (_LAYER + r"attn\.out_proj\.(.*)", r"backbone.layers.\1.out.\2"),
    (_LAYER + r"norm1\.(.*)", r"backbone.layers.\1.attention_norm.\2"),
    (_LAYER + r"mlp\.fc11\.(.*)", r"backbone.layers.\1.up.\2@0"),
    (_LAYER + r"mlp\.fc12\.(.*)", r"backbone.layers.\1.up.\2@1"),
    (_LAYER + r"mlp\.fc2\.(.*)", r"backbone.layers.\1.down.\2"),
    (_LAYER + r"norm2\.(.*)", r"backbone.layers.\1.mlp_norm.\2"),
)
IGNORED = (r".*position_ids", r"cls\..*")
# The remote code rounds the width of its MLP up to whole blocks.
_MLP_BLOCK = 256
# The only values that this file computes; a checkpoint that asks for others is refused, not misread.
_NEEDED: Mapping[str, tuple[Any, ...]] = {
    "activation_function": ("swiglu",),
    "causal": (False,),
    "num_experts": (0,),
    "parallel_block": (False,),
    "prenorm": (False,),
    "rotary_emb_fraction": (1,),
    "rotary_emb_interleaved": (False,),
    "rotary_emb_scale_base": (None,),
    "rotary_scaling_factor": (None, 1),
    "use_rms_norm": (False, None),
}


@dataclass(frozen=True, kw_only=True)
class NomicConfig:
    num_words: int
    num_types: int
    max_length: int
    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    epsilon: float
    rope_theta: float
    qkv_has_bias: bool
    up_has_bias: bool
    down_has_bias: bool

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> NomicConfig:
        """Raises UnknownModel for a variant that is not computed here, such as the mixture of experts of v2."""
        if "n_embd" not in config and "hidden_size" in config:
            return cls._of_transformers(config)
        for name, values in _NEEDED.items():
            if config.get(name, values[0]) not in values:
                raise UnknownModel(f"nomic_bert with {name} = {config[name]!r}; {values[0]!r} is needed")
        width = config["n_embd"]
        multiple = config.get("pad_vocab_size_multiple", 1)
        return cls(
            num_words=_round_up(config["vocab_size"], multiple),
            num_types=config.get("type_vocab_size", 2),
            max_length=config["n_positions"],
            width=width,
            num_layers=config["n_layer"],
            num_heads=config["n_head"],
            mlp_width=_round_up(config.get("n_inner") or 4 * width, _MLP_BLOCK),
            epsilon=config.get("layer_norm_epsilon", 1e-12),
            rope_theta=config.get("rotary_emb_base", 10000),
            qkv_has_bias=config.get("qkv_proj_bias", True),
            up_has_bias=config.get("mlp_fc1_bias", True),
            down_has_bias=config.get("mlp_fc2_bias", True),
        )

    @classmethod
    def _of_transformers(cls, config: Mapping[str, Any]) -> NomicConfig:
        """As transformers says it, which has the model itself from version 5 on; the tensors keep their names."""
        rope = config.get("rope_parameters") or {}
        if config.get("hidden_act", "silu") != "silu" or rope.get("rope_type", "default") != "default":
            raise UnknownModel(f"nomic_bert with hidden_act {config.get('hidden_act')!r} and rope_parameters {rope}")
        return cls(
            num_words=config["vocab_size"],
            num_types=config.get("type_vocab_size", 2),
            max_length=config.get("max_position_embeddings", 2048),
            width=config["hidden_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            mlp_width=config["intermediate_size"],
            epsilon=config.get("layer_norm_eps", 1e-12),
            rope_theta=rope.get("rope_theta", 1000.0),
            qkv_has_bias=False,
            up_has_bias=False,
            down_has_bias=False,
        )

    @property
    def head_width(self) -> int:
        return self.width // self.num_heads

    @property
    def reads(self) -> ClassifierConfig:
        return ClassifierConfig(width=self.width)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


class NomicLayer(nn.Module):
    """One post-norm transformer block."""

    def __init__(self, config: NomicConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = Linear(config.width, 3 * config.width, has_bias=config.qkv_has_bias)
        self.attention = Attention(Rule(scale=config.head_width**-0.5))
        self.out = Linear(config.width, config.width, has_bias=config.qkv_has_bias)
        self.attention_norm = LayerNorm(config.width, epsilon=config.epsilon)
        self.up = Linear(config.width, 2 * config.mlp_width, has_bias=config.up_has_bias)
        self.down = Linear(config.mlp_width, config.width, has_bias=config.down_has_bias)
        self.mlp_norm = LayerNorm(config.width, epsilon=config.epsilon)

    def forward(self, x: Tensor, batch: Packed, turn: tuple[Tensor, Tensor], keep: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        q, k = rotate(q, *turn), rotate(k, *turn)
        mixed = self.attention(q, k, v, batch, keep=keep)
        x = self.attention_norm(self.out(mixed.flatten(1), residual=x if keep is None else x[keep]))
        value, gate = self.up(x).chunk(2, dim=-1)
        x = self.mlp_norm(self.down(value * ACTIVATIONS["silu"](gate), residual=x))
        return x


class Nomic(nn.Module):
    def __init__(self, config: NomicConfig) -> None:
        super().__init__()
        self.config = config
        self.word = EmbeddingTable(config.num_words, config.width)
        self.token_type = EmbeddingTable(config.num_types, config.width) if config.num_types else None
        self.norm = LayerNorm(config.width, epsilon=config.epsilon)
        self.layers = nn.ModuleList(NomicLayer(config) for _ in range(config.num_layers))

    def forward(self, batch: Packed, keep: Keep = "all") -> Tensor:
        """Hidden states (T, C), or (N, C) of each row's first or last token."""
        kept = batch.kept(keep)
        x: Tensor = self.word(batch.ids)
        x = self.norm(x if self.token_type is None else x + self.token_type(batch.types))
        config = self.config
        inv_freq = inverse_frequencies(config.head_width, config.rope_theta, device=x.device)
        turn = rotary_table(batch.positions, inv_freq)
        for layer in self.layers[:-1]:
            x = layer(x, batch, turn, None)
        x = self.layers[-1](x, batch, turn, kept)
        return x
