"""A backbone and a head: what reads a query and a candidate together and says one score, or one per layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from secondpass.errors import CheckpointError, UnknownModel
from secondpass.models import Backbone, BackboneConfig, build_backbone
from secondpass.models.decoder import Decoder
from secondpass.models.heads import Classifier, ClassifierConfig, LayerHeads, LogitConfig, MeanLogit, TokenLogit
from secondpass.models.late_interaction import LateInteraction, LateInteractionConfig
from secondpass.models.word_match import WordMatch, WordMatchConfig
from secondpass.packed import Packed
from secondpass.text.families import BY_LAYER, recipe_for
from secondpass.text.recipe import Recipe
from secondpass.types import EarlyExit, Run

# Where the lightweight reranker compresses when it is not said where, as its reference does.
COMPRESS_LAYERS = (8,)

Head = Classifier | LateInteraction | TokenLogit | LayerHeads


def _classifier(config: BackboneConfig, recipe: Recipe) -> Head:
    reads = config.reads
    if isinstance(reads, ClassifierConfig):
        return Classifier(reads)
    raise UnknownModel(f"{recipe.family} has no classifier; its scores are logits of words")


def _label(config: BackboneConfig, recipe: Recipe) -> Head:
    return TokenLogit(config.width, 1)  # one label takes the place of the word


def _mean_label(config: BackboneConfig, recipe: Recipe) -> Head:
    return MeanLogit(config.width, temperature=_logits(config, recipe).temperature)


def _token(config: BackboneConfig, recipe: Recipe) -> Head:
    return TokenLogit(config.width, len(recipe.answers), softcap=_logits(config, recipe).softcap)


def _layers(config: BackboneConfig, recipe: Recipe) -> Head:
    return LayerHeads(config.width, _logits(config, recipe).layers, in_order=False)


def _layers_in_order(config: BackboneConfig, recipe: Recipe) -> Head:
    reads = _logits(config, recipe)
    return LayerHeads(config.width, reads.layers, in_order=True, softcap=reads.softcap)


def _logits(config: BackboneConfig, recipe: Recipe) -> LogitConfig:
    if isinstance(config.reads, LogitConfig):
        return config.reads
    raise UnknownModel(f"{recipe.family} has no logits of words; its scores are a classifier's")


# recipe.head -> the head of a backbone with this config
HEADS: dict[str, Callable[[BackboneConfig, Recipe], Head]] = {
    "classifier": _classifier,
    "token": _token,
    "label": _label,
    "mean_label": _mean_label,
    "layers": _layers,
    "layers_in_order": _layers_in_order,
}


class CrossEncoderModel(nn.Module):
    """Scores (N, outputs) of the packed rows; one output, unless there are heads at several layers.

    answer_ids are the tokens whose logits are the score, where the recipe's head reads such.
    """

    def __init__(
        self, config: Mapping[str, Any], recipe: Recipe | None = None, *, answer_ids: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.recipe = recipe_for(config) if recipe is None else recipe
        architecture = build_backbone(config)
        self.backbone: Backbone = architecture.backbone
        matching, late = WordMatchConfig.from_hf(config), LateInteractionConfig.from_hf(config)
        self.head = LateInteraction(late) if late else HEADS[self.recipe.head](architecture.config, self.recipe)
        if isinstance(self.head, LayerHeads) and config.get(BY_LAYER):  # as `secondpass train` leaves them
            self.head.in_order = False
        self.exit_bounds = _exit_bounds(config)
        self.word_match = None if matching is None else WordMatch(matching)
        self.renames: tuple[tuple[str, str], ...] = architecture.renames
        self.ignored: tuple[str, ...] = architecture.ignored
        self.rows: dict[str, tuple[str, Sequence[int]]] = {}
        if answer_ids:
            reads = _logits(architecture.config, self.recipe)
            self.rows["head.out.weight"] = (reads.matrix, answer_ids)
            self.ignored += reads.copies

    def forward(self, batch: Packed, run: Run | None = None, kept: Sequence[tuple[Tensor, Tensor]] = ()) -> Tensor:
        """`run` is as `resolved` gives it, `kept` as the backbone's `kept_states`."""
        if self.reads_texts_apart:
            return self.read_apart(batch)[0]
        if isinstance(self.head, Classifier):
            scores: Tensor = self.head(self.backbone(batch, keep=self.head.reads), batch)
            scores = scores if self.word_match is None else scores + self.word_match(batch)
            return scores[:, None]
        run = self.resolved(Run()) if run is None else run
        states = self.decoder()(batch, keep=self.head.reads, run=run, kept=kept)
        scores = self.head(states, batch if run.cutoff_layers is None else run.cutoff_layers)
        return scores

    def read_apart(self, batch: Packed) -> tuple[Tensor, Tensor]:
        """Scores (N, 1) of a model that reads query and passage apart, and its tokens' states (T, C)."""
        assert isinstance(self.head, LateInteraction) and self.word_match is not None
        apart = self.head.apart(batch)
        states = self.backbone(apart.batch, keep=self.head.reads)
        scores = self.head(states, batch, apart, self.word_match.weights) + self.word_match(batch)
        return scores[:, None], states

    def exit_scores(self, states: Tensor, layer: int) -> Tensor:
        """Scores (N,) of the states (N, C) of each row's last token at a layer, as if it were the only cutoff."""
        scores: Tensor = self.head(self.decoder().norm(states)[:, None], (layer,))
        return scores[:, 0]

    @property
    def is_decoder(self) -> bool:
        """Its layers are those of a language model."""
        return isinstance(self.backbone, Decoder)

    @property
    def is_causal(self) -> bool:
        """No token sees a later one, so that the backbone can keep what rows share."""
        return isinstance(self.backbone, Decoder) and not self.backbone.config.is_bidirectional

    @property
    def reads_texts_apart(self) -> bool:
        """Query and passage of a row are texts of their own to the backbone."""
        return isinstance(self.head, LateInteraction)

    def decoder(self) -> Decoder:
        """The backbone of a model that `is_decoder`."""
        assert isinstance(self.backbone, Decoder)
        return self.backbone

    def resolved(self, run: Run) -> Run:
        """`run` with nothing left open. Raises ValueError for what this model does not have."""
        if not isinstance(self.head, LayerHeads):
            if run != Run():
                asked = "cutoff_layer, compress_* and early_exit"
                raise ValueError(f"{asked} need a layer-wise model; this is {self.recipe.family}")
            return run
        cutoffs = _cutoffs(run, self.head.layers)
        run = self._bounded(run, cutoffs)
        resolved = Run(cutoff_layers=cutoffs, early_exit=_early_exit(run, cutoffs, self.head.layers))
        if self.recipe.head == "layers_in_order":
            if run.early_exit is not None and self.recipe.family == "mistral-matroyshka":
                raise ValueError("early_exit: rows of this model cannot leave it, their weights are of a whole run")
            return replace(resolved, **self._compression(run))
        if run.compress_ratio is not None or run.compress_layers is not None:
            raise ValueError(f"compress_ratio and compress_layers: {self.recipe.family} does not compress")
        return resolved

    def _bounded(self, run: Run, cutoffs: Sequence[int]) -> Run:
        """With the bounds of early exit that the checkpoint says, where none are given."""
        assert isinstance(self.head, LayerHeads)
        if run.early_exit is None or run.early_exit.bounds is not None:
            return run
        if not self.exit_bounds:
            raise ValueError("early_exit: this model says no bounds; give some, as exit_bounds measures them")
        if cutoffs[0] != self.head.layers[-1] or (run.compress_ratio or 1) > 1:
            raise ValueError("early_exit: the model's bounds are for its last layer, uncompressed; give others")
        return replace(run, early_exit=replace(run.early_exit, bounds=self.exit_bounds))

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


