"""BERT and XLM-RoBERTa encoders: MS MARCO MiniLM, bge-reranker-base, -large, -v2-m3, BGE-M3, all-MiniLM.

Devlin et al. 2019; Conneau et al. 2020. The two differ in how positions are counted and in the head. Here too is what
differs from them in names, embeddings, positions or the head alone: CamemBERT, DistilBERT (Sanh et al. 2019), ELECTRA
(Clark et al. 2020), MPNet (Song et al. 2020), JinaBERT (Günther et al. 2023: ALiBi and a gated MLP), and
jina-reranker-v2, an XLM-RoBERTa.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secondpass.errors import UnknownModel
from secondpass.models.attention import Attention
from secondpass.models.attention.reference import Rule
from secondpass.models.attention.relative import RelativeBias, alibi, distances_in, relative_buckets
from secondpass.models.heads import ClassifierConfig
from secondpass.models.layers import ACTIVATIONS, EmbeddingTable, LayerNorm, Linear, activation_of
from secondpass.packed import Keep, Packed
from secondpass.text.families import counted_after

_LAYER = r"encoder\.layer\.(\d+)\."
# What DistilBERT, MPNet, jina-reranker-v2 and JinaBERT call parts of a layer -> BERT's name
_OTHER_NAMES = {
    "attention.q_lin": "attention.self.query",
    "attention.k_lin": "attention.self.key",
    "attention.v_lin": "attention.self.value",
    "attention.out_lin": "attention.output.dense",
    "sa_layer_norm": "attention.output.LayerNorm",
    "ffn.lin1": "intermediate.dense",
    "ffn.lin2": "output.dense",
    "output_layer_norm": "output.LayerNorm",
    "attention.attn.q": "attention.self.query",
    "attention.attn.k": "attention.self.key",
    "attention.attn.v": "attention.self.value",
    "attention.attn.o": "attention.output.dense",
    "attention.LayerNorm": "attention.output.LayerNorm",
    "mixer.out_proj": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "norm2": "output.LayerNorm",
    "mlp.gated_layers": "intermediate.dense",
    "mlp.wo": "output.dense",
    "mlp.layernorm": "output.LayerNorm",
}
NUM_BUCKETS = 32  # of MPNet's distances, which its reference computes whatever config.json says
# Hugging Face name (after the model's own prefix) -> ours; "@i" is the i-th block of rows of a joined matrix.
RENAMES = (
    # RoBERTa's classifier has a dense layer in place of the pooler
    (r"(?:bert|distilbert|electra|mpnet|roberta(?!\.pooler))\.(.*)", r"\1"),
    (r"(?:encoder\.layers|transformer\.layer)\.(.*)", r"encoder.layer.\1"),
    *(
        (_LAYER + re.escape(theirs) + r"\.(.*)", rf"encoder.layer.\1.{ours}.\2")
        for theirs, ours in _OTHER_NAMES.items()
    ),
    (_LAYER + r"mixer\.Wqkv\.(.*)", r"backbone.layers.\1.qkv.\2"),
    (r"emb_ln\.(.*)", r"embeddings.LayerNorm.\1"),
    (r"embeddings_project\.(.*)", r"backbone.project.\1"),
    (r"encoder\.relative_attention_bias\.(.*)", r"backbone.relative.\1"),
    (r"pre_classifier\.(.*)", r"head.dense.\1"),
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
IGNORED = (
    *(r".*position_ids", r"cls\..*", r"lm_head\..*", r"roberta\.pooler\..*"),
    *(r"vocab_(?:transform|layer_norm|projector)\..*", r"(?:generator|discriminator)_\w+\..*"),
)
# Settings -> the values that are supported, the usual one first
SUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "position_embedding_type": ("absolute", "alibi"),
    "feed_forward_type": ("original", "geglu", "reglu"),
    "is_decoder": (False,),
    "relative_attention_num_buckets": (NUM_BUCKETS,),
}
# JinaBERT's gates -> their activation
_GATES = {"geglu": "gelu", "reglu": "relu"}
# DistilBERT's settings -> BERT's
_DISTIL = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
    "activation": "hidden_act",
}
# model_type -> what its classifier computes after the dense layer; tanh elsewhere
_HEAD_ACTIVATIONS = {"electra": "gelu", "distilbert": "relu"}


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
    is_gated: bool  # the MLP has a gate, which the activation is of
    has_alibi: bool  # positions are distances alone
    epsilon: float
    pad_id: int | None  # set where positions are counted over the ids that are not padding (RoBERTa)
    embedding_width: int
    num_buckets: int  # of distances that have a bias each
    head_activation: str

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> BertConfig:
        for key, values in SUPPORTED.items():
            if config.get(key, values[0]) not in values:
                known = " or ".join(map(repr, values))
                raise UnknownModel(f"config.json: {key} is {config[key]!r}; for BERT only {known} is supported")
        model_type = config["model_type"]
        if model_type == "distilbert":
            config = {_DISTIL.get(key, key): value for key, value in config.items()}
        is_mpnet = model_type == "mpnet"
        width, gate = config["hidden_size"], _GATES.get(config.get("feed_forward_type", ""))
        return cls(
            num_words=config["vocab_size"],
            num_positions=config["max_position_embeddings"],
            num_types=0 if is_mpnet or model_type == "distilbert" else config.get("type_vocab_size", 2),
            width=width,
            num_layers=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            mlp_width=config["intermediate_size"],
            activation=gate or activation_of(config.get("hidden_act", "gelu")),
            is_gated=gate is not None,
            has_alibi=config.get("position_embedding_type") == "alibi",
            epsilon=config.get("layer_norm_eps", 1e-12),
            pad_id=counted_after(config),
            embedding_width=config.get("embedding_size", width) if model_type == "electra" else width,
            num_buckets=NUM_BUCKETS if is_mpnet else 0,
            head_activation=_HEAD_ACTIVATIONS.get(model_type, "tanh"),
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
        return ClassifierConfig(width=self.width, activation=self.head_activation)


class BertLayer(nn.Module):
    """One post-norm transformer block."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.activation, self.is_gated = config.activation, config.is_gated
        self.qkv = Linear(config.width, 3 * config.width)
        self.attention = Attention(Rule(scale=config.head_width**-0.5))
        self.out = Linear(config.width, config.width)
        self.attention_norm = LayerNorm(config.width, epsilon=config.epsilon)
        num_up = 2 * config.mlp_width if config.is_gated else config.mlp_width
        self.up = Linear(config.width, num_up, has_bias=not config.is_gated)
        self.down = Linear(config.mlp_width, config.width)
        self.mlp_norm = LayerNorm(config.width, epsilon=config.epsilon)

    def forward(self, x: Tensor, batch: Packed, keep: Tensor | None, bias: RelativeBias | None = None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        mixed = self.attention(q, k, v, batch, keep=keep, bias=bias)
        x = self.attention_norm(self.out(mixed.flatten(1), residual=x if keep is None else x[keep]))
        x = self.mlp_norm(self.down(self._up(x), residual=x))
        return x

    def _up(self, x: Tensor) -> Tensor:
        up: Tensor
        if self.is_gated:
            gate, up = self.up(x).chunk(2, dim=-1)
            up = ACTIVATIONS[self.activation](gate) * up
        else:
            up = self.up(x, activation=self.activation)
        return up


class Bert(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        width, has_types = config.embedding_width, config.num_types > 0
        self.word = EmbeddingTable(config.num_words, width)
        self.position = None if config.has_alibi else EmbeddingTable(config.num_positions, width)
        self.token_type = EmbeddingTable(config.num_types, width) if has_types else None
        self.norm = LayerNorm(width, epsilon=config.epsilon)
        self.project = None if width == config.width else Linear(width, config.width)
        self.relative = EmbeddingTable(config.num_buckets, config.num_heads) if config.num_buckets else None
        self.layers = nn.ModuleList(BertLayer(config) for _ in range(config.num_layers))

    def forward(self, batch: Packed, keep: Keep = "all") -> Tensor:
        """Hidden states (T, C), or (N, C) of each row's first or last token."""
        kept = batch.kept(keep)
        x = self.embed(batch)
        bias = self._bias(batch)
        for layer in self.layers[:-1]:
            x = layer(x, batch, None, bias)
        states: Tensor = self.layers[-1](x, batch, kept, bias)
        return states

    def embed(self, batch: Packed, words: Tensor | None = None) -> Tensor:
        """The states (T, C) that enter the first layer, of these words (T, C) in the place of those of the ids."""
        words = self.word(batch.ids) if words is None else words
        x = words if self.position is None else words + self.position(self.positions(batch))
        x = self.norm(x if self.token_type is None else x + self._types(batch, self.token_type))
        states: Tensor = x if self.project is None else self.project(x)
        return states

    def _bias(self, batch: Packed) -> RelativeBias | None:
        if self.config.has_alibi:
            return RelativeBias(alibi(self.config.num_heads, distances_in(batch)))
        if self.relative is None:
            return None
        return RelativeBias(self.relative(relative_buckets(distances_in(batch), self.config.num_buckets)).T)

    def _types(self, batch: Packed, table: EmbeddingTable) -> Tensor:
        # A table of one row is added everywhere, whatever the tokenizer says about types.
        if self.config.num_types == 1:
            return table.weight
        types: Tensor = table(batch.types)
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
