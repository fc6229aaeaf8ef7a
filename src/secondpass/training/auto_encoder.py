"""The masked auto-encoder of pre-training: an encoder, the head that names words, and one weak layer that rebuilds.

Xiao et al. 2022, "RetroMAE: Pre-Training Retrieval-oriented Language Models Via Masked Auto-Encoder".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secondpass.checkpoint.weights import rename
from secondpass.errors import UnknownModel
from secondpass.models import build_backbone
from secondpass.models.bert import RENAMES as BERT_RENAMES
from secondpass.models.bert import Bert
from secondpass.models.layers import ACTIVATIONS, LayerNorm, Linear
from secondpass.models.modernbert import ModernBert
from secondpass.packed import Packed

# The names of one layer of BERT, which the decoder is.
_DECODER_NAMES = (
    *(f"attention.self.{name}" for name in ("query", "key", "value")),
    *(
        "attention.output.dense",
        "attention.output.LayerNorm",
        "intermediate.dense",
        "output.dense",
        "output.LayerNorm",
    ),
)
LAYER = ("encoder.layer.0.", "backbone.layers.0.")
CHUNK = 1 << 25  # logits that are held at once, tokens times vocabulary: 128 MB in float32


@dataclass(frozen=True, kw_only=True)
class WordHead:
    """How a family's file names the head that names words, and what that computes beside the tied matrix."""

    dense: str
    norm: str
    bias: str

    def renames(self) -> tuple[tuple[str, str], ...]:
        parts = ((rf"{self.dense}\.(.*)", r"words.dense.\1"), (rf"{self.norm}\.(.*)", r"words.norm.\1"))
        return (*parts, (self.bias.replace(".", r"\."), "words.bias"))

    def name(self, ours: str) -> str:
        module, _, kind = ours.removeprefix("words.").partition(".")
        return self.bias if module == "bias" else f"{self.dense if module == 'dense' else self.norm}.{kind}"


