"""Families of decoders: what of one architecture each has, read from its config.json.

A new family is one function here, a row in FAMILIES (text/families.py) and one in the parity test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from secondpass.errors import UnknownModel
from secondpass.models.heads import LogitConfig
from secondpass.models.layers import activation_of

# rope_type in config.json that changes nothing
_PLAIN = ("default", None)


@dataclass(frozen=True, kw_only=True)
class RotaryScaling:
    """Rotary frequencies divided by `factor`: all of them, or those of wavelengths beyond the original length."""

    factor: float
    original_length: int | None = None
    low: float = 1.0
    high: float = 1.0

    @classmethod
    def from_hf(cls, rope: Mapping[str, Any]) -> RotaryScaling | None:
        kind = rope.get("rope_type", rope.get("type"))
        if kind in _PLAIN:
            return None
        if kind == "linear":
            return cls(factor=rope["factor"])
        if kind == "llama3":
            return cls(
                factor=rope["factor"],
                original_length=rope["original_max_position_embeddings"],
                low=rope["low_freq_factor"],
                high=rope["high_freq_factor"],
            )
        raise UnknownModel(f"config.json: no rotary scaling {kind!r}; there are 'linear' and 'llama3'")

    def __call__(self, inv_freq: Tensor) -> Tensor:
        """Grattafiori et al. 2024, section 3.2; between the two wavelengths a mean of scaled and plain."""
        if self.original_length is None:
            return inv_freq / self.factor
        turns = self.original_length * inv_freq / (2 * math.pi)  # over the original length
        share = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return inv_freq / self.factor * (1 - share) + inv_freq * share


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    num_words: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    mlp_width: int
    activation: str
    epsilon: float
    max_length: int  # longest input in tokens
    theta: float
    rotary: RotaryScaling | None
    is_tied: bool
    norm_offset: float = 0.0  # norms multiply by offset + weight
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    attention_scale: float
    attention_softcap: float | None = None
    final_softcap: float | None = None
    window: int | None = None  # keys that a token of an even block sees, itself included
    has_qkv_bias: bool = False
    has_out_bias: bool = False
    has_head_norms: bool = False  # a norm over each head of q and k
    has_four_norms: bool = False  # also after attention and after the MLP
    weighs_by_attention: bool = False  # passage tokens are merged by how much the last token attends to them
    layers: tuple[int, ...] = ()  # those with a head of their own: the states that enter block 8, 9, ...

    @property
    def reads(self) -> LogitConfig:
        """A tied matrix may lie in the checkpoint a second time."""
        return LogitConfig(
            width=self.width,
            layers=self.layers,
            softcap=self.final_softcap,
            matrix="backbone.word.weight" if self.is_tied else "output.weight",
            copies=(r"lm_head\.weight",) if self.is_tied else (),
        )


def llama(config: Mapping[str, Any], *, is_tied: bool = False) -> DecoderConfig:
    """Llama (Touvron et al. 2023; Grattafiori et al. 2024 for its rotary scaling)."""
    num_heads = config["num_attention_heads"]
    head_width = config.get("head_dim") or config["hidden_size"] // num_heads
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}  # newer and older transformers
    return DecoderConfig(
        num_words=config["vocab_size"],
        width=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=config.get("num_key_value_heads") or num_heads,
        head_width=head_width,
        mlp_width=config["intermediate_size"],
        activation=activation_of(config.get("hidden_activation") or config.get("hidden_act", "silu")),
        epsilon=config.get("rms_norm_eps", 1e-6),
        max_length=config["max_position_embeddings"],
        theta=config.get("rope_theta") or rope.get("rope_theta", 10000.0),
        rotary=RotaryScaling.from_hf(rope),
        is_tied=config.get("tie_word_embeddings", is_tied),
        attention_scale=head_width**-0.5,
        has_qkv_bias=config.get("attention_bias", False),
        has_out_bias=config.get("attention_bias", False),
        layers=_layers(config),
    )


def _layers(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The layers with a head of their own; none where config.json names no first one."""
    if (start := config.get("start_layer")) is None:
        return ()
    if config.get("head_type", "simple") != "simple":
        raise UnknownModel(f"config.json: head_type is {config['head_type']!r}; only 'simple' heads are known")
    return tuple(range(start, config["num_hidden_layers"] + 1, config.get("layer_sep") or 1))


def mistral(config: Mapping[str, Any]) -> DecoderConfig:
    """Mistral (Jiang et al. 2023): Llama; no input may be longer than the window of its first version."""
    settings = llama(config)
    window = config.get("sliding_window") or settings.max_length
    return replace(settings, max_length=min(settings.max_length, window))


def cost_wise_mistral(config: Mapping[str, Any]) -> DecoderConfig:
    """The Matroyshka re-ranker (Liu et al. 2025)."""
    return replace(mistral(config), weighs_by_attention=True)


def qwen2(config: Mapping[str, Any]) -> DecoderConfig:
    """Qwen 2 (Yang et al. 2024)."""
    if config.get("use_sliding_window"):
        raise UnknownModel("config.json: use_sliding_window is set; no reranker of this family has been seen with it")
    return replace(llama(config), has_qkv_bias=True)


def qwen3(config: Mapping[str, Any]) -> DecoderConfig:
    """Qwen 3 (Yang et al. 2025)."""
    if config.get("use_sliding_window"):
        raise UnknownModel("config.json: use_sliding_window is set; no reranker of this family has been seen with it")
    return replace(llama(config), has_head_norms=True)


def minicpm(config: Mapping[str, Any]) -> DecoderConfig:
    """MiniCPM (Hu et al. 2024). Residuals are scaled by the full depth, wherever the computation is cut off."""
    depth = config["num_hidden_layers"]
    scale = config["scale_depth"] / depth**0.5
    return replace(llama(config, is_tied=True), embedding_scale=config["scale_emb"], residual_scale=scale)


def gemma(config: Mapping[str, Any]) -> DecoderConfig:
    """Gemma (Gemma Team 2024a). Where hidden_activation is null, hidden_act "gelu" means the tanh form."""
    return replace(
        llama(config, is_tied=True),
        activation=activation_of(config.get("hidden_activation") or "gelu_pytorch_tanh"),
        embedding_scale=config["hidden_size"] ** 0.5,
        norm_offset=1.0,
    )


def gemma2(config: Mapping[str, Any]) -> DecoderConfig:
    """Gemma 2 (Gemma Team 2024b)."""
    return replace(
        gemma(config),
        attention_scale=config["query_pre_attn_scalar"] ** -0.5,
        attention_softcap=config.get("attn_logit_softcapping"),
        final_softcap=config.get("final_logit_softcapping"),
        window=config.get("sliding_window"),
        has_four_norms=True,
    )


def cost_wise_gemma(config: Mapping[str, Any]) -> DecoderConfig:
    """The lightweight Gemma 2.

    The reference runs torch's fused attention, which leaves out the soft-cap of the attention logits without a
    word; scores then differ by up to 5. So does this, unless config.json says "attn_implementation": "eager".
    """
    if config.get("attn_implementation") == "eager":
        return gemma2(config)
    return replace(gemma2(config), attention_softcap=None)
