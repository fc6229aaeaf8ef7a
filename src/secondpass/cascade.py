"""A cascade: a small model reads all candidates, a large one only the head of the small one's list.

Most of what a large reranker gains is among the first few; Wang, Lin and Metzler 2011, "A cascade ranking model".
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, SupportsIndex

from secondpass.cognitive import Cognitive
from secondpass.public import Opened, for_each_query, hinted, in_thread
from secondpass.reranker import Reranker
from secondpass.scoring.ranking import RankOptions
from secondpass.scoring.scoring import part_of
from secondpass.text.documents import as_documents
from secondpass.types import Document, DocumentLike, EarlyExit, Hit, Info, Progress, Ranking, Usage

# Of a budget, the part that the small model may use; what it leaves is the large one's.
SMALL_SHARE = 0.5


class Cascade(Opened):
    """Ranks with `small`, then the first `keep` of them with `large`. A Scorer; safe to use from several threads.

    Both are rerankers, or names of models, which are then opened with their usual options.
    Of a hit, `parts["stage"]` says whose score it has: 1 is the small model's, 2 the large one's. All of stage 2
    stand before those of stage 1, since the scores of two models cannot be compared.
    """

    @hinted
    def __init__(self, small: Reranker | str | Path, large: Reranker | str | Path, *, keep: int = 20) -> None:
        if not isinstance(keep, SupportsIndex) or int(keep) < 1:
            raise ValueError(f"keep is {keep!r}; give a whole number of documents for the large model, 1 or more")
        self.small = small if isinstance(small, Reranker) else Reranker(small)
        self.large = large if isinstance(large, Reranker) else Reranker(large)
        self.keep = keep

    @hinted
    def rank(
        self,
        query: str,
        documents: Iterable[DocumentLike],
        *,
        top_n: int | None = None,
        rank_fields: Sequence[str] | None = None,
        explain: bool = False,
        budget_ms: float | None = None,
        first_scores: Sequence[float] | None = None,
        early_exit: EarlyExit | float | Mapping[int, float] | None = None,
        cognitive: Cognitive | Mapping[str, Any] | bool | None = None,
        progress: Progress | None = None,
    ) -> Ranking:
        """The documents, best first, as of `Reranker.rank`; budget_ms is for both models together.

        cognitive is of both: what is superseded is read by the large model last, the newest of a subject first.
        early_exit is refused: give the large model alone.
        """
        started = time.perf_counter()
        options = RankOptions(
            top_n=top_n,
            rank_fields=rank_fields,
            explain=explain,
            budget_ms=budget_ms,
            first_scores=first_scores,
            early_exit=early_exit,
            cognitive=cognitive,
            progress=progress,
        )
        options.refuse("a cascade", early_exit="reads with two models")
        candidates = as_documents(documents, rank_fields)
        first = replace(
            options,
            top_n=None,
            budget_ms=None if budget_ms is None else budget_ms * SMALL_SHARE,
            progress=part_of(progress, 0, min(self.keep, len(candidates))),
        )
        tail = self.small.rank_with(query, candidates, first)
        kept = [hit.index for hit in tail[: self.keep]]
        left = None if budget_ms is None else budget_ms - 1000 * (time.perf_counter() - started)
        if left is not None and left <= 0:
            kept, left = [], None
        done = part_of(progress, tail.usage.rows, 0)
        second = replace(options, top_n=None, budget_ms=left, first_scores=None, progress=done)
        head = self.large.rank_with(query, [candidates[index] for index in kept], second)
        hits = _joined(tail, head, kept, candidates)
        usage = _sum(tail.usage, head.usage, hits, time.perf_counter() - started)
        return Ranking(
            tail.query, tuple(hits[:top_n]), usage, warnings=tuple(dict.fromkeys(tail.warnings + head.warnings))
        )

    arank = in_thread(rank)
    rank_many = for_each_query(rank)

    def score(self, query: str, documents: Sequence[DocumentLike]) -> list[float]:
        """One scale that sorts as `rank` does, in input order.

        The large model's logits; below them, one by one, the small model's, moved so that its best is 1 under the
        large model's worst; 1 below all of them what there is nothing to read of.
        """
        ranking = self.rank(query, documents)
        head = [hit.score for hit in ranking if _stage(hit) == 2]
        tail = [hit.score for hit in ranking if _stage(hit) == 1]
        shift = min(head) - 1 - max(tail) if head and tail else 0.0
        scores = {hit.index: hit.score + (shift if _stage(hit) == 1 else 0.0) for hit in ranking if hit.is_scored}
        unread = min(scores.values(), default=1.0) - 1
        return [scores.get(index, unread) for index in range(len(ranking))]

    def warm_up(self) -> None:
        """Run both models once, so that `budget_ms` knows their pace."""
        self.small.warm_up()
        self.large.warm_up()

    def info(self) -> dict[str, Info]:
        """What the two models run on."""
        return {"small": self.small.info(), "large": self.large.info()}

    def close(self) -> None:
        """Give the memory of both models back."""
        self.small.close()
        self.large.close()

    def _opened_with(self) -> Mapping[str, Any]:
        return {"small": self.small, "large": self.large, "keep": self.keep}


def _stage(hit: Hit) -> float | int | str:
    return 0 if hit.parts is None else hit.parts["stage"]


def _joined(
    tail: Sequence[Hit], head: Sequence[Hit], kept: Sequence[int], documents: Sequence[Document]
) -> list[Hit]:
    """The large model's hits, then those of the small one that it did not score, then the unscored."""
    first = [replace(hit, index=kept[hit.index]) for hit in head if hit.is_scored]
    done = {hit.index for hit in first}
    rest = [hit for hit in tail if hit.index not in done]
    staged = [(2, hit) for hit in first] + [(1 if hit.is_scored else 0, hit) for hit in rest]
    return [
        replace(hit, rank=rank, document=documents[hit.index], parts={**(hit.parts or {}), "stage": stage})
        for rank, (stage, hit) in enumerate(staged, start=1)
    ]


def _sum(left: Usage, right: Usage, hits: Sequence[Hit], seconds: float) -> Usage:
    return Usage(
        rows=left.rows + right.rows,
        tokens=left.tokens + right.tokens,
        truncated=left.truncated + right.truncated,
        seconds=seconds,
        tokenize_seconds=left.tokenize_seconds + right.tokenize_seconds,
        unscored=sum(not hit.is_scored for hit in hits),
    )
