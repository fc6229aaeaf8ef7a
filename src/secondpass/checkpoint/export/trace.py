"""A cross-encoder in the form that is traced for export: padded inputs (N, L) to logits (N, 1), in float32."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from secondpass.checkpoint.adapter import change_of
from secondpass.checkpoint.checkpoint import Checkpoint
from secondpass.checkpoint.graph import STATES
from secondpass.checkpoint.save import Naming
from secondpass.checkpoint.weights import load_weights
from secondpass.models.cross_encoder import CrossEncoderModel
from secondpass.models.late_interaction import LateInteraction
from secondpass.packed import Packed

Inputs = Mapping[str, NDArray[np.int64]]  # of one call, each (N, L)
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Padded(nn.Module):
    """A cross-encoder over padded inputs (N, L); `naming` knows what its parameters are called in the checkpoint."""

    def __init__(self, model: CrossEncoderModel, naming: Naming) -> None:
        super().__init__()
        self.model = model
        self.naming = naming

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
    ) -> Tensor | tuple[Tensor, Tensor]:
        n, length = input_ids.shape
        positions = torch.arange(n)[:, None].expand(n, length)
        batch = Packed(
            ids=input_ids.reshape(-1),
            positions=torch.arange(length)[None].expand(n, length).reshape(-1),
            types=token_type_ids.reshape(-1),
            rows=positions.reshape(-1),
            starts=torch.arange(n + 1) * length,
            lengths=(int(length),) * int(n),
            passages=((0, int(length)),) * int(n),
            mask=attention_mask,
        )
        if isinstance(self.model.head, LateInteraction):
            scores, states = self.model.read_apart(batch)
            return scores.reshape(n, 1), states.reshape(n, length, -1)
        scores = self.model(batch)
        return torch.reshape(scores, (n, 1))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what `forward` gives, in its order."""
        return ("logits", STATES) if isinstance(self.model.head, LateInteraction) else ("logits",)


def traceable(checkpoint: Checkpoint) -> Padded:
    """The model with its weights, an adapter's changes in them. Raises ValueError for a decoder."""
    with torch.device("meta"):
        model = CrossEncoderModel(checkpoint.config)
    if model.is_decoder:
        raise ValueError(
            f"{checkpoint.name} is a decoder ({checkpoint.config['model_type']}); only encoders can be exported, "
            "run it with the torch engine"
        )
    adapted, naming = change_of(checkpoint), Naming(renames=model.renames)
    load_weights(
        model,
        checkpoint.weight_files(),
        renames=model.renames,
        ignored=model.ignored,
        dtype=torch.float32,
        change=lambda tensors: naming.noted(tensors if adapted is None else adapted(tensors)),
    )
    return Padded(model.eval(), naming)


def example() -> dict[str, Tensor]:
    """Inputs to trace with; the sizes are dynamic in what comes out."""
    return {name: torch.ones(2, 7, dtype=torch.int64) for name in INPUTS}
