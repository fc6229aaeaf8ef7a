"""Families of decoders: what of one architecture each has, read from its config.json.

A new family is one function here, a row in FAMILIES (text/families.py) and one in the parity test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from secondpass.errors import UnknownModel
from secondpass.models.heads import LogitConfig
from secondpass.models.layers import activation_of

# rope_type in config.json that changes nothing; "dynamic" changes rows beyond max_position_embeddings, which are cut
_PLAIN = ("default", "dynamic", None)
TANH = "gelu_pytorch_tanh"
SLIDING = "sliding_attention"  # of layer_types in config.json
# Widths of a head where config.json names none, as transformers has them
_HEAD_WIDTHS = {"gemma": 256, "gemma2": 256, "gemma3_text": 256, "qwen3": 128}


@dataclass(frozen=True, kw_only=True)
class RotaryScaling:
    """Rotary frequencies divided by `factor`: all of them, or those of wavelengths beyond the original length.

    ramp: channels between which YaRN goes from plain to divided. magnitude multiplies cosines and sines.
    """

    factor: float
    original_length: int | None = None
    low: float = 1.0
    high: float = 1.0
    ramp: tuple[float, float] | None = None
    magnitude: float = 1.0

    @classmethod
    def from_hf(cls, rope: Mapping[str, Any], *, width: int, theta: float, max_length: int) -> RotaryScaling | None:
        kind = rope.get("rope_type", rope.get("type"))
        if kind in _PLAIN:
            return None
        if kind == "linear":
            return cls(factor=rope["factor"])
        if kind == "yarn":
            length = rope.get("original_max_position_embeddings") or max_length
            ramp = _yarn_ramp(rope, length=length, width=width, theta=theta)
            return cls(factor=rope["factor"], ramp=ramp, magnitude=_yarn_magnitude(rope))
        if kind == "llama3":
            return cls(
                factor=rope["factor"],
                original_length=rope["original_max_position_embeddings"],
                low=rope["low_freq_factor"],
                high=rope["high_freq_factor"],
            )
        raise UnknownModel(f"config.json: no rotary scaling {kind!r}; there are dynamic, linear, llama3 and yarn")

    def __call__(self, inv_freq: Tensor) -> Tensor:
        """Grattafiori et al. 2024, section 3.2; between the two wavelengths a mean of scaled and plain."""
        if self.ramp is not None:
            low, high = self.ramp
            channel = torch.arange(len(inv_freq), device=inv_freq.device)
            share = 1 - ((channel - low) / (high - low)).clamp(0, 1)
        elif self.original_length is not None:
            turns = self.original_length * inv_freq / (2 * math.pi)  # over the original length
            share = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        else:
            return inv_freq / self.factor
        return inv_freq / self.factor * (1 - share) + inv_freq * share


def _yarn_ramp(rope: Mapping[str, Any], *, length: int, width: int, theta: float) -> tuple[float, float]:
    """The channels that turn beta_fast and beta_slow times over the original length (Peng et al. 2023, 3.2)."""
    turns = (rope.get("beta_fast") or 32, rope.get("beta_slow") or 1)
    low, high = (width * math.log(length / (turn * 2 * math.pi)) / (2 * math.log(theta)) for turn in turns)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    return low, high + 0.001 if low == high else high


def _yarn_magnitude(rope: Mapping[str, Any]) -> float:
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    log = math.log(max(rope["factor"], 1.0))
    scale, all_dim = rope.get("mscale"), rope.get("mscale_all_dim")
    return (0.1 * scale * log + 1) / (0.1 * all_dim * log + 1) if scale and all_dim else 0.1 * log + 1


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
    local_theta: float | None = None  # of blocks with a window, unscaled, where it is another
    is_tied: bool
    norm_offset: float = 0.0  # norms multiply by offset + weight
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    attention_scale: float
    attention_softcap: float | None = None
    final_softcap: float | None = None
    windows: tuple[int | None, ...] = ()  # keys that a token of each block sees, itself included; () for all keys
    has_qkv_bias: bool = False
    has_out_bias: bool = False
    has_mlp_bias: bool = False
    has_head_norms: bool = False  # a norm over each head of q and k
    has_four_norms: bool = False  # also after attention and after the MLP
    is_bidirectional: bool = False  # every token sees all of its row
    temperature: float = 1.0  # that a label's logit is divided by
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
            temperature=self.temperature,
        )


def llama(config: Mapping[str, Any]) -> DecoderConfig:
    """Llama (Touvron et al. 2023; Grattafiori et al. 2024 for its rotary scaling)."""
    return replace(_biased(config), has_mlp_bias=config.get("mlp_bias", False))


def llama_bidirec(config: Mapping[str, Any]) -> DecoderConfig:
    """Llama whose tokens see all of their row (Babakhin et al. 2025), and a label of the mean of its states."""
    if config.get("pooling", "avg") != "avg":
        raise UnknownModel(
            f"config.json: pooling is {config['pooling']!r}; for llama_bidirec only 'avg' is supported"
        )
    return replace(llama(config), is_bidirectional=True, temperature=float(config.get("temperature", 1.0)))


def _biased(config: Mapping[str, Any], *, is_tied: bool = False) -> DecoderConfig:
    has_bias = config.get("attention_bias", False)
    return replace(_plain(config, is_tied=is_tied), has_qkv_bias=has_bias, has_out_bias=has_bias)


def _plain(config: Mapping[str, Any], *, is_tied: bool = False) -> DecoderConfig:
    """What all families have."""
    num_heads = config["num_attention_heads"]
    head_width = config.get("head_dim", _HEAD_WIDTHS.get(str(config.get("model_type"))))
    head_width = head_width or config["hidden_size"] // num_heads
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}  # newer and older transformers
    theta, max_length = config.get("rope_theta") or rope.get("rope_theta", 10000.0), config["max_position_embeddings"]
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
        max_length=max_length,
        theta=theta,
        rotary=RotaryScaling.from_hf(rope, width=head_width, theta=theta, max_length=max_length),
        is_tied=config.get("tie_word_embeddings", is_tied),
        attention_scale=head_width**-0.5,
        layers=_layers(config),
    )


def _layers(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The layers with a head of their own; none where config.json names no first one."""
    if (start := config.get("start_layer")) is None:
        return ()
    if config.get("head_type", "simple") != "simple":
        raise UnknownModel(f"config.json: head_type is {config['head_type']!r}; only 'simple' heads are known")
    if config.get("head_multi") is False:
        raise UnknownModel("config.json: head_multi is false; only models with a head for each layer are known")
    return tuple(range(start, config["num_hidden_layers"] + 1, config.get("layer_sep") or 1))


