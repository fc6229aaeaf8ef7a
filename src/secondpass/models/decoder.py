"""Decoders: Gemma, Gemma 2, Gemma 3, MiniCPM, Qwen 2, Qwen 3, Llama. What differs is in decoder_configs.py.

Rows are causal, so the tokens that rows share at their beginning can be computed once (`kept_states`), and the
computation can end at a layer that has a head of its own. Those that are bidirectional share nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from secondpass.models.attention import Attention
from secondpass.models.attention.reference import Rule
from secondpass.models.decoder_configs import DecoderConfig, RotaryScaling
from secondpass.models.layers import (
    ACTIVATIONS,
    EmbeddingTable,
    Linear,
    RMSNorm,
    inverse_frequencies,
    rotary_table,
    rotate,
)
from secondpass.packed import Keep, Packed, sent
from secondpass.types import Run


def compress(x: Tensor, batch: Packed, ratio: int) -> tuple[Tensor, Packed]:
    """The states (T', C) and their batch, in which every passage of p tokens has ceil(p / ratio).

    Each is the mean of `ratio` neighbours, weighted by batch.weights where they are there, the last one of those that
    are left. The other tokens stay as they are, and positions are counted anew.
    """
    passages = [(start, start - (start - stop) // ratio) for start, stop in batch.passages]
    gone = [(old[1] - old[0]) - (new[1] - new[0]) for old, new in zip(batch.passages, passages, strict=True)]
    lengths = [length - less for length, less in zip(batch.lengths, gone, strict=True)]
    smaller = batch.resized(lengths, passages)
    starts, stops = sent(torch.tensor(batch.passages), x.device)[batch.rows].unbind(-1)
    position = torch.arange(len(x), device=x.device) - batch.starts[batch.rows]
    merged = starts + (position.clamp(max=stops - 1) - starts).clamp(min=0) // ratio
    after = position - sent(torch.tensor(gone), x.device)[batch.rows]
    position = torch.where(position < starts, position, torch.where(position < stops, merged, after))
    target = smaller.starts[batch.rows] + position
    weights = torch.ones_like(x[:, 0].float())
    if batch.weights is not None:
        in_passage = _in_passage(batch)
        weights = torch.where(in_passage, batch.weights.clamp(min=torch.finfo(torch.float32).tiny), weights)
    weighted = x.float() * weights[:, None]
    sums = torch.zeros(len(smaller.rows), x.shape[1], device=x.device).index_add_(0, target, weighted)
    totals = torch.zeros(len(smaller.rows), device=x.device).index_add_(0, target, weights)
    return (sums / totals[:, None]).to(x.dtype), smaller


def _in_passage(batch: Packed) -> Tensor:
    starts, stops = sent(torch.tensor(batch.passages), batch.ids.device)[batch.rows].unbind(-1)
    position = torch.arange(len(batch.rows), device=batch.ids.device) - batch.starts[batch.rows]
    return (position >= starts) & (position < stops)


def last_attention(q: Tensor, k: Tensor, batch: Packed, scale: float) -> Tensor:
    """How much each row's last token attends to each of the batch's tokens (T,), summed over heads.

    The Matroyshka re-ranker's weights (Liu et al. 2025); its code takes the last position of a padded batch, so that
    they depend on the padding of the row.
    """
    keyed = batch if batch.shared is None else batch.shared
    rows, positions = keyed.rows, keyed.positions
    last = q[batch.last()].float()  # (N, H, D)
    keys = k.float().repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    logits = (last[rows] * keys).sum(-1) * scale  # (S, H)
    spread = rows[:, None].expand_as(logits)
    highest = logits.new_full((len(last), logits.shape[1]), float("-inf")).scatter_reduce(0, spread, logits, "amax")
    powers = (logits - highest.detach()[rows]).exp()
    totals = powers.new_zeros(highest.shape).index_add(0, rows, powers)
    shares = (powers / totals[rows]).sum(1)
    if batch.shared is None:
        return shares
    before = torch.tensor([stop - start for start, stop in batch.shared.spans], device=q.device)
    return shares[positions >= before[rows]]


__all__ = ["IGNORED", "RENAMES", "Decoder"]

_LAYER = r"(?:model\.)?layers\.(\d+)\."
# Hugging Face name, whose prefix a bare backbone has not -> ours; "@i" is the i-th block of rows of a joined matrix.
RENAMES = (
    (r"(?:model\.)?embed_tokens\.(.*)", r"backbone.word.\1"),
    (r"(?:model\.)?norm\.(.*)", r"backbone.norm.\1"),
    (_LAYER + r"self_attn\.q_proj\.(.*)", r"backbone.layers.\1.qkv.\2@0"),
    (_LAYER + r"self_attn\.k_proj\.(.*)", r"backbone.layers.\1.qkv.\2@1"),
    (_LAYER + r"self_attn\.v_proj\.(.*)", r"backbone.layers.\1.qkv.\2@2"),
    (_LAYER + r"self_attn\.o_proj\.(.*)", r"backbone.layers.\1.out.\2"),
    (_LAYER + r"self_attn\.([qk]_norm)\.(.*)", r"backbone.layers.\1.\2.\3"),
    (_LAYER + r"mlp\.gate_proj\.(.*)", r"backbone.layers.\1.up.\2@0"),
    (_LAYER + r"mlp\.up_proj\.(.*)", r"backbone.layers.\1.up.\2@1"),
    (_LAYER + r"mlp\.down_proj\.(.*)", r"backbone.layers.\1.down.\2"),
    (_LAYER + r"input_layernorm\.(.*)", r"backbone.layers.\1.attention_norm.\2"),
    (_LAYER + r"pre_feedforward_layernorm\.(.*)", r"backbone.layers.\1.mlp_norm.\2"),
    (_LAYER + r"post_feedforward_layernorm\.(.*)", r"backbone.layers.\1.mlp_out_norm.\2"),
    # before the MLP where there are two norms, after the attention where there are four
    (_LAYER + r"post_attention_layernorm\.(.*)", r"backbone.layers.\1.middle_norm.\2"),
    (r"lm_head\.(\d+)\.linear_head\.weight", r"head.out.weight@\1"),
    (r"score\.weight", r"head.out.weight"),
    (r"lm_head\.weight", r"output.weight"),
)
IGNORED = (r".*rotary_emb\.inv_freq",)

Table = tuple[Tensor, Tensor]  # rotary cosines and sines
KeysValues = tuple[Tensor, Tensor]  # (T, K, D) each


class DecoderLayer(nn.Module):
    """One pre-norm transformer block; with norms after both parts too where the family has four."""

    def __init__(self, config: DecoderConfig, *, window: int | None) -> None:
        super().__init__()
        self.config = config
        self.is_local = window is not None
        self.attention = Attention(
            Rule(
                scale=config.attention_scale,
                is_causal=not config.is_bidirectional,
                window=None if window is None else window - 1,  # attention counts the distance, the families the keys
                softcap=config.attention_softcap,
            )
        )
        self.widths = [n * config.head_width for n in (config.num_heads, config.num_kv_heads, config.num_kv_heads)]
        self.qkv = Linear(config.width, sum(self.widths), has_bias=config.has_qkv_bias)
        self.out = Linear(self.widths[0], config.width, has_bias=config.has_out_bias)
        self.up = Linear(config.width, 2 * config.mlp_width, has_bias=config.has_mlp_bias)
        self.down = Linear(config.mlp_width, config.width, has_bias=config.has_mlp_bias)
        self.activation = ACTIVATIONS[config.activation]
        self.q_norm = _norm(config, config.head_width) if config.has_head_norms else None
        self.k_norm = _norm(config, config.head_width) if config.has_head_norms else None
        self.attention_norm = _norm(config, config.width)
        self.middle_norm = _norm(config, config.width)
        self.mlp_norm = _norm(config, config.width) if config.has_four_norms else None
        self.mlp_out_norm = _norm(config, config.width) if config.has_four_norms else None

    def project(self, x: Tensor, tables: tuple[Table, Table]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (T, H, D), keys and values (T, K, D), with the positions of blocks without or with a window."""
        table = tables[self.is_local]
        parts = self.qkv(self.attention_norm(x)).split(self.widths, dim=-1)
        q, k, v = (part.unflatten(-1, (-1, self.config.head_width)) for part in parts)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return rotate(q, *table), rotate(k, *table), v

    def forward(self, x: Tensor, q: Tensor, keys: KeysValues, batch: Packed, keep: Tensor | None) -> Tensor:
        """The states after the block: (T, C), or (N, C) of the tokens at `keep`, each the last of its row."""
        mixed = self.attention(q, *keys, batch, keep=keep)
        x = x if keep is None else x[keep]
        after, before = (self.middle_norm, self.mlp_norm) if self.mlp_norm is not None else (None, self.middle_norm)
        x = self._add(x, self.out, mixed.flatten(1), after)
        gate, up = self.up(before(x)).chunk(2, dim=-1)
        return self._add(x, self.down, self.activation(gate) * up, self.mlp_out_norm)

    def _add(self, x: Tensor, linear: Linear, inner: Tensor, norm: RMSNorm | None) -> Tensor:
        if norm is None and self.config.residual_scale == 1.0:
            y: Tensor = linear(inner, residual=x)
            return y
        y = linear(inner) if norm is None else norm(linear(inner))
        return x + y * self.config.residual_scale


def _norm(config: DecoderConfig, width: int) -> RMSNorm:
    return RMSNorm(width, epsilon=config.epsilon, offset=config.norm_offset)


class Decoder(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.word = EmbeddingTable(config.num_words, config.width)
        windows = config.windows or (None,) * config.num_layers
        self.layers = nn.ModuleList(DecoderLayer(config, window=window) for window in windows)
        self.norm = _norm(config, config.width)

    def forward(
        self, batch: Packed, keep: Keep = "all", run: Run | None = None, kept: Sequence[KeysValues] = ()
    ) -> Tensor:
        """Hidden states (T, C), or of each row's last token (N, C), or (N, outputs, C) where run has cutoff layers.

        kept are the keys and values of the tokens that `batch.shared` names, from `kept_states`.
        """
        run = Run() if run is None else run
        cutoffs = run.cutoff_layers or (self.config.num_layers,)
        x, begin, outputs = self.embed(batch), 0, []
        for end in cutoffs:
            reads = keep if end == cutoffs[-1] else "all"
            x, batch = self.advance(x, batch, (begin, end), run, kept, reads)
            outputs.append(x if reads == keep else x[batch.last()])
            begin = end
        states: Tensor = self.norm(x if run.cutoff_layers is None else torch.stack(outputs, dim=1))
        return states

    def advance(
        self,
        x: Tensor,
        batch: Packed,
        blocks: tuple[int, int],
        run: Run,
        kept: Sequence[KeysValues] = (),
        keep: Keep = "all",
    ) -> tuple[Tensor, Packed]:
        """States that enter block blocks[0], carried to the one of blocks[1], and their batch: smaller if compressed.

        (T, C), or (N, C) of each row's last token where keep is "last". Not normed.
        """
        begin, end = blocks
        tables = self._tables(batch)
        for index, layer in enumerate(self._blocks(end)[begin:], begin):
            if index in (run.compress_layers or ()) and index > 0 and (run.compress_ratio or 1) > 1:
                x, batch = compress(x, batch, run.compress_ratio or 1)
                tables = self._tables(batch)
            q, k, v = layer.project(x, tables)
            if batch.shared is not None:
                k, v = (torch.cat(pair)[batch.shared.index] for pair in zip(kept[index], (k, v), strict=True))
            is_last = keep == "last" and index + 1 == end
            x = layer(x, q, (k, v), batch, batch.last() if is_last else None)
            if self.config.weighs_by_attention and index + 1 in (run.compress_layers or ()):
                batch = replace(batch, weights=last_attention(q, k, batch, self.config.attention_scale))
        return (x[batch.last()] if keep == "last" and begin == end else x), batch

    def kept_states(self, batch: Packed, num_layers: int | None = None) -> list[KeysValues]:
        """Keys and values of all tokens at the first blocks: what rows that begin with these tokens need of them."""
        x, tables, kept = self.embed(batch), self._tables(batch), []
        layers = self._blocks(num_layers)
        for index, layer in enumerate(layers, start=1):
            q, k, v = layer.project(x, tables)
            kept.append((k, v))
            x = x if index == len(layers) else layer(x, q, (k, v), batch, None)
        return kept

    def _blocks(self, count: int | None) -> list[DecoderLayer]:
        return list(cast("Iterable[DecoderLayer]", self.layers))[:count]

    def embed(self, batch: Packed) -> Tensor:
        """The states (T, C) that enter the first block."""
        x: Tensor = self.word(batch.ids)
        # rounded to the working precision first, as Gemma was trained; on the device, so the host need not wait
        return x if self.config.embedding_scale == 1.0 else x * x.new_full((), self.config.embedding_scale)

    def _tables(self, batch: Packed) -> tuple[Table, Table]:
        """Of the blocks without a window, and of those with one."""
        table = self._table(batch, self.config.theta, self.config.rotary)
        local = self.config.local_theta
        return table, table if local is None else self._table(batch, local, None)

    def _table(self, batch: Packed, theta: float, rotary: RotaryScaling | None) -> Table:
        frequencies = inverse_frequencies(self.config.head_width, theta, device=batch.ids.device)
        if rotary is None:
            return rotary_table(batch.positions, frequencies)
        cos, sin = rotary_table(batch.positions, rotary(frequencies))
        return cos * rotary.magnitude, sin * rotary.magnitude
