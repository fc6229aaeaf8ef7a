"""ColBERT and stored document vectors: what goes in, what comes out, what is refused."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from secondpass import ColBERT, Document
from secondpass.colbert import store as stored
from secondpass.colbert.colbert import TokenVectors
from secondpass.colbert.maxsim import maxsim
from secondpass.engine.torch_encoder import _joined
from secondpass.errors import CheckpointError, UnknownModel
from tests.checkpoints import tiny_bert

QUERY = "which river is long"
TEXTS = ["the river is long", "a bridge", "", "the river is long", "winter light, on the water of the long river!"]
METADATA = {
    "dim": 8,
    "query_maxlen": 12,
    "doc_maxlen": 24,
    "query_token_id": "q",  # the tiny vocabulary has no [unused0]
    "doc_token_id": "d",
    "attend_to_mask_tokens": False,
    "mask_punctuation": True,
    "similarity": "cosine",
}


def tiny_colbert(folder: Path, *, seed: int = 0) -> Path:
    """A ColBERT checkpoint in the layout of colbert-ai with seeded random weights."""
    tiny_bert(folder, seed=seed)
    weights = {name: x for name, x in load_file(folder / "model.safetensors").items() if "classifier" not in name}
    weights["linear.weight"] = torch.randn(8, 16, generator=torch.Generator().manual_seed(seed))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "artifact.metadata").write_text(json.dumps(METADATA))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_colbert(tmp_path_factory.mktemp("colbert"))


@pytest.fixture(scope="module")
def colbert(folder: Path) -> ColBERT:
    return ColBERT(folder, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def saved(colbert: ColBERT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "vectors"
    colbert.encode(TEXTS).save(folder)
    return folder


def by_hand(query: np.ndarray, documents: list[np.ndarray]) -> list[float]:
    return [sum(max(float(q @ d) for d in document) for q in query) for document in documents]


def test_maxsim_is_each_query_tokens_best_summed() -> None:
    query = np.array([[1, 0], [0, 1]], np.float32)
    documents = np.array([[1, 0], [0.6, 0.8], [-1, 0]], np.float32)
    assert maxsim(query, documents, np.array([2, 1])).tolist() == pytest.approx([1.8, -1.0])


def test_maxsim_of_an_empty_document_is_minus_infinity() -> None:
    query = np.eye(2, dtype=np.float32)
    scores = maxsim(query, query, np.array([0, 1, 0, 1, 0]))
    assert scores.tolist() == [-np.inf, 1.0, -np.inf, 1.0, -np.inf]
    assert maxsim(query, query[:0], np.array([0, 0])).tolist() == [-np.inf, -np.inf]


def test_maxsim_rejects_lengths_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="sum to 3, there are 2"):
        maxsim(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32), np.array([3]))


@pytest.mark.parametrize("block", [1, 5, 7, 1000])
def test_blocks_do_not_change_maxsim(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secondpass.colbert.maxsim.BLOCK_TOKENS", block)
    random = np.random.default_rng(0)
    lengths = random.integers(0, 6, 40)
    vectors = random.standard_normal((lengths.sum(), 4)).astype(np.float32)
    query = random.standard_normal((3, 4)).astype(np.float32)
    parts = [part for part in np.split(vectors, np.cumsum(lengths)[:-1])]
    expected = [by_hand(query, [part])[0] if len(part) else -np.inf for part in parts]
    assert maxsim(query, vectors, lengths).tolist() == pytest.approx(expected, abs=1e-5)
    half = maxsim(query, vectors.astype(np.float16), lengths)
    assert half.tolist() == pytest.approx(expected, abs=2e-2)


def test_vectors_are_units_and_punctuation_is_left_out(colbert: ColBERT) -> None:
    vectors = colbert.encode(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(vectors.vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(colbert.encode_queries([QUERY]), axis=2), 1, atol=1e-5)
    assert vectors.lengths[2] == 3  # [CLS], marker, [SEP]
    words = TEXTS[4].replace(",", "").replace("!", "")
    assert vectors.lengths[4] == colbert.encode([words]).lengths[0]


def test_score_is_the_sum_of_maxima(colbert: ColBERT) -> None:
    vectors = colbert.encode(TEXTS)
    documents = np.split(vectors.vectors, np.cumsum(vectors.lengths)[:-1])
    expected = by_hand(colbert.encode_queries([QUERY])[0], documents)
    assert colbert.score(QUERY, TEXTS) == pytest.approx(expected, abs=1e-4)
    assert colbert.score(QUERY, vectors) == pytest.approx(expected, abs=1e-4)


def test_masks_are_not_seen_but_score(colbert: ColBERT, folder: Path) -> None:
    """A longer augmentation leaves the query's own vectors as they are, unless the masks are attended to."""
    longer = ColBERT(folder, dtype="float32", device="cpu", max_query_length=20)
    own = colbert._query_rows([QUERY])[1][0]
    short, long = colbert.encode_queries([QUERY])[0], longer.encode_queries([QUERY])[0]
    assert (short.shape, long.shape) == ((12, 8), (20, 8))
    np.testing.assert_allclose(short, long[:12], atol=1e-5)
    attending = ColBERT(folder, dtype="float32", device="cpu", attends_to_masks=True)
    assert np.abs(attending.encode_queries([QUERY])[0][:own] - short[:own]).max() > 1e-3


