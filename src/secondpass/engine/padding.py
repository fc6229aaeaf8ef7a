"""Batches for graphs that read padded rows (N, L): what is padded together, and the arrays."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from secondpass.types import Row

# What one more call of a graph costs, in tokens: 1 ms, the time of 16 tokens of a MiniLM (2 cores, AVX512-BF16).
CALL_TOKENS = 16


def plan_padded(lengths: Sequence[int], *, token_budget: int, num_parts: int = 1) -> list[list[int]]:
    """Batches of indices into `lengths`, longest first; rows in one are padded to the first.

    A batch has at most `token_budget` tokens, padding included (or one row), and is closed where its padding would
    cost more than another call. Where there are enough rows, there are at least `num_parts` batches.
    """
    if token_budget < 1:
        raise ValueError(f"token_budget is {token_budget}, it must be at least 1")
    budget = min(token_budget, -(-sum(lengths) // num_parts))
    batches: list[list[int]] = []
    longest = padding = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        padding += longest - lengths[index]
        if not batches or padding > CALL_TOKENS or longest * (len(batches[-1]) + 1) > budget:
            batches.append([])
            longest, padding = lengths[index], 0
        batches[-1].append(index)
    return batches


def padded(rows: Sequence[Row], names: Collection[str], pad_id: int) -> dict[str, NDArray[np.int64]]:
    """Of input_ids, attention_mask and token_type_ids those in `names`, each (N, L)."""
    length = max(len(row) for row in rows)
    ids = np.full((len(rows), length), pad_id, np.int64)
    mask, types = np.zeros_like(ids), np.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row.ids
        mask[place, : len(row)] = 1
        types[place, row.passage[0] : len(row)] = 1
    every = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    return {name: values for name, values in every.items() if name in names}