def _windows(
    config: Mapping[str, Any], window: int | None, is_local: Callable[[int], bool]
) -> tuple[int | None, ...]:
    """The window of each block: of those that layer_types names, or else of those that are local by their index."""
    depth = config["num_hidden_layers"]
    kinds = config.get("layer_types") or [SLIDING if is_local(index) else "" for index in range(depth)]
    if len(kinds) != depth:
        raise UnknownModel(f"config.json: layer_types names {len(kinds)} layers; num_hidden_layers is {depth}")
    return tuple(window if kind == SLIDING else None for kind in kinds)


def mistral(config: Mapping[str, Any]) -> DecoderConfig:
    """Mistral (Jiang et al. 2023): Llama without biases, and a window in all blocks."""
    return replace(_plain(config), windows=(config.get("sliding_window", 4096),) * config["num_hidden_layers"])


def cost_wise_mistral(config: Mapping[str, Any]) -> DecoderConfig:
    """The Matroyshka re-ranker (Liu et al. 2025); no input may be longer than the window."""
    settings = _plain(config)
    window = config.get("sliding_window") or settings.max_length
    return replace(settings, max_length=min(settings.max_length, window), weighs_by_attention=True)


def qwen2(config: Mapping[str, Any]) -> DecoderConfig:
    """Qwen 2 (Yang et al. 2024)."""
    return replace(_plain(config), has_qkv_bias=True, windows=_qwen_windows(config))


