"""DeBERTa: disentangled attention against its definition, and what its config says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from secondpass.errors import UnknownModel
from secondpass.models.attention.cpu_bf16 import attend_cpu_bf16
from secondpass.models.attention.deberta import DistanceBias, log_buckets
from secondpass.models.attention.reference import Kernel, Rule, attend_reference
from secondpass.models.attention.sdpa import attend_sdpa
from secondpass.models.attention.varlen import attend_varlen
from secondpass.models.deberta import DebertaConfig
from secondpass.packed import Packed, pack
from secondpass.types import Row
from tests.models.attention.test_attention import padded_form

SCALE = 0.3
LENGTHS = (9, 9, 1, 5, 5)
CONFIG: dict[str, Any] = {
    "model_type": "deberta-v2",
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
    "relative_attention": True,
    "pos_att_type": "p2c|c2p",
}


def example() -> tuple[Packed, tuple[Tensor, Tensor, Tensor], dict[int, Tensor], dict[int, Tensor]]:
    """Rows, their heads, and a key and a query (H, D) of each distance."""
    generator = torch.Generator().manual_seed(0)
    batch = pack([Row(ids=[1] * length, passage=(0, length)) for length in LENGTHS])
    q, k, v = (torch.randn(sum(LENGTHS), 2, 4, generator=generator) for _ in range(3))
    keys = {d: torch.randn(2, 4, generator=generator) for d in range(-9, 10)}
    queries = {d: torch.randn(2, 4, generator=generator) for d in range(-9, 10)}
    return batch, (q, k, v), keys, queries


def tables_of(keys: dict[int, Tensor], queries: dict[int, Tensor]) -> DistanceBias:
    return DistanceBias(
        torch.stack([keys[d] for d in range(9, -10, -1)], dim=1),
        torch.stack([queries[d] for d in range(-9, 10)], dim=1),
    )


def defined(
    batch: Packed, heads: tuple[Tensor, Tensor, Tensor], keys: dict[int, Tensor], queries: dict[int, Tensor]
) -> Tensor:
    """He et al. 2021, equation 4, one head and one token at a time."""
    q, k, v = heads
    out = torch.zeros_like(q)
    for start, length in zip(batch.starts.tolist(), batch.lengths, strict=False):
        for h in range(q.shape[1]):
            for i in range(length):
                logits = torch.stack(
                    [
                        q[start + i, h] @ k[start + j, h] * SCALE
                        + q[start + i, h] @ keys[i - j][h]
                        + k[start + j, h] @ queries[i - j][h]
                        for j in range(length)
                    ]
                )
                out[start + i, h] = logits.softmax(0) @ v[start : start + length, h]
    return out


@pytest.mark.parametrize("kernel", [attend_reference, attend_sdpa, attend_cpu_bf16, attend_varlen])
def test_packed_rows_equal_the_definition(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, heads, keys, queries = example()
    expected = defined(batch, heads, keys, queries)
    with torch.inference_mode():
        found = kernel(*heads, batch, rule=Rule(scale=SCALE), bias=tables_of(keys, queries))
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
        monkeypatch.setattr("secondpass.models.attention.reference.MAX_LOGITS", 1)  # one row at a time
        found = kernel(*heads, batch, rule=Rule(scale=SCALE), bias=tables_of(keys, queries))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_the_padded_form_equals_packed() -> None:
    batch, heads, keys, queries = example()
    padded, places = padded_form(batch, 9)
    wide = [torch.zeros(len(LENGTHS) * 9, 2, 4).index_copy_(0, places, x) for x in heads]
    found = attend_sdpa(*wide, padded, rule=Rule(scale=SCALE), bias=tables_of(keys, queries))
    torch.testing.assert_close(found[places], defined(batch, heads, keys, queries), atol=1e-6, rtol=0)


@pytest.mark.parametrize("end", ["first", "last"])
def test_kept_tokens_equal_the_definition(end: str) -> None:
    batch, (q, k, v), keys, queries = example()
    kept = batch.first() if end == "first" else batch.last()
    found = attend_sdpa(q, k, v, batch, rule=Rule(scale=SCALE), keep=kept, bias=tables_of(keys, queries))
    torch.testing.assert_close(found, defined(batch, (q, k, v), keys, queries)[kept], atol=1e-6, rtol=0)


def test_near_distances_have_a_bucket_each_and_far_ones_share() -> None:
    buckets = log_buckets(torch.tensor([0, 1, -1, 3, 4, -4, 60, -63]), 8, 64).tolist()
    growth = [math.ceil(math.log(d / 4) / math.log(63 / 4) * 3) + 4 for d in (60, 63)]
    assert buckets == [0, 1, -1, 3, 4, -4, growth[0], -growth[1]]


def test_without_buckets_every_distance_is_its_own() -> None:
    config = DebertaConfig.from_hf(CONFIG)
    assert (config.num_buckets, config.span, config.max_length) == (-1, 64, 64)
    assert config.terms == {"c2p", "p2c"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("conv_kernel_size", 3),
        ("embedding_size", 4),
        ("attention_head_size", 2),
        ("relative_attention", False),
        ("pos_att_type", ["p2p"]),
        ("hidden_act", "quick_gelu"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(UnknownModel, match=r"config\.json: ") as caught:
        DebertaConfig.from_hf(CONFIG | {key: value})
    assert str(value) in str(caught.value) or "p2p" in str(caught.value)
