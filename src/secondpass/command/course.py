"""The flags of `secondpass train` that say how a model is trained, and the settings that they make."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Annotated

from secondpass.command.flags import GradientCheckpointing, TokenBudget, TrainedIn, TrainedOn, refuse_idle, wrong_use
from secondpass.command.plain import option

if TYPE_CHECKING:
    from secondpass.training.settings import (
        CompressionSettings,
        EmbedderSettings,
        LateInteractionSettings,
        LayerSettings,
        TrainingSettings,
    )


@dataclass(frozen=True, kw_only=True)
class LossFlags:
    loss: Annotated[str, option(help="ce, binary, margin_mse, kl, kd, or a sum such as ce+kl or ce=0.4,kl=0.6.")] = (
        "ce"
    )
    lora: Annotated[int | None, option(metavar="RANK", min=1, help="Train low-rank updates only.")] = None
    lora_alpha: Annotated[float | None, option(help="Else twice the rank.")] = None
    lora_targets: Annotated[
        str, option(metavar="attention|all|NAMES", help="What gets updates; NAMES as q_proj,v_proj.")
    ] = "all"
    lora_head: Annotated[
        str, option(metavar="whole|low_rank", help="How the head is trained beside the updates.")
    ] = "whole"
    lora_base: Annotated[
        str, option(metavar="whole|4bit", help="4bit: a decoder's frozen weights in NF4 (QLoRA), on a GPU.")
    ] = "whole"
    adapter: Annotated[bool, option("--adapter", help="Save the updates in PEFT's layout too.")] = False


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Of decoders with a head at each layer."""

    start_layer: Annotated[
        int | None, option(min=1, help="Put heads on a raw language model, from this layer on.")
    ] = None
    inner_teacher: Annotated[
        str | None,
        option(metavar="none|last|eighth|above", help="Which layer teaches those below; else as published."),
    ] = None
    taught: Annotated[str, option(metavar="all|last", help="Layers that a teacher's scores teach.")] = "all"
    compress_layers: Annotated[
        str | None, option(metavar="N,N,...", help="Merge passage tokens there, in some steps, by a ratio.")
    ] = None
    compress_ratios: Annotated[str, option(metavar="N,N,...", help="One is drawn each step.")] = "1,2,4,8"
    compress_always: Annotated[
        bool, option("--compress-always", help="At all layers and by the one ratio in every step.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class VectorFlags:
    """Of embedders and late interaction."""

    method: Annotated[str, option("--as", metavar="reranker|embedder|colbert", help="What the model becomes.")] = (
        "reranker"
    )
    parts: Annotated[str, option(metavar="dense,sparse,colbert", help="Of an embedder; all three are BGE-M3's.")] = (
        "dense"
    )
    score_temperature: Annotated[float | None, option(help="Divides similarities; else 0.02, of colbert 1.")] = None
    dimensions: Annotated[
        str | None, option(metavar="N,N,...", help="Matryoshka: vectors cut to each learn too.")
    ] = None
    in_batch: Annotated[
        str | None,
        option(
            metavar="none|others|all",
            help="Passages of other queries that are candidates too; else all, of colbert others.",
        ),
    ] = None
    self_distillation_from: Annotated[
        int | None, option(min=0, metavar="STEP", help="From there on the sum of the parts teaches each.")
    ] = None
    freeze_encoder: Annotated[
        bool, option("--freeze-encoder", help="Train the heads of sparse and colbert alone.")
    ] = False
    max_query_length: Annotated[int | None, option(min=1, help="Most tokens of a query.")] = None


@dataclass(frozen=True, kw_only=True)
class Course:
    """How it is trained; each field is named as the field of TrainingSettings."""

    temperature: Annotated[float, option(help="Of kl and kd.")] = 1.0
    num_negatives: Annotated[int, option("--negatives", min=0, help="Negatives beside each positive.")] = 7
    epochs: Annotated[int, option(min=1, help="Times that every query is seen.")] = 1
    max_steps: Annotated[int | None, option(min=1, help="Stop after so many steps.")] = None
    batch: Annotated[int, option(min=1, help="Queries per step, over all processes.")] = 16
    learning_rate: Annotated[float, option("--lr", help="Highest learning rate.")] = 2e-5
    schedule: Annotated[str, option(metavar="linear|cosine|constant", help="Of the rate.")] = "linear"
    warmup: Annotated[float, option(help="Share of the steps in which the rate rises.")] = 0.1
    weight_decay: Annotated[float, option(help="Of matrices.")] = 0.01
    max_gradient_norm: Annotated[float, option("--clip", help="Highest norm of the gradient.")] = 1.0
    max_length: Annotated[
        int | None, option(min=1, help="Most tokens of a pair; else 512, of an embedder and colbert their own.")
    ] = None
    has_frozen_words: Annotated[bool, option("--freeze-words", help="Leave the word embeddings.")] = False
    has_shards: Annotated[
        bool, option("--shard", help="Of several processes each keeps its share of a decoder's weights (FSDP).")
    ] = False
    has_gradient_checkpointing: GradientCheckpointing = False
    token_budget: TokenBudget = None
    device: TrainedOn = "auto"
    dtype: TrainedIn = "auto"
    seed: Annotated[int, option(min=0, help="Of order, draws and new weights.")] = 1
    eval_every: Annotated[int | None, option(min=1, help="Steps; else at the end of an epoch.")] = None
    measure: Annotated[str, option(metavar="nDCG@10|MRR@10", help="By which the best is kept.")] = "nDCG@10"
    save_every: Annotated[int, option(min=1, help="Steps between checkpoints.")] = 200
    log_every: Annotated[int, option(min=1, help="Steps between lines.")] = 10
    has_tensorboard: Annotated[bool, option("--tensorboard", help="Write events into OUTPUT/training.")] = False

    @property
    def names_measuring(self) -> bool:
        """Whether it is said when to measure, or by what the best is kept."""
        return (self.eval_every, self.measure) != (Course.eval_every, Course.measure)


def settings_of(loss: LossFlags, layers: Layers, vectors: VectorFlags, course: Course) -> TrainingSettings:
    from secondpass.training.settings import LoraSettings, TrainingSettings, parse_losses

    with wrong_use():
        if loss.lora_base not in ("whole", "4bit"):
            raise ValueError(f"--lora-base is {loss.lora_base!r}; give whole, or with --lora 4bit")
        _check_meant(loss, layers, vectors)
        losses = parse_losses(loss.loss)
        if not losses.keys() & {"kl", "soft_cross_entropy"}:
            needed = "kl or kd in --loss; what divides similarities is --score-temperature"
            refuse_idle(course, Course(), {"temperature"}, needed)
        updates = None
        if loss.lora is not None:
            alpha = _or(loss.lora_alpha, 2.0 * loss.lora)
            updates = LoraSettings(
                rank=loss.lora,
                alpha=alpha,
                targets=loss.lora_targets,
                head=loss.lora_head,
                saves_adapter=loss.adapter,
                has_four_bits=loss.lora_base == "4bit",
            )
        return TrainingSettings(
            losses=losses,
            lora=updates,
            layers=_layers(layers),
            compression=_compression(layers),
            embedder=_embedder(vectors),
            colbert=_colbert(vectors),
            max_query_length=vectors.max_query_length,
            **asdict(course),
        )


def _check_meant(loss: LossFlags, layers: Layers, vectors: VectorFlags) -> None:
    """Raises ValueError for a flag that would change nothing, since another is not given."""
    if loss.lora is None:
        refuse_idle(loss, LossFlags(), {"lora_alpha", "lora_targets", "lora_head", "lora_base", "adapter"}, "--lora")
    if layers.compress_layers is None:
        refuse_idle(layers, Layers(), {"compress_ratios", "compress_always"}, "--compress-layers")
    if vectors.method != "reranker":
        refuse_idle(layers, Layers(), {field.name for field in fields(Layers)}, "--as reranker")
    if vectors.method != "embedder":
        names = {"parts", "dimensions", "self_distillation_from", "freeze_encoder"}
        refuse_idle(vectors, VectorFlags(), names, "--as embedder")
    if vectors.method == "reranker":
        refuse_idle(vectors, VectorFlags(), {"score_temperature", "in_batch"}, "--as embedder or colbert")


def _layers(flags: Layers) -> LayerSettings | None:
    from secondpass.training.settings import LayerSettings

    if flags.taught not in ("all", "last"):
        raise ValueError(f"--taught is {flags.taught!r}; give all or last")
    if (flags.start_layer, flags.inner_teacher, flags.taught) == (None, None, "all"):
        return None
    return LayerSettings(
        start_layer=flags.start_layer, inner_teacher=flags.inner_teacher, teaches_all=flags.taught == "all"
    )


def _embedder(flags: VectorFlags) -> EmbedderSettings | None:
    from secondpass.training.settings import EmbedderSettings

    if flags.method not in ("reranker", "embedder", "colbert"):
        raise ValueError(f"--as is {flags.method!r}; give reranker, embedder or colbert")
    if flags.method != "embedder":
        return None
    return EmbedderSettings(
        parts=tuple(part.strip() for part in flags.parts.split(",")),
        temperature=_or(flags.score_temperature, EmbedderSettings.temperature),
        dimensions=() if flags.dimensions is None else _numbers("--dimensions", flags.dimensions),
        in_batch=flags.in_batch or EmbedderSettings.in_batch,
        self_distillation_from=flags.self_distillation_from,
        has_frozen_encoder=flags.freeze_encoder,
    )


def _colbert(flags: VectorFlags) -> LateInteractionSettings | None:
    from secondpass.training.settings import LateInteractionSettings

    if flags.method != "colbert":
        return None
    return LateInteractionSettings(
        in_batch=flags.in_batch or LateInteractionSettings.in_batch,
        temperature=_or(flags.score_temperature, LateInteractionSettings.temperature),
    )


def _or(value: float | None, usual: float) -> float:
    return usual if value is None else value


def _compression(flags: Layers) -> CompressionSettings | None:
    from secondpass.training.settings import CompressionSettings

    if flags.compress_layers is None:
        return None
    return CompressionSettings(
        layers=_numbers("--compress-layers", flags.compress_layers),
        ratios=_numbers("--compress-ratios", flags.compress_ratios),
        is_fixed=flags.compress_always,
    )


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"{flag} is {text!r}; give numbers with commas between, as 8,16") from error
