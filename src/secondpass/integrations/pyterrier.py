"""PyTerrier 1.1: a transformer that reranks, as in `(bm25 % 100) >> Secondpass("BAAI/bge-reranker-v2-m3")`.

Texts come from a column: put `pt.text.get_text(index, "text")` before it. Needs no Java of its own.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyterrier as pt
from numpy.typing import NDArray

from secondpass.integrations import Ranker, open_reranker


class Secondpass(pt.Transformer):
    """R -> R: `score` is the raw logit in full precision, `rank` from 0 as everywhere in PyTerrier.

    Needs the columns qid, query, docno and text_field; all queries are scored in one packed run. What a given scorer
    leaves unscored, as what has nothing to read, has a score of 1 below the document before it.
    """

    schematic = {"label": "Secondpass"}  # noqa: RUF012  (PyTerrier reads it from the class)

    def __init__(
        self,
        model: str = "auto",
        *,
        text_field: str = "text",
        device: str = "auto",
        max_length: int | None = None,
        scorer: Ranker | None = None,
    ) -> None:
        super().__init__()
        self.model, self.text_field, self.device, self.max_length = model, text_field, device, max_length
        self.scorer = scorer

    def __repr__(self) -> str:
        return f"Secondpass({self.model!r})"

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        pt.validate.columns(inp, includes=["qid", "query", "docno", self.text_field])
        scored = inp.drop(columns=["score", "rank"], errors="ignore").assign(score=self._scores(inp))
        return pt.model.add_ranks(scored)

    def _scores(self, frame: pd.DataFrame) -> NDArray[np.float64]:
        """In the order of the rows, by position: labels of an index may come twice, as after pd.concat."""
        texts = frame[self.text_field].tolist()
        if self.scorer is None:
            reranker = open_reranker(self.model, device=self.device, max_length=self.max_length)
            return np.array(reranker.score_pairs(zip(frame["query"], texts, strict=True)), np.float64)
        scores = np.zeros(len(frame))
        for query, rows in frame.groupby("query", sort=False).indices.items():
            last = 0.0
            for hit in self.scorer.rank(str(query), [texts[row] for row in rows]):
                last = hit.score if hit.is_scored else last - 1.0
                scores[rows[hit.index]] = last
        return scores
