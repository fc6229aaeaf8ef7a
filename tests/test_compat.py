"""The words of sentence-transformers and FlagEmbedding give their numbers, on the goldens that they computed."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from secondpass import compat
from secondpass.checkpoint.checkpoint import open_checkpoint
from secondpass.checkpoint.export.export import export
from tests.checkpoints import tiny_bert
from tests.goldens import Golden, golden_runs
from tests.hub_models import NAME, connected

ENCODERS = ("bert-cross-encoder", "xlm-roberta-cross-encoder")
FLAG = {
    "bert-cross-encoder": compat.FlagReranker,
    "xlm-roberta-cross-encoder": compat.FlagReranker,
    "gemma-llm-reranker": compat.FlagLLMReranker,
    "minicpm-layerwise": compat.LayerWiseFlagLLMReranker,
    "gemma2-lightweight": compat.LightWeightFlagLLMReranker,
}
TOLERANCE = {"minicpm-layerwise": 2e-4, "gemma2-lightweight": 5e-4}
PER_CALL = ("max_length", "normalize", "cutoff_layers", "compress_layers", "compress_ratio")
# The lightweight model has 172 runs, of which these have every option once.
CHOSEN = ("max_length=64,cutoff_layers=[2, 4, 6],compress_ratio=8,compress_layers=[2, 4]", "defaults")


def runs_of(reference: str, *names: str) -> list[Any]:
    def is_meant(golden: Golden, run: dict[str, Any]) -> bool:
        if golden is None:
            return True
        # FlagEmbedding mispairs the heads of unsorted layers, and drops layers without a head, which are refused here
        mixed = "not sorted" in run["name"] or "is dropped" in run["name"]
        chosen = golden.name != "gemma2-lightweight" or any(part in run["name"] for part in CHOSEN)
        return reference in run["reference"] and "eager" not in run["reference"] and chosen and not mixed

    return [parameter for parameter in golden_runs(*names) if is_meant(*parameter.values)]


@cache
def flag_reranker(golden: Golden, query_max_length: int | None, prompt: str | None) -> compat.FlagReranker:
    return FLAG[golden.name](golden.folder, devices="cpu", query_max_length=query_max_length, prompt=prompt)


@pytest.mark.parametrize(("golden", "run"), runs_of("FlagEmbedding", *FLAG))
def test_flag_rerankers_say_flagembeddings_scores(golden: Golden, run: dict[str, Any]) -> None:
    options = run["options"]
    reranker = flag_reranker(golden, options.get("query_max_length"), options.get("prompt"))
    called = {name: options[name] for name in PER_CALL if name in options}
    found = reranker.compute_score(golden.pairs, **called)
    assert np.array(found) == pytest.approx(np.array(run["single"]).squeeze(), abs=TOLERANCE.get(golden.name, 1e-4))


@pytest.mark.parametrize(("golden", "run"), runs_of("sentence-transformers", *ENCODERS))
def test_cross_encoder_says_sentence_transformers_scores(golden: Golden, run: dict[str, Any]) -> None:
    model = compat.CrossEncoder(golden.folder, device="cpu", max_length=run["options"]["max_length"])
    logits = model.predict(golden.pairs, activation_fn=torch.nn.Identity(), batch_size=3)
    assert logits == pytest.approx(np.array(run["single"]), abs=1e-4)
    tensor = model.predict(golden.pairs, activation_fn=torch.nn.Sigmoid(), convert_to_tensor=True)
    assert tensor.tolist() == pytest.approx((1 / (1 + np.exp(-logits))).tolist(), abs=1e-6)
    ranked = model.rank(golden.pairs[0][0], [passage for _, passage in golden.pairs], top_k=3, return_documents=True)
    assert [each["score"] for each in ranked] == sorted((each["score"] for each in ranked), reverse=True)
    assert all(each["text"] == golden.pairs[each["corpus_id"]][1] for each in ranked)


@pytest.fixture
def small() -> Golden:
    golden = Golden("bert-cross-encoder")
    if not golden.folder.is_dir():
        pytest.skip("no reference figures here")
    return golden


def test_one_pair_gives_what_the_originals_give(small: Golden) -> None:
    pair = list(small.pairs[0])
    model = compat.CrossEncoder(small.folder, device="cpu")
    assert np.ndim(model.predict(pair)) == 0
    assert isinstance(model.predict(pair, convert_to_numpy=False), float)
    assert model.predict([]).tolist() == []
    scores = compat.FlagReranker(small.folder, devices="cpu", normalize=True).compute_score(pair)
    assert isinstance(scores, list) and 0 < scores[0] < 1


def test_instructions_are_written_as_flagembedding_writes_them(small: Golden) -> None:
    plain = compat.FlagReranker(small.folder, devices="cpu")
    told = compat.FlagReranker(
        small.folder, devices="cpu", query_instruction_for_rerank="find: ", passage_instruction_for_rerank="text: "
    )
    query, passage = small.pairs[0]
    assert told.compute_score([query, passage]) == plain.compute_score(["find: " + query, "text: " + passage])
    lined = compat.FlagReranker(
        small.folder, devices="cpu", query_instruction_for_rerank="find:", query_instruction_format="{}\\n{}"
    )
    assert lined.compute_score([query, passage]) == plain.compute_score([f"find:\n{query}", passage])


@pytest.mark.parametrize(("golden", "run"), golden_runs("gemma-llm-reranker")[:1])
def test_the_instructions_of_an_llm_reranker_are_written_once(golden: Golden, run: dict[str, Any]) -> None:
    plain = compat.FlagLLMReranker(golden.folder, devices="cpu")
    told = compat.FlagLLMReranker(
        golden.folder, devices="cpu", query_instruction_for_rerank="A: ", passage_instruction_for_rerank="B: "
    )
    assert told.compute_score(golden.pairs[:2]) == plain.compute_score(golden.pairs[:2])
    for options in ({"query_instruction_for_rerank": "Q: "}, {"passage_instruction_format": "{} {}"}):
        with pytest.raises(ValueError, match="this family writes"):
            compat.FlagLLMReranker(golden.folder, devices="cpu", **options)


def test_the_activation_is_the_checkpoints_own() -> None:
    for said, expected in (
        ({}, 0.880797),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, 2.0),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, 2.0),
    ):
        assert compat._activation_of(said)(np.array([2.0], np.float32)) == pytest.approx([expected])
    with pytest.raises(ValueError, match=r"ReLU.*give activation_fn"):
        compat._activation_of({"sentence_transformers": {"activation_fn": "torch.nn.ReLU"}})


def test_the_activation_that_newer_versions_write_counts_before_the_older_one(small: Golden, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    shutil.copytree(small.folder, folder)
    identity = compat.CrossEncoder(small.folder).predict(small.pairs, activation_fn=torch.nn.Identity())
    for name in ("Identity", "Sigmoid"):
        said = {"model_type": "CrossEncoder", "activation_fn": f"torch.nn.modules.linear.{name}"}
        (folder / "config_sentence_transformers.json").write_text(json.dumps(said))
        expected = identity if name == "Identity" else 1 / (1 + np.exp(-identity))
        assert compat.CrossEncoder(folder).predict(small.pairs) == pytest.approx(expected, abs=1e-5)


def test_of_a_graph_on_a_hub_no_weights_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_bert(tmp_path / "model")
    graph = export(open_checkpoint(model), tmp_path / "graph") / "openvino"
    files = {file.name: file.read_bytes() for file in model.iterdir()}
    with connected(tmp_path, monkeypatch) as hub:
        hub.commit(NAME, files | {f"openvino/{file.name}": file.read_bytes() for file in graph.iterdir()})
        found = compat.CrossEncoder(NAME, backend="openvino").predict([("the river", "a bridge")])
        expected = compat.CrossEncoder(str(model), device="cpu").predict([("the river", "a bridge")])
        assert found == pytest.approx(expected, abs=0.1)
        assert not any(name == "model.safetensors" for _, name in hub.requests)


def test_pairs_go_by_both_names_and_the_first_words_of_rank_by_place(small: Golden) -> None:
    model = compat.CrossEncoder(small.folder)
    scores = model.predict(small.pairs)
    for found in (model.predict(inputs=small.pairs), model.predict(sentences=small.pairs)):
        assert found.tolist() == scores.tolist()
    with pytest.raises(TypeError, match="there are no pairs"):
        model.predict()
    query, documents = small.pairs[0][0], [passage for _, passage in small.pairs[:3]]
    assert model.rank(query, iter(documents), return_documents=True) == model.rank(
        query, documents, return_documents=True
    )
    assert model.rank(query, documents, 1, True) == model.rank(query, documents, return_documents=True)[:1]


def test_unknown_words_are_refused_and_idle_ones_named_once(small: Golden) -> None:
    with pytest.raises(TypeError, match="bach_size"):
        compat.CrossEncoder(small.folder).predict([], bach_size=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="use_fp17"):
        compat.FlagReranker(small.folder, use_fp17=True)  # type: ignore[call-arg]
    with pytest.warns(UserWarning, match="cache_folder, trust_remote_code: without meaning") as seen:
        compat.CrossEncoder(small.folder, cache_folder="x", trust_remote_code=True)
    assert len(seen) == 1
    for wrong, words in (
        (lambda: compat.CrossEncoder(small.folder, num_labels=3), "num_labels is 3"),
        (lambda: compat.CrossEncoder(small.folder, model_kwargs={"load_in_8bit": True}), "load_in_8bit"),
        (lambda: compat.CrossEncoder(small.folder).predict([("a", "b")], apply_softmax=True), "1.0 for every pair"),
        (lambda: compat.FlagReranker(small.folder, devices=["cuda:0", "cuda:1"]), "runs on one"),
        (lambda: compat.FlagReranker(small.folder).compute_score([("a", "b"), "c"]), r"sentences\[1\]"),
    ):
        with pytest.raises(ValueError, match=words):
            wrong()


def test_words_of_a_call_that_change_nothing_here_are_taken(small: Golden) -> None:
    model = compat.CrossEncoder(small.folder, device="cpu")
    idle: dict[str, Any] = {"num_workers": 2, "chunk_size": 8, "device": "cpu"}
    assert model.predict([("a", "b")], **idle).tolist() == model.predict([("a", "b")]).tolist()
    assert model.rank("a", ["b", "c"], **idle) == model.rank("a", ["b", "c"])
    with pytest.raises(
        ValueError, match=r"device is 'cuda:1', but the model is on 'cpu'; give device to CrossEncoder"
    ):
        model.rank("a", ["b"], device="cuda:1")


def test_the_automatic_class_goes_by_the_settings(small: Golden) -> None:
    assert type(compat.FlagAutoReranker.from_finetuned(small.folder)) is compat.FlagReranker
    with pytest.warns(UserWarning, match="model_class: without meaning"):
        made = compat.FlagAutoReranker.from_finetuned(
            small.folder, "encoder-only-base", normalize=True, max_length=64
        )
    plain = compat.FlagReranker(small.folder, normalize=True, max_length=64)
    assert made.compute_score(small.pairs) == plain.compute_score(small.pairs)
