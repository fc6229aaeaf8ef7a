"""What a training run is told: frozen, checked at construction, written beside the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from secondpass.training.dev import MEASURES
from secondpass.training.losses import INNER_TEACHERS, LOSSES

# What is left of the highest learning rate when a share of the steps after the warm-up is done.
SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),  # Loshchilov and Hutter 2017, without restarts
    "constant": lambda done: 1.0,
}
DTYPES = ("auto", "float32", "bfloat16")
# A run may go on with other values of these: they do not change what is learnt.
FREE = (
    "device",
    "token_budget",
    "has_gradient_checkpointing",
    "has_shards",
    "log_every",
    "save_every",
    "has_tensorboard",
)


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Low-rank updates (Hu et al. 2021) of the attention's projections, or of all linear layers of the blocks.

    The update is scaled by alpha / rank. targets: "attention", "all", or the checkpoint's own names of projections,
    as "q_proj,v_proj". The head is trained "whole" or has updates too ("low_rank"). saves_adapter: also write the
    updates alone, in PEFT's layout, beside the merged model. has_four_bits: the frozen linear layers of a decoder are
    kept in NF4 (QLoRA), on a CUDA device with bitsandbytes.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: str = "all"
    head: str = "whole"
    saves_adapter: bool = False
    has_four_bits: bool = False

    def __post_init__(self) -> None:
        _check_choice("head", self.head, ("whole", "low_rank"))
        _check_at_least("rank", self.rank, 1)
        _check_positive("alpha", self.alpha)


@dataclass(frozen=True, kw_only=True)
class LayerSettings:
    """How a decoder with a head at each of its layers is trained: a loss at every layer, summed.

    start_layer: where heads begin on a model that has none yet. inner_teacher: which layer of the same model teaches
    another, of losses.INNER_TEACHERS; None: "eighth" with compression, else "last" without a teacher's scores and
    "none" with them, as the published models were trained. teaches_all: losses that need a teacher hold at every
    layer, else at the last. trains_last_alone: one loss at the last layer, as FlagEmbedding's current code does by
    a mistake; the other heads learn nothing.
    """

    start_layer: int | None = None
    inner_teacher: str | None = None
    teaches_all: bool = True
    trains_last_alone: bool = False

    def __post_init__(self) -> None:
        if self.inner_teacher is not None:
            _check_choice("inner_teacher", self.inner_teacher, INNER_TEACHERS)


@dataclass(frozen=True, kw_only=True)
class CompressionSettings:
    """Where and how much a step merges neighbouring passage tokens: drawn from (seed, step), for all processes alike.

    Each of `layers` is taken with probability 1/2, the ratio is one of `ratios`. is_fixed: all layers, and the one
    ratio, in every step, for the second stage.
    """

    layers: tuple[int, ...]
    ratios: tuple[int, ...] = (1, 2, 4, 8)
    is_fixed: bool = False

    def __post_init__(self) -> None:
        if not self.layers or not self.ratios or min(self.ratios) < 1 or min(self.layers) < 1:
            raise ValueError(f"layers is {self.layers}, ratios {self.ratios}; give some of each, of 1 or more")
        _check_once("layers", self.layers)
        if self.is_fixed and len(self.ratios) != 1:
            raise ValueError(f"ratios is {self.ratios}; a fixed compression has one")

    def drawn(self, seed: int, step: int) -> tuple[int, tuple[int, ...]]:
        """(ratio, layers) of a step."""
        if self.is_fixed:
            return self.ratios[0], self.layers
        draw = np.random.default_rng([seed, step, len(self.layers)])
        layers = tuple(layer for layer in self.layers if draw.random() < 0.5)
        return int(draw.choice(self.ratios)), layers


IN_BATCH = ("none", "others", "all")
PARTS = ("dense", "sparse", "colbert")


@dataclass(frozen=True, kw_only=True)
class EmbedderSettings:
    """How an embedder is trained: one vector a text, or the three parts of BGE-M3.

    parts: of dense, sparse and colbert. temperature divides the scores. dimensions: of Matryoshka vectors, each with
    the loss of its own. in_batch: "all" passages of the step are candidates, of all processes, or "none" but the own
    group. self_distillation_from: the step from which the sum of the parts teaches each. has_each_member: a teacher's
    scores teach as in BGE-M3's m3_kd_loss, which takes the place of the other losses. has_zero_padding: padding
    takes part in the maximum over tokens with a similarity of 0, as in FlagEmbedding, so that a score depends on the
    batch. has_answers_as_negatives: among the passages of other queries copies of the own positive, and positives of
    the same query, are negatives, as in FlagEmbedding; else they are left out. pooling: None is what the checkpoint
    says. has_frozen_encoder: the heads of sparse and colbert are trained alone (FlagEmbedding's fix_encoder).
    """

    parts: tuple[str, ...] = ("dense",)
    temperature: float = 0.02
    dimensions: tuple[int, ...] = ()
    in_batch: str = "all"
    self_distillation_from: int | None = None
    has_each_member: bool = False
    has_zero_padding: bool = False
    has_answers_as_negatives: bool = False
    has_frozen_encoder: bool = False
    pooling: str | None = None

    def __post_init__(self) -> None:
        for part in self.parts:
            _check_choice("a part", part, PARTS)
        if not self.parts:
            raise ValueError(f"parts is empty; give some of {', '.join(PARTS)}")
        _check_once("parts", self.parts)
        _check_once("dimensions", self.dimensions)
        for dimension in self.dimensions:
            _check_at_least("a dimension", dimension, 1)
        if self.dimensions and "dense" not in self.parts:
            raise ValueError(f"dimensions are of the dense part, and parts is {self.parts}")
        _check_positive("temperature", self.temperature)
        _check_choice("in_batch", self.in_batch, ("none", "all"))
        if self.self_distillation_from is not None and len(self.parts) == 1:
            raise ValueError("self-distillation needs more than one part")
        if self.has_frozen_encoder and self.parts == ("dense",):
            raise ValueError(
                "has_frozen_encoder leaves nothing of dense vectors to train; give sparse or colbert too"
            )


@dataclass(frozen=True, kw_only=True)
class LateInteractionSettings:
    """How late interaction is trained; the defaults are ColBERT v2's.

    in_batch: beside the losses over the own group, the positive against the passages of "others"; "all": the
    cross-entropy goes over all passages, the own negatives among them, as PyLate's contrastive loss; or "none".
    teacher_scale multiplies a teacher's scores (colbert-ai's distillation_alpha). has_scaled_scores: the student's
    scores of a query are moved to 0..1, and has_zero_padding: tokens that do not count have a similarity of 0 in the
    maximum; PyLate does both. has_answers_as_negatives: as of EmbedderSettings; colbert-ai and PyLate have them so.
    token_width and query_length are those of a new head.
    """

    in_batch: str = "others"
    temperature: float = 1.0
    teacher_scale: float = 1.0
    has_scaled_scores: bool = False
    has_zero_padding: bool = False
    has_answers_as_negatives: bool = False
    token_width: int = 128
    query_length: int = 32

    def __post_init__(self) -> None:
        _check_choice("in_batch", self.in_batch, IN_BATCH)
        _check_positive("temperature", self.temperature)
        _check_positive("teacher_scale", self.teacher_scale)
        _check_at_least("token_width", self.token_width, 1)


@dataclass(frozen=True, kw_only=True)
class PretrainingSettings:
    """How an encoder is pre-trained on plain texts: RetroMAE (Xiao et al. 2022), DupMAE (Liu et al. 2023).

    encoder_share, decoder_share: of the tokens that are hidden from each. decoder_weight 0 is masked language
    modelling alone, the control. bag_weight: of DupMAE's bag of words, 0.1 there. has_bare_queries: the decoder's
    queries are the sentence vector plus a position, as in RetroMAE, not the embedding layer's of it, as in
    FlagEmbedding. num_patterns: of hidden words that the rows of a text share. has_reference_masks: words are joined
    by "##" alone, special tokens other than BERT's are hidden too, and no more than 512 tokens at once, as in the
    reference, which so masks pieces with XLM-R.
    """

    encoder_share: float = 0.3
    decoder_share: float = 0.5
    decoder_weight: float = 1.0
    bag_weight: float = 0.0
    has_bare_queries: bool = False
    num_patterns: int = 128
    has_reference_masks: bool = False

    def __post_init__(self) -> None:
        for name in ("encoder_share", "decoder_share"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give more than 0 and less than 1")
        if self.decoder_weight < 0 or self.bag_weight < 0:
            raise ValueError(f"weights are {self.decoder_weight} and {self.bag_weight}; give 0 or more")
        _check_at_least("num_patterns", self.num_patterns, 1)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How a model is trained, of whichever kind. Raises ValueError for a value that cannot be meant.

    losses: name -> weight, of LOSSES. num_negatives: of each group, beside one positive; fewer where there are fewer;
    0 only where passages of other queries are candidates.
    batch: groups per step, over all processes. warmup: share of the steps. token_budget: tokens in one forward pass,
    None: by device; it changes memory and speed, not the loss. eval_every: steps; None: the end of each epoch.
    has_shards: of several processes each keeps its share of a decoder's weights.
    """

    losses: Mapping[str, float] = field(default_factory=lambda: {"cross_entropy": 1.0})
    temperature: float = 1.0
    num_negatives: int = 7
    batch: int = 16
    epochs: int = 1
    max_steps: int | None = None
    learning_rate: float = 2e-5
    schedule: str = "linear"
    warmup: float = 0.1
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0
    max_length: int | None = None
    max_query_length: int | None = None
    truncation: str | None = None
    token_budget: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    has_gradient_checkpointing: bool = False
    has_frozen_words: bool = False
    has_shards: bool = False
    lora: LoraSettings | None = None
    layers: LayerSettings | None = None
    compression: CompressionSettings | None = None
    embedder: EmbedderSettings | None = None
    colbert: LateInteractionSettings | None = None
    pretraining: PretrainingSettings | None = None
    seed: int = 1
    measure: str = "nDCG@10"
    eval_every: int | None = None
    save_every: int = 200
    log_every: int = 10
    has_tensorboard: bool = False

    def __post_init__(self) -> None:
        self._check_losses()
        _check_seed(self.seed)
        for name in ("batch", "epochs", "save_every", "log_every"):
            _check_at_least(name, getattr(self, name), 1)
        self._check_num_negatives()
        for name in ("max_steps", "eval_every", "max_length", "max_query_length", "token_budget"):
            if getattr(self, name) is not None:
                _check_at_least(name, getattr(self, name), 1)
        for name in ("learning_rate", "temperature", "max_gradient_norm"):
            _check_positive(name, getattr(self, name))
        for name in ("warmup", "weight_decay"):
            _check_number(name, getattr(self, name))
        if not 0 <= self.warmup < 1 or not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"warmup is {self.warmup} (0 to below 1), weight_decay {self.weight_decay} (0 or more)")
        if sum(kind is not None for kind in (self.embedder, self.colbert, self.pretraining)) > 1:
            raise ValueError("more than one of embedder, colbert and pretraining is set; give one")
        _check_choice("schedule", self.schedule, SCHEDULES)
        _check_choice("dtype", self.dtype, DTYPES)
        _check_choice("measure", self.measure, MEASURES)

    def _check_losses(self) -> None:
        if not isinstance(self.losses, Mapping):
            raise TypeError(f"losses is {self.losses!r}; give weights by name, as {{'cross_entropy': 1.0}}")
        for name in self.losses:
            _check_choice("a loss", name, LOSSES)
        if not self.losses or not all(0 < weight < math.inf for weight in self.losses.values()):
            raise ValueError(f"losses is {dict(self.losses)}; give at least one, each with a weight above 0")

    def _check_num_negatives(self) -> None:
        if self.num_negatives == 0 and not self.has_other_negatives and self.pretraining is None:
            raise ValueError(
                "num_negatives is 0, and no loss compares with passages of other queries; give 1 or more, or train "
                "an embedder or colbert with in-batch candidates and a batch of 2 or more"
            )
        _check_at_least("num_negatives", self.num_negatives, 0)

    def rate(self, step: int, num_steps: int) -> float:
        """The learning rate of step `step`, from 0."""
        return self.learning_rate * factor(step, num_steps, schedule=self.schedule, warmup=self.warmup)

    @property
    def method(self) -> str:
        """What is trained."""
        if self.embedder is not None:
            return "embedder"
        if self.pretraining is not None:
            return "pretraining"
        return "reranker" if self.colbert is None else "colbert"

    @property
    def has_other_negatives(self) -> bool:
        """Whether a loss compares with other queries' passages; a teacher's scores hold within a group."""
        has_members = self.embedder is not None and self.embedder.has_each_member
        is_wide = has_members or "cross_entropy" in self.losses
        in_batch = (self.embedder or self.colbert or EmbedderSettings(in_batch="none")).in_batch
        return self.batch > 1 and (in_batch == "others" or (in_batch == "all" and is_wide))

    @property
    def needs_teacher(self) -> bool:
        has_members = self.embedder is not None and self.embedder.has_each_member
        return has_members or any(LOSSES[name].needs_teacher for name in self.losses)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"losses": dict(self.losses)}


