"""The bfloat16 kernel without a softmax against the definition of attention, and where it must not be used."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from secondpass.models.attention.cpu_bf16 import MAX_LOGITS, MIN_QUERIES, attend_cpu_bf16, attend_unnormalised, blocks
from secondpass.models.attention.reference import Rule, masked_attention
from tests.models.attention.test_attention import CASES, LENGTHS, SCALE, defined, random_heads, rows_of, rule_of

LONG = (700, 700, 5)
MODULE = "secondpass.models.attention.cpu_bf16."
pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each call of the kernel gave a result."""
    seen: list[bool] = []

    def counted(*heads: Tensor, **options: float) -> Tensor | None:
        mixed = attend_unnormalised(*heads, **options)  # type: ignore[arg-type]
        seen.append(mixed is not None)
        return mixed

    monkeypatch.setattr(MODULE + "attend_unnormalised", counted)
    return seen


@pytest.mark.parametrize(("options", "kv_heads"), CASES)
@pytest.mark.parametrize(
    "lengths", [pytest.param(LENGTHS, id="short"), pytest.param(LONG, id="long", marks=pytest.mark.slow)]
)
def test_equals_the_definition(
    options: dict[str, float], kv_heads: int, lengths: tuple[int, ...], calls: list[bool]
) -> None:
    batch = rows_of(lengths)
    q, k, v = random_heads(sum(lengths), kv_heads, torch.bfloat16)
    found = attend_cpu_bf16(q, k, v, batch, rule=rule_of(options))
    assert found.dtype == torch.bfloat16
    assert calls and all(calls)
    torch.testing.assert_close(found.float(), defined(q, k, v, batch, options), atol=0.04, rtol=0.02)


@pytest.mark.parametrize("size", [200.0, -200.0, float("nan")])
def test_logits_out_of_range_are_given_to_the_softmax(size: float, calls: list[bool]) -> None:
    batch = rows_of((6, 4))
    q, k, v = random_heads(10, 4, torch.bfloat16)
    q[:6, 0] = size
    k[:6, 0] = 1.0
    found = attend_cpu_bf16(q, k, v, batch, rule=Rule(scale=SCALE))
    expected = defined(q, k, v, batch, {})
    assert calls == [False, True]
    torch.testing.assert_close(found.float(), expected, atol=0.04, rtol=0.02, equal_nan=True)


def test_one_block_equals_many() -> None:
    q, k, v = (x[None].transpose(1, 2) for x in random_heads(300, 4, torch.bfloat16))
    whole = attend_unnormalised(q, k, v, None, scale=SCALE, softcap=None)
    parts = [
        attend_unnormalised(q[:, :, s : s + 64], k, v, None, scale=SCALE, softcap=None) for s in range(0, 300, 64)
    ]
    assert whole is not None
    torch.testing.assert_close(torch.cat([part for part in parts if part is not None], dim=2), whole, atol=0, rtol=0)
    expected = masked_attention(q.float(), k.float(), v.float(), None, scale=SCALE, softcap=None)
    torch.testing.assert_close(whole.float(), expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    ("n", "heads", "length"), [(1, 12, 8192), (4, 12, 1024), (50, 12, 80), (3, 7, 512), (1, 2, 1), (1, 1, 100_000)]
)
def test_blocks_hold_every_logit_once_and_few_at_a_time(n: int, heads: int, length: int) -> None:
    seen = 0
    for parts in blocks(n, heads, length, length):
        rows, group, queries = (range(size)[part] for size, part in zip((n, heads, length), parts, strict=True))
        assert len(rows) * len(group) * len(queries) * length <= max(MAX_LOGITS, MIN_QUERIES * length)
        seen += len(rows) * len(group) * len(queries)
    assert seen == n * heads * length


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"window": 9}, {"softcap": 5.0}], ids=str)
@pytest.mark.parametrize("most", [64, 300, 2_000, 20_000])
def test_small_blocks_equal_the_whole(most: int, options: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of queries, of heads and of rows; two of the five rows have other lengths."""
    batch = rows_of((30, 30, 30, 8, 5))
    q, k, v = random_heads(103, 2, torch.bfloat16)
    whole = attend_cpu_bf16(q, k, v, batch, rule=rule_of(options))
    monkeypatch.setattr(MODULE + "MAX_LOGITS", most)
    monkeypatch.setattr(MODULE + "MIN_QUERIES", 4)
    monkeypatch.setattr(MODULE + "BLOCK", 7)
    torch.testing.assert_close(attend_cpu_bf16(q, k, v, batch, rule=rule_of(options)), whole, atol=0.01, rtol=0.01)
