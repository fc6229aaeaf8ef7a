"""The kernels of linear layers against their definition, and the plain path where torch's operators are not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from secondpass import Reranker
from secondpass.engine.cpu import linear_int8 as int8
from secondpass.engine.cpu import linear_onednn as fused
from secondpass.engine.cpu.linear_int8 import (
    WEIGHT_CODES,
    Int8Linear,
    onednn_product,
    plain_product,
    quantize_tokens,
    quantize_weight,
)
from secondpass.engine.cpu.linear_onednn import BlasLinear, OneDnnLinear
from secondpass.engine.cpu.threads import Processor
from secondpass.engine.device import pick_dtype
from secondpass.models.layers import ACTIVATIONS
from secondpass.packed import rung
from tests.checkpoints import tiny_bert

PAIRS = [("the river", "water is in the river and the bridge is old"), ("winter", "light"), ("winter", "the city")]


def largest_code(dtype: torch.dtype) -> int | None:
    return next((most for most in WEIGHT_CODES if int8._works(dtype, most)), None)


# dtype -> the largest code of a weight that products of bytes are right with here; None where there are none
MOST = {dtype: largest_code(dtype) for dtype in (torch.float32, torch.bfloat16)}
no_int8 = "no product of bytes in oneDNN here"
has_int8 = pytest.mark.skipif(MOST[torch.float32] is None, reason=no_int8)
has_bf16_int8 = pytest.mark.skipif(MOST[torch.bfloat16] is None, reason=no_int8)


def values(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert"), width=64)


def scores(folder: Path, dtype: str) -> tuple[list[float], str]:
    reranker = Reranker(folder, engine="torch", device="cpu", dtype=dtype)
    return reranker.score_pairs(PAIRS), reranker.info().reason


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("products", [pytest.param(onednn_product, marks=has_int8), plain_product])
def test_int8_stays_within_its_rounding(
    activation: str | None, has_residual: bool, has_bias: bool, products: Any
) -> None:
    x, weight = values(9, 64), values(48, 64)
    bias, residual = values(48) if has_bias else None, values(9, 48) if has_residual else None
    most = MOST[torch.float32] or WEIGHT_CODES[0]
    found = Int8Linear(weight, bias, products, most=most)(x, activation, residual)
    expected = F.linear(x, weight, bias)
    # each of 64 terms is rounded twice, by at most half a step of the largest, of 126 and of `most`
    step = x.abs().amax(1, keepdim=True) * weight.abs().amax(1) / min(most, 126)
    expected = expected if activation is None else ACTIVATIONS[activation](expected)
    expected = expected if residual is None else expected + residual
    assert float(((found - expected).abs() / step).max()) < 64**0.5 * 1.5


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_int8_in_blocks_of_tokens_is_the_same(activation: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    x, layer = values(9, 64), Int8Linear(values(48, 64), values(48), plain_product)
    whole = layer(x, activation, values(9, 48))
    monkeypatch.setattr(int8, "BLOCK", 4)
    torch.testing.assert_close(layer(x, activation, values(9, 48)), whole)


@pytest.mark.parametrize(
    "dtype",
    [pytest.param(torch.float32, marks=has_int8), pytest.param(torch.bfloat16, marks=has_bf16_int8)],
)
@pytest.mark.parametrize("num_tokens", [1, 3, 130])
def test_products_of_bytes_equal_their_definition(dtype: torch.dtype, num_tokens: int) -> None:
    quantized = quantize_weight(values(48, 96), MOST[dtype] or WEIGHT_CODES[0])
    codes = quantize_tokens(values(num_tokens, 96, dtype=dtype))[0]
    found, expected = (make(*quantized)(codes, dtype) for make in (onednn_product, plain_product))
    torch.testing.assert_close(found, expected, rtol=1e-5 if dtype == torch.float32 else 8e-3, atol=1e-3)


def test_codes_stay_in_range_and_zeros_are_exact() -> None:
    x = torch.cat([values(200, 64, dtype=torch.bfloat16), torch.zeros(1, 64, dtype=torch.bfloat16)])
    x[0, 0] = 3e30
    codes, scales = quantize_tokens(x)
    signed = codes.short() - int8.ZERO
    assert int(signed.abs().max()) <= 127 and int(signed.abs()[:200].amax(1).min()) >= 125
    assert not signed[200].any()
    restored = signed * scales.float()
    # half a step, and what bfloat16 rounds
    assert float(((restored - x.float()).abs() / scales.float()).max()) < 1.25


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf")])
def test_a_token_that_is_not_finite_spoils_its_own_scale_alone(dtype: torch.dtype, value: float) -> None:
    x = values(3, 64, dtype=dtype)
    _, expected = quantize_tokens(x)
    x[1, 5] = value
    _, scales = quantize_tokens(x)
    assert not torch.isfinite(scales[1]).any()
    torch.testing.assert_close(scales[[0, 2]], expected[[0, 2]], rtol=0, atol=0)


@has_int8
def test_a_token_keeps_its_codes_whatever_is_beside_it() -> None:
    most = MOST[torch.float32] or WEIGHT_CODES[0]
    x, layer = values(6, 64), Int8Linear(values(48, 64), values(48), onednn_product, most=most)
    together = layer(torch.cat([x, 100 * values(3, 64)]), "gelu", None)[:6]
    torch.testing.assert_close(layer(x, "gelu", None), together, rtol=0, atol=0)


def test_int8_scores_stay_near_and_info_says_it(folder: Path) -> None:
    expected, _ = scores(folder, "float32")
    found, reason = scores(folder, "int8")
    assert found == pytest.approx(expected, abs=0.3)  # its random weights are large
    assert found != expected
    assert ("oneDNN int8 layers" in reason) == (MOST[pick_dtype("auto", torch.device("cpu"))[0]] is not None)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_scores_of_the_plain_path_are_the_same(folder: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = scores(folder, dtype)
    monkeypatch.setattr(fused, "_works", lambda _: False)
    monkeypatch.setattr(int8, "_works", lambda *_: False)
    monkeypatch.setattr(int8, "WEIGHT_CODES", (MOST[pick_dtype("auto", torch.device("cpu"))[0]] or WEIGHT_CODES[0],))
    monkeypatch.setattr(fused, "_is_faster_by_blas", lambda: False)
    found, reason = scores(folder, dtype)
    assert found == pytest.approx(expected, abs=1e-5 if dtype == "float32" else 0.1)
    assert "plain" in reason if dtype != "int8" else "slowly" in reason


def missing(*_: Any) -> Tensor:
    raise AttributeError("'_OpNamespace' object has no attribute")


def refusing(*_: Any) -> Tensor:
    raise RuntimeError("could not create a primitive descriptor")


def wrong(x: Tensor, *_: Any) -> Tensor:
    return torch.zeros(len(x), 16, dtype=x.dtype)


@pytest.mark.parametrize("kernel", [missing, refusing, wrong])
def test_a_broken_operator_is_noticed(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OneDnnLinear, "__call__", lambda self, x, *rest: kernel(x, *rest))
    assert not fused._works(torch.bfloat16)


@pytest.mark.parametrize("kernel", [missing, refusing, wrong])
def test_a_broken_product_of_bytes_is_noticed(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(codes: Tensor, scales: Tensor) -> Any:
        return lambda x, dtype: kernel(x).to(dtype).repeat(1, 4)

    monkeypatch.setattr(int8, "onednn_product", make)
    assert not int8._works(torch.float32, WEIGHT_CODES[0])


def in_pairs(codes: Tensor, scales: Tensor) -> Any:
    """As processors without VNNI multiply: two products are added in 16 bits, which hold no more than 32,767."""

    def product(x: Tensor, dtype: torch.dtype) -> Tensor:
        each = x[:, None].int() * codes[None].int()
        pairs = each.unflatten(-1, (-1, 2)).sum(-1).clamp(-(2**15), 2**15 - 1)
        less = int8.ZERO * codes.int().sum(1)
        return ((pairs.sum(-1) - less) * scales).to(dtype)

    return product


def test_where_products_do_not_fit_16_bits_weights_have_7(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = scores(folder, "float32")
    monkeypatch.setattr(int8, "onednn_product", in_pairs)
    monkeypatch.setattr(int8, "_seconds", lambda _: 1.0)
    assert [most for most in WEIGHT_CODES if int8._works(torch.float32, most)] == [63]
    found, reason = scores(folder, "int8")
    assert "weights of 7 bits" in reason
    assert found == pytest.approx(expected, abs=0.3)


@pytest.mark.parametrize(("features", "said"), [("avx2", "MKL"), ("avx2 avx512_f", "oneDNN")])
def test_float32_is_mkls_without_avx512(
    folder: Path, features: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up = Processor(architecture="x86_64", features=frozenset(features.split()))
    monkeypatch.setattr(fused, "this_processor", lambda: made_up)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert f"{said} linear layers" in scores(folder, "float32")[1]
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert "oneDNN linear layers" in scores(folder, "float32")[1]


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_mkls_layers_equal_their_definition(activation: str | None, has_residual: bool, has_bias: bool) -> None:
    x, weight = values(9, 64), values(48, 64)
    bias, residual = values(48) if has_bias else None, values(9, 48) if has_residual else None
    before = [None if each is None else each.clone() for each in (x, weight, bias, residual)]
    expected = F.linear(x, weight, bias)
    expected = expected if activation is None else ACTIVATIONS[activation](expected)
    expected = expected if residual is None else expected + residual
    torch.testing.assert_close(BlasLinear(weight, bias)(x, activation, residual), expected)
    torch.testing.assert_close([x, weight, bias, residual], before, rtol=0, atol=0)


@has_int8
def test_a_reference_that_is_right_but_slow_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([1.0, 0.001])
    monkeypatch.setattr(int8, "_seconds", lambda _: next(seconds))
    assert not int8._works(torch.float32, MOST[torch.float32] or 0)


@pytest.mark.parametrize("shape", [(1,), (16,), (17,), (130,), (3, 7), (0,)])
def test_any_number_of_tokens_is_right_and_few_are_multiplied_at_once(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "BLOCK", 64)
    weight, bias = values(24, 32), values(24)
    x, residual = values(*shape, 32), values(*shape, 24)
    layer = OneDnnLinear(weight, bias)
    seen: list[int] = []
    product = layer._product

    def spied(x: Tensor, *rest: Any) -> Tensor:
        seen.append(len(x))
        return product(x, *rest)

    monkeypatch.setattr(layer, "_product", spied)
    plain = F.linear(x, weight, bias)
    torch.testing.assert_close(layer(x, None, residual), plain + residual, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(layer(x, "gelu", None), F.gelu(plain), atol=1e-4, rtol=1e-4)
    assert all(count % 16 == 0 and count <= 64 for count in seen)


@has_int8
def test_bytes_are_multiplied_in_few_shapes() -> None:
    seen: list[int] = []

    def products(codes: Tensor, scales: Tensor) -> int8.Product:
        def product(x: Tensor, dtype: torch.dtype) -> Tensor:
            seen.append(len(x))
            return plain_product(codes, scales)(x, dtype)

        return product

    layer = Int8Linear(values(24, 32), values(24), products)
    for count in (1, 16, 17, 300, int8.BLOCK + 5):
        x = values(count, 32)
        torch.testing.assert_close(layer(x, None, None), F.linear(x, values(24, 32), values(24)), atol=0.3, rtol=0.1)
    assert all(count == rung(count) for count in seen)
