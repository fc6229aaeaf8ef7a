"""Linear layers on oneDNN: weights reordered once, activation or residual fused into the product.

The operators are private to torch, so they are tried on a small product first; where one is missing or differs,
the plain path of `models.layers.Linear` stays and gives the same scores. In float32 without AVX512 that is the faster
one: MKL's products at 77 and oneDNN's at 67 GFLOP/s of one thread, and with GELU, which oneDNN computes one by one
there, at 74 and 50 (AMD Zen 3, 1,024 tokens, 768 to 3,072).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secondpass.engine.cpu.threads import this_processor
from secondpass.models.layers import ACTIVATIONS, Linear, LinearKernel
from secondpass.packed import rung

# More tokens are multiplied in blocks of this many.
BLOCK = 2048

# Our activation -> oneDNN's name, scalars, algorithm.
_POINTWISE: dict[str | None, tuple[str, list[float], str | None]] = {
    None: ("none", [], ""),
    "gelu": ("gelu", [], "none"),
    "gelu_tanh": ("gelu", [], "tanh"),
    "relu": ("relu", [], ""),
    "silu": ("swish", [], ""),
    "tanh": ("tanh", [], ""),
}
# Our activation -> itself, over its argument.
IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": torch.ops.aten.gelu_,
    "gelu_tanh": partial(torch.ops.aten.gelu_, approximate="tanh"),
    "relu": torch.relu_,
    "silu": partial(F.silu, inplace=True),
    "tanh": torch.tanh_,
}


class BlasLinear:
    """A linear layer by torch's own product, with its activation or residual over what that gives.

    Its numbers of tokens are few: MKL multiplies one or two rows, or what is left of them for a thread, by other
    kernels, which round otherwise; and torch's GELU is oneDNN's, which compiles shapes.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, x: Tensor, activation: str | None, residual: Tensor | None) -> Tensor:
        rows = x.flatten(0, -2)
        y = F.linear(padded(rows), self.weight, self.bias)
        if activation is not None:
            IN_PLACE[activation](y)
        y = y[: len(rows)].view(*x.shape[:-1], -1)
        return y if residual is None else y.add_(residual)


class OneDnnLinear:
    """A linear layer over a weight in oneDNN's own blocked order."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        self.bias = bias

    def __call__(self, x: Tensor, activation: str | None, residual: Tensor | None) -> Tensor:
        if x.dim() == 2 and len(x) <= BLOCK and len(x) == rung(len(x)):
            return self._product(x, activation, residual)
        rows = x.flatten(0, -2)
        beside = None if residual is None else residual.flatten(0, -2)
        parts = []
        for start in range(0, len(rows), BLOCK):
            part = slice(start, start + BLOCK)
            added = None if beside is None else padded(beside[part])
            parts.append(self._product(padded(rows[part]), activation, added))
        y = (parts[0] if len(parts) == 1 else torch.cat(parts))[: len(rows)]
        return y.view(*x.shape[:-1], -1)

    def _product(self, x: Tensor, activation: str | None, residual: Tensor | None) -> Tensor:
        y: Tensor
        if residual is not None and activation is None:
            y = torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")
            return y
        y = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, *_POINTWISE[activation])
        return y if residual is None else y + residual


def padded(x: Tensor) -> Tensor:
    """x (T, C) with rows of zeros up to the next `rung`."""
    missing = rung(len(x)) - len(x)
    return F.pad(x, (0, 0, 0, missing)) if missing else x


def fuse_linears(model: nn.Module) -> str:
    """Move every Linear of `model` (on the CPU) to oneDNN; returns what was chosen, in words."""
    return fuse_layers([module for module in model.modules() if isinstance(module, Linear)])


def fuse_layers(layers: Sequence[Linear]) -> str:
    dtypes = {layer.weight.dtype for layer in layers}
    uses_blas = dtypes <= {torch.float32} and _is_faster_by_blas()
    if not uses_blas and not all(_works(dtype) for dtype in dtypes):
        return "plain linear layers"
    makes = BlasLinear if uses_blas else OneDnnLinear
    for layer in layers:
        bias = None if layer.bias is None else layer.bias.detach()
        put_kernel(layer, makes(layer.weight.detach(), bias))
    return f"{'MKL' if uses_blas else 'oneDNN'} linear layers"


def _is_faster_by_blas() -> bool:
    """In float32, which MKL multiplies fastest on processors of x86 without AVX512."""
    has_mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return has_mkl and not any(name.startswith("avx512") for name in this_processor().features)


def put_kernel(layer: Linear, kernel: LinearKernel) -> None:
    """The layer runs on `kernel`, which holds the weight in an order of its own; the other copy is dropped."""
    layer.fused = kernel
    layer.weight = nn.Parameter(torch.empty(0, dtype=layer.weight.dtype), requires_grad=False)


def _works(dtype: torch.dtype) -> bool:
    """Whether oneDNN's operators are there and say the same as torch's."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, residual = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((5, 32), (16, 32), (16,), (5, 16))
    )
    try:
        fused = OneDnnLinear(weight, bias)
        plain = F.linear(x.float(), weight.float(), bias.float())
        pairs = [(fused(x, None, residual), plain + residual.float())]
        pairs += [(fused(x, name, None), ACTIVATIONS[name](plain)) for name in ACTIVATIONS]
    except (RuntimeError, AttributeError):
        return False
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    return all(torch.allclose(got.float(), want, atol=tolerance, rtol=tolerance) for got, want in pairs)