def test_queries_in_a_batch_are_as_alone(colbert: ColBERT) -> None:
    queries = [QUERY, "", "a", "the river is long and cold in winter and the water is in the sea " * 3]
    together = colbert.encode_queries(queries)
    alone = np.concatenate([colbert.encode_queries([query]) for query in queries])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_rank_is_sorted_and_keeps_order_of_equals(colbert: ColBERT) -> None:
    ranking = colbert.rank(QUERY, [{"text": text, "id": place} for place, text in enumerate(TEXTS)])
    scores = colbert.score(QUERY, TEXTS)
    assert [hit.index for hit in ranking] == [*sorted((0, 1, 3, 4), key=lambda i: -scores[i]), 2]  # the blank last
    assert [hit.document["id"] for hit in ranking] == [hit.index for hit in ranking]
    assert all(0 <= hit.probability <= 1 for hit in ranking[:4])
    assert [hit.index for hit in ranking if hit.document.text == TEXTS[0]] == [0, 3]
    assert len(colbert.rank(QUERY, TEXTS, top_n=2)) == 2


def test_equal_texts_have_equal_scores_wherever_they_stand(colbert: ColBERT) -> None:
    for before in range(12):
        scores = colbert.score(QUERY, [*TEXTS[1:2] * before, TEXTS[0], TEXTS[4], TEXTS[0]])
        assert scores[before] == scores[-1]
    stored = colbert.encode([TEXTS[0], TEXTS[4], TEXTS[1], TEXTS[0]])
    assert colbert.score(QUERY, stored)[0] == colbert.score(QUERY, stored)[3]


def test_usage_of_stored_vectors_counts_the_query_alone(colbert: ColBERT) -> None:
    assert colbert.rank(QUERY, colbert.encode(TEXTS)).usage.tokens == 12
    assert colbert.rank(QUERY, TEXTS).usage.tokens > 12
    assert colbert.rank(QUERY, ["the river " * 20]).usage.truncated == 1


def test_no_documents_give_nothing(colbert: ColBERT, tmp_path: Path) -> None:
    assert colbert.score(QUERY, []) == []
    assert list(colbert.rank(QUERY, [])) == []
    assert colbert.encode_queries([]).shape == (0, 12, 8)
    empty = colbert.encode([])
    empty.save(tmp_path / "empty")
    assert colbert.score(QUERY, TokenVectors.load(tmp_path / "empty")) == []


