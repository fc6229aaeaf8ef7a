"""Vectors on torch: packed batches of single texts, CPU and GPU."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from secondpass.checkpoint.adapter import change_of
from secondpass.checkpoint.checkpoint import Checkpoint
from secondpass.checkpoint.config import MAX_WIDTH
from secondpass.checkpoint.sentence_transformers import dense_settings, layer_file
from secondpass.checkpoint.weights import FULL_PRECISION, load_weights, read_tensors
from secondpass.engine.batches import Budget, budget_of, filled, in_batches
from secondpass.engine.cpu.linear_int8 import put_kernels
from secondpass.engine.cpu.parallel import Streams, threads_in_words
from secondpass.engine.cpu.threads import this_processor
from secondpass.engine.cuda.copies import Arrival
from secondpass.engine.device import pick_device, pick_dtype
from secondpass.engine.engine import TURN_TOKENS, EngineFacts, Heads, Turns, Vectors
from secondpass.errors import CheckpointError, EngineError, UnknownModel
from secondpass.models.attention import pick_kernel, use_kernel
from secondpass.models.layers import Linear
from secondpass.models.text_encoder import Dense, TextEncoder
from secondpass.packed import pack, plan
from secondpass.text.families import is_classifier
from secondpass.types import Row

# torch's name of an activation, in lower case -> ours
DENSE_ACTIVATIONS = {"identity": None, "tanh": "tanh", "gelu": "gelu", "relu": "relu", "silu": "silu"}
# Outputs of one vector per token; the others have one per row.
_BY_TOKEN = ("tokens", "weights")


class TorchEncoder:
    """A text encoder on torch."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        heads: Heads,
        *,
        device: str = "auto",
        dtype: str = "auto",
        token_budget: int | None = None,
    ) -> None:
        self._device = pick_device(device)
        self._dtype, reason = pick_dtype(dtype, self._device)
        self.model = _load(checkpoint, heads, self._dtype).to(self._device).eval()
        config = self.model.backbone.config
        self.width = _width(self.model, config.width)
        self._budget = Budget(token_budget) if token_budget else budget_of(self._device, config, self._dtype)
        self._in_batches = Streams(config.width).in_batches if self._device.type == "cpu" else in_batches
        self.fingerprint = _fingerprint(self.model)
        if self._device.type == "cpu":
            reason += ", " + put_kernels(self.model) + ", " + threads_in_words()
        reason += ", " + use_kernel(
            self.model, pick_kernel(self._device, self._dtype, config.head_width, has_amx=this_processor().has_amx)
        )
        self._reason, self._max_length = reason, int(config.max_length)
        self._turns = Turns()  # one caller at a time: each uses all cores already

    @property
    def facts(self) -> EngineFacts:
        return EngineFacts(
            name="torch",
            device=str(self._device),
            dtype=str(self._dtype).removeprefix("torch."),
            reason=self._reason,
            max_length=self._max_length,
            token_budget=self._budget.tokens,
        )

    def run(
        self, rows: Sequence[Row], outputs: Collection[str], visible: Sequence[int] | None = None
    ) -> dict[str, Vectors]:
        starts = np.array([0, *accumulate(len(row) for row in rows)])
        found: dict[str, Vectors] = {}

        order = range(len(rows)) if visible is None else sorted(range(len(rows)), key=visible.__getitem__)
        lengths = [len(rows[index]) for index in order]  # rows of one length stay together where as much is visible
        for part in plan(lengths, token_budget=max(TURN_TOKENS, self._budget.tokens)):
            picked = [order[i] for i in part]

            def forward(batch: list[int], picked: Sequence[int] = picked) -> dict[str, Tensor]:
                seen = None if visible is None else tuple(visible[picked[i]] for i in batch)
                return self._forward([rows[picked[i]] for i in batch], outputs, seen)

            arriving: list[tuple[list[int], dict[str, Arrival]]] = []
            with self._turns, torch.inference_mode():
                for batch, values in self._in_batches([lengths[i] for i in part], self._budget, forward):
                    copies = {name: Arrival(copy) for name, copy in values.items()}
                    arriving.append(([picked[i] for i in batch], copies))
                    if len(arriving) > 1:  # one batch is computed while the one before it is put in its place
                        _put(found, *arriving.pop(0), starts)
            for batch, copies in arriving:
                _put(found, batch, copies, starts)
        self._check_finite(found)
        return found

    def _forward(
        self, rows: Sequence[Row], outputs: Collection[str], visible: tuple[int, ...] | None
    ) -> dict[str, Tensor]:
        fills = self._device.type == "cpu" and visible is None
        given = filled(rows, self._max_length) if fills else rows
        batch = replace(pack(given), visible=visible).to(self._device)
        values: dict[str, Tensor] = self.model(batch, outputs)
        num_tokens = sum(map(len, rows))
        return {name: x[: num_tokens if name in _BY_TOKEN else len(rows)] for name, x in values.items()}

    def _check_finite(self, found: dict[str, Vectors]) -> None:
        for name, values in found.items():
            bad = int((~np.isfinite(values)).any(axis=1).sum())
            if bad:
                raise EngineError(
                    f"{bad} of {len(values)} vectors ({name}) are not finite in {self.facts.dtype}; "
                    "load the model with dtype='float32'"
                )


