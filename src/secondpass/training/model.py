"""Rerankers that can be trained: encoders with a head of their own or a fresh one, and decoders with theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from secondpass.checkpoint.adapter import change_of, check_words
from secondpass.checkpoint.checkpoint import Checkpoint, open_checkpoint
from secondpass.checkpoint.save import Naming, classifier_config
from secondpass.checkpoint.weights import Change, load_weights, read_tensors, rename
from secondpass.errors import UnknownModel
from secondpass.models import decoder
from secondpass.models.attention import pick_kernel, use_kernel
from secondpass.models.cross_encoder import CrossEncoderModel
from secondpass.models.heads import LogitConfig
from secondpass.models.layers import EmbeddingTable
from secondpass.text.families import BY_LAYER, FAMILIES, SavedHead, family_of, num_labels, recipe_for, saved_head
from secondpass.text.tokenizer import Tokenizer

FRESH_STD = 0.02  # of BERT's own start (Devlin et al. 2019)
# Of the backbone, what a frozen vocabulary leaves alone.
WORDS = "backbone.word.weight"
# The word whose logit a raw language model's new heads begin as, as FlagEmbedding has it.
RAW_ANSWER = "Yes"
Net = TypeVar("Net", bound=nn.Module, covariant=True)
Tensors = Iterable[tuple[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Trainable(Generic[Net]):
    """A model on its device, and what is needed to write it down again.

    fresh are our names of the tensors that were not in the checkpoint. config is that of the result. answers are the
    rows of the output matrix that the head holds, where it holds some: (our name of the matrix, rows).
    """

    checkpoint: Checkpoint
    model: Net
    config: Mapping[str, Any]
    naming: Naming
    device: torch.device
    dtype: torch.dtype
    fresh: tuple[str, ...] = ()
    answers: tuple[str, Sequence[int]] | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        return self.checkpoint.tokenizer

    @property
    def max_length(self) -> int:
        """The longest row that the model can read, in tokens."""
        longest: int = self.model.backbone.config.max_length  # type: ignore[union-attr, assignment]
        known = self.tokenizer.max_length
        return longest if known is None else min(longest, known)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by our names."""
        return {name: tensor for name, tensor in self.model.named_parameters() if tensor.requires_grad}

    def named(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our tensors by the names of the file, with the head's rows back in the matrix that they are of."""
        found = self.naming.named({name: x for name, x in tensors.items() if name in self.naming.blocks})
        if self.answers is not None and self.answers[0] in self.naming.blocks and self.answers[0] not in tensors:
            ((name, _),) = self.naming.parts(self.answers[0])
            whole = next(x for key, x in read_tensors(self.checkpoint.weight_files()) if key == name).clone()
            whole[list(self.answers[1])] = tensors["head.out.weight"].detach().to(whole.device, whole.dtype)
            found[name] = whole
        return found


def open_trainable(
    model: str | Path | Checkpoint,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    seed: int = 1,
    is_low_rank: bool = False,
    start_layer: int | None = None,
    has_frozen_words: bool = False,
    has_gradient_checkpointing: bool = False,
    is_on_host: bool = False,
) -> Trainable[CrossEncoderModel]:
    """The reranker of a folder or of the hub as it is; a plain encoder with a fresh head drawn by `seed`.

    is_low_rank: only updates and the head will be trained, so that a decoder's weights are kept in `dtype`.
    is_on_host: the weights stay there, to be moved to the device in shares or in four bits.
    start_layer: a decoder without heads at its layers gets one at each from there on, all as its logit of "Yes".
    Raises UnknownModel for what is no reranker and cannot become one, CheckpointError for a damaged checkpoint.
    """
    checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(model)
    _check_reranker(checkpoint.config)
    if _is_decoder(checkpoint.config):
        trainable = _open_decoder(checkpoint, device, dtype, start_layer, is_low_rank=is_low_rank)
    elif start_layer is not None:
        raise UnknownModel(f"{checkpoint.name} is an encoder; heads at its layers are for decoders")
    else:
        trainable = _open_encoder(checkpoint, device, dtype, seed)
    make_ready(
        trainable,
        has_frozen_words=has_frozen_words,
        has_gradient_checkpointing=has_gradient_checkpointing,
        is_on_host=is_on_host,
    )
    return trainable


def make_ready(
    trainable: Trainable[nn.Module],
    *,
    has_frozen_words: bool = False,
    has_gradient_checkpointing: bool = False,
    is_on_host: bool = False,
) -> None:
    """Weights on their device that take a gradient; the backbone computes in `dtype`, the head in float32."""
    net: Any = trainable.model
    net.to("cpu" if is_on_host else trainable.device).requires_grad_(True)
    kernel = pick_kernel(trainable.device, trainable.dtype, net.backbone.config.head_width, has_gradient=True)
    use_kernel(net, kernel)
    if trainable.answers is not None and trainable.answers[0] == WORDS:
        net.head.out.fused = TiedRows(net.backbone.word, trainable.answers[1])
        net.head.out.weight.requires_grad_(False)
    if has_frozen_words:
        net.get_parameter(WORDS).requires_grad_(False)
    if has_gradient_checkpointing:
        recompute_blocks(net.backbone)
    if trainable.dtype != torch.float32:  # the backbone alone; what is above it makes float32 of its states
        net.backbone.forward = torch.autocast(trainable.device.type, dtype=trainable.dtype)(net.backbone.forward)


class TiedRows:
    """A linear layer that is some rows of the word embeddings, so that these have the gradients of both."""

    def __init__(self, words: EmbeddingTable, rows: Sequence[int]) -> None:
        self._words, self._rows = words, torch.tensor(list(rows))

    def __call__(self, x: Tensor, activation: str | None, residual: Tensor | None) -> Tensor:
        return F.linear(x, self._words.weight[self._rows.to(x.device)].to(x.dtype))


def recompute_blocks(backbone: Any) -> None:
    """Gradient checkpointing (Chen et al. 2016): only what goes into each block is kept for the backward pass."""
    for block in backbone.layers:
        block.forward = _recomputed(block.forward)
        if isinstance(block, decoder.DecoderLayer):
            block.project = _recomputed(block.project)  # type: ignore[method-assign]


def _recomputed(function: Callable[..., Any]) -> Callable[..., Any]:
    return partial(recomputed, function, use_reentrant=False, preserve_rng_state=False)


def load_float32(net: nn.Module, checkpoint: Checkpoint, source: Source, ignored: Sequence[str] = ()) -> None:
    """Float32 weights in memory of their own, which may be written to, not mapped from the file."""
    load_weights(
        net,
        checkpoint.weight_files(),
        renames=source.naming.renames,
        ignored=ignored,
        dtype=torch.float32,
        change=source.changed,
    )
    for parameter in net.parameters():
        parameter.data = parameter.data.clone()


def _open_encoder(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, seed: int
) -> Trainable[CrossEncoderModel]:
    has_head = _has_head(checkpoint.config)
    layout = None if has_head else saved_head(checkpoint.config)
    config = dict(checkpoint.config) if layout is None else classifier_config(checkpoint.config, layout)
    with torch.device("meta"):
        net = CrossEncoderModel(config, recipe_for(config))
    source = Source(checkpoint, net, net.renames, layout, seed)
    load_float32(net, checkpoint, source, net.ignored if has_head else ())
    return Trainable(
        checkpoint=checkpoint,
        model=net,
        config=config,
        naming=source.naming,
        fresh=tuple(source.fresh),
        device=device,
        dtype=dtype,
    )


def _open_decoder(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, start_layer: int | None, *, is_low_rank: bool
) -> Trainable[CrossEncoderModel]:
    known = checkpoint.config.get("start_layer")
    if start_layer is not None and known not in (None, start_layer):
        raise ValueError(f"start_layer is {start_layer}; {checkpoint.name} has heads from layer {known} on")
    is_raw = start_layer is not None and known is None
    config = dict(checkpoint.config) if not is_raw else layered_config(checkpoint.config, int(start_layer or 0))
    recipe = recipe_for(config)
    if recipe.head == "layers_in_order":
        config[BY_LAYER] = True  # each layer's own head is trained
    answer_ids = recipe.answer_ids(checkpoint.tokenizer) if recipe.answers else []
    with torch.device("meta"):
        net = CrossEncoderModel(config, recipe, answer_ids=answer_ids)
    naming = Naming(renames=net.renames)
    load_weights(
        net,
        checkpoint.weight_files(),
        renames=net.renames,
        ignored=net.ignored,
        dtype=dtype if is_low_rank else torch.float32,
        rows=net.rows,
        change=_decoder_source(checkpoint, net, naming, is_raw=is_raw),
    )
    for parameter in net.parameters() if not is_low_rank else net.head.parameters():
        parameter.data = parameter.data.clone()
    return Trainable(
        checkpoint=checkpoint,
        model=net,
        config=config,
        naming=naming,
        fresh=("head.out.weight",) if is_raw else (),
        device=device,
        dtype=dtype,
        answers=net.rows.get("head.out.weight"),
    )


def _decoder_source(checkpoint: Checkpoint, net: CrossEncoderModel, naming: Naming, *, is_raw: bool) -> Change:
    """What is read: with its adapter, with new heads where the model is raw, and each name noted."""
    check_words(checkpoint)
    adapted, reads = change_of(checkpoint), net.backbone.config.reads

    def changed(tensors: Tensors) -> Iterator[tuple[str, Tensor]]:
        tensors = tensors if adapted is None else adapted(tensors)
        if is_raw and isinstance(reads, LogitConfig):
            tensors = _with_layer_heads(tensors, net, reads, checkpoint.tokenizer.encode(RAW_ANSWER)[-1])
        yield from naming.noted(tensors)

    return changed


# model_type of a raw language model -> what its config.json says once it has heads at its layers
_LAYERED: Mapping[str, Mapping[str, Any]] = {
    "minicpm": {"architectures": ["LayerWiseMiniCPMForCausalLM"], "head_type": "simple", "head_multi": True},
    "mistral": {
        "architectures": ["CostWiseMistralForCausalLM"],
        "model_type": "cost_wise_mistral",
        "layer_sep": 1,
        "layer_wise": True,
    },
    "gemma2": {
        "architectures": ["CostWiseGemmaForCausalLM"],
        "model_type": "cost_wise_gemma",
        "layer_sep": 1,
        "layer_wise": True,
        "attn_implementation": "eager",  # with the soft-cap that the raw model was trained with
    },
}


def layered_config(config: Mapping[str, Any], start_layer: int) -> dict[str, Any]:
    """config.json of a raw language model with a head at each layer from start_layer on. Raises UnknownModel."""
    model_type = str(config.get("model_type"))
    if model_type not in _LAYERED:
        raise UnknownModel(f"heads at layers cannot be put on model_type {model_type!r}; on {', '.join(_LAYERED)}")
    if not 1 <= start_layer <= config["num_hidden_layers"]:
        raise ValueError(f"start_layer is {start_layer}; {model_type} has 1 to {config['num_hidden_layers']}")
    return {**config, **_LAYERED[model_type], "start_layer": start_layer}


def _with_layer_heads(
    tensors: Tensors, net: CrossEncoderModel, reads: LogitConfig, answer: int
) -> Iterator[tuple[str, Tensor]]:
    """The backbone, and for each layer a head that is the answer's row of the output matrix."""
    for name, tensor in tensors:
        target = rename(name, net.renames)
        if target == reads.matrix:
            row = tensor[[answer]].clone()
            for index in range(len(reads.layers)):
                yield f"lm_head.{index}.linear_head.weight", row
        if target != "output.weight":
            yield name, tensor


def _check_reranker(config: Mapping[str, Any]) -> None:
    model_type = str(config.get("model_type"))
    known = [name for name, family in FAMILIES.items() if family.recipe or family.layer_recipe]
    if model_type not in known:
        raise UnknownModel(f"model_type {model_type!r} cannot be trained; rerankers can be of {', '.join(known)}")


def is_reranker(checkpoint: Checkpoint) -> bool:
    """Whether it scores pairs before it is trained. Raises UnknownModel for what cannot become a reranker."""
    _check_reranker(checkpoint.config)
    return _is_decoder(checkpoint.config) or _has_head(checkpoint.config)


def _is_decoder(config: Mapping[str, Any]) -> bool:
    return family_of(config).backbone.startswith("decoder.")


def _has_head(config: Mapping[str, Any]) -> bool:
    """Whether the checkpoint is a classifier of one label, which is what a reranker is."""
    names = config.get("architectures") or ()
    return any(name.endswith("ForSequenceClassification") for name in names) and num_labels(config) == 1


class Source:
    """What is read from a checkpoint on its way into the model: names are noted, a head is added where none is.

    layout says how a head is named; None for a checkpoint that is read as it is.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        net: nn.Module,
        renames: Sequence[tuple[str, str]],
        layout: SavedHead | None,
        seed: int,
    ) -> None:
        self._adapted = change_of(checkpoint)
        self._layout = layout
        self._shapes = {name: tuple(parameter.shape) for name, parameter in net.named_parameters()}
        self._generator = torch.Generator().manual_seed(seed)
        self.naming = Naming(renames=renames)
        self.fresh: list[str] = []

    def changed(self, tensors: Tensors) -> Iterator[tuple[str, Tensor]]:
        tensors = tensors if self._adapted is None else self._adapted(tensors)
        yield from self.naming.noted(tensors if self._layout is None else self._wanted(tensors, self._layout))
        if self._layout is not None:
            yield from self._added(self._layout)

    def _wanted(self, tensors: Tensors, layout: SavedHead) -> Iterator[tuple[str, Tensor]]:
        """The backbone, and what transformers too would take into the head; not the heads of pre-training."""
        heads = set(layout.head.values())
        for name, tensor in tensors:
            name = layout.full_name(name)
            target = rename(name, self.naming.renames).partition("@")[0]
            is_head = target.startswith("head.")
            is_ours = name.rpartition(".")[0] in heads and self._shapes.get(target) == tuple(tensor.shape)
            if target in self._shapes and (is_ours or not is_head):
                yield name, tensor

    def _added(self, layout: SavedHead) -> Iterator[tuple[str, Tensor]]:
        for target, shape in self._shapes.items():
            if target.startswith("head.") and target not in self.naming.blocks:
                module, _, kind = target.rpartition(".")
                name, tensor = f"{layout.head[module]}.{kind}", self._drawn(target, shape)
                self.fresh.append(target)
                self.naming.note(name, tensor)
                yield name, tensor

    def _drawn(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name.endswith("norm.weight"):
            return torch.ones(shape)
        if name.endswith("bias"):
            return torch.zeros(shape)
        return torch.randn(shape, generator=self._generator) * FRESH_STD