def qwen3(config: Mapping[str, Any]) -> DecoderConfig:
    """Qwen 3 (Yang et al. 2025)."""
    return replace(_biased(config), has_head_norms=True, windows=_qwen_windows(config))


def _qwen_windows(config: Mapping[str, Any]) -> tuple[int | None, ...]:
    first = config.get("max_window_layers", 28)
    window = config.get("sliding_window", 4096) if config.get("use_sliding_window") else None
    return _windows(config, window, lambda index: bool(index >= first))


def minicpm(config: Mapping[str, Any]) -> DecoderConfig:
    """MiniCPM (Hu et al. 2024). Residuals are scaled by the full depth, wherever the computation is cut off."""
    depth = config["num_hidden_layers"]
    scale = config["scale_depth"] / depth**0.5
    return replace(_biased(config, is_tied=True), embedding_scale=config["scale_emb"], residual_scale=scale)


def gemma(config: Mapping[str, Any]) -> DecoderConfig:
    """Gemma (Gemma Team 2024a). Where hidden_activation is null, hidden_act "gelu" means the tanh form."""
    act = config.get("hidden_act")
    return replace(
        _biased(config, is_tied=True),
        activation=activation_of(config.get("hidden_activation") or (act if act not in (None, "gelu") else TANH)),
        embedding_scale=config["hidden_size"] ** 0.5,
        norm_offset=1.0,
    )


def gemma2(config: Mapping[str, Any]) -> DecoderConfig:
    """Gemma 2 (Gemma Team 2024b). What config.json does not name is as in transformers; null is none."""
    return replace(
        gemma(config),
        attention_scale=config.get("query_pre_attn_scalar", 256) ** -0.5,
        attention_softcap=config.get("attn_logit_softcapping", 50.0),
        final_softcap=config.get("final_logit_softcapping", 30.0),
        windows=_windows(config, config.get("sliding_window", 4096), lambda index: index % 2 == 0),
        has_four_norms=True,
    )


def gemma3(config: Mapping[str, Any]) -> DecoderConfig:
    """Gemma 3 (Gemma Team 2025): most blocks have a window, and rotary positions of their own.

    EmbeddingGemma (Vera et al. 2025) is one whose tokens see all of their row, or half a window on either side.
    """
    kinds = config.get("rope_parameters") or {}
    if "full_attention" in kinds:  # as transformers 5 writes it
        local = kinds[SLIDING].get("rope_theta")
        config = {**config, "rope_parameters": kinds["full_attention"], "rope_local_base_freq": local}
    elif config.get("rope_theta") is None and "rope_theta" not in kinds:
        config = {**config, "rope_theta": 1e6}
    is_bidirectional = bool(config.get("use_bidirectional_attention", False))
    window = config.get("sliding_window", 4096)
    pattern = config.get("sliding_window_pattern", 6)
    return replace(
        gemma2(config),
        attention_softcap=config.get("attn_logit_softcapping"),
        final_softcap=config.get("final_logit_softcapping"),
        windows=_windows(
            config, window // 2 + 1 if is_bidirectional else window, lambda index: (index + 1) % pattern != 0
        ),
        local_theta=config.get("rope_local_base_freq") or 10000.0,
        has_head_norms=True,
        is_bidirectional=is_bidirectional,
    )


def cost_wise_gemma(config: Mapping[str, Any]) -> DecoderConfig:
    """The lightweight Gemma 2.

    The reference runs torch's fused attention, which leaves out the soft-cap of the attention logits without a
    word; scores then differ by up to 5. So does this, unless config.json says "attn_implementation": "eager".
    """
    if config.get("attn_implementation") == "eager":
        return gemma2(config)
    return replace(gemma2(config), attention_softcap=None)