def factor(step: int, num_steps: int, *, schedule: str, warmup: float) -> float:
    """The factor of step `step`, from 0: up to 1 over the warm-up, then down to 0 by the schedule's shape."""
    num_warmup = math.ceil(warmup * num_steps)
    if step < num_warmup:
        return (step + 1) / num_warmup
    return SCHEDULES[schedule]((step - num_warmup) / max(num_steps - num_warmup, 1))


def parse_losses(text: str) -> dict[str, float]:
    """Losses from "ce", "ce+kl" or "ce=0.4,kl=0.6". Raises ValueError for what is none."""
    short = {loss.short: name for name, loss in LOSSES.items()}
    found: dict[str, float] = {}
    for part in text.replace("+", ",").split(","):
        name, _, weight = part.strip().partition("=")
        name = short.get(name.strip(), name.strip())
        _check_choice("a loss", name, LOSSES)
        if name in found:
            raise ValueError(f"loss {name} is named twice in {text!r}; give it once, with a weight, as in ce=2")
        try:
            found[name] = float(weight) if weight else 1.0
        except ValueError as error:
            raise ValueError(f"loss {name}: its weight {weight!r} is not a number") from error
    return found


def _check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; give {' or '.join(map(repr, choices))}")


def _check_at_least(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; a whole number (int) is needed")
    if value < least:
        raise ValueError(f"{name} is {value}; give {least} or more")


def _check_seed(seed: int) -> None:
    _check_at_least("seed", seed, 0)
    if seed >= 1 << 63:
        raise ValueError(f"seed is {seed}; give one below 2**63, which torch's generators take")


def _check_number(name: str, value: float) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; a number is needed")


def _check_positive(name: str, value: float) -> None:
    _check_number(name, value)
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}; give a finite number above 0")


def _check_once(name: str, values: Sequence[object]) -> None:
    if len(set(values)) < len(values):
        raise ValueError(f"{name} is {values}; give each once")