_ROBERTA = WordHead(dense="lm_head.dense", norm="lm_head.layer_norm", bias="lm_head.bias")
# model_type -> head
WORD_HEADS: Mapping[str, WordHead] = {
    "bert": WordHead(
        dense="cls.predictions.transform.dense",
        norm="cls.predictions.transform.LayerNorm",
        bias="cls.predictions.bias",
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "modernbert": WordHead(dense="head.dense", norm="head.norm", bias="decoder.bias"),
}


class Words(nn.Module):
    """Names words: a dense layer, an activation and a norm before the word embeddings, which are tied, and a bias."""

    def __init__(self, backbone: Bert | ModernBert) -> None:
        super().__init__()
        config = backbone.config
        is_bert = isinstance(backbone, Bert)
        has_bias = is_bert or getattr(config, "head_has_bias", False)
        norm_has_bias = is_bert or getattr(config, "norm_has_bias", False)
        self.dense = Linear(config.width, config.width, has_bias=has_bias)
        self.norm = LayerNorm(config.width, epsilon=config.epsilon, has_bias=norm_has_bias)
        self.bias = nn.Parameter(torch.zeros(config.num_words))
        self._activation = ACTIVATIONS[config.activation if is_bert else "gelu"]

    def ready(self, states: Tensor) -> Tensor:
        """The states (M, C) as they are multiplied with the word embeddings."""
        found: Tensor = self.norm(self._activation(self.dense(states)))
        return found

    def forward(self, states: Tensor, matrix: Tensor) -> Tensor:
        """Logits (M, V) of the states (M, C)."""
        return F.linear(self.ready(states), matrix, self.bias)


class Surprise(torch.autograd.Function):
    """-log p of the labels (M,), summed, p the softmax of x (M, C) @ words (V, C)^T + bias.

    A few tokens' logits are held at a time, and what they give to the gradients is computed at once, so that nothing
    of them is kept or computed twice (Hsu et al. 2024, "Liger Kernel"). Products are in the dtype of x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, words: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
        matrix, step = words.detach().to(x.dtype), max(CHUNK // len(words), 1)
        grads = torch.empty_like(x), torch.zeros_like(words), torch.zeros_like(bias)
        total = bias.new_zeros(())
        for start in range(0, len(x), step):
            part = slice(start, start + step)
            logits = (x[part] @ matrix.T).float().add_(bias)
            norms = logits.logsumexp(1, keepdim=True)
            wanted = labels[part, None]
            total += (norms - logits.gather(1, wanted)).sum()
            shares = logits.sub_(norms).exp_()
            shares.scatter_add_(1, wanted, shares.new_full(wanted.shape, -1.0))
            grads[2].add_(shares.sum(0))
            shares = shares.to(x.dtype)
            torch.mm(shares, matrix, out=grads[0][part])
            grads[1].add_(shares.T @ x[part])
        ctx.save_for_backward(*grads)
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        return (*(grad.mul_(scale) for grad in ctx.saved_tensors), None)


class Rebuilder(nn.Module):
    """The decoder: one post-norm layer whose queries know only the sentence vector and their position."""

    def __init__(self, backbone: Bert | ModernBert) -> None:
        super().__init__()
        config = backbone.config
        self._num_heads = config.width // config.head_width
        self.qkv = Linear(config.width, 3 * config.width)
        self.out = Linear(config.width, config.width)
        self.attention_norm = LayerNorm(config.width, epsilon=config.epsilon)
        self.up = Linear(config.width, config.mlp_width)
        self.down = Linear(config.mlp_width, config.width)
        self.mlp_norm = LayerNorm(config.width, epsilon=config.epsilon)
        self._activation = config.activation if isinstance(backbone, Bert) else "gelu"

    def forward(self, queries: Tensor, context: Tensor, visible: Tensor) -> Tensor:
        """States (N, L, C) of queries over the context, both (N, L, C); each sees `visible` (N, L, L) of it."""
        width = queries.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        assert bias is not None
        q = F.linear(queries, weight[:width], bias[:width])
        k, v = F.linear(context, weight[width:], bias[width:]).chunk(2, dim=-1)
        shape = (*queries.shape[:2], self._num_heads, -1)
        q, k, v = (x.reshape(shape).transpose(1, 2) for x in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=visible[:, None]).transpose(1, 2).flatten(2)
        x = self.attention_norm(self.out(mixed, residual=queries))
        states: Tensor = self.mlp_norm(self.down(self.up(x, activation=self._activation), residual=x))
        return states


class MaskedAutoEncoder(nn.Module):
    """An encoder, the head that names words, and the decoder; None without one."""

    def __init__(self, config: Mapping[str, Any], *, has_decoder: bool) -> None:
        super().__init__()
        architecture = build_backbone(config)
        backbone = architecture.backbone
        if not isinstance(backbone, Bert | ModernBert):
            raise not_pretrainable(config)
        self.backbone = backbone
        self.words = Words(backbone)
        self.decoder = Rebuilder(backbone) if has_decoder else None
        self.renames = (*WORD_HEADS[str(config["model_type"])].renames(), *architecture.renames)

    def queries(self, sentence: Tensor, batch: Packed, *, is_bare: bool) -> Tensor:
        """What the decoder's tokens (T, C) know: the sentence vector of their row (N, C), and their position."""
        spread = sentence[batch.rows]
        if not isinstance(self.backbone, Bert):
            return self.backbone.embed(batch, spread) + _waves(batch.positions, spread.shape[1])
        if not is_bare:
            return self.backbone.embed(batch, spread)
        if self.backbone.position is None:  # distances alone
            return spread
        bare: Tensor = spread + self.backbone.position(self.backbone.positions(batch))
        return bare

    def context(self, sentence: Tensor, batch: Packed) -> Tensor:
        """The words (T, C) as they enter the encoder, the sentence vector in the place of each first."""
        words = self.backbone.embed(batch)
        if not isinstance(self.backbone, Bert):
            words = words + _waves(batch.positions, words.shape[1])
        return words.index_copy(0, batch.first(), sentence.to(words.dtype))


def _waves(positions: Tensor, width: int) -> Tensor:
    """Fixed positions (T, C) for a model whose own are in its attention: Vaswani et al. 2017, section 3.5."""
    rates = 10000.0 ** (-torch.arange(0, width, 2, device=positions.device) / width)
    angles = positions[:, None] * rates
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)[:, :width]


def not_pretrainable(config: Mapping[str, Any]) -> UnknownModel:
    known = ", ".join(WORD_HEADS)
    return UnknownModel(f"model_type {config.get('model_type')!r} cannot be pre-trained; {known} can")


def decoder_tensors(decoder: nn.Module) -> dict[str, Tensor]:
    """The decoder under the names of one layer of BERT."""
    found: dict[str, Tensor] = {}
    tensors = dict(decoder.named_parameters())
    for module in _DECODER_NAMES:
        for kind in ("weight", "bias"):
            target, _, block = (
                rename(f"{LAYER[0]}{module}.{kind}", BERT_RENAMES).removeprefix(LAYER[1]).partition("@")
            )
            tensor = tensors[target]
            found[f"{module}.{kind}"] = tensor.chunk(3)[int(block)] if block else tensor
    return found