def test_a_thousand_stored_documents_rank_as_one_by_one(colbert: ColBERT, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    words = np.array("the a river bridge water winter light long short old new city house , . !".split())
    texts = [" ".join(random.choice(words, random.integers(1, 12))) for _ in range(1000)]
    colbert.encode(texts).save(tmp_path / "thousand")
    ranking = colbert.rank(QUERY, TokenVectors.load(tmp_path / "thousand"))
    alone = np.empty(1000)
    for index in random.choice(1000, 40, replace=False):  # each is a forward: a sample is enough
        alone[index] = colbert.score(QUERY, [texts[index]])[0]
        hit = next(hit for hit in ranking if hit.index == index)
        assert hit.score == pytest.approx(alone[index], abs=1e-4)
    fresh = colbert.score(QUERY, texts)
    assert [hit.score for hit in ranking] == pytest.approx(sorted(fresh, reverse=True), abs=1e-4)
    assert [fresh[hit.index] for hit in ranking] == pytest.approx([hit.score for hit in ranking], abs=1e-4)


def test_saved_vectors_are_mapped_and_score_the_same(colbert: ColBERT, saved: Path) -> None:
    loaded = TokenVectors.load(saved)
    assert isinstance(loaded.vectors, np.memmap) and not loaded.vectors.flags.writeable
    assert colbert.score(QUERY, loaded) == pytest.approx(colbert.score(QUERY, TEXTS), abs=1e-5)
    assert [document.text for document in loaded.documents] == TEXTS


def test_fields_of_documents_are_saved(colbert: ColBERT, tmp_path: Path) -> None:
    document = {"text": "the river\u2028is\nlong", "id": 7, "tags": ["a", None]}
    vectors = colbert.encode([document, Document("a bridge", {"source": "b"})])
    vectors.save(tmp_path / "fields")
    found = TokenVectors.load(tmp_path / "fields").documents
    assert found == vectors.documents
    assert (found[0]["id"], found[1]["source"], found[1].text) == (7, "b", "a bridge")


def test_float16_halves_the_file_and_stays_near(colbert: ColBERT, tmp_path: Path, saved: Path) -> None:
    colbert.encode(TEXTS).save(tmp_path / "half", dtype="float16")
    loaded = TokenVectors.load(tmp_path / "half")
    assert loaded.vectors.dtype == np.float16
    assert colbert.score(QUERY, loaded) == pytest.approx(colbert.score(QUERY, TEXTS), abs=1e-2)
    with pytest.raises(ValueError, match="float32"):
        loaded.save(tmp_path / "other", dtype="int8")


def test_take_gives_what_a_first_stage_found(colbert: ColBERT, saved: Path) -> None:
    taken = TokenVectors.load(saved).take([4, 0])
    assert colbert.score(QUERY, taken) == pytest.approx(colbert.score(QUERY, [TEXTS[4], TEXTS[0]]), abs=1e-5)
    assert taken.take([]).vectors.shape == (0, 8)
    assert repr(taken).startswith("<TokenVectors of 2 documents: (") and TEXTS[0] not in repr(taken)
    for wrong in ([5], [-1]):
        with pytest.raises(IndexError, match="there are 2"):
            taken.take(wrong)


def test_vectors_of_another_model_are_refused(saved: Path, tmp_path: Path) -> None:
    other = ColBERT(tiny_colbert(tmp_path / "other", seed=1), dtype="float32", device="cpu")
    for use in (other.score, other.rank):
        with pytest.raises(ValueError, match="other weights"):
            use(QUERY, TokenVectors.load(saved))


def test_vectors_of_other_settings_are_refused(saved: Path, folder: Path) -> None:
    for option in ({"max_length": 10}, {"skips_punctuation": False}):
        with pytest.raises(ValueError, match="set to"):
            ColBERT(folder, dtype="float32", device="cpu", **option).score(QUERY, TokenVectors.load(saved))


def test_a_copy_of_the_model_may_use_the_vectors(saved: Path, tmp_path: Path, colbert: ColBERT) -> None:
    """In another folder and another precision: it is the weights that count."""
    copy = ColBERT(tiny_colbert(tmp_path / "copy"), dtype="bfloat16", device="cpu")
    assert copy.score(QUERY, TokenVectors.load(saved)) == pytest.approx(colbert.score(QUERY, TEXTS), abs=0.3)


def test_an_interrupted_save_leaves_nothing(
    colbert: ColBERT, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = TokenVectors.load(saved)
    vectors.save(tmp_path / "old")
    before = np.array(TokenVectors.load(tmp_path / "old").vectors)
    write: Callable[..., None] = np.save

    def fail(file: Path, values: np.ndarray) -> None:
        write(file, values)
        if file.name == "lengths.npy":
            raise KeyboardInterrupt

    monkeypatch.setattr(stored.np, "save", fail)
    for name in ("new", "old"):
        with pytest.raises(KeyboardInterrupt):
            vectors.save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    np.testing.assert_array_equal(TokenVectors.load(tmp_path / "old").vectors, before)


def test_save_replaces_vectors_and_nothing_else(colbert: ColBERT, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "vectors"
    colbert.encode(TEXTS).save(target)
    mapped = TokenVectors.load(target)
    colbert.encode(TEXTS[:2]).save(target)
    assert (len(TokenVectors.load(target)), len(colbert.score(QUERY, mapped))) == (2, 5)
    assert [path.name for path in target.parent.iterdir()] == ["vectors"]
    with pytest.raises(FileExistsError, match="no vectors"):
        colbert.encode(TEXTS).save(tmp_path)


@pytest.mark.parametrize("name", ["vectors.npy", "lengths.npy", "documents.jsonl", "vectors.json"])
def test_damaged_vectors_are_refused(colbert: ColBERT, tmp_path: Path, name: str) -> None:
    colbert.encode(TEXTS).save(tmp_path / "v")
    file = tmp_path / "v" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="v"):
        TokenVectors.load(tmp_path / "v")
    file.unlink()
    with pytest.raises(CheckpointError, match="v"):
        TokenVectors.load(tmp_path / "v")


def test_fields_that_json_cannot_hold_are_named(colbert: ColBERT, tmp_path: Path) -> None:
    vectors = colbert.encode(["a", {"text": "b", "tag": object()}])
    with pytest.raises(ValueError, match=r"documents\[1\]"):
        vectors.save(tmp_path / "v")
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_named(colbert: ColBERT) -> None:
    with pytest.raises(TypeError, match="list of documents"):
        colbert.score(QUERY, "one text")
    with pytest.raises(TypeError, match=r"documents\[1\]"):
        colbert.encode(["a", None])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="query is None"):
        colbert.score(None, TEXTS)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="list of queries"):
        colbert.encode_queries("one query")
    with pytest.raises(ValueError, match="top_n is 0"):
        colbert.rank(QUERY, TEXTS, top_n=0)
    assert len(colbert.score("lone \ud800 surrogate", ["another \ud800"])) == 1


