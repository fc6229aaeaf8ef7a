"""The variable-length kernel of GPUs: what it is called with, and that a forward never waits for the device.

The kernel itself runs on a GPU alone; here its documented meaning is written out, so that lengths, windows, causal
rows, shared beginnings and grouped heads are checked on any machine.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from secondpass import packed
from secondpass.checkpoint.weights import FULL_PRECISION
from secondpass.models import deberta
from secondpass.models import decoder as compress
from secondpass.models.attention import use_kernel, varlen
from secondpass.models.attention.reference import Rule, masked_attention
from secondpass.models.attention.sdpa import attend_sdpa
from secondpass.models.attention.varlen import attend_varlen
from secondpass.models.cross_encoder import CrossEncoderModel
from secondpass.packed import pack
from secondpass.text.families import recipe_for
from secondpass.types import Row, Run
from tests.goldens import SHARED
from tests.models.attention.test_attention import CASES, LENGTHS, LONG, SCALE, defined, random_heads, rows_of, rule_of

HEADS = random_heads(sum(LENGTHS), 4)
CAPLESS = [case for case in CASES if "softcap" not in case.values[0]]  # type: ignore[operator]


def written_out(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """What torch documents of varlen_attn; rows of unequal lengths are lined up at their ends."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert enable_gqa == (q.shape[1] != k.shape[1])
    outs = []
    for n in range(len(cu_seq_q) - 1):
        rows = slice(int(cu_seq_q[n]), int(cu_seq_q[n + 1]))
        keys = slice(int(cu_seq_k[n]), int(cu_seq_k[n + 1]))
        num_q, num_k = rows.stop - rows.start, keys.stop - keys.start
        assert num_q <= max_q and num_k <= max_k
        place = torch.arange(num_q)[:, None] + num_k - num_q - torch.arange(num_k)[None]
        left, right = (wide if wide >= 0 else num_k for wide in window_size)
        bias = torch.zeros(num_q, num_k).masked_fill((place > left) | (-place > right), float("-inf"))
        heads = (x.float().transpose(0, 1)[None] for x in (q[rows], k[keys], v[keys]))
        outs.append(masked_attention(*heads, bias, scale=scale, softcap=None)[0].transpose(0, 1).to(q.dtype))
    return torch.cat(outs)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "kernel", lambda: written_out)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("lengths", [LENGTHS, LONG], ids=["short", "long"])
@pytest.mark.parametrize(("options", "kv_heads"), CAPLESS)
def test_rows_equal_the_definition(options: dict[str, Any], kv_heads: int, lengths: tuple[int, ...]) -> None:
    batch = rows_of(lengths)
    q, k, v = random_heads(sum(lengths), kv_heads)
    found = attend_varlen(q, k, v, batch, rule=rule_of(options))
    torch.testing.assert_close(found, defined(q, k, v, batch, options), atol=2e-6, rtol=0)


