"""Token compression: neighbouring states of a passage become their mean, and the batch becomes smaller.

As in bge-reranker-v2.5-gemma2-lightweight (FlagEmbedding, 2024). There are no weights in it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secondpass.packed import Packed, sent


def compress(x: Tensor, batch: Packed, ratio: int) -> tuple[Tensor, Packed]:
    """The states (T', C) and their batch, in which every passage of p tokens has ceil(p / ratio).

    Each is the mean of `ratio` neighbours, the last one of those that are left. The other tokens stay as they are,
    and positions are counted anew.
    """
    passages = [(start, start - (start - stop) // ratio) for start, stop in batch.passages]
    gone = [(old[1] - old[0]) - (new[1] - new[0]) for old, new in zip(batch.passages, passages, strict=True)]
    lengths = [length - less for length, less in zip(batch.lengths, gone, strict=True)]
    smaller = batch.resized(lengths, passages)
    starts, stops = sent(torch.tensor(batch.passages), x.device)[batch.rows].unbind(-1)
    place = torch.arange(len(x), device=x.device) - batch.starts[batch.rows]
    merged = starts + (place.clamp(max=stops - 1) - starts).clamp(min=0) // ratio
    after = place - sent(torch.tensor(gone), x.device)[batch.rows]
    place = torch.where(place < starts, place, torch.where(place < stops, merged, after))
    target = smaller.starts[batch.rows] + place
    sums = torch.zeros(len(smaller.rows), x.shape[1], device=x.device).index_add_(0, target, x.float())
    counts = torch.zeros(len(smaller.rows), device=x.device).index_add_(0, target, torch.ones_like(x[:, 0].float()))
    return (sums / counts[:, None]).to(x.dtype), smaller
