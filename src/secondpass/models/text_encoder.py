"""A backbone that says vectors: one per row, one per token, and a weight per token."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor, nn

from secondpass.models import Backbone, build_backbone
from secondpass.models.heads import mean_by_row
from secondpass.models.late_interaction import LateInteractionConfig
from secondpass.models.layers import Linear
from secondpass.packed import Packed

POOLINGS: dict[str, Callable[[Tensor, Packed], Tensor]] = {
    "cls": lambda states, batch: states[batch.first()],
    "mean": lambda states, batch: mean_by_row(states.float(), batch),
    "last": lambda states, batch: states[batch.last()],
}


class TextEncoder(nn.Module):
    """Hidden states of a backbone, pooled by row, projected by token, or both.

    The heads are None until there are weights for them: `tokens` projects a state to a token vector, `weights` to
    how much a token matters. They stay float32 in every precision.
    """

    def __init__(self, config: Mapping[str, Any], *, pooling: str, token_width: int | None = None) -> None:
        super().__init__()
        architecture = build_backbone(config)
        self.backbone: Backbone = architecture.backbone
        self.pooling = pooling
        self.head = nn.ModuleDict()
        if token_width is not None:
            self.head["tokens"] = Linear(architecture.config.width, token_width, has_bias=False)
        # A checkpoint's pooler is of its pre-training; ColBERT's projection lies beside its backbone.
        self.renames: tuple[tuple[str, str], ...] = (*architecture.renames, (r"linear\.(.*)", r"head.tokens.\1"))
        self.ignored: tuple[str, ...] = (*architecture.ignored, r"(?:\w+\.)?pooler\..*")
        if LateInteractionConfig.from_hf(config) is not None:  # a reranker that is this encoder and a head
            self.ignored += (r"head\.(scale|bias)", r"word_match\..*")

    def forward(self, batch: Packed, outputs: Collection[str]) -> dict[str, Tensor]:
        """Of "pooled" (N, C), "tokens" (T, D) and "weights" (T, 1) those that are asked for, in float32."""
        if set(outputs) == {"pooled"} and self.pooling in ("cls", "last"):
            return {"pooled": self.backbone(batch, keep="first" if self.pooling == "cls" else "last").float()}
        states = self.backbone(batch, keep="all")
        found = {name: self.head[name](states.float()) for name in outputs if name != "pooled"}
        if "pooled" in outputs:
            found["pooled"] = POOLINGS[self.pooling](states, batch).float()
        if "weights" in found:
            found["weights"] = found["weights"].relu()
        return found
