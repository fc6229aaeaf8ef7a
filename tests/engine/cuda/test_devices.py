"""Every forward pass off the host: a tensor that stays there, or a mixed precision, is found without a GPU.

Meta tensors have a device and a precision but no values, and operators refuse inputs of two devices as on a GPU.
(torch's fake tensors say that they are on one, but a torch that is built without CUDA cannot index them.)
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from secondpass import packed
from secondpass.checkpoint.weights import FULL_PRECISION
from secondpass.models import deberta, decoder
from secondpass.models.attention import relative, use_kernel
from secondpass.models.attention.reference import Kernel
from secondpass.models.attention.sdpa import attend_sdpa
from secondpass.models.attention.varlen import attend_varlen
from secondpass.models.cross_encoder import CrossEncoderModel
from secondpass.models.layers import Linear
from secondpass.models.text_encoder import TextEncoder
from secondpass.packed import pack
from secondpass.text.families import recipe_for
from secondpass.types import Row, Run
from tests.goldens import SHARED
from tests.models.attention.test_varlen import RERANKERS

META = torch.device("meta")
LENGTHS = (30, 9, 9, 4)


@pytest.fixture(autouse=True)
def unpinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinned memory is META's own."""
    for module in (packed, deberta, decoder, relative):
        monkeypatch.setattr(module, "sent", lambda x, device: torch.empty(x.shape, dtype=x.dtype, device=device))


# Relatives of a family without figures of their own: a folder, and what else its config.json says
RELATIVES = {
    "mpnet": ("bert-cross-encoder", {"model_type": "mpnet"}),
    "jina": ("bert-cross-encoder", {"position_embedding_type": "alibi", "feed_forward_type": "geglu"}),
    "electra": ("bert-cross-encoder", {"model_type": "electra", "embedding_size": 24}),
    "llama_bidirec": ("gemma-llm-reranker", {"model_type": "llama_bidirec", "num_labels": 1, "architectures": None}),
}


def model_of(name: str, dtype: torch.dtype, kernel: Kernel) -> CrossEncoderModel:
    golden, changes = RELATIVES.get(name, (name, {}))
    folder = SHARED / "golden" / golden
    if not folder.is_dir():
        pytest.skip("no reference figures here")
    config = json.loads((folder / "config.json").read_text("utf-8")) | changes
    recipe = recipe_for(config)
    with META:
        model = CrossEncoderModel(config, recipe, answer_ids=[5] * len(recipe.answers)).eval()
    for parameter_name, parameter in model.named_parameters():
        if not FULL_PRECISION.fullmatch(parameter_name):
            parameter.data = parameter.data.to(dtype)
    use_kernel(model, kernel)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", [*RERANKERS, *RELATIVES])
@pytest.mark.parametrize(
    ("dtype", "kernel"),
    [
        (torch.float32, attend_sdpa),
        (torch.bfloat16, attend_sdpa),
        (torch.bfloat16, attend_varlen),
        (torch.float16, attend_varlen),
    ],
)
def test_a_forward_stays_on_the_device(name: str, dtype: torch.dtype, kernel: Kernel) -> None:
    batch = pack([Row([1] * length, (2, length)) for length in LENGTHS])
    with torch.inference_mode():
        model = model_of(name, dtype, kernel)
        scores = model(batch.to(META), model.resolved(Run()), [])
    assert scores.device == META
    assert scores.dtype == torch.float32
    assert scores.shape[0] == len(LENGTHS)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [attend_sdpa, attend_varlen])
@pytest.mark.parametrize("name", ["qwen3-llm-reranker", "gemma2-lightweight", "minicpm-layerwise"])
def test_what_rows_share_stays_on_the_device(name: str, kernel: Kernel) -> None:
    rows = [Row([1] * length, (0, length)) for length in (7, 7, 3)]
    shared, batch = pack([Row([1] * 12, (12, 12))]), pack(rows, [(0, 12)] * 3, num_kept=12)
    with torch.inference_mode():
        model = model_of(name, torch.bfloat16, kernel)
        run = model.resolved(Run())
        kept = model.decoder().kept_states(shared.to(META), run.cutoff_layers[-1] if run.cutoff_layers else None)
        scores = model(batch.to(META), run, kept)
    assert (scores.device, scores.dtype, len(scores)) == (META, torch.float32, 3)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [attend_sdpa, attend_varlen])
@pytest.mark.parametrize(
    ("name", "pooling", "visible"),
    [
        ("bert-embedder-cls", "cls", None),
        ("bert-embedder-mean", "mean", None),
        ("bge-m3", "cls", None),
        ("nomic-bert-embedder", "mean", None),
        ("colbertv2", "cls", (30, 9, 5, 2)),
    ],
)
def test_vectors_stay_on_the_device(name: str, pooling: str, visible: tuple[int, ...] | None, kernel: Kernel) -> None:
    folder = SHARED / "golden" / name
    if not folder.is_dir():
        pytest.skip("no reference figures here")
    with META:
        model = TextEncoder(json.loads((folder / "config.json").read_text("utf-8")), pooling=pooling, token_width=8)
        model.head["weights"] = Linear(model.backbone.config.width, 1)
    for parameter_name, parameter in model.named_parameters():
        if not FULL_PRECISION.fullmatch(parameter_name):
            parameter.data = parameter.data.to(torch.bfloat16)
    use_kernel(model, kernel)
    batch = replace(pack([Row([1] * length, (2, length)) for length in LENGTHS]), visible=visible)
    with torch.inference_mode():
        found = model(batch.to(META), ("pooled", "tokens", "weights"))
    assert {x.device for x in found.values()} == {META}
    assert {x.dtype for x in found.values()} == {torch.float32}
    assert [len(found[each]) for each in ("pooled", "tokens", "weights")] == [4, sum(LENGTHS), sum(LENGTHS)]


@pytest.mark.slow
def test_a_tensor_of_the_host_is_found() -> None:
    """What the tests above rely on."""
    with pytest.raises(RuntimeError, match="not on the expected device"):
        torch.ones(3, device=META) + torch.ones(3)