@pytest.mark.parametrize("option", [{"max_length": "9"}, {"max_query_length": 4.5}, {"token_budget": "9"}])
def test_options_that_are_no_whole_numbers_are_refused(folder: Path, option: dict[str, object]) -> None:
    with pytest.raises(TypeError, match=f"{next(iter(option))} is a (str|float); give a whole number"):
        ColBERT(folder, device="cpu", **option)  # type: ignore[arg-type]


@pytest.mark.parametrize("option", [{"max_length": 2}, {"max_length": 129}, {"max_query_length": 0}])
def test_lengths_out_of_range_are_refused(folder: Path, option: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="reads 3 to 128 tokens"):
        ColBERT(folder, device="cpu", **option)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"similarity": "l2"}, UnknownModel, "cosine"),
        ({"query_token_id": "[unused7]"}, CheckpointError, "unused7"),
        ({"dim": 9}, CheckpointError, r"\(9, 16\)"),
        (None, UnknownModel, "artifact.metadata"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(
    tmp_path: Path, change: dict[str, object] | None, error: type[Exception], message: str
) -> None:
    folder = tiny_colbert(tmp_path / "model")
    file = folder / "artifact.metadata"
    if change is None:
        file.unlink()
    else:
        file.write_text(json.dumps({**METADATA, **change}))
    with pytest.raises(error, match=message):
        ColBERT(folder, device="cpu")


def test_info_and_threads(colbert: ColBERT) -> None:
    assert (colbert.info().family, colbert.info().max_length, colbert.info()["dtype"]) == ("colbert", 24, "float32")
    vectors = colbert.encode(TEXTS)
    expected = colbert.score(QUERY, TEXTS)
    with ThreadPoolExecutor(4) as pool:
        for scores in pool.map(lambda _: colbert.score(QUERY, vectors), range(8)):
            assert scores == pytest.approx(expected, abs=1e-5)


PYLATE = {
    "query_prefix": "q",
    "document_prefix": "d",
    "query_length": 12,
    "document_length": 24,
    "attend_to_expansion_tokens": False,
    "skiplist_words": ["!", ","],
    "do_query_expansion": True,
}


def tiny_pylate(folder: Path, *, changes: dict[str, object] | None = None, layers: int = 1) -> Path:
    """The weights of `tiny_colbert` in PyLate's layout, with as many layers over the first as are asked for."""
    tiny_colbert(folder)
    (folder / "artifact.metadata").unlink()
    weights = load_file(folder / "model.safetensors")
    first = {"linear.weight": weights.pop("linear.weight")}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    generator = torch.Generator().manual_seed(7)
    for index in range(layers):
        layer = folder / f"{index + 1}_Dense"
        layer.mkdir()
        wide, narrow = (16, 8) if index == 0 else (9 - index, 8 - index)
        extra = {
            "linear.weight": torch.randn(narrow, wide, generator=generator),
            "linear.bias": torch.randn(narrow, generator=generator),
            "residual.weight": torch.randn(narrow, wide, generator=generator),
        }
        save_file(extra if index else first, layer / "model.safetensors")
        config = {"in_features": wide, "out_features": narrow, "bias": index > 0, "use_residual": index > 0}
        config["activation_function"] = "torch.nn.modules.linear.Identity"
        (layer / "config.json").write_text(json.dumps(config))
        modules.append(
            {"idx": index + 1, "name": str(index + 1), "path": layer.name, "type": "pylate.models.Dense.Dense"}
        )
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({**PYLATE, **(changes or {})}))
    return folder


