"""Losses over vectors: each query against the passages of its group, or of all groups of the step.

Dense, sparse and token scores of BGE-M3 (Chen et al. 2024), late interaction (Khattab and Zaharia 2020; Santhanam et
al. 2022), Matryoshka dimensions (Kusupati et al. 2022). B queries, M passages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recomputed

from secondpass.training.losses import LOSSES, Scores
from secondpass.training.settings import EmbedderSettings, LateInteractionSettings

# Of BGE-M3: what each part adds to the sum of scores, and what its own loss weighs.
SHARES: Mapping[str, float] = {"dense": 1.0, "sparse": 0.3, "colbert": 1.0}
WEIGHTS: Mapping[str, float] = {"dense": 1.0, "sparse": 0.1, "colbert": 1.0}
BLOCK = 1 << 24  # similarities of tokens that are held at once


@dataclass(frozen=True, kw_only=True)
class TextVectors:
    """Of N texts of up to L tokens: ids (N, L), whether a token counts (N, L), and the model's outputs.

    pooled is (N, C), tokens (N, L, D), weights (N, L).
    """

    ids: Tensor
    counts: Tensor
    outputs: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class VectorBatch:
    """Queries and passages of a step; group (M,) is the query of each passage, the positive first in its group.

    teacher (M,) are a teacher's scores, or None.
    """

    queries: TextVectors
    passages: TextVectors
    group: Tensor
    teacher: Tensor | None = None

    @property
    def is_own(self) -> Tensor:
        """(B, M)."""
        return self.group[None, :] == torch.arange(len(self.queries.ids), device=self.group.device)[:, None]

    @property
    def positives(self) -> Tensor:
        """The column (B,) of each query's positive."""
        return self.is_own.long().argmax(1)

    @cached_property
    def is_answer_elsewhere(self) -> Tensor:
        """Passages (B, M) of other groups that are known to answer the query, and so are no negatives of it.

        They have the tokens of the own positive, or are the positive of a query of the same tokens.
        """
        texts, queries = (torch.unique(x.ids, dim=0, return_inverse=True)[1] for x in (self.passages, self.queries))
        positives = self.positives
        is_positive = torch.zeros_like(self.group, dtype=torch.bool).index_fill(0, positives, True)
        is_asked_again = (queries[:, None] == queries[self.group]) & is_positive
        known: Tensor = (texts[positives][:, None] == texts) | is_asked_again
        return known & ~self.is_own

    def own(self, scores: Tensor, teacher_scale: float = 1.0) -> Scores:
        """The scores (B, M) of the own groups, as losses over groups take them."""
        is_own = self.is_own
        rank = is_own.cumsum(1) - 1
        width = int(is_own.sum(1).max())
        slots = (torch.arange(len(scores), device=scores.device)[:, None] * width + rank)[is_own]
        empty = scores.new_zeros(len(scores) * width)
        teacher = None
        if self.teacher is not None:
            values = (self.teacher[None, :].expand_as(scores))[is_own] * teacher_scale
            teacher = empty.scatter(0, slots, values).view(-1, width)
        return Scores(
            logits=empty.scatter(0, slots, scores[is_own]).view(-1, width),
            is_there=empty.bool().scatter(0, slots, True).view(-1, width),
            teacher=teacher,
        )


def in_batch(scores: Tensor, batch: VectorBatch, *, has_own_negatives: bool) -> Tensor:
    """The surprise (B,) of the own positive among all passages of the step, the own negatives with them or not."""
    positive = scores.gather(1, batch.positives[:, None])[:, 0]
    if not has_own_negatives:
        left_out = batch.is_own.scatter(1, batch.positives[:, None], False)
        scores = scores.masked_fill(left_out, torch.finfo(scores.dtype).min)
    return scores.logsumexp(1) - positive


def each_member(scores: Tensor, batch: VectorBatch) -> Tensor:
    """BGE-M3's distillation (B,): each member of a group against the step without those before it, by its share.

    The share is the teacher's softmax over the group.
    """
    own = batch.own(scores)
    assert own.teacher is not None
    lowest = torch.finfo(scores.dtype).min
    shares = own.teacher.masked_fill(~own.is_there, lowest).softmax(1)
    rank = torch.where(batch.is_own, batch.is_own.cumsum(1) - 1, torch.iinfo(torch.long).max)
    terms = []
    for member in range(shares.shape[1]):
        rest = scores.masked_fill(rank < member, lowest).logsumexp(1)
        terms.append(shares[:, member] * (rest - own.logits[:, member]) * own.is_there[:, member])
    return torch.stack(terms).sum(0)


