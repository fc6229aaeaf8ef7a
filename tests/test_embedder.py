"""Embedder: what the checkpoint's files ask for, what goes in, what is refused."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file

from secondpass import Embedder
from secondpass.checkpoint.sentence_transformers import SentenceSettings, read_settings
from secondpass.embedder import lexical_score
from secondpass.errors import CheckpointError, UnknownModel
from secondpass.models.nomic import NomicConfig
from secondpass.text.prompts import known_prompts
from tests.checkpoints import tiny_bert

QUERY = "which river is long"
TEXTS = ["the river is long", "a bridge", "", "the river is long", "winter light on the water of the long river"]


def tiny_embedder(folder: Path, *, pooling: str = "mean_tokens", has_heads: bool = False) -> Path:
    """A BERT embedder in the layout of sentence-transformers with seeded random weights."""
    tiny_bert(folder)
    weights = {name: x for name, x in load_file(folder / "model.safetensors").items() if "classifier" not in name}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write(folder / "modules.json", modules("Transformer", "Pooling", "Normalize"))
    (folder / "1_Pooling").mkdir()
    write(folder / "1_Pooling" / "config.json", {f"pooling_mode_{pooling}": True, "pooling_mode_max_tokens": False})
    write(folder / "sentence_bert_config.json", {"max_seq_length": 64, "do_lower_case": False})
    generator = torch.Generator().manual_seed(3)
    for name, width in {"colbert_linear.pt": 16, "sparse_linear.pt": 1}.items() if has_heads else ():
        linear = {"weight": (width, 16), "bias": (width,)}
        torch.save({key: torch.randn(shape, generator=generator) for key, shape in linear.items()}, folder / name)
    return folder


def modules(*kinds: str) -> list[dict[str, Any]]:
    paths = {"Transformer": "", "Pooling": "1_Pooling"}
    return [{"type": f"sentence_transformers.models.{k}", "path": paths.get(k, f"2_{k}")} for k in kinds]


def write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content), "utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_embedder(tmp_path_factory.mktemp("embedder"))


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Embedder:
    return Embedder(folder, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def m3(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    folder = tiny_embedder(tmp_path_factory.mktemp("m3"), pooling="cls_token", has_heads=True)
    return Embedder(folder, dtype="float32", device="cpu")


def test_vectors_are_units_of_the_right_shape(embedder: Embedder) -> None:
    vectors = embedder.encode(TEXTS)
    assert (vectors.shape, vectors.dtype) == ((5, 16), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors[0], vectors[3], atol=1e-6)


def test_score_is_the_cosine(folder: Path, embedder: Embedder) -> None:
    query, documents = embedder.encode([QUERY], kind="query")[0], embedder.encode(TEXTS)
    assert embedder.score(QUERY, TEXTS) == pytest.approx((documents @ query).tolist(), abs=1e-5)
    raw = Embedder(folder, dtype="float32", device="cpu", is_normalized=False)
    assert np.linalg.norm(raw.encode(TEXTS), axis=1).max() > 1.5
    assert raw.score(QUERY, TEXTS) == pytest.approx(embedder.score(QUERY, TEXTS), abs=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_a_batch_is_as_alone(folder: Path, pooling: str) -> None:
    model = Embedder(folder, dtype="float32", device="cpu", pooling=pooling, token_budget=16)
    alone = np.concatenate([model.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(model.encode(TEXTS), alone, atol=1e-5)


def test_documents_are_read_as_by_a_reranker(embedder: Embedder) -> None:
    expected = embedder.encode(["the river", "a bridge"])
    np.testing.assert_array_equal(embedder.encode(iter([{"text": "the river", "id": 1}, "a bridge"])), expected)


def test_nothing_in_is_nothing_out(embedder: Embedder, m3: Embedder) -> None:
    assert embedder.encode([]).shape == (0, 16)
    assert embedder.score(QUERY, []) == []
    assert (m3.sparse([]), m3.multi_vector([]), m3.score(QUERY, [])) == ([], [], [])


def test_dimension_cuts_and_normalises(folder: Path, embedder: Embedder) -> None:
    cut = Embedder(folder, dtype="float32", device="cpu", dimension=4)
    expected = embedder.encode(TEXTS)[:, :4]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(cut.encode(TEXTS), expected, atol=1e-5)
    assert cut.encode([]).shape == (0, 4)


def test_prompts_are_put_before_the_text(folder: Path, embedder: Embedder) -> None:
    prompted = Embedder(folder, dtype="float32", device="cpu", prompts={"query": "the old ", "document": "a new "})
    for kind, prompt in {"query": "the old ", "document": "a new "}.items():
        expected = embedder.encode([prompt + "river"], kind=kind)
        np.testing.assert_allclose(prompted.encode(["river"], kind=kind), expected, atol=1e-6)


def test_max_length_is_the_checkpoints_own_or_as_asked(folder: Path, embedder: Embedder) -> None:
    text = "river " * 200
    assert (embedder.info().max_length, len(embedder._rows([text], "query")[0])) == (64, 64)
    longer = Embedder(folder, dtype="float32", device="cpu", max_length=128, max_query_length=8)
    assert len(longer._rows([text], "document")[0]) == 128
    row = longer._rows([text], "query")[0]
    assert (len(row), row.cut) == (8, (0, 194))
    with pytest.raises(ValueError, match="reads 2 to 128 tokens"):
        Embedder(folder, device="cpu", max_length=129)


def test_m3_says_three_kinds_of_scores(m3: Embedder) -> None:
    query, documents = m3.sparse([QUERY], kind="query")[0], m3.sparse(TEXTS)
    assert all(weight > 0 for weights in documents for weight in weights.values())
    sparse = [lexical_score(query, document) for document in documents]
    assert m3.score(QUERY, TEXTS, mode="sparse") == pytest.approx(sparse, abs=1e-5)
    ours, theirs = m3.multi_vector([QUERY], kind="query")[0], m3.multi_vector(TEXTS)
    assert [len(vectors) for vectors in theirs] == [len(row) - 1 for row in m3._rows(TEXTS, "document")]
    colbert = [float((ours @ vectors.T).max(axis=1).mean()) for vectors in theirs]
    assert m3.score(QUERY, TEXTS, mode="colbert") == pytest.approx(colbert, abs=1e-5)
    dense = m3.score(QUERY, TEXTS, mode="dense")
    together = [(d + s + c) / 3 for d, s, c in zip(dense, sparse, colbert, strict=True)]
    assert m3.score(QUERY, TEXTS) == pytest.approx(together, abs=1e-5)


def test_weights_are_of_dense_sparse_and_colbert(m3: Embedder) -> None:
    parts = [m3.score(QUERY, TEXTS, mode=mode) for mode in ("dense", "sparse", "colbert")]
    weighted = Embedder(m3._checkpoint.folder, dtype="float32", device="cpu", weights=(1, 2, 5), mode="sparse+dense")
    expected = [(d + 2 * s) / 3 for d, s in zip(parts[0], parts[1], strict=True)]
    assert weighted.score(QUERY, TEXTS) == pytest.approx(expected, abs=1e-5)
    expected = [(d + 2 * s + 5 * c) / 8 for d, s, c in zip(*parts, strict=True)]
    assert weighted.score(QUERY, TEXTS, mode="colbert+sparse+dense") == pytest.approx(expected, abs=1e-5)


def test_a_model_without_heads_says_what_is_missing(embedder: Embedder, folder: Path) -> None:
    for call in (embedder.sparse, embedder.multi_vector):
        with pytest.raises(ValueError, match=r"no (sparse|colbert)_linear\.pt"):
            call(TEXTS)
    with pytest.raises(ValueError, match="no sparse_linear"):
        embedder.score(QUERY, TEXTS, mode="sparse+dense")
    with pytest.raises(ValueError, match="no colbert_linear"):
        Embedder(folder, device="cpu", mode="colbert")


@pytest.mark.parametrize(
    "option",
    [
        {"pooling": "median"},
        {"mode": "hybrid"},
        {"dimension": 0},
        {"dimension": 17},
        {"prompts": {"passage": "p: "}},
        {"weights": (1, 1)},
        {"weights": (1, -1, 1)},
        {"weights": "abc"},
        {"token_budget": 0},
        {"max_length": 1},
        {"device": "toaster"},
    ],
)
def test_bad_options_are_refused(folder: Path, option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        Embedder(folder, **{"device": "cpu", **option})


@pytest.mark.parametrize(
    "option",
    [{"dimension": 4.0}, {"dimension": "4"}, {"max_length": "9"}, {"token_budget": "9"}, {"token_budget": 1.5}],
)
def test_options_that_are_no_whole_numbers_are_refused_when_opened(folder: Path, option: dict[str, Any]) -> None:
    name, value = next(iter(option.items()))
    with pytest.raises(TypeError, match=f"{name} is a {type(value).__name__}; give a whole number"):
        Embedder(folder, **{"device": "cpu", **option})


def test_weights_that_leave_nothing_are_refused(m3: Embedder) -> None:
    with pytest.raises(ValueError, match="leave nothing"):
        Embedder(m3._checkpoint.folder, device="cpu", weights=(0, 0, 1), mode="sparse+dense")


def test_bad_input_is_named(embedder: Embedder) -> None:
    with pytest.raises(TypeError, match="list of documents"):
        embedder.encode("one text")
    with pytest.raises(TypeError, match=r"documents\[1\] is None"):
        embedder.encode(["a", None])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="query is None"):
        embedder.score(None, TEXTS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kind is 'passage'"):
        embedder.encode(TEXTS, kind="passage")
    assert embedder.encode(["lone \ud800 surrogate"]).shape == (1, 16)


def test_a_cross_encoder_is_no_embedder(tmp_path: Path) -> None:
    message = r"cross is a reranker.*secondpass\.Reranker.*unexpected classifier\.bias"
    with pytest.raises(CheckpointError, match=message):
        Embedder(tiny_bert(tmp_path / "cross"), device="cpu")


def test_threads_see_the_same_vectors(embedder: Embedder) -> None:
    expected = embedder.encode(TEXTS)
    with ThreadPoolExecutor(4) as pool:
        for vectors in pool.map(lambda _: embedder.encode(TEXTS), range(8)):
            np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_settings_without_files_are_the_mean(tmp_path: Path) -> None:
    assert read_settings(tmp_path) == SentenceSettings()


def test_settings_are_read(tmp_path: Path) -> None:
    folder = tiny_embedder(tmp_path / "e", pooling="lasttoken")
    write(folder / "config_sentence_transformers.json", {"prompts": {"query": "", "passage": "p: ", "sts": "s: "}})
    found = read_settings(folder)
    assert found == SentenceSettings(pooling="last", is_normalized=True, prompts={"document": "p: "}, max_length=64)
    prompts = {"query": "q: ", "document": "", "web": "w: "}
    write(folder / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": "web"})
    assert read_settings(folder).prompts == {"query": "q: ", "document": "w: "}
    write(folder / "1_Pooling" / "config.json", {"pooling_mode": "cls"})
    assert read_settings(folder).pooling == "cls"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("modules.json", modules("Transformer", "Pooling", "Normalize", "Dense"), "in this order"),
        ("modules.json", modules("Transformer", "Dense"), "in this order"),
        ("modules.json", modules("Transformer", "Pooling", "LayerNorm"), "asks for LayerNorm"),
        ("1_Pooling/config.json", {"pooling_mode_median_tokens": True}, "median_tokens"),
        ("1_Pooling/config.json", {"pooling_mode": ["cls", "median"]}, "median"),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": True, "include_prompt": False}, "whole row"),
        ("modules.json", {"type": "x"}, "not a list"),
        ("artifact.metadata", {"dim": 128}, "late interaction; open it with secondpass.ColBERT"),
        ("modules.json", [{"type": "x.Pooling", "path": "../elsewhere"}], "outside"),
    ],
)
def test_settings_that_are_not_computed_are_refused(tmp_path: Path, file: str, content: Any, message: str) -> None:
    folder = tiny_embedder(tmp_path / "e")
    write(folder / file, content)
    with pytest.raises((UnknownModel, CheckpointError), match=message):
        read_settings(folder)


POOLED = {
    "cls": lambda states: states[0],
    "max": lambda states: states.max(0),
    "mean": lambda states: states.mean(0),
    "mean_sqrt_len_tokens": lambda states: states.sum(0) / len(states) ** 0.5,
    "weightedmean": lambda states: np.average(states, axis=0, weights=range(1, len(states) + 1)),
    "lasttoken": lambda states: states[-1],
}
KEYS = {name: f"pooling_mode_{name.removesuffix('_tokens')}_tokens" for name in POOLED} | {
    "cls": "pooling_mode_cls_token",
    "lasttoken": "pooling_mode_lasttoken",
}


def states_of(folder: Path) -> list[Any]:
    """Of TEXTS, by transformers."""
    transformers = pytest.importorskip("transformers")
    model = transformers.BertModel.from_pretrained(folder)
    with torch.inference_mode():
        found = [model(torch.tensor([row.ids])).last_hidden_state[0] for row in Embedder(folder).rows(TEXTS)]
    return [states.numpy() for states in found]


@pytest.mark.parametrize("names", [*((name,) for name in POOLED), ("mean", "cls"), tuple(POOLED)])
def test_poolings_are_those_of_sentence_transformers(tmp_path: Path, names: tuple[str, ...]) -> None:
    folder = tiny_embedder(tmp_path / "e")
    write(folder / "modules.json", modules("Transformer", "Pooling", "Dropout"))
    states = states_of(folder)
    in_order = [POOLED[name] for name in POOLED if name in names]
    expected = [np.concatenate([pooled(x) for pooled in in_order]) for x in states]
    for config in ({KEYS[name]: True for name in names}, {"pooling_mode": list(names)}):
        write(folder / "1_Pooling" / "config.json", config)
        vectors = Embedder(folder, device="cpu", dtype="float32").encode(TEXTS)
        np.testing.assert_allclose(vectors, expected, atol=2e-5)


def test_pooled_vectors_go_through_dense_layers(tmp_path: Path) -> None:
    folder = tiny_embedder(tmp_path / "e", pooling="cls_token")
    kinds = modules("Transformer", "Pooling", "Dense", "Dense", "Normalize")
    kinds[3]["path"] = "3_Dense"
    write(folder / "modules.json", kinds)
    generator = torch.Generator().manual_seed(5)
    first, bias, second = (torch.randn(shape, generator=generator) for shape in ((24, 16), (24,), (6, 24)))
    tanh, identity = "torch.nn.modules.activation.Tanh", "torch.nn.modules.linear.Identity"
    layers = {
        "2_Dense": (
            {"in_features": 16, "out_features": 24, "bias": True},
            {"linear.weight": first, "linear.bias": bias},
        ),
        "3_Dense": ({"in_features": 24, "out_features": 6, "bias": False}, {"linear.weight": second}),
    }
    for (name, (config, weights)), activation in zip(layers.items(), (tanh, identity), strict=True):
        (folder / name).mkdir()
        write(folder / name / "config.json", config | {"activation_function": activation})
        if name == "2_Dense":
            torch.save(weights, folder / name / "pytorch_model.bin")
        else:
            save_file(weights, folder / name / "model.safetensors")
    cls = torch.tensor(np.array([states[0] for states in states_of(folder)]))
    expected = torch.nn.functional.normalize((cls @ first.T + bias).tanh() @ second.T)
    embedder = Embedder(folder, device="cpu", dtype="float32")
    np.testing.assert_allclose(embedder.encode(TEXTS), expected, atol=1e-5)
    assert embedder.encode([]).shape == (0, 6)
    for changes, message in (({"activation_function": "x.Mish"}, "mish"), ({"in_features": 8}, "from 16 is needed")):
        write(folder / "2_Dense" / "config.json", layers["2_Dense"][0] | {"activation_function": tanh} | changes)
        with pytest.raises((UnknownModel, CheckpointError), match=message):
            Embedder(folder, device="cpu")


def cut_at_spaces(folder: Path) -> Path:
    """A tokenizer to which white space and case matter."""
    ids = {word: place for place, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "river", "The", " "))}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "isolated")
    inner.save(str(folder / "tokenizer.json"))
    return folder


def test_white_space_around_a_text_is_read_as_sentence_transformers_reads_it_since_version_6(tmp_path: Path) -> None:
    folder = cut_at_spaces(tiny_embedder(tmp_path))
    rows = Embedder(folder, device="cpu", prompts={"document": " "}).rows(["the river "])
    assert rows[0].ids == [7, 4, 7, 5, 7]


def test_do_lower_case_is_done_where_the_tokenizer_does_not(tmp_path: Path) -> None:
    folder = cut_at_spaces(tiny_embedder(tmp_path / "e"))
    assert Embedder(folder, device="cpu").rows(["The"])[0].ids == [6]
    write(folder / "sentence_bert_config.json", {"max_seq_length": 64, "do_lower_case": True})
    assert Embedder(folder, device="cpu").rows(["The"])[0].ids == [4]
    assert Embedder(folder, device="cpu", has_lowered_case=False).rows(["The"])[0].ids == [6]


@pytest.mark.parametrize(
    ("name", "model_type", "query"),
    [
        ("BAAI/bge-small-en-v1.5", "bert", "Represent this sentence for searching relevant passages: "),
        ("/models/bge-large-zh", "bert", "为这个句子生成表示以用于检索相关文章："),
        ("intfloat/multilingual-e5-base", "xlm-roberta", "query: "),
        ("somewhere/tuned", "nomic_bert", "search_query: "),
        ("sentence-transformers/all-MiniLM-L6-v2", "bert", ""),
        ("BAAI/bge-m3", "xlm-roberta", ""),
    ],
)
def test_prompts_of_known_models(name: str, model_type: str, query: str) -> None:
    assert known_prompts(name, model_type).get("query", "") == query


def test_nomic_is_the_same_in_the_words_of_transformers() -> None:
    old = {"n_embd": 8, "n_head": 2, "n_layer": 1, "n_inner": 256, "n_positions": 16, "vocab_size": 100}
    old |= {"rotary_emb_base": 1000} | dict.fromkeys(("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"), False)
    new = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 256}
    new |= {"max_position_embeddings": 16, "vocab_size": 100, "rope_parameters": {"rope_theta": 1000}}
    assert NomicConfig.from_hf(new) == NomicConfig.from_hf(old)
    for change in ({"hidden_act": "gelu"}, {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}):
        with pytest.raises(UnknownModel, match="nomic_bert with"):
            NomicConfig.from_hf(new | change)


def test_variants_of_nomic_that_are_not_computed_are_refused() -> None:
    config = {"n_embd": 8, "n_head": 2, "n_layer": 1, "n_inner": 32, "n_positions": 16, "vocab_size": 100}
    settings = NomicConfig.from_hf({**config, "pad_vocab_size_multiple": 64})
    assert (settings.num_words, settings.mlp_width) == (128, 256)
    changes = {"num_experts": 8, "prenorm": True, "rotary_scaling_factor": 2, "activation_function": "gelu"}
    for name, value in changes.items():
        with pytest.raises(UnknownModel, match=name):
            NomicConfig.from_hf({**config, name: value})