def test_a_checkpoint_of_pylate_scores_as_the_same_one_of_colbert_ai(tmp_path: Path, colbert: ColBERT) -> None:
    model = ColBERT(tiny_pylate(tmp_path), dtype="float32", device="cpu")
    assert model.score(QUERY, TEXTS) == pytest.approx(colbert.score(QUERY, TEXTS), abs=1e-6)
    words = [text for text in TEXTS if "," not in text]
    changed = ColBERT(tiny_pylate(tmp_path / "all", changes={"skiplist_words": []}), dtype="float32", device="cpu")
    assert changed.encode(TEXTS).lengths.sum() > model.encode(TEXTS).lengths.sum()
    assert changed.score(QUERY, words) == pytest.approx(colbert.score(QUERY, words), abs=1e-6)


def test_layers_of_pylate_come_one_after_the_other(tmp_path: Path) -> None:
    folder = tiny_pylate(tmp_path, layers=3)
    layers = [folder / f"{index}_Dense" for index in (1, 2, 3)]
    states = torch.randn(5, 16, generator=torch.Generator().manual_seed(2))
    expected = states @ load_file(layers[0] / "model.safetensors")["linear.weight"].T
    for layer in layers[1:]:
        x = load_file(layer / "model.safetensors")
        expected = expected @ x["linear.weight"].T + x["linear.bias"] + expected @ x["residual.weight"].T
    torch.testing.assert_close(_joined(layers, 16)(states), expected, atol=1e-4, rtol=1e-5)
    assert ColBERT(folder, dtype="float32", device="cpu").encode(TEXTS).vectors.shape[1] == 6


def test_queries_that_are_not_filled_up_have_vectors_of_their_words_alone(tmp_path: Path) -> None:
    filled = ColBERT(tiny_pylate(tmp_path / "filled"), dtype="float32", device="cpu")
    bare = ColBERT(
        tiny_pylate(tmp_path / "bare", changes={"do_query_expansion": False}), dtype="float32", device="cpu"
    )
    theirs, ours = filled.encode_queries([QUERY])[0], bare.encode_queries([QUERY])[0]
    count = 4 + 3  # words, and [CLS], marker and [SEP]
    assert np.allclose(ours[:count], theirs[:count], atol=1e-6) and not ours[count:].any() and theirs[count:].any()
    vectors = bare.encode(TEXTS)
    expected = maxsim(ours[:count], vectors.vectors, vectors.lengths)
    assert bare.score(QUERY, TEXTS) == pytest.approx(expected.tolist(), abs=1e-5)
    unmarked = ColBERT(
        tiny_pylate(tmp_path / "unmarked", changes={"query_prefix": "", "document_prefix": ""}), device="cpu"
    )
    assert (unmarked.encode(TEXTS).lengths == filled.encode(TEXTS).lengths - 1).all()


