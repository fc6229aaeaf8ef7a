"""What is trained here, loaded by the libraries that others use, and theirs here: the same vectors and scores.

In an environment of its own: make test-trainers.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from secondpass import ColBERT, Embedder, Reranker
from secondpass.training import EmbedderSettings, LateInteractionSettings
from tests.goldens import golden_folder
from tests.training.test_vectors import trained

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_bi_encoder_has_the_same_vectors_in_sentence_transformers(tmp_path: Path, pooling: str) -> None:
    theirs = pytest.importorskip("sentence_transformers")
    settings = EmbedderSettings(dimensions=(8, 16), pooling=pooling)
    _, query, passages = trained(golden_folder("bert-cross-encoder"), tmp_path / "out", embedder=settings)
    ours = Embedder(tmp_path / "out", dtype="float32")
    model = theirs.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert np.allclose(model.encode(passages), ours.encode(passages), atol=1e-5)
    assert np.allclose(model.encode([query], prompt_name="query"), ours.encode([query], kind="query"), atol=1e-5)


@pytest.mark.parametrize("name", ["bert-cross-encoder", "xlm-roberta-cross-encoder"])
def test_a_cross_encoder_has_the_same_logits_in_sentence_transformers(tmp_path: Path, name: str) -> None:
    theirs = pytest.importorskip("sentence_transformers")
    _, query, passages = trained(golden_folder(name), tmp_path / "out")
    model = theirs.CrossEncoder(str(tmp_path / "out"), device="cpu")
    found = model.predict([(query, text) for text in passages], activation_fn=torch.nn.Identity())
    assert found == pytest.approx(Reranker(tmp_path / "out", dtype="float32").score(query, passages), abs=1e-4)


def test_bge_m3_has_the_same_three_parts_in_flagembedding(tmp_path: Path) -> None:
    theirs = pytest.importorskip("FlagEmbedding")
    parts = EmbedderSettings(parts=("dense", "sparse", "colbert"), temperature=0.1)
    _, query, passages = trained(golden_folder("bge-m3"), tmp_path / "out", embedder=parts)
    model = theirs.BGEM3FlagModel(str(tmp_path / "out"), use_fp16=False, devices="cpu")
    pairs = [(query, text) for text in passages]
    found = model.compute_score(pairs, max_passage_length=48, weights_for_different_modes=[1.0, 0.3, 1.0])
    ours = Embedder(tmp_path / "out", dtype="float32", weights=(1.0, 0.3, 1.0))
    for theirs_name, mode in (
        ("dense", "dense"),
        ("sparse", "sparse"),
        ("colbert", "colbert"),
        ("colbert+sparse+dense", "colbert+sparse+dense"),
    ):
        assert found[theirs_name] == pytest.approx(ours.score(query, passages, mode=mode), abs=1e-4)


def test_late_interaction_has_the_same_scores_in_pylate(tmp_path: Path) -> None:
    models = pytest.importorskip("pylate.models")
    scores = pytest.importorskip("pylate.scores")
    colbert = LateInteractionSettings(in_batch="others")
    folder = tmp_path / "out"
    _, query, passages = trained(golden_folder("colbertv2"), folder, colbert=colbert)
    model = models.ColBERT(str(folder), device="cpu")
    queries = model.encode([query], is_query=True, convert_to_numpy=True)
    documents = model.encode(passages, is_query=False, convert_to_numpy=True)
    found = [float(scores.colbert_scores([queries[0]], [document])[0, 0]) for document in documents]
    assert found == pytest.approx(ColBERT(folder, dtype="float32").score(query, passages), abs=1e-3)


def test_late_interaction_has_the_same_scores_in_colbert_ai(tmp_path: Path) -> None:
    """Its own vectors; their products are taken here, since its own way compiles C++ first."""
    modelling = pytest.importorskip("colbert.modeling.checkpoint")
    configuring = pytest.importorskip("colbert.infra")
    folder = tmp_path / "out"
    settings = LateInteractionSettings(in_batch="others")
    _, query, passages = trained(golden_folder("colbertv2"), folder, colbert=settings)
    modelling.ColBERT.loaded_extensions = True
    model = modelling.Checkpoint(str(folder), configuring.ColBERTConfig.load_from_checkpoint(str(folder)))
    asked = model.queryFromText([query])[0].float()
    documents = model.docFromText(passages, keep_dims=False)
    found = [float((vectors.float() @ asked.T).amax(0).sum()) for vectors in documents]
    assert found == pytest.approx(ColBERT(folder, dtype="float32").score(query, passages), abs=1e-3)


@pytest.mark.parametrize("name", ["bert-cross-encoder", "modernbert-cross-encoder"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attend_to_expansion_tokens": True},
        {"do_query_expansion": False},
        {"query_prefix": "", "document_prefix": ""},
        {"skiplist_words": ["the", "."]},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_checkpoints_of_pylate_have_the_same_scores_here(
    tmp_path: Path, name: str, options: dict[str, object]
) -> None:
    transformers, models = pytest.importorskip("transformers"), pytest.importorskip("pylate.models")
    scores = pytest.importorskip("pylate.scores")
    settings = transformers.AutoConfig.from_pretrained(golden_folder(name))
    if hasattr(settings, "local_attention"):
        settings.local_attention = 64  # each [MASK] sees a word
    torch.manual_seed(3)
    transformers.AutoModel.from_config(settings).save_pretrained(tmp_path / "base")
    transformers.AutoTokenizer.from_pretrained(golden_folder(name)).save_pretrained(tmp_path / "base")
    eager = {"attn_implementation": "eager"}
    made = models.ColBERT(
        str(tmp_path / "base"), embedding_size=16, query_length=24, device="cpu", model_kwargs=eager, **options
    )
    if options:
        made.append(models.Dense(16, 16, bias=True, use_residual=True))
        made.append(models.Dense(16, 8, bias=False, use_residual=True))
    made.save_pretrained(str(tmp_path / "out"))
    model = models.ColBERT(str(tmp_path / "out"), device="cpu", model_kwargs=eager)
    pairs = json.loads((golden_folder(name) / "pairs.json").read_text("utf-8"))
    pairs = [(each["query"], each["passage"]) for each in pairs if "[" not in each["query"] + each["passage"]]
    ours, found, expected = ColBERT(tmp_path / "out", dtype="float32"), [], []
    for query, passage in pairs:
        if query.strip() and passage.strip():
            asked = model.encode([query], is_query=True, convert_to_numpy=True)[0]
            read = model.encode([passage], is_query=False, convert_to_numpy=True)[0]
            expected.append(float(scores.colbert_scores([asked], [read])[0, 0]))
            found += ours.score(query, [passage])
    assert len(found) > 5 and found == pytest.approx(expected, abs=1e-4)
