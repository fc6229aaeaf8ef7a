"""A head over texts that were read apart: the bi-encoder's cosine, and how the passage's tokens meet the query's.

Nothing that the bi-encoder has learnt is changed, so that the score carries over to texts of any kind. What is added
are means over the best similarities of tokens (MaxSim: Khattab and Zaharia 2020, equation 3), with fitted weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from secondpass.errors import CheckpointError
from secondpass.models.heads import mean_by_row
from secondpass.models.word_match import TINY, few_columns
from secondpass.packed import Keep, Packed

NUM_FIGURES = 3  # cosine, MaxSim, MaxSim by the weights of pieces
HIDDEN = -2.0  # below every cosine


@dataclass(frozen=True, kw_only=True)
class LateInteractionConfig:
    """num_lead: tokens that stand before the passage and are read with it, such as its own [CLS]."""

    num_lead: int

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> LateInteractionConfig | None:
        """The settings under "late_interaction" in config.json; None for a model without. Raises CheckpointError."""
        found = config.get("late_interaction")
        if found is None:
            return None
        num_lead = found.get("num_lead") if isinstance(found, Mapping) else None
        if config.get("word_match") is None or not isinstance(num_lead, int):
            raise CheckpointError(
                f"config.json: late_interaction is {found!r}; it needs the number num_lead, and word_match beside it"
            )
        return cls(num_lead=num_lead)


@dataclass(frozen=True, kw_only=True)
class Apart:
    """N queries and N passages as a backbone reads them: the batch of both, and where their tokens are.

    index (T,) are the positions of the batch's tokens in the pairs' batch: all queries, then all passages.
    """

    batch: Packed
    index: Tensor | None


class LateInteraction(nn.Module):
    """Scores (N,): `scale` times the figures of each pair, plus `bias`.

    The figures are the cosine of the pooled vectors; MaxSim, the mean over the query's word pieces of the best cosine
    with a piece of the passage; and the same where a piece counts by its weight. Markers, which have weight 0, are in
    the pooled vectors alone.
    """

    reads: Keep = "all"

    def __init__(self, config: LateInteractionConfig) -> None:
        super().__init__()
        self.config = config
        self.scale = nn.Parameter(torch.empty(NUM_FIGURES))
        self.bias = nn.Parameter(torch.empty(1))

    def apart(self, pairs: Packed) -> Apart:
        """The batch in which no token sees the other text, positions begin anew and all types are 0."""
        return self._padded(pairs, pairs.mask) if pairs.mask is not None else self._packed(pairs)

    def forward(self, states: Tensor, pairs: Packed, apart: Apart, weights: Tensor) -> Tensor:
        """states (T, C) of `apart.batch`; weights (V,) of the word pieces."""
        # no matrix product: engines would round its inputs
        return (self.figures(states, pairs, apart, weights) * self.scale).sum(1) + self.bias

    def figures(self, states: Tensor, pairs: Packed, apart: Apart, weights: Tensor) -> Tensor:
        """What `scale` weighs, (N, NUM_FIGURES)."""
        if apart.index is None:
            assert pairs.mask is not None and apart.batch.sides is not None
            return self._of_padded(states, pairs.mask, apart.batch.sides, weights[pairs.ids])
        return self._of_packed(states, apart.batch, weights[apart.batch.ids])

    def _packed(self, pairs: Packed) -> Apart:
        starts = [0, *accumulate(pairs.lengths)]
        splits = [start - self.config.num_lead for start, _ in pairs.passages]
        queries = [(start, start + split) for start, split in zip(starts, splits, strict=False)]
        passages = [(start + split, end) for start, split, end in zip(starts, splits, starts[1:], strict=False)]
        spans = queries + passages
        device, lengths = pairs.ids.device, tuple(end - start for start, end in spans)
        index = torch.cat([torch.arange(start, end) for start, end in spans]).to(device)
        rows = torch.arange(len(spans)).repeat_interleave(torch.tensor(lengths))
        ends = torch.tensor([0, *accumulate(lengths)])
        batch = replace(
            pairs,
            ids=pairs.ids[index],
            positions=(torch.arange(len(rows)) - ends[rows]).to(device),
            types=torch.zeros_like(pairs.types),
            rows=rows.to(device),
            starts=ends.to(device),
            lengths=lengths,
            passages=tuple((0, length) for length in lengths),
        )
        return Apart(batch=batch, index=index)

    def _padded(self, pairs: Packed, mask: Tensor) -> Apart:
        """A row without a token of type 1 is one text, not a pair."""
        types = pairs.types.reshape(mask.shape) * mask
        columns = torch.arange(mask.shape[1])[None].expand(mask.shape)
        num_second = types.sum(1, keepdim=True)
        num_first = mask.sum(1, keepdim=True) - num_second - self.config.num_lead * (num_second > 0).long()
        sides = (columns >= num_first).long() * mask
        positions = columns - sides * num_first
        batch = replace(
            pairs, positions=(positions * mask).reshape(-1), types=torch.zeros_like(pairs.types), sides=sides
        )
        return Apart(batch=batch, index=None)

    def _of_packed(self, states: Tensor, batch: Packed, weights: Tensor) -> Tensor:
        pooled = F.normalize(mean_by_row(states.float(), batch), dim=1)
        num_pairs = len(pooled) // 2
        cosines = (pooled[:num_pairs] * pooled[num_pairs:]).sum(1)
        units, told = (torch.split(x, list(batch.lengths)) for x in (F.normalize(states.float(), dim=1), weights))
        first, asked = (pad_sequence(list(side[:num_pairs]), batch_first=True) for side in (units, told))
        second, said = (pad_sequence(list(side[num_pairs:]), batch_first=True) for side in (units, told))
        return self._compared(cosines, first @ second.transpose(1, 2), asked, said > 0)

    def _of_padded(self, states: Tensor, mask: Tensor, sides: Tensor, weights: Tensor) -> Tensor:
        states = states.reshape(*mask.shape, -1).float()
        first, second = ((mask * (sides == side)).float() for side in (0, 1))
        a, b = (_unit((states * side[..., None]).sum(1)) for side in (first, second))
        units, weights = _unit(states), weights.reshape(mask.shape)
        longest = few_columns(first.sum(1).max())  # columns behind it have no query
        similar = units[:, :longest] @ units.transpose(1, 2)
        return self._compared((a * b).sum(1), similar, (weights * first)[:, :longest], weights * second > 0)

    def _compared(self, cosines: Tensor, similar: Tensor, asked: Tensor, is_said: Tensor) -> Tensor:
        """cosines (N,), similarities (N, Q, P), weights of the queries' tokens (N, Q), passages' pieces (N, P)."""
        best = similar.masked_fill(~is_said[:, None, :], HIDDEN).amax(2)
        best = best.masked_fill(~is_said.any(1, keepdim=True), 0.0)
        means = [(best * told).sum(1) / told.sum(1).clamp(min=TINY) for told in ((asked > 0).to(asked.dtype), asked)]
        return torch.stack([cosines, *means], 1)


def _unit(x: Tensor) -> Tensor:
    return x / x.pow(2).sum(-1, keepdim=True).clamp(min=TINY).sqrt()