@pytest.mark.parametrize(
    ("file", "changes", "error", "said"),
    [
        (
            "1_Dense/config.json",
            {"activation_function": "torch.nn.Tanh"},
            UnknownModel,
            "has the activation torch.nn.Tanh",
        ),
        ("1_Dense/config.json", {"out_features": "8"}, CheckpointError, "out_features is '8'; a whole number"),
        ("config_sentence_transformers.json", {"query_length": 0}, CheckpointError, "query_length is 0"),
        (
            "config_sentence_transformers.json",
            {"query_prefix": "[Q] "},
            CheckpointError,
            r"the tokenizer has no \[Q\] ",
        ),
        ("1_Dense/model.safetensors", None, CheckpointError, "no model.safetensors or pytorch_model.bin"),
        ("modules.json", None, UnknownModel, "neither an artifact.metadata of the colbert-ai library, nor"),
    ],
)
def test_what_pylate_could_not_have_written_is_refused(
    tmp_path: Path, file: str, changes: dict[str, object] | None, error: type[Exception], said: str
) -> None:
    folder = tiny_pylate(tmp_path)
    if changes is None:
        (folder / file).unlink()
    else:
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**content, **changes}))
    with pytest.raises(error, match=said):
        ColBERT(folder, device="cpu")


def tiny_multi_vector(folder: Path, *, mask: dict[str, object] | None = None, **changes: object) -> Path:
    """The weights of `tiny_pylate` as sentence-transformers 6 saves a MultiVectorEncoder."""
    tiny_pylate(folder)
    modules = json.loads((folder / "modules.json").read_text())
    for kind in ("MultiVectorMask", "Normalize"):
        modules.append({"idx": len(modules), "name": kind, "path": f"{len(modules)}_{kind}", "type": f"x.{kind}"})
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "2_MultiVectorMask").mkdir()
    skipped = {
        "skiplist_words": list(string.punctuation),
        "skiplist_tasks": ["document"],
        "keep_only_token_ids": None,
    }
    (folder / "2_MultiVectorMask/config.json").write_text(json.dumps(skipped | (mask or {})))
    filled = {"strategy": "fixed", "attend": False, "token": None, "length": METADATA["query_maxlen"]}
    lengths = {"document_length": METADATA["doc_maxlen"], "query_expansion": filled}
    (folder / "sentence_bert_config.json").write_text(json.dumps(lengths | changes))
    said = {"model_type": "MultiVectorEncoder", "prompts": {"query": "q ", "document": "d "}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(said))
    return folder


def test_a_multi_vector_encoder_scores_as_the_same_checkpoint_of_colbert_ai(tmp_path: Path, colbert: ColBERT) -> None:
    folder = tiny_multi_vector(tmp_path / "a")
    expected = colbert.score(QUERY, TEXTS)
    assert ColBERT(folder, dtype="float32", device="cpu").score(QUERY, TEXTS) == pytest.approx(expected, abs=1e-5)
    inner = json.loads((folder / "tokenizer.json").read_text())
    ids = {token: inner["model"]["vocab"][token] for token in "qd"}
    inner["added_tokens"] += [dict(inner["added_tokens"][0], id=i, content=token) for token, i in ids.items()]
    (folder / "tokenizer.json").write_text(json.dumps(inner))  # now the markers are special tokens
    assert ColBERT(folder, dtype="float32", device="cpu").score(QUERY, TEXTS) == pytest.approx(expected, abs=1e-5)
    plain = ColBERT(tiny_multi_vector(tmp_path / "b", mask={"skiplist_words": []}), dtype="float32", device="cpu")
    assert plain.encode(TEXTS).lengths[-1] > colbert.encode(TEXTS).lengths[-1]


def test_a_multi_vector_encoder_whose_queries_are_not_filled_up_has_a_vector_for_each_token(tmp_path: Path) -> None:
    folder = tiny_multi_vector(tmp_path, query_expansion=None, query_length=9, document_length=None)
    vectors = ColBERT(folder, dtype="float32", device="cpu").encode_queries([QUERY])[0]
    assert len(vectors) == 9 and np.linalg.norm(vectors, axis=1) == pytest.approx([1] * 7 + [0] * 2, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"query_expansion": {"strategy": "min", "length": 8}}, "query_expansion is .*'min'"),
        ({"mask": {"keep_only_token_ids": [4]}}, "all but some"),
        ({"mask": {"skiplist_tasks": ["query", "document"]}}, "skips tokens of"),
    ],
)
def test_a_multi_vector_encoder_that_is_not_computed_here_is_refused(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UnknownModel, match=said):
        ColBERT(tiny_multi_vector(tmp_path, **changes), device="cpu")
