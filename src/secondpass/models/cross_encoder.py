"""A backbone and a head: what reads a query and a candidate together and says one score, or one per layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from secondpass.models import build_backbone
from secondpass.models.heads import Classifier, LayerHeads, TokenLogit
from secondpass.packed import Packed
from secondpass.text.recipe import Recipe
from secondpass.text.recipes import recipe_for
from secondpass.types import Run

# Where the lightweight reranker compresses when it is not said where, as its reference does.
COMPRESS_LAYERS = (8,)

# recipe.head -> the head of a backbone with these settings
HEADS: dict[str, Callable[[Any, Recipe], nn.Module]] = {
    "classifier": lambda settings, recipe: Classifier(settings.classifier()),
    "token": lambda settings, recipe: TokenLogit(settings.width, len(recipe.answers), softcap=settings.final_softcap),
    "label": lambda settings, recipe: TokenLogit(settings.width, 1),  # one label takes the place of the word
    "layers": lambda settings, recipe: LayerHeads(settings.width, settings.layers, by_place=False),
    "layers_by_place": lambda settings, recipe: LayerHeads(
        settings.width, settings.layers, by_place=True, softcap=settings.final_softcap
    ),
}


class CrossEncoder(nn.Module):
    """Scores (N, outputs) of the packed rows; one output, unless there are heads at several layers.

    answer_ids are the tokens whose logits are the score, where the recipe's head reads such.
    """

    def __init__(
        self, config: Mapping[str, Any], recipe: Recipe | None = None, *, answer_ids: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.recipe = recipe_for(config) if recipe is None else recipe
        architecture = build_backbone(config)
        settings, self.backbone = architecture.settings, architecture.backbone
        self.head = HEADS[self.recipe.head](settings, self.recipe)
        self.renames: tuple[tuple[str, str], ...] = architecture.renames
        self.ignored: tuple[str, ...] = architecture.ignored
        self.rows: dict[str, tuple[str, Sequence[int]]] = {}
        if answer_ids:
            self.rows["head.out.weight"] = (settings.output_matrix, answer_ids)
            self.ignored += settings.copies

    def forward(self, batch: Packed, run: Run | None = None, kept: Sequence[tuple[Tensor, Tensor]] = ()) -> Tensor:
        """`run` is as `resolved` gives it, `kept` as the backbone's `kept_states`."""
        if isinstance(self.head, Classifier):
            scores: Tensor = self.head(self.backbone(batch, keep=self.head.reads), batch)
            return scores[:, None]
        run = self.resolved(Run()) if run is None else run
        states = self.backbone(batch, keep=self.head.reads, run=run, kept=kept)
        reading = batch if run.cutoff_layers is None else run.cutoff_layers
        scores = self.head(states, reading)
        return scores

    @property
    def is_causal(self) -> bool:
        """No token sees a later one, so that the backbone can keep what rows share."""
        return hasattr(self.backbone, "kept_states")

    def resolved(self, run: Run) -> Run:
        """`run` with nothing left open. Raises ValueError for what this model does not have."""
        if not isinstance(self.head, LayerHeads):
            if run != Run():
                raise ValueError(f"cutoff_layer and compress_* need a layer-wise model; this is {self.recipe.family}")
            return run
        layers = self.head.layers
        cutoffs = layers[-1:] if run.cutoff_layers is None else tuple(sorted(set(run.cutoff_layers)))
        wrong = [layer for layer in cutoffs if layer not in layers]
        if wrong or not cutoffs:
            there = ", ".join(map(str, layers))
            raise ValueError(f"cutoff_layer {', '.join(map(str, wrong)) or 'is empty'}: there are {there}")
        if not self.head.by_place:
            if run.compress_ratio is not None or run.compress_layers is not None:
                raise ValueError(f"compress_ratio and compress_layers: {self.recipe.family} does not compress")
            return Run(cutoff_layers=cutoffs)
        return Run(cutoff_layers=cutoffs, **self._compression(run))

    def _compression(self, run: Run) -> dict[str, Any]:
        ratio = 1 if run.compress_ratio is None else run.compress_ratio
        layers = COMPRESS_LAYERS if run.compress_layers is None else tuple(run.compress_layers)
        depth = self.backbone.config.num_layers
        if ratio < 1:
            raise ValueError(f"compress_ratio is {ratio}; give 1, which leaves all tokens, or more")
        wrong = [layer for layer in run.compress_layers or () if not 0 <= layer < depth]
        if wrong:
            raise ValueError(f"compress_layers {', '.join(map(str, wrong))}: there are 0 to {depth - 1}")
        return {"compress_ratio": ratio, "compress_layers": layers}
