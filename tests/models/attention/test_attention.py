"""Every kernel of attention against its definition, one row at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from secondpass.models.attention import Attention, pick_kernel, use_kernel
from secondpass.models.attention.cpu_bf16 import attend_cpu_bf16
from secondpass.models.attention.fused import attend_fused
from secondpass.models.attention.reference import MAX_LOGITS, Kernel, Rule, attend_reference, masked_attention
from secondpass.models.attention.relative import RelativeBias, alibi
from secondpass.models.attention.sdpa import MAX_MATMUL_LENGTH, attend_sdpa
from secondpass.models.attention.varlen import attend_varlen
from secondpass.packed import Packed, pack
from secondpass.types import Row

SCALE = 0.3
KERNELS = [pytest.param(attend_reference, id="reference"), pytest.param(attend_sdpa, id="sdpa")]
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


def rule_of(options: dict[str, float]) -> Rule:
    return Rule(scale=SCALE, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("options", "kv_heads"), CASES)
def test_packed_rows_equal_the_definition(options: dict[str, float], kv_heads: int, kernel: Kernel) -> None:
    batch = rows_of(LENGTHS)
    q, k, v = random_heads(sum(LENGTHS), kv_heads)
    found = kernel(q, k, v, batch, rule=rule_of(options))
    torch.testing.assert_close(found, defined(q, k, v, batch, options), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("options", "kv_heads"), CASES)
def test_blocks_of_a_long_row_equal_the_definition(options: dict[str, float], kv_heads: int, kernel: Kernel) -> None:
    batch = rows_of(LONG)
    q, k, v = random_heads(sum(LONG), kv_heads)
    found = kernel(q, k, v, batch, rule=rule_of(options))
    torch.testing.assert_close(found, defined(q, k, v, batch, options), atol=2e-6, rtol=0)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("options", "kv_heads"), CASES)
@pytest.mark.parametrize("lengths", [LENGTHS, LONG], ids=["short", "long"])
def test_bfloat16_stays_near(
    options: dict[str, float], kv_heads: int, lengths: tuple[int, ...], kernel: Kernel
) -> None:
    batch = rows_of(lengths)
    q, k, v = random_heads(sum(lengths), kv_heads, torch.bfloat16)
    found = kernel(q, k, v, batch, rule=rule_of(options))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), defined(q, k, v, batch, options), atol=0.04, rtol=0.02)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("options", "kv_heads"), CASES)
def test_the_padded_form_equals_packed(options: dict[str, float], kv_heads: int, kernel: Kernel) -> None:
    batch = rows_of(LENGTHS)
    q, k, v = random_heads(sum(LENGTHS), kv_heads)
    padded, places = padded_form(batch, 12)
    wide = [torch.zeros(len(LENGTHS) * 12, *x.shape[1:]).index_copy_(0, places, x) for x in (q, k, v)]
    found = kernel(wide[0], wide[1], wide[2], padded, rule=rule_of(options))
    assert found.isfinite().all()  # NaN of padding would reach real tokens through the next block
    torch.testing.assert_close(found[places], defined(q, k, v, batch, options), atol=1e-6, rtol=0)


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
    found = attend_sdpa(q, k, v, batch, rule=rule_of(options), keep=kept)
    torch.testing.assert_close(found, defined(q, k, v, batch, options)[kept], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("options", "kv_heads"), [({}, 4), ({}, 2), ({"window": 3}, 4)])
def test_kept_tokens_of_the_padded_form_equal_packed(options: dict[str, float], kv_heads: int) -> None:
    batch = rows_of(LENGTHS)
    q, k, v = random_heads(sum(LENGTHS), kv_heads)
    padded, places = padded_form(batch, 12)
    wide = [torch.zeros(len(LENGTHS) * 12, *x.shape[1:]).index_copy_(0, places, x) for x in (q, k, v)]
    found = attend_sdpa(wide[0], wide[1], wide[2], padded, rule=rule_of(options), keep=padded.first())
    expected = defined(q, k, v, batch, options)[batch.first()]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_a_long_row_with_a_window_needs_no_matrix_of_its_length() -> None:
    batch = rows_of((8192,))
    q, k, v = random_heads(8192, 4)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        attend_sdpa(q, k, v, batch, rule=Rule(scale=SCALE, window=64))
    largest = max(event.self_cpu_memory_usage for event in profile.key_averages())
    assert largest < 8192 * 8192


def test_many_rows_are_attended_to_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = rows_of(LENGTHS)
    q, k, v = random_heads(sum(LENGTHS), 4)
    monkeypatch.setattr("secondpass.models.attention.reference.MAX_LOGITS", 4 * 4 * 4 * 2)
    found = attend_reference(q, k, v, batch, rule=Rule(scale=SCALE))
    torch.testing.assert_close(found, defined(q, k, v, batch, {}), atol=1e-6, rtol=0)


@pytest.mark.parametrize("window", [None, 4, 6])
@pytest.mark.parametrize("kernel", [attend_reference, attend_sdpa, attend_cpu_bf16])
def test_only_the_first_tokens_of_a_row_are_seen_where_it_says_so(kernel: Kernel, window: int | None) -> None:
    visible = (3, 3, 1, 4, 2, 2)
    batch = replace(rows_of(LENGTHS), visible=visible)
    dtype = torch.bfloat16 if kernel is attend_cpu_bf16 else torch.float32
    q, k, v = random_heads(sum(LENGTHS), 2, dtype)
    with torch.inference_mode():
        found = kernel(q, k, v, batch, rule=Rule(scale=SCALE, window=window))
    for start, length, seen_keys in zip(batch.starts.tolist(), batch.lengths, visible, strict=False):
        row, keys = slice(start, start + length), slice(start, start + seen_keys)
        heads = (x.float().transpose(0, 1)[None] for x in (q[row], k[keys], v[keys]))
        hidden = seen(length, {} if window is None else {"window": window})[:, :seen_keys]
        wanted = masked_attention(*heads, hidden, scale=SCALE, softcap=None)[0].transpose(0, 1)
        tolerance = 0.04 if kernel is attend_cpu_bf16 else 1e-6
        torch.testing.assert_close(found[row].float(), wanted, atol=tolerance, rtol=0.02)


@pytest.mark.parametrize("kernel", [attend_reference, attend_sdpa, attend_cpu_bf16])
def test_what_stands_far_behind_the_tokens_that_are_seen_sees_nothing(kernel: Kernel) -> None:
    batch = replace(rows_of((600,)), visible=(5,))
    dtype = torch.bfloat16 if kernel is attend_cpu_bf16 else torch.float32
    q, k, v = random_heads(600, 2, dtype)
    with torch.inference_mode():
        found = kernel(q, k, v, batch, rule=Rule(scale=SCALE, window=64)).float()
    heads = (x.float().transpose(0, 1)[None] for x in (q[:64], k[:5], v[:5]))
    near = masked_attention(*heads, None, scale=SCALE, softcap=None)[0].transpose(0, 1)
    torch.testing.assert_close(found[:64], near, atol=0.04 if dtype == torch.bfloat16 else 1e-6, rtol=0.02)
    assert not found[70:].any()


@pytest.mark.parametrize(
    ("dtype", "has_gradient", "wanted"),
    [
        (torch.float32, False, attend_sdpa),
        (torch.float32, True, attend_sdpa),
        (torch.bfloat16, False, attend_cpu_bf16),
        (torch.bfloat16, True, attend_sdpa),
    ],
)
def test_a_kernel_is_chosen_by_device_and_precision(dtype: torch.dtype, has_gradient: bool, wanted: Kernel) -> None:
    assert pick_kernel(torch.device("cpu"), dtype, 64, has_gradient=has_gradient) is wanted


def test_a_chosen_kernel_is_that_of_every_layer() -> None:
    model = torch.nn.Sequential(Attention(Rule(scale=1.0)), Attention(Rule(scale=1.0)))
    assert use_kernel(model, attend_varlen) == "varlen attention"
    assert [layer.kernel for layer in model] == [attend_varlen, attend_varlen]


def relative() -> RelativeBias:
    """For rows of up to 9 tokens."""
    return RelativeBias(torch.randn(4, 18, generator=torch.Generator().manual_seed(1)))


def with_distances(q: Tensor, k: Tensor, v: Tensor, batch: Packed, bias: RelativeBias) -> Tensor:
    """Row by row, with the bias of each distance looked up by itself."""
    outputs = []
    for start, length in zip(batch.starts.tolist(), batch.lengths, strict=False):
        heads = (x[start : start + length].transpose(0, 1)[None] for x in (q, k, v))
        places = range(length)
        added = torch.stack([torch.stack([bias.table[:, 8 + j - i] for j in places], dim=-1) for i in places], dim=1)
        outputs.append(masked_attention(*heads, added[None], scale=SCALE, softcap=None))
    return torch.cat([out[0].transpose(0, 1) for out in outputs])


@pytest.mark.parametrize("kernel", [attend_reference, attend_sdpa, attend_cpu_bf16, attend_fused, attend_varlen])
@pytest.mark.parametrize("most", [1 << 23, 4 * 7 * 3, 1])
def test_a_bias_by_distance_is_its_definition(kernel: Kernel, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where rows are so long that a few queries, or one, are attended to at once."""
    monkeypatch.setattr("secondpass.models.attention.reference.MAX_LOGITS", most)
    batch, bias = rows_of(LENGTHS), relative()
    heads = random_heads(sum(LENGTHS), 4)
    expected = with_distances(*heads, batch, bias)
    with torch.inference_mode():
        found = kernel(*heads, batch, rule=Rule(scale=SCALE), bias=bias)
        keep = batch.starts[:-1] + torch.tensor([3, 0, 0, 2, 3, 1])
        kept = kernel(*heads, batch, rule=Rule(scale=SCALE), keep=keep, bias=bias)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(kept, expected[keep], atol=1e-6, rtol=0)


def test_slopes_of_alibi_are_those_of_the_paper() -> None:
    assert alibi(8, torch.tensor([-1])).flatten().tolist() == [-(2.0**-n) for n in range(1, 9)]
    twelve = [-(2.0**-n) for n in range(1, 9)] + [-(2.0 ** -(n / 2)) for n in (1, 3, 5, 7)]
    assert alibi(12, torch.tensor([1])).flatten().tolist() == pytest.approx(twelve)


def test_a_long_row_with_a_bias_holds_no_matrix_of_its_logits() -> None:
    length = 4096
    batch, bias = rows_of((length,)), RelativeBias(torch.zeros(4, 2 * length))
    heads = random_heads(length, 4)
    largest = 0

    class Watched(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            found = function(*args, **(kwargs or {}))
            largest = max(largest, found.numel() if isinstance(found, Tensor) else 0)
            return found

    with torch.inference_mode(), Watched():
        attend_sdpa(*heads, batch, rule=Rule(scale=SCALE), bias=bias)
    assert 1 << 20 < largest < 3 * MAX_LOGITS < 4 * length**2
