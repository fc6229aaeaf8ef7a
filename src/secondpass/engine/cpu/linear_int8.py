"""Linear layers in 8 bits: weights by output channel, activations by token, products through oneDNN.

Each token has a scale of its own, taken from its values as they come, so a score depends on no calibration texts and
on no other row of the batch. Zafrir et al. 2019, "Q8BERT"; Yao et al. 2022, "ZeroQuant" (scales by token).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secondpass.checkpoint.weights import FULL_PRECISION
from secondpass.engine.cpu.linear_onednn import IN_PLACE, fuse_layers, fuse_linears, padded, put_kernel
from secondpass.engine.cpu.threads import give_back
from secondpass.models.layers import Linear

# Codes of weights are -127..127, or -63..63: without VNNI or AMX a processor adds two products of an unsigned and a
# signed byte in 16 bits, which 2 * 255 * 63 fits and 2 * 255 * 127 does not. Those of activations end at 126: scaled
# in bfloat16, 127 may round up to 128.
WEIGHT_CODES, MAX_CODE = (127, 63), 126
# oneDNN multiplies unsigned by signed bytes on processors without AMX, and for signed ones runs a reference in plain
# C++ that is 10,000 times slower. So codes are stored with this added.
ZERO = 128
# The trial product may take so many times a float32 one: a reference that oneDNN falls back to takes thousands.
MAX_SLOWDOWN = 30

# Tokens at once: what lies between the passes stays in the caches, and in memory that the C library keeps. 3,538
# tokens from 768 to 3,072 with GELU took 28 ms in such blocks and 57 ms at once, most of it page faults.
BLOCK = 1024
# Codes (T, in) as unsigned bytes, and the precision of the result -> codes W^T, (T, out), not yet scaled by token.
Product = Callable[[Tensor, torch.dtype], Tensor]


def quantize_weight(weight: Tensor, most: int = WEIGHT_CODES[0]) -> tuple[Tensor, Tensor]:
    """Codes (out, in), signed bytes up to `most`, and scales (out,): their product is the weight to half a scale."""
    weight = weight.float()
    scales = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / most
    return (weight / scales[:, None]).round_().to(torch.int8), scales


def quantize_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of x (T, in), unsigned bytes around ZERO, and scales (T, 1) in the precision of x."""
    top = _largest(x.abs()).clamp_min(1e-20)
    inverse = MAX_CODE / top
    codes = (x * inverse).round_().to(torch.int8)
    return codes.view(torch.uint8).bitwise_xor_(ZERO), (1 / inverse.float()).to(x.dtype)


def _largest(x: Tensor) -> Tensor:
    """The largest value (T, 1) of each row of x, of which none is negative.

    The bits of such bfloat16 values are whole numbers in the same order (NaN the highest), and torch finds the
    largest of those nine times as fast: 99 instead of 877 us of 1,024 x 3,072 on AVX2.
    """
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).amax(-1, keepdim=True).view(torch.bfloat16)
    return x.amax(-1, keepdim=True)


class Int8Linear:
    """A linear layer over 8-bit weights; what comes in and goes out has the precision of the model."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        products: Callable[[Tensor, Tensor], Product],
        *,
        most: int = WEIGHT_CODES[0],
    ) -> None:
        self.bias = bias
        self.num_out = len(weight)
        self.product = products(*quantize_weight(weight, most))

    def __call__(self, x: Tensor, activation: str | None, residual: Tensor | None) -> Tensor:
        y = x.new_empty(*x.shape[:-1], self.num_out)
        for start in range(0, len(x), BLOCK):
            part = slice(start, start + BLOCK)
            out = y[part]
            self._put(out, x[part])
            if activation is not None:
                IN_PLACE[activation](out)
            if residual is not None:
                out.add_(residual[part])
        return y

    def _put(self, out: Tensor, x: Tensor) -> None:
        codes, scales = quantize_tokens(x)
        scaled = self.product(padded(codes), x.dtype)[: len(x)]
        if self.bias is None:
            torch.mul(scaled, scales, out=out)
        else:
            torch.addcmul(self.bias, scaled, scales, out=out)


def onednn_product(codes: Tensor, scales: Tensor) -> Product:
    """By oneDNN, over weights in its own order."""
    weight = torch.ops.onednn.qlinear_prepack(codes, None)
    zeros = torch.zeros(len(scales), dtype=torch.int64)

    def product(x: Tensor, dtype: torch.dtype) -> Tensor:
        # a scale of 1 for x: oneDNN takes one for all tokens, ours differ
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            x, 1.0, ZERO, weight, scales, zeros, None, 1.0, 0, dtype, "none", [], ""
        )
        return y

    return product


def plain_product(codes: Tensor, scales: Tensor) -> Product:
    """The definition, in float32: slow, and no smaller in its products than float32 is."""

    def product(x: Tensor, dtype: torch.dtype) -> Tensor:
        return (F.linear(x.float() - ZERO, codes.float()) * scales).to(dtype)

    return product


def put_kernels(model: nn.Module, *, is_int8: bool = False) -> str:
    """Give the linear layers of `model`, on the CPU, the fastest kernels that work; says in words what was chosen."""
    words = quantize_linears(model) if is_int8 else fuse_linears(model)
    give_back()  # weights in their old order were freed one by one
    return words


def quantize_linears(model: nn.Module) -> str:
    """Move every Linear of `model` (on the CPU) but its head's to 8 bits; returns what was chosen, in words."""
    named = [(name, module) for name, module in model.named_modules() if isinstance(module, Linear)]
    heads = [layer for name, layer in named if FULL_PRECISION.fullmatch(f"{name}.weight")]
    layers = [layer for name, layer in named if not FULL_PRECISION.fullmatch(f"{name}.weight")]
    dtypes = {layer.weight.dtype for layer in layers}
    most = next((most for most in WEIGHT_CODES if all(_works(dtype, most) for dtype in dtypes)), None)
    products = plain_product if most is None else onednn_product
    for layer in layers:
        bias = None if layer.bias is None else layer.bias.detach()
        put_kernel(layer, Int8Linear(layer.weight.detach(), bias, products, most=most or WEIGHT_CODES[0]))
    words = fuse_layers(heads)
    if most is None:
        return "int8 layers computed in float32, slowly"
    bits = "" if most == WEIGHT_CODES[0] else " with weights of 7 bits"
    return f"oneDNN int8 layers{bits}, {words} in the head"


def _works(dtype: torch.dtype, most: int) -> bool:
    """Whether oneDNN's operators are there, say the same as the definition, and are no reference.

    Among the products tried is the largest that there can be, of codes up to `most`.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 256, generator=generator).to(dtype)
    x[0] = 1
    weight = torch.randn(64, 256, generator=generator)
    weight[0] = 1
    codes = quantize_tokens(x)[0]
    quantized = quantize_weight(weight, most)
    try:
        product = onednn_product(*quantized)
        found = product(codes, dtype)
        seconds = _seconds(lambda: product(codes, dtype))
    except (RuntimeError, AttributeError, TypeError, IndexError):
        return False
    expected = plain_product(*quantized)(codes, dtype)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-2
    is_right = torch.allclose(found.float(), expected.float(), rtol=tolerance, atol=tolerance * float(expected.std()))
    return is_right and seconds < MAX_SLOWDOWN * _seconds(lambda: F.linear(x.float(), weight))


def _seconds(compute: Callable[[], object]) -> float:
    """The best of three: another process may take the core meanwhile."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        compute()
        times.append(time.perf_counter() - started)
    return min(times)
