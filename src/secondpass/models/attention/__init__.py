"""Attention: one signature (`reference.Kernel`), and a kernel that is chosen once, when a model is loaded."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secondpass.models.attention.cpu_bf16 import attend_cpu_bf16
from secondpass.models.attention.fused import attend_fused
from secondpass.models.attention.reference import Bias, Kernel, Rule
from secondpass.models.attention.sdpa import attend_sdpa
from secondpass.models.attention.varlen import attend_varlen, is_usable
from secondpass.packed import Packed

# Kernel -> what info() says of it.
NAMES: dict[Kernel, str] = {
    attend_sdpa: "attention row by row",
    attend_cpu_bf16: "bf16 attention",
    attend_fused: "fused attention",
    attend_varlen: "varlen attention",
}


class Attention(nn.Module):
    """A layer's attention by its rule. `kernel` may be replaced by `use_kernel`; the first one runs everywhere."""

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule = rule
        self.kernel: Kernel = attend_sdpa

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        batch: Packed,
        *,
        keep: Tensor | None = None,
        bias: Bias | None = None,
    ) -> Tensor:
        """See `Kernel`."""
        return self.kernel(q, k, v, batch, rule=self.rule, keep=keep, bias=bias)


def pick_kernel(
    device: torch.device, dtype: torch.dtype, width: int, *, has_gradient: bool = False, has_amx: bool = False
) -> Kernel:
    """The fastest that is right for heads of this width; has_amx: the processor multiplies tiles of bfloat16."""
    if is_usable(device, dtype, width, has_gradient=has_gradient):
        return attend_varlen
    if device.type == "cpu" and dtype == torch.bfloat16 and not has_gradient:
        return attend_fused if has_amx else attend_cpu_bf16
    return attend_sdpa


def use_kernel(model: nn.Module, kernel: Kernel) -> str:
    """Let every attention of `model` run on this kernel; returns what was chosen, in words."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.kernel = kernel
    return NAMES[kernel]