def _put(found: dict[str, Vectors], batch: list[int], copies: dict[str, Arrival], starts: NDArray[np.int64]) -> None:
    """Copy the vectors of a batch to the positions of its rows, or of their tokens, in the whole."""
    tokens = np.concatenate([np.arange(starts[index], starts[index + 1]) for index in batch])
    for name, copy in copies.items():
        part = copy.numpy()
        positions, size = (tokens, int(starts[-1])) if name in _BY_TOKEN else (batch, len(starts) - 1)
        if name not in found:
            found[name] = np.empty((size, part.shape[1]), np.float32)
        found[name][positions] = part


def _load(checkpoint: Checkpoint, heads: Heads, dtype: torch.dtype) -> TextEncoder:
    with torch.device("meta"):
        model = TextEncoder(checkpoint.config, pooling=heads.pooling, token_width=heads.token_width)
    try:
        load_weights(
            model,
            checkpoint.weight_files(),
            renames=model.renames,
            ignored=model.ignored,
            dtype=dtype,
            change=change_of(checkpoint),
        )
    except CheckpointError as error:
        if not is_classifier(checkpoint.config):
            raise
        message = f"{checkpoint.name} is a reranker, it scores pairs; open it with secondpass.Reranker ({error})"
        raise CheckpointError(message) from error
    width = model.backbone.config.width
    for name, file in (heads.files or {}).items():
        model.head[name] = load_linear(file, width, None if name == "tokens" else 1)
    if heads.layers:
        model.head["tokens"] = _joined(heads.layers, width)
    if heads.dense:
        model.head["pooled"] = _dense(heads.dense, _width(model, width))
    return model


def _width(model: TextEncoder, width: int) -> int:
    """Of a pooled vector."""
    if "pooled" in model.head:
        last = cast("Dense", list(model.head["pooled"].children())[-1])
        return last.linear.weight.shape[0]
    return width * len(model.pooling.split("+"))


def _dense(folders: Sequence[Path], width: int) -> nn.Sequential:
    """Raises CheckpointError for layers that are not whole or do not fit, UnknownModel for another activation."""
    layers = nn.Sequential()
    for folder in folders:
        layers.append(layer := _dense_layer(folder, width))
        width = layer.linear.weight.shape[0]
    return layers


def _dense_layer(folder: Path, width: int) -> Dense:
    settings = dense_settings(folder)
    name = str(settings.get("activation_function", "Tanh")).rsplit(".", 1)[-1].lower()
    sizes = settings.get("in_features"), settings.get("out_features")
    if name not in DENSE_ACTIVATIONS:
        known = ", ".join(DENSE_ACTIVATIONS)
        raise UnknownModel(f"{folder}: activation_function is {name!r}; there are {known}")
    if sizes[0] != width or not isinstance(sizes[1], int) or not 0 < sizes[1] <= MAX_WIDTH:
        raise CheckpointError(f"{folder}: is a layer from {sizes[0]} to {sizes[1]}; one from {width} is needed")
    with torch.device("meta"):
        layer = Dense(width, sizes[1], has_bias=bool(settings.get("bias", True)), activation=DENSE_ACTIVATIONS[name])
    load_weights(layer, [layer_file(folder)], renames=(), dtype=torch.float32)
    return layer


def load_linear(file: Path, num_in: int, num_out: int | None = None) -> Linear:
    """The float32 layer of a file of its own, with `num_out` outputs; None: with as many as the file has."""
    if num_out is None:  # FlagEmbedding's colbert_dim, which no config.json says
        weight = dict(read_tensors([file])).get("weight")
        num_out = num_in if weight is None or weight.ndim != 2 else len(weight)
    with torch.device("meta"):
        linear = Linear(num_in, num_out)
    load_weights(linear, [file], renames=(), dtype=torch.float32)
    return linear


def _joined(folders: Sequence[Path], width: int) -> Linear:
    """Linear layers one after the other, as one. Raises CheckpointError for what is not whole or does not fit."""
    weight, bias = torch.eye(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    for folder in folders:
        file = layer_file(folder)
        found = {name: tensor.double() for name, tensor in read_tensors([file])}
        matrix = found.get("linear.weight")
        if matrix is None or matrix.ndim != 2 or matrix.shape[1] != len(weight):
            shape = None if matrix is None else tuple(matrix.shape)
            raise CheckpointError(f"{file}: linear.weight is {shape}; (D, {len(weight)}) is needed")
        if dense_settings(folder).get("use_residual"):
            matrix = matrix + found.get("residual.weight", torch.eye(*matrix.shape, dtype=torch.float64))
        weight, bias = matrix @ weight, matrix @ bias
        bias = bias + found.get("linear.bias", torch.zeros_like(bias))
    linear = Linear(width, len(weight))
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)  # type: ignore[union-attr]
    return linear


def _fingerprint(model: nn.Module) -> str:
    """sha256 over the norms and heads: little to read, changed by any training, float32 in every precision."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if FULL_PRECISION.fullmatch(name):
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().numpy().tobytes())
    return digest.hexdigest()
