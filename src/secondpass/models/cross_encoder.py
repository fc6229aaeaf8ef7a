"""A backbone and a head: what reads a query and a candidate together and says one score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from secondpass.models import architecture
from secondpass.models.heads import Classifier
from secondpass.packed import Packed


class CrossEncoder(nn.Module):
    """Scores (N,) of the packed rows."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        module, config_class, backbone_class = architecture(config["model_type"])
        settings = getattr(module, config_class).from_hf(config)
        self.backbone = getattr(module, backbone_class)(settings)
        self.head = Classifier(settings.classifier())
        self.renames: tuple[tuple[str, str], ...] = module.RENAMES
        self.ignored: tuple[str, ...] = module.IGNORED

    def forward(self, batch: Packed) -> Tensor:
        scores: Tensor = self.head(self.backbone(batch, keep=self.head.reads), batch)
        return scores