def _cutoffs(run: Run, layers: Sequence[int]) -> tuple[int, ...]:
    cutoffs = tuple(layers[-1:]) if run.cutoff_layers is None else tuple(sorted(set(run.cutoff_layers)))
    wrong = [layer for layer in cutoffs if layer not in layers]
    if wrong or not cutoffs:
        raise ValueError(f"cutoff_layer {_listed(wrong) or 'is empty'}: there are {_listed(layers)}")
    return cutoffs


def _exit_bounds(config: Mapping[str, Any]) -> dict[int, float]:
    """How much a score still changes after a layer, as `secondpass train` measured it; empty where it did not."""
    try:
        return {int(layer): float(bound) for layer, bound in (config.get("exit_bounds") or {}).items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"config.json: exit_bounds ({error}); numbers by layer are needed") from error


def _early_exit(run: Run, cutoffs: Sequence[int], layers: Sequence[int]) -> EarlyExit | None:
    """With one bound for each layer where rows may leave, lowest first."""
    if run.early_exit is None:
        return None
    if run.early_exit.top_n is None:
        raise ValueError("early_exit needs top_n: how many of the first places have to be right")
    if len(cutoffs) > 1:
        raise ValueError(f"early_exit needs one cutoff layer; here are {_listed(cutoffs)}")
    there = [layer for layer in layers if layer < cutoffs[0]]
    given = run.early_exit.bounds
    assert given is not None  # else it is the model's by now
    bounds = dict(sorted(given.items())) if isinstance(given, Mapping) else dict.fromkeys(there, given)
    wrong = [layer for layer in bounds if layer not in there]
    if wrong or not there:
        exits = _listed(there) or "none"
        raise ValueError(
            f"early_exit at layer {_listed(wrong) or 'any'}: before layer {cutoffs[0]} there are {exits}"
        )
    return replace(run.early_exit, bounds=bounds)


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))