@pytest.mark.parametrize(("options", "kv_heads"), CAPLESS)
def test_rows_that_share_equal_the_row_by_row_path(
    options: dict[str, Any], kv_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [Row([1] * length, (0, length)) for length in (3, 3, 5, 1)]
    batch = pack(rows, [(0, 6), (0, 6), (6, 8), (6, 8)], num_kept=8)
    assert batch.shared is not None
    num_keys = sum(batch.shared.lengths)
    q = random_heads(12, kv_heads)[0]
    _, k, v = random_heads(num_keys, kv_heads)
    expected = attend_sdpa(q, k, v, batch, rule=rule_of(options))
    monkeypatch.setattr(varlen, "kernel", lambda: written_out)
    found = attend_varlen(q, k, v, batch, rule=rule_of(options))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_kept_tokens_equal_the_definition(kv_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = rows_of(LENGTHS)
    q, k, v = random_heads(sum(LENGTHS), kv_heads)
    kept = batch.first()
    rule = Rule(scale=SCALE)
    expected = attend_sdpa(q, k, v, batch, rule=rule, keep=kept)
    monkeypatch.setattr(varlen, "kernel", lambda: written_out)
    torch.testing.assert_close(attend_varlen(q, k, v, batch, rule=rule, keep=kept), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("options", [{"softcap": 1.5}, {"window": 3}], ids=str)
def test_what_it_has_no_form_for_goes_row_by_row(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "kernel", lambda: _raises)
    batch = rows_of(LENGTHS)
    q, k, v = HEADS
    kept = batch.first() if "window" in options else None
    found = attend_varlen(q, k, v, batch, rule=rule_of(options), keep=kept)
    torch.testing.assert_close(found, attend_sdpa(q, k, v, batch, rule=rule_of(options), keep=kept), atol=0, rtol=0)


def test_it_is_left_alone_where_it_does_not_run() -> None:
    assert not varlen.is_usable(torch.device("cpu"), torch.float32, 64)
    assert not varlen.is_usable(torch.device("cpu"), torch.bfloat16, 64)
    assert not varlen.is_usable(torch.device("cuda"), torch.bfloat16, 60)


@pytest.mark.parametrize("has_gradient", [False, True])
@pytest.mark.parametrize("dtype", varlen.HALF)
def test_a_kernel_that_is_right_is_used(
    dtype: torch.dtype, has_gradient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(varlen, "kernel", lambda: written_out)
    with torch.inference_mode():
        assert varlen.is_right(torch.device("cpu"), dtype, 64, has_gradient=has_gradient)


def _raises(*args: Any, **options: Any) -> Tensor:
    raise RuntimeError("USE_FLASH_ATTENTION was not enabled for build.")


def _lacks_windows(q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, m: int, n: int, *, scale: float) -> Tensor:
    return written_out(q, k, v, a, b, m, n, scale=scale, window_size=(-1, -1), enable_gqa=False)


def _ignores_windows(*args: Any, **options: Any) -> Tensor:
    _, ahead = options.pop("window_size")
    return written_out(*args, window_size=(-1, 0 if ahead == 0 else -1), **options)


def _repeats_heads_the_other_way(*args: Any, enable_gqa: bool, **options: Any) -> Tensor:
    q, k, v, *rest = args
    repeats = q.shape[1] // k.shape[1]
    k, v = (x.repeat(1, repeats, 1) + (0.5 * x.repeat(1, repeats, 1) if repeats > 1 else 0) for x in (k, v))
    return written_out(q, k, v, *rest, enable_gqa=False, **options)


@pytest.mark.parametrize("kernel", [_raises, _lacks_windows, _ignores_windows, _repeats_heads_the_other_way])
def test_a_kernel_that_is_not_is_left_alone(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "kernel", lambda: kernel)
    assert not varlen.is_right(torch.device("cpu"), torch.bfloat16, 64, has_gradient=False)


def _without_gradient(*args: Any, **options: Any) -> Tensor:
    with torch.no_grad():
        return written_out(*args, **options)


def _with_a_wrong_gradient(*args: Any, **options: Any) -> Tensor:
    out = written_out(*args, **options)
    return out.detach() + 2 * (out - out.detach())


@pytest.mark.parametrize("kernel", [_without_gradient, _with_a_wrong_gradient])
def test_training_needs_the_gradient_as_well(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "kernel", lambda: kernel)
    assert varlen.is_right(torch.device("cpu"), torch.bfloat16, 64, has_gradient=False)
    assert not varlen.is_right(torch.device("cpu"), torch.bfloat16, 64, has_gradient=True)


def test_what_runs_out_of_memory_is_not_taken_for_a_missing_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **options: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(varlen, "kernel", lambda: full)
    with pytest.raises(torch.OutOfMemoryError):
        varlen.is_right(torch.device("cpu"), torch.bfloat16, 64, has_gradient=False)


def test_this_torch_differentiates_every_form() -> None:
    """The gradient that torch registers for its operator takes windows; meta tensors go through it without a GPU."""
    run = varlen.kernel()
    assert run is not None
    batch = rows_of(LENGTHS).to(torch.device("meta"))
    for rule in varlen.TRIED_RULES:
        q, k, v = (torch.empty_like(x, device="meta", dtype=torch.bfloat16).requires_grad_() for x in HEADS)
        attend_varlen(q, k, v, batch, rule=rule).sum().backward()
        assert all(x.grad is not None and x.grad.shape == x.shape for x in (q, k, v))


def test_this_torch_has_the_kernel_and_takes_the_arguments() -> None:
    kernel = varlen.kernel()
    assert kernel is not None
    q, k, v = (x.to("meta").bfloat16() for x in random_heads(sum(LENGTHS), 2))
    batch = rows_of(LENGTHS).to(torch.device("meta"))
    assert attend_varlen(q, k, v, batch, rule=Rule(scale=SCALE, is_causal=True, window=3)).shape == q.shape


RERANKERS = (
    "bert-cross-encoder",
    "xlm-roberta-cross-encoder",
    "modernbert-cross-encoder",
    "modernbert-cross-encoder-cls",
    "gte-new-cross-encoder",
    "deberta-v2-cross-encoder",
    "gemma-llm-reranker",
    "gemma2-lightweight",
    "minicpm-layerwise",
    "qwen2-llm-reranker",
    "qwen3-llm-reranker",
)


class NoHostCopies(TorchFunctionMode):
    """Figures of the host that are copied to a device make the host wait, unless `packed.sent` pins them first."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor, Tensor.new_tensor):
            assert found.device.type == "cpu"
        if func is Tensor.to and args[0].device.type == "cpu":
            assert found.device.type == "cpu"
        return found


COMPRESSED = ("gemma2-lightweight", Run(compress_ratio=2, compress_layers=(1,)))


@pytest.mark.parametrize(("name", "run"), [*((name, Run()) for name in RERANKERS), COMPRESSED])
def test_a_forward_never_waits_for_the_device(name: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Meta tensors have no values: whatever would read one on the host raises."""
    folder = SHARED / "golden" / name
    if not folder.is_dir():
        pytest.skip("no reference figures here")
    for place in (packed, deberta, compress):
        monkeypatch.setattr(place, "sent", lambda x, device: torch.empty_like(x, device=device))
    config = json.loads((folder / "config.json").read_text("utf-8"))
    recipe = recipe_for(config)
    with torch.device("meta"):
        model = CrossEncoderModel(config, recipe, answer_ids=[5] * len(recipe.answers)).eval()
    use_kernel(model, attend_varlen)
    for parameter_name, parameter in model.named_parameters():
        if not FULL_PRECISION.fullmatch(parameter_name):
            parameter.data = parameter.data.bfloat16()
    batch = pack(rows([9, 4, 4, 30])).to(torch.device("meta"))
    with torch.inference_mode(), NoHostCopies():
        scores = model(batch, model.resolved(run), [])
    assert scores.shape[0] == 4
    assert scores.device.type == "meta"


def rows(lengths: Sequence[int]) -> list[Row]:
    return [Row([1] * length, (2, length)) for length in lengths]