def token_scores(queries: TextVectors, passages: TextVectors, *, fill: float | None) -> Tensor:
    """Sums (B, M) over the query's counting tokens of the best similarity to a passage's counting token.

    fill: what a token that does not count has in the maximum; None: it is left out. A few queries at a time, and
    computed again for the gradient, so that memory does not grow with B * M * L * L.
    """
    q, p = (F.normalize(side.outputs["tokens"], dim=-1) for side in (queries, passages))
    step = max(BLOCK // max(q.shape[1] * p.shape[0] * p.shape[1], 1), 1)
    parts = [
        recomputed(
            _best_sums, q[i : i + step], queries.counts[i : i + step], p, passages.counts, fill, use_reentrant=False
        )
        for i in range(0, len(q), step)
    ]
    return torch.cat(parts)


def _best_sums(q: Tensor, q_counts: Tensor, p: Tensor, p_counts: Tensor, fill: float | None) -> Tensor:
    similarities = torch.einsum("bqd,mpd->bmqp", q, p)
    lowest = torch.finfo(similarities.dtype).min if fill is None else fill
    best = similarities.masked_fill(~p_counts[None, :, None, :], lowest).amax(3)
    best = torch.where(p_counts.any(1)[None, :, None], best, 0.0)
    return (best * q_counts[:, None, :]).sum(2)


def sparse_scores(queries: TextVectors, passages: TextVectors) -> Tensor:
    """Products (B, M) of the greatest weights of shared token ids; only ids of queries can be shared."""
    known = torch.unique(queries.ids[queries.counts])
    if not len(known):
        return queries.ids.new_zeros(len(queries.ids), len(passages.ids), dtype=torch.float32)
    q, p = (_greatest(side, known) for side in (queries, passages))
    return q @ p.T


def _greatest(side: TextVectors, known: Tensor) -> Tensor:
    """The greatest weight (N, U) of each of the ids `known` (U,), 0 where a text has it not."""
    position = torch.searchsorted(known, side.ids).clamp(max=len(known) - 1)
    is_known = (known[position] == side.ids) & side.counts
    weights = torch.where(is_known, side.outputs["weights"], 0.0)
    empty = weights.new_zeros(len(side.ids), len(known))
    return empty.scatter_reduce(1, position, weights, "amax", include_self=True)


def dense_scores(queries: TextVectors, passages: TextVectors, dimension: int | None = None) -> Tensor:
    """Cosines (B, M), of the first `dimension` figures of the vectors."""
    q, p = (F.normalize(side.outputs["pooled"][:, :dimension], dim=-1) for side in (queries, passages))
    return q @ p.T


class EmbedderLoss:
    """Contrastive learning of dense vectors, or of all three parts of BGE-M3."""

    def __init__(self, settings: EmbedderSettings, losses: Mapping[str, float], *, temperature: float) -> None:
        self._settings, self._losses, self._temperature = settings, losses, temperature

    def __call__(self, batch: VectorBatch, step: int) -> Tensor:
        """The loss (B,) of each query."""
        terms = self.terms(batch, step)
        own = {name: x for name, x in terms.items() if not name.endswith("self-distillation")}
        if len(own) == 1:
            return next(iter(own.values()))
        weights = {f"{part} loss": WEIGHTS[part] for part in self._settings.parts} | {"together loss": 1.0}
        loss = torch.stack([weights[name] * x for name, x in own.items()]).sum(0) / len(own)
        if len(terms) == len(own):
            return loss
        inner = [WEIGHTS[part] * terms[f"{part} self-distillation"] for part in self._settings.parts]
        return (loss + torch.stack(inner).sum(0) / len(inner)) / 2

    def terms(self, batch: VectorBatch, step: int) -> dict[str, Tensor]:
        """The parts of the loss (B,), unweighted."""
        scores = self.scores(batch)
        found = {f"{part} loss": self._part(part, batch, scores) for part in self._settings.parts}
        if len(self._settings.parts) == 1:
            return found
        together = torch.stack([SHARES[part] * scores[part] for part in self._settings.parts]).sum(0)
        found["together loss"] = self._loss(together, batch)
        start = self._settings.self_distillation_from
        if start is not None and step >= start:
            for part in self._settings.parts:
                found[f"{part} self-distillation"] = self._taught(together.detach(), scores[part], batch)
        return found

    def scores(self, batch: VectorBatch) -> dict[str, Tensor]:
        """The scores (B, M) of each part, divided by the temperature."""
        made = {part: self._made(part, batch.queries, batch.passages) for part in self._settings.parts}
        return {part: scores / self._settings.temperature for part, scores in made.items()}

    def together(self, queries: TextVectors, passages: TextVectors) -> Tensor:
        """What passages are ranked by (B, M): the one part, or the weighted sum."""
        parts = {part: self._made(part, queries, passages) for part in self._settings.parts}
        return torch.stack([SHARES[part] * scores for part, scores in parts.items()]).sum(0)

    def _made(self, part: str, queries: TextVectors, passages: TextVectors) -> Tensor:
        if part == "dense":
            return dense_scores(queries, passages)
        if part == "sparse":
            return sparse_scores(queries, passages)
        queries, passages = (_without_first(side) for side in (queries, passages))
        fill = 0.0 if self._settings.has_zero_padding else None
        return token_scores(queries, passages, fill=fill) / queries.counts.sum(1).clamp(min=1)[:, None]

    def _part(self, part: str, batch: VectorBatch, scores: Mapping[str, Tensor]) -> Tensor:
        """Of the dense part the mean over its dimensions."""
        dimensions = self._settings.dimensions
        if part != "dense" or not dimensions:
            return self._loss(scores[part], batch)
        cut = [dense_scores(batch.queries, batch.passages, d) / self._settings.temperature for d in dimensions]
        return torch.stack([self._loss(one, batch) for one in cut]).mean(0)

    def _loss(self, scores: Tensor, batch: VectorBatch) -> Tensor:
        scores = self._candidates(scores, batch)
        if self._settings.has_each_member:
            return each_member(scores, batch)
        return _listwise(scores, batch, self._losses, self._temperature, self._settings.in_batch)

    def _taught(self, teacher: Tensor, scores: Tensor, batch: VectorBatch) -> Tensor:
        teacher, scores = (self._candidates(x, batch) for x in (teacher, scores))
        products = teacher.softmax(1) * scores.log_softmax(1)
        return -products.sum(1)

    def _candidates(self, scores: Tensor, batch: VectorBatch) -> Tensor:
        """The scores with those of other groups at the lowest finite figure, where they are no candidates."""
        if self._settings.in_batch == "all":
            return _without_answers(scores, batch, self._settings)
        return scores.masked_fill(~batch.is_own, torch.finfo(scores.dtype).min)


class ColbertLoss:
    """Late interaction: the losses over the own group, and against the passages of other queries."""

    def __init__(self, settings: LateInteractionSettings, losses: Mapping[str, float], *, temperature: float) -> None:
        self._settings, self._losses, self._temperature = settings, losses, temperature

    def __call__(self, batch: VectorBatch, step: int) -> Tensor:
        return torch.stack(list(self.terms(batch).values())).sum(0)

    def terms(self, batch: VectorBatch) -> dict[str, Tensor]:
        """The parts of the loss (B,), weighted."""
        settings = self._settings
        scores = self.together(batch.queries, batch.passages) / settings.temperature
        scores = _without_answers(scores, batch, settings)
        own = batch.own(scores, settings.teacher_scale)
        if settings.has_scaled_scores:
            own = _scaled(own)
        found: dict[str, Tensor] = {}
        for name, weight in self._losses.items():
            if name == "cross_entropy" and settings.in_batch == "all":
                found[name] = weight * in_batch(scores, batch, has_own_negatives=True)
            else:
                found[name] = weight * LOSSES[name].of(own, self._temperature)
        if settings.in_batch == "others":
            found["in-batch"] = in_batch(scores, batch, has_own_negatives=False)
        return found

    def together(self, queries: TextVectors, passages: TextVectors) -> Tensor:
        return token_scores(queries, passages, fill=0.0 if self._settings.has_zero_padding else None)


VectorLoss = EmbedderLoss | ColbertLoss


def _without_answers(
    scores: Tensor, batch: VectorBatch, settings: EmbedderSettings | LateInteractionSettings
) -> Tensor:
    """The scores (B, M) with answers of other groups at the lowest finite figure, where they are no negatives."""
    if settings.has_answers_as_negatives:
        return scores
    return scores.masked_fill(batch.is_answer_elsewhere, torch.finfo(scores.dtype).min)


def _scaled(scores: Scores) -> Scores:
    """The student's scores of each group moved to 0..1: PyLate's default."""
    lowest = scores.logits.masked_fill(~scores.is_there, float("inf")).amin(1, keepdim=True)
    highest = scores.logits.masked_fill(~scores.is_there, float("-inf")).amax(1, keepdim=True)
    scaled = (scores.logits - lowest) / (highest - lowest).clamp(min=1e-12)
    return Scores(logits=scaled, is_there=scores.is_there, teacher=scores.teacher)


def _listwise(
    scores: Tensor, batch: VectorBatch, losses: Mapping[str, float], temperature: float, negatives: str
) -> Tensor:
    """The weighted sum (B,): cross-entropy over all passages of the step where asked, else over the own group."""
    own = batch.own(scores)
    terms = []
    for name, weight in losses.items():
        if name == "cross_entropy" and negatives == "all":
            terms.append(weight * in_batch(scores, batch, has_own_negatives=True))
        else:
            terms.append(weight * LOSSES[name].of(own, temperature))
    return torch.stack(terms).sum(0)


def _without_first(side: TextVectors) -> TextVectors:
    """Token vectors without the first, which stands for the whole text; a zero in its place would be padding."""
    tokens = side.outputs["tokens"][:, 1:]
    return TextVectors(ids=side.ids[:, 1:], counts=side.counts[:, 1:], outputs={"tokens": tokens})
