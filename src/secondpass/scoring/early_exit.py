"""How much scores of a layer-wise model still change after a layer: the bounds for `rank(..., early_exit=...)`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from secondpass.types import DocumentLike, Progress


class LayerScorer(Protocol):
    """What scores pairs after a layer of its choice: a `Reranker` of a layer-wise model."""

    def score_pairs(
        self,
        pairs: Iterable[tuple[str, DocumentLike]],
        *,
        cutoff_layer: int | None = None,
        progress: Progress | None = None,
    ) -> list[float]: ...


def exit_bounds(
    reranker: LayerScorer,
    pairs: Iterable[tuple[str, DocumentLike]],
    layers: Iterable[int],
    *,
    quantile: float = 1.0,
    progress: Progress | None = None,
) -> dict[int, float]:
    """For each layer the quantile of |last score - score at the layer| over (query, document) pairs, by layer.

    1.0 is the largest change, with which early exit leaves the first places of these very pairs as they are; for
    others it is an estimate, so give many pairs, of candidates such as will be ranked. Each layer's scores are
    computed by a run of their own, as `cutoff_layer` gives them. Raises ValueError for no pairs, a layer without a
    head, or a quantile outside of 0..1.
    """
    pairs = list(pairs)
    if not pairs:
        raise ValueError("exit_bounds got no pairs; give some hundreds that are like those that will be ranked")
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile is {quantile}; give 0 to 1, where 1 is the largest change")
    wanted = sorted(set(layers))

    def scores(turn: int, layer: int | None) -> Sequence[float]:
        def count(done: int, total: int) -> None:
            if progress is not None:
                progress(turn * total + done, (1 + len(wanted)) * total)

        return reranker.score_pairs(pairs, cutoff_layer=layer, progress=count)

    last = np.array(scores(0, None))
    changes = {layer: np.abs(last - scores(turn, layer)) for turn, layer in enumerate(wanted, start=1)}
    return {layer: float(np.quantile(change, quantile, method="higher")) for layer, change in changes.items()}
