"""Kernels that see rows through windows: the definition's values, whatever lies beside a row, in few shapes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secondpass.models.attention import pick_kernel
from secondpass.models.attention.cpu_bf16 import attend_cpu_bf16
from secondpass.models.attention.fused import attend_fused
from secondpass.models.attention.reference import Kernel, Rule, attend_reference
from secondpass.models.attention.windows import WINDOW, windows
from tests.models.attention.test_attention import CASES, SCALE, defined, random_heads, rows_of, rule_of

# Windows that end with the batch, that are moved back from its end, and of several rows of one length.
BATCHES = [(7, 7, 1, 4), (70, 64, 33, 33, 33, 20, 5), (40, 32, 9), (31,)]


@pytest.mark.parametrize("kernel", [attend_fused, attend_cpu_bf16])
@pytest.mark.parametrize("lengths", BATCHES, ids=str)
@pytest.mark.parametrize(("options", "kv_heads"), CASES)
def test_equals_the_definition(
    kernel: Kernel, lengths: tuple[int, ...], options: dict[str, float], kv_heads: int
) -> None:
    batch = rows_of(lengths)
    q, k, v = random_heads(sum(lengths), kv_heads, torch.bfloat16)
    with torch.inference_mode():
        found = kernel(q, k, v, batch, rule=rule_of(options))
    torch.testing.assert_close(found.float(), defined(q, k, v, batch, options), atol=0.04, rtol=0.02)


@pytest.mark.parametrize("lengths", BATCHES, ids=str)
@pytest.mark.parametrize("kept", ["first", "last"])
def test_one_query_of_each_row(lengths: tuple[int, ...], kept: str) -> None:
    batch = rows_of(lengths)
    q, k, v = random_heads(sum(lengths), 2, torch.bfloat16)
    keep = batch.first() if kept == "first" else batch.last()
    with torch.inference_mode():
        found = attend_fused(q, k, v, batch, rule=Rule(scale=SCALE), keep=keep)
    wanted = attend_reference(*(x.float() for x in (q, k, v)), batch, rule=Rule(scale=SCALE))[keep]
    torch.testing.assert_close(found.float(), wanted, atol=0.04, rtol=0.02)


@pytest.mark.parametrize("kernel", [attend_fused, attend_cpu_bf16])
def test_what_lies_beside_a_row_does_not_count(kernel: Kernel) -> None:
    batch = rows_of((20, 20, 20))
    q, k, v = random_heads(60, 4, torch.bfloat16)
    joined = torch.stack((q, k, v), 1)  # as a joined product leaves them: apart by three widths
    with torch.inference_mode():
        before = kernel(*joined.unbind(1), batch, rule=Rule(scale=SCALE))[20:40].clone()
        joined[:20], joined[40:] = joined[:20] * 3 + 1, -joined[40:]
        after = kernel(*joined.unbind(1), batch, rule=Rule(scale=SCALE))[20:40]
    torch.testing.assert_close(before, after, atol=0, rtol=0)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 90)), min_size=1, max_size=8), st.integers(0, 50))
def test_a_window_holds_its_row_lies_in_the_batch_and_has_one_of_few_sizes(
    groups: list[tuple[int, int]], behind: int
) -> None:
    num_tokens = sum(count * length for count, length in groups) + behind
    first, start = 0, 0
    for window, (count, length) in zip(windows(groups, num_tokens), groups, strict=True):
        assert (window.first, window.count, window.start, window.length) == (first, count, start, length)
        assert window.size % WINDOW == 0 or window.size == length
        assert 0 <= window.before <= start and window.before + length <= window.size
        assert start - window.before + (count - 1) * length + window.size <= num_tokens
        assert window.size < length + WINDOW
        first, start = first + count, start + count * length


def test_the_fused_kernel_is_that_of_processors_with_amx() -> None:
    cpu = torch.device("cpu")
    assert pick_kernel(cpu, torch.bfloat16, 64, has_amx=True) is attend_fused
    assert pick_kernel(cpu, torch.bfloat16, 64) is attend_cpu_bf16
    assert pick_kernel(cpu, torch.float32, 64, has_amx=True) is not attend_fused
    assert pick_kernel(cpu, torch.bfloat16, 64, has_amx=True, has_gradient=True) is not attend_fused
