"""Word matching inside a cross-encoder: what BM25 knows of a pair, computed from its tokens and added to the logit.

A small encoder blurs rare words; counted exactly, they cost next to nothing. Nothing is read but the pair itself, so
the score does not depend on the batch or on a corpus: how much a word piece tells is stored with the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secondpass.errors import CheckpointError
from secondpass.packed import Packed

TINY = 1e-6  # the weight of a query of markers alone


@dataclass(frozen=True, kw_only=True)
class WordMatchConfig:
    """BM25's k1 and b, the passage length in tokens that counts as middling, and the size V of the vocabulary."""

    num_words: int
    k1: float
    b: float
    mean_length: float

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> WordMatchConfig | None:
        """The settings under "word_match" in config.json; None for a model without. Raises CheckpointError."""
        found = config.get("word_match")
        if found is None:
            return None
        try:
            k1, b, mean_length = (float(found[name]) for name in ("k1", "b", "mean_length"))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"config.json: word_match is {found!r}; it needs the numbers k1, b and mean_length"
            ) from error
        return cls(num_words=config["vocab_size"], k1=k1, b=b, mean_length=mean_length)


class WordMatch(nn.Module):
    """What matching adds to the logits (N,): `scale` times two shares, 0 to 1, of the query's weight in the passage.

    The first counts pieces, the second pairs of neighbours, which tells whole words from scattered pieces. Each
    counts with its weight (a pair's is the smaller of its two), saturated as in BM25 by how often the passage repeats
    it and by the passage's length (Robertson and Zaragoza 2009, equation 3.15). Query and passage are the tokens of
    type 0 and 1; a marker has weight 0.
    """

    def __init__(self, config: WordMatchConfig) -> None:
        super().__init__()
        self.config = config
        self.weights = nn.Parameter(torch.empty(config.num_words))
        self.scale = nn.Parameter(torch.empty(2))

    def forward(self, batch: Packed) -> Tensor:
        return (self.shares(batch) * self.scale).sum(1)  # no matrix product: engines would round its inputs

    def shares(self, batch: Packed) -> Tensor:
        """What `scale` weighs, (N, 2)."""
        return self._of_packed(batch) if batch.mask is None else self._of_mask(batch, batch.mask)

    def _of_mask(self, batch: Packed, mask: Tensor) -> Tensor:
        return self.of_padded(batch.ids.reshape(mask.shape), mask, batch.types.reshape(mask.shape))

    def of_padded(self, ids: Tensor, mask: Tensor, types: Tensor) -> Tensor:
        """Both shares (N, 2) of padded inputs (N, L)."""
        query, passage = ((types == kind) & (mask == 1) for kind in (0, 1))
        longest = few_columns(query.sum(1).max())  # columns behind it have no query
        query, asked = query[:, :longest], ids[:, :longest]
        equal = (asked[:, :, None] == ids[:, None, :]) & passage[:, None, :]
        pieces = equal.float().sum(2)
        pairs = (equal[:, :-1, :-1] & equal[:, 1:, 1:]).float().sum(2)
        weights = self.weights[asked] * query.float()
        norm = self._norm(passage.float().sum(1, keepdim=True))
        found = ((weights, pieces), (torch.minimum(weights[:, :-1], weights[:, 1:]), pairs))
        shares = [_share((w * n / (n + norm)).sum(1), w.sum(1)) for w, n in found]
        return torch.stack(shares, 1)

    def _of_packed(self, batch: Packed) -> Tensor:
        """Both shares (N, 2): a piece is looked up among its row's passage by binary search, whatever the lengths."""
        num_words, passage = self.config.num_words, batch.types == 1
        weights = self.weights[batch.ids] * (batch.types == 0).float()
        norm = self._norm(_by_row(passage.float(), batch, batch.rows))[batch.rows]
        ids = batch.rows * num_words + batch.ids
        follows = batch.rows[:-1] == batch.rows[1:]
        both = torch.minimum(weights[:-1], weights[1:]) * follows.float()
        pairs = _counts(ids[:-1] * num_words + batch.ids[1:], passage[:-1] & passage[1:] & follows)
        found = ((weights, _counts(ids, passage), norm, batch.rows), (both, pairs, norm[:-1], batch.rows[:-1]))
        shares = [_share(_by_row(w * n / (n + to), batch, rows), _by_row(w, batch, rows)) for w, n, to, rows in found]
        return torch.stack(shares, 1)

    def _norm(self, lengths: Tensor) -> Tensor:
        config = self.config
        return config.k1 * (1 - config.b + config.b / config.mean_length * lengths)


def _share(found: Tensor, whole: Tensor) -> Tensor:
    """found / whole; 0 where nothing counts, and without a slope, which would be of 1 / TINY beside all others."""
    return found / whole.clamp(min=TINY) * (whole > TINY).float()


def few_columns(length: Tensor) -> Tensor:
    """A multiple of 16 that is no less: an engine that keeps what it made for each shape keeps few of them."""
    return (length.long() + 15) // 16 * 16


def _counts(keys: Tensor, is_passage: Tensor) -> Tensor:
    """How often each of the keys (T,), which are not negative, is that of a passage."""
    listed = torch.where(is_passage, keys, -1).sort().values
    return (torch.searchsorted(listed, keys, right=True) - torch.searchsorted(listed, keys)).float()


def _by_row(values: Tensor, batch: Packed, rows: Tensor) -> Tensor:
    """Sums (N,) of values that lie in `rows`."""
    return values.new_zeros(len(batch.starts) - 1).index_add_(0, rows, values)
