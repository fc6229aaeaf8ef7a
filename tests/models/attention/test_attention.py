"""Every kernel of `attention` against its definition, one row at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from secondpass.models.attention.attention import (
    MAX_MATMUL_LENGTH,
    attend_kept,
    attention,
    masked_attention,
    window_bias,
)
from secondpass.packed import Packed, pack
from secondpass.types import Row

SCALE = 0.3
LENGTHS = (7, 7, 1, 4, 4, 4)
LONG = (MAX_MATMUL_LENGTH + 40, MAX_MATMUL_LENGTH + 40, 5)
CASES = [
    pytest.param({}, 4, id="plain"),
    pytest.param({"window": 2}, 4, id="window"),
    pytest.param({"window": 40}, 4, id="wide-window"),
    pytest.param({"is_causal": True}, 4, id="causal"),
    pytest.param({"is_causal": True, "window": 2}, 4, id="causal-window"),
    pytest.param({"is_causal": True, "softcap": 1.5, "window": 20}, 2, id="gemma2"),
    pytest.param({"softcap": 1.5}, 4, id="softcap"),
    pytest.param({}, 1, id="grouped"),
    pytest.param({"is_causal": True}, 2, id="grouped-causal"),
    pytest.param({"window": 3}, 2, id="grouped-window"),
]


def rows_of(lengths: tuple[int, ...]) -> Packed:
    return pack([Row(ids=[1] * length, passage=(0, length)) for length in lengths])


def random_heads(num_tokens: int, kv_heads: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((num_tokens, heads, 8) for heads in (4, kv_heads, kv_heads))
    q, k, v = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return q, k, v


def defined(q: Tensor, k: Tensor, v: Tensor, batch: Packed, options: dict[str, float]) -> Tensor:
    """Row by row, and which keys are seen written out as a loop."""
    outputs = []
    for start, length in zip(batch.starts.tolist(), batch.lengths, strict=False):
        row = slice(start, start + length)
        heads = (x[row].float().transpose(0, 1)[None] for x in (q, k, v))
        outputs.append(masked_attention(*heads, seen(length, options), scale=SCALE, softcap=options.get("softcap")))
    return torch.cat([out[0].transpose(0, 1) for out in outputs])


def seen(length: int, options: dict[str, float]) -> Tensor:
    window, is_causal = options.get("window", length), options.get("is_causal")
    places = range(length)
    rows = [[abs(i - j) <= window and not (is_causal and j > i) for j in places] for i in places]
    return torch.zeros(length, length).masked_fill(~torch.tensor(rows), float("-inf"))


@pytest.mark.parametrize(("options", "kv_heads"), CASES)
def test_packed_rows_equal_the_definition(options: dict[str, float], kv_heads: int) -> None:
    batch = rows_of(LENGTHS)
    q, k, v = random_heads(sum(LENGTHS), kv_heads)
    found = attention(q, k, v, batch, scale=SCALE, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(found, defined(q, k, v, batch, options), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("options", "kv_heads"), CASES)
def test_blocks_of_a_long_row_equal_the_definition(options: dict[str, float], kv_heads: int) -> None:
    batch = rows_of(LONG)
    q, k, v = random_heads(sum(LONG), kv_heads)
    found = attention(q, k, v, batch, scale=SCALE, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(found, defined(q, k, v, batch, options), atol=2e-6, rtol=0)


@pytest.mark.parametrize(("options", "kv_heads"), CASES)
@pytest.mark.parametrize("lengths", [LENGTHS, LONG], ids=["short", "long"])
def test_bfloat16_stays_near(options: dict[str, float], kv_heads: int, lengths: tuple[int, ...]) -> None:
    batch = rows_of(lengths)
    q, k, v = random_heads(sum(lengths), kv_heads, torch.bfloat16)
    found = attention(q, k, v, batch, scale=SCALE, **options)  # type: ignore[arg-type]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), defined(q, k, v, batch, options), atol=0.04, rtol=0.02)


@pytest.mark.parametrize(("options", "kv_heads"), CASES)
def test_the_padded_form_equals_packed(options: dict[str, float], kv_heads: int) -> None:
    batch = rows_of(LENGTHS)
    q, k, v = random_heads(sum(LENGTHS), kv_heads)
    padded, places = padded_form(batch, 12)
    wide = [torch.zeros(len(LENGTHS) * 12, *x.shape[1:]).index_copy_(0, places, x) for x in (q, k, v)]
    found = attention(wide[0], wide[1], wide[2], padded, scale=SCALE, **options)  # type: ignore[arg-type]
    assert found.isfinite().all()  # NaN of padding would reach real tokens through the next block
    expected = attention(q, k, v, batch, scale=SCALE, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(found[places], expected, atol=1e-6, rtol=0)


def padded_form(batch: Packed, length: int) -> tuple[Packed, Tensor]:
    """Rows of `length` tokens with a mask, and where in them the packed tokens are."""
    n = len(batch.lengths)
    places = batch.rows * length + batch.positions
    mask = torch.zeros(n * length, dtype=torch.long).index_fill_(0, places, 1).reshape(n, length)
    positions = torch.arange(length).repeat(n)
    rows = torch.arange(n).repeat_interleave(length)
    starts = torch.arange(n + 1) * length
    padded = replace(batch, mask=mask, positions=positions, rows=rows, starts=starts, lengths=(length,) * n)
    return padded, places


@pytest.mark.parametrize(
    ("options", "kv_heads"), [({}, 4), ({}, 2), ({"softcap": 1.5}, 4), ({"window": 3}, 4), ({"window": 3}, 1)]
)
@pytest.mark.parametrize("end", ["first", "last"])
def test_kept_tokens_equal_the_definition(options: dict[str, float], kv_heads: int, end: str) -> None:
    batch = rows_of(LENGTHS)
    q, k, v = random_heads(sum(LENGTHS), kv_heads)
    kept = batch.first() if end == "first" else batch.last()
    bias = window_bias(batch, kept, options.get("window"))  # type: ignore[arg-type]
    found = attend_kept(q[kept], k, v, batch, scale=SCALE, softcap=options.get("softcap"), bias=bias)
    torch.testing.assert_close(found, defined(q, k, v, batch, options)[kept], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("options", "kv_heads"), [({}, 4), ({}, 2), ({"window": 3}, 4)])
def test_kept_tokens_of_the_padded_form_equal_packed(options: dict[str, int], kv_heads: int) -> None:
    batch = rows_of(LENGTHS)
    q, k, v = random_heads(sum(LENGTHS), kv_heads)
    padded, places = padded_form(batch, 12)
    wide = [torch.zeros(len(LENGTHS) * 12, *x.shape[1:]).index_copy_(0, places, x) for x in (k, v)]
    bias = window_bias(padded, padded.first(), options.get("window"))
    found = attend_kept(q[batch.first()], wide[0], wide[1], padded, scale=SCALE, bias=bias)
    expected = defined(q, k, v, batch, options)[batch.first()]  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_a_long_row_with_a_window_needs_no_matrix_of_its_length() -> None:
    batch = rows_of((8192,))
    q, k, v = random_heads(8192, 4)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        attention(q, k, v, batch, scale=SCALE, window=64)
    largest = max(event.self_cpu_memory_usage for event in profile.key_averages())
    assert largest < 8192 * 8192
