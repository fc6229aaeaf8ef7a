"""Decoders against transformers on fresh random weights; sharing, cutting off and compressing against neither."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from tokenizers import models, pre_tokenizers

from secondpass import Embedder, Reranker
from secondpass.checkpoint.checkpoint import open_checkpoint
from secondpass.engine.torch import TorchEngine
from secondpass.errors import UnknownModel
from secondpass.models import settings_of
from secondpass.models.decoder import compress
from secondpass.packed import pack
from secondpass.text.recipe import Limits
from secondpass.types import Row, Run
from tests.checkpoints import tiny_bert
from tests.goldens import Golden

WORDS = "Yes No yes no 1 0 A B : the river is long and old what which bridge water".split()
YES = 0  # the place of "Yes" in WORDS
BASE = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 30,
    "eos_token_id": 31,
    "pad_token_id": 32,
}
TANH = {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
# class of transformers, what config.json has beyond BASE
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "llama-3.1": ("Llama", {"rope_scaling": LLAMA3, "rope_theta": 500000.0, "num_key_value_heads": 1}),
    "llama-linear": ("Llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "llama-dynamic": ("Llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
    "llama-yarn": ("Llama", {"rope_scaling": YARN}),
    "llama-yarn-weighed": ("Llama", {"rope_scaling": YARN | {"mscale": 0.8, "mscale_all_dim": 0.5}}),
    "llama-yarn-whole": ("Llama", {"rope_scaling": YARN | {"attention_factor": 1.3, "truncate": False}}),
    "llama-biased": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 12}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 6, "attention_bias": True}),
    "gemma": ("Gemma", {"head_dim": 16, "num_key_value_heads": 1, **TANH}),
    "gemma2": (
        "Gemma2",
        {"head_dim": 12, "sliding_window": 8, "query_pre_attn_scalar": 20, "attn_implementation": "eager"}
        | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0, **TANH},
    ),
    "gemma-relu": ("Gemma", {"head_dim": 16, "hidden_act": "relu", "hidden_activation": None}),
    "gemma2-layers": (
        "Gemma2",
        {"head_dim": 16, "sliding_window": 6, "attn_logit_softcapping": None, **TANH}
        | {"layer_types": ["full_attention", "full_attention", "sliding_attention"]},
    ),
    "qwen2": ("Qwen2", {}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3-window": (
        "Qwen3",
        {"head_dim": 10, "use_sliding_window": True, "sliding_window": 5}
        | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True, "num_hidden_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 10}),
    "qwen3-tied": ("Qwen3", {"tie_word_embeddings": True, "head_dim": 8, "num_key_value_heads": 1}),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors here are so small that threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_model(name: str, **changes: Any) -> Any:
    """A model of transformers with weights large enough that every part moves the scores."""
    import transformers

    kind, settings = FAMILIES[name]
    torch.manual_seed(len(name))
    config = getattr(transformers, f"{kind}Config")(**(BASE | settings | changes))
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.3)
    return model


def save(model: Any, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    vocabulary = {word: place for place, word in enumerate([*WORDS, "[UNK]"])}
    inner = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.save(str(folder / "tokenizer.json"))
    return folder


def some_rows(count: int = 6, *, query: int = 5, seed: int = 0) -> list[Row]:
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 40, count)
    start = draw.integers(0, 40, query).tolist()
    ids = [[*start, *draw.integers(0, 40, length).tolist(), 7, 8] for length in lengths]
    return [Row(row, (query, len(row) - 2)) for row in ids]


def yes_logits(model: Any, rows: Sequence[Row]) -> list[float]:
    with torch.inference_mode():
        return [float(model(torch.tensor([row.ids])).logits[0, -1, YES]) for row in rows]


def yes_scores(folder: Path, rows: Sequence[Row], dtype: str = "float32") -> Any:
    engine = TorchEngine(open_checkpoint(folder), device="cpu", dtype=dtype)
    logits = engine.run(rows, Run())[:, 0]
    return logits


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_equal_transformers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(name)
    folder = save(model, tmp_path, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    only_yes(monkeypatch)
    rows = some_rows()
    assert yes_scores(folder, rows) == pytest.approx(yes_logits(model, rows), abs=2e-4)


def only_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the logit of Yes alone in every family."""
    from dataclasses import replace

    from secondpass.text.families import FAMILIES

    for key, family in FAMILIES.items():
        if family.recipe is not None and family.recipe.head == "token":
            monkeypatch.setitem(FAMILIES, key, replace(family, recipe=replace(family.recipe, answers=("Yes",))))


def test_a_bfloat16_file_is_read_in_float32(tmp_path: Path) -> None:
    model = random_model("llama").to(torch.bfloat16)
    folder = save(model, tmp_path)
    rows = some_rows()
    assert yes_scores(folder, rows) == pytest.approx(yes_logits(model.float(), rows), abs=2e-4)


@pytest.mark.parametrize("kind", ["Llama", "Qwen3"])
def test_a_decoder_may_have_a_label_in_the_place_of_a_word(kind: str, tmp_path: Path) -> None:
    import transformers

    config = getattr(transformers, f"{kind}Config")(**BASE, head_dim=8, num_labels=1)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()
    rows = some_rows()
    with torch.inference_mode():
        expected = [float(model(torch.tensor([row.ids])).logits[0, 0]) for row in rows]
    assert yes_scores(save(model, tmp_path), rows) == pytest.approx(expected, abs=1e-4)


def bidirectional(folder: Path, **settings: Any) -> tuple[Any, Path]:
    """A Llama with a label of the mean of its states, saved as NVIDIA's rerankers are."""
    import transformers

    torch.manual_seed(5)
    config = transformers.LlamaConfig(**BASE, head_dim=8, num_labels=1)
    model = transformers.LlamaForSequenceClassification(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.3)
    save(model, folder)
    saved = json.loads((folder / "config.json").read_text("utf-8"))
    named = {"model_type": "llama_bidirec", "architectures": ["LlamaBidirectionalForSequenceClassification"]}
    (folder / "config.json").write_text(json.dumps(saved | named | {"pooling": "avg"} | settings), "utf-8")
    return model, folder


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_a_bidirectional_llama_equals_transformers_without_its_mask(temperature: float, tmp_path: Path) -> None:
    model, folder = bidirectional(tmp_path, temperature=temperature)
    rows, expected = some_rows(), []
    for row in rows:
        whole = torch.zeros(1, 1, len(row), len(row))
        with torch.inference_mode():
            states = model.model(torch.tensor([row.ids]), attention_mask=whole).last_hidden_state
            expected.append(float(model.score(states.mean(1)) / temperature))
    assert yes_scores(folder, rows) == pytest.approx(expected, abs=1e-4)


def test_a_bidirectional_llama_reads_question_and_passage_as_one_text(tmp_path: Path) -> None:
    _, folder = bidirectional(tmp_path)
    words = ["question", "passage", ":", "the", "river", "is", "long", "old"]
    vocabulary = {word: place for place, word in enumerate(["<|begin_of_text|>", *words, "[UNK]"])}
    inner = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.add_special_tokens(["<|begin_of_text|>"])
    inner.save(str(folder / "tokenizer.json"))
    checkpoint = open_checkpoint(folder)
    recipe, texts = checkpoint.recipe, ["the river is old", "", "the river is old and long " * 9]
    rows = recipe.rows(checkpoint.tokenizer, "is the river long", texts, Limits(max_length=20))
    for row, text in zip(rows, texts, strict=True):
        whole = inner.encode(f"question:is the river long \n \n passage:{text}").ids
        assert row.ids == [0, *whole][:20]
    reranker = Reranker(folder, dtype="float32", device="cpu")
    alone = [reranker.score("is the river long", [text])[0] for text in texts]
    assert reranker.score("is the river long", texts) == pytest.approx(alone, abs=1e-5)  # beginnings are not shared
    assert len(set(alone)) == 3


def test_other_poolings_of_a_bidirectional_llama_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="pooling is 'last'"):
        Reranker(bidirectional(tmp_path, pooling="last")[1], device="cpu")


def test_what_the_config_of_gemma2_leaves_out_is_as_in_transformers(tmp_path: Path) -> None:
    model = random_model("gemma2", head_dim=8, attn_logit_softcapping=50.0, final_logit_softcapping=30.0)
    folder = save(model, tmp_path)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    missing = ("attn_logit_softcapping", "final_logit_softcapping", "layer_types")
    (folder / "config.json").write_text(json.dumps({key: config[key] for key in config if key not in missing}))
    settings = settings_of(open_checkpoint(folder).config)
    assert (settings.attention_softcap, settings.final_softcap) == (50.0, 30.0)  # type: ignore[attr-defined]
    assert settings.windows == (8, None, 8)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["Llama", "Qwen3", "Gemma2"])
def test_a_bare_decoder_embeds(kind: str, tmp_path: Path) -> None:
    """Names of its tensors have no prefix, as in Qwen3-Embedding."""
    import transformers

    torch.manual_seed(3)
    config = getattr(transformers, f"{kind}Config")(**BASE, head_dim=8, attn_implementation="eager")
    model = getattr(transformers, f"{kind}Model")(config).eval()
    folder = save(model, tmp_path)
    assert "norm.weight" in load_file(folder / "model.safetensors")
    embedder = Embedder(folder, device="cpu", dtype="float32", pooling="last")
    ids = embedder.rows(["the old river"])[0].ids
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).last_hidden_state[0, -1]
    np.testing.assert_allclose(embedder.encode(["the old river"])[0], expected, atol=2e-5)
    with pytest.raises(ValueError, match="a text is empty"):
        embedder.encode([""])


@pytest.mark.parametrize("is_bidirectional", [True, False])
@pytest.mark.parametrize("changes", [{}, {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}])
def test_gemma3_embeds_as_in_transformers(is_bidirectional: bool, changes: dict[str, Any], tmp_path: Path) -> None:
    """Blocks with a window have rotary positions of their own; EmbeddingGemma sees half of it on either side."""
    import transformers

    torch.manual_seed(4)
    own = {"head_dim": 8, "query_pre_attn_scalar": 20, "sliding_window_pattern": 2, "attn_implementation": "eager"}
    config = transformers.Gemma3TextConfig(
        **(BASE | own | changes), sliding_window=8, use_bidirectional_attention=is_bidirectional
    )
    model = transformers.Gemma3TextModel(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.3)
    folder = save(model, tmp_path)
    saved = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(saved | {"sliding_window": 8}), "utf-8")  # transformers saves half
    embedder = Embedder(folder, device="cpu", dtype="float32", pooling="mean", is_normalized=False)
    for text in ("the old river", "the river is long and old " * 8):
        ids = embedder.rows([text])[0].ids
        with torch.inference_mode():
            expected = model(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(embedder.encode([text])[0], expected, atol=5e-5)
    if "layer_types" in saved:
        named = settings_of(open_checkpoint(folder).config)
        del saved["layer_types"]
        (folder / "config.json").write_text(json.dumps(saved | {"sliding_window": 8}), "utf-8")
        assert settings_of(open_checkpoint(folder).config) == named


def test_gemma3_is_read_as_transformers_5_writes_it(tmp_path: Path) -> None:
    base = {"hidden_activation": "gelu_pytorch_tanh", "model_type": "gemma3_text", "sliding_window": 8, "head_dim": 8}
    older = settings_of(BASE | base | {"rope_theta": 5e5, "rope_local_base_freq": 2e4})
    kinds = {
        "full_attention": {"rope_type": "default", "rope_theta": 5e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
    }
    assert settings_of(BASE | base | {"rope_parameters": kinds}) == older
    plain = settings_of(BASE | base)
    assert (plain.theta, plain.local_theta) == (1e6, 1e4)  # type: ignore[attr-defined]


def test_a_llama_ranks_by_its_yes_logit(tmp_path: Path) -> None:
    """The last family added: a function in models/families.py, a row in two tables, and the rows above."""
    model = random_model("llama")
    reranker = Reranker(save(model, tmp_path), dtype="float32", device="cpu", instruction="is B old")
    score = reranker.score("which river", ["the old bridge"])[0]
    words = "A : which river B : the old bridge is B old"
    ids = [BASE["bos_token_id"], *(WORDS.index(word) for word in words.split())]
    assert score == pytest.approx(yes_logits(model, [Row(ids, (5, 10))])[0], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize("token_budget", [10, 64, 4096])
def test_shared_beginnings_give_the_same_scores(name: str, token_budget: int, tmp_path: Path) -> None:
    folder = save(random_model(name), tmp_path)
    engine = TorchEngine(open_checkpoint(folder), device="cpu", dtype="float32", token_budget=token_budget)
    rows = [
        *some_rows(5, query=20, seed=1),
        *some_rows(4, query=9, seed=2),
        *some_rows(1, query=30, seed=3),
        *some_rows(3, query=2, seed=4),
    ]
    rows = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]
    shared = engine.run(rows, Run())
    engine.shares = False
    assert shared == pytest.approx(engine.run(rows, Run()), abs=1e-5)


def test_shared_beginnings_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TorchEngine(open_checkpoint(save(random_model("qwen2"), tmp_path)), device="cpu", token_budget=64)
    rows = [*some_rows(20, query=50, seed=1), *some_rows(20, query=30, seed=2)]
    tokens: list[int] = []
    embed = engine.model.backbone.embed
    monkeypatch.setattr(engine.model.backbone, "embed", lambda batch: tokens.append(len(batch.ids)) or embed(batch))
    engine.run(rows, Run())
    assert sum(tokens) == sum(len(row) for row in rows) - 19 * 50 - 19 * 30


LIGHT = Golden("gemma2-lightweight")
needs_golden = pytest.mark.skipif(not LIGHT.folder.is_dir(), reason="no reference figures here")


@needs_golden
@pytest.mark.parametrize("run", [Run(compress_ratio=2, compress_layers=(2, 3)), Run(cutoff_layers=(2, 4))])
def test_shared_beginnings_stay_equal_when_compressed_or_cut_off(run: Run) -> None:
    engine = TorchEngine(open_checkpoint(LIGHT.folder), device="cpu", dtype="float32")
    rows = [*some_rows(5, query=50, seed=1), *some_rows(4, query=9, seed=2)]
    shared = engine.run(rows, run)
    engine.shares = False
    assert shared == pytest.approx(engine.run(rows, run), abs=1e-4)  # scores in the tens


def test_compression_returns_a_smaller_batch_of_means() -> None:
    batch = pack([Row([1] * 7, (1, 6)), Row([1] * 4, (2, 2)), Row([1] * 3, (0, 3))])
    x = torch.arange(14.0)[:, None].repeat(1, 2)
    y, smaller = compress(x, batch, 2)
    assert y[:, 0].tolist() == [0, 1.5, 3.5, 5, 6, 7, 8, 9, 10, 11.5, 13]
    assert smaller.lengths == (5, 4, 2)
    assert smaller.passages == ((1, 4), (2, 2), (0, 2))
    assert smaller.positions.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1]
    assert smaller.starts.tolist() == [0, 5, 9, 11]


@needs_golden
def test_a_cutoff_computes_no_block_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    reranker = Reranker(LIGHT.folder, dtype="float32", device="cpu")
    calls: list[int] = []
    for index, block in enumerate(reranker._scoring.engine.current.model.backbone.layers):  # type: ignore[attr-defined]
        block.register_forward_hook(lambda *_, index=index: calls.append(index))
    reranker.score("which river", ["the old bridge"], cutoff_layer=3)
    assert calls == [0, 1, 2]
    calls.clear()
    layers = reranker.score_layers("which river", ["the old bridge", "water"], [5, 3])
    assert sorted(set(calls)) == [0, 1, 2, 3, 4]
    assert list(layers) == [3, 5]
    assert layers[3] == pytest.approx(reranker.score("which river", ["the old bridge", "water"], cutoff_layer=3))


@needs_golden
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cutoff_layer": 1}, "cutoff_layer 1: there are 2, 3, 4, 5, 6"),
        ({"cutoff_layer": 7}, "there are 2, 3, 4, 5, 6"),
        ({"compress_ratio": 0}, "compress_ratio is 0"),
        ({"compress_ratio": 2, "compress_layers": [6]}, "compress_layers 6: there are 0 to 5"),
    ],
)
def test_illegal_options_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Reranker(LIGHT.folder, dtype="float32", device="cpu", **options)
    with pytest.raises(ValueError, match=message):
        Reranker(LIGHT.folder, dtype="float32", device="cpu").score("a", ["b"], **options)


def test_models_without_these_options_refuse_them(tmp_path: Path) -> None:
    reranker = Reranker(save(random_model("llama"), tmp_path), device="cpu")
    for options in ({"cutoff_layer": 2}, {"compress_ratio": 2}, {"compress_layers": [1]}):
        with pytest.raises(ValueError, match="need a layer-wise model; this is llama"):
            reranker.score("a", ["b"], **options)  # type: ignore[arg-type]


@needs_golden
def test_minicpm_does_not_compress() -> None:
    golden = Golden("minicpm-layerwise")
    with pytest.raises(ValueError, match="minicpm-layerwise does not compress"):
        Reranker(golden.folder, device="cpu", compress_ratio=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}, "no rotary scaling 'longrope'"),
        ({"hidden_act": "mish"}, "no activation 'mish'"),
        ({"model_type": "qwen2", "layer_types": ["full_attention"]}, "layer_types names 1 layers"),
        ({"start_layer": 1, "head_type": "raw"}, "head_type is 'raw'"),
        ({"start_layer": 1, "head_multi": False}, "head_multi is false"),
    ],
)
def test_what_is_not_known_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnknownModel, match=message):
        settings_of(BASE | {"model_type": "llama"} | changes)


@pytest.mark.slow
@needs_golden
@pytest.mark.parametrize("name", ["gemma-llm-reranker", "qwen2-llm-reranker", "qwen3-llm-reranker"])
def test_long_documents_are_read_in_windows(name: str) -> None:
    golden = Golden(name)
    query, passage = max(golden.pairs, key=lambda pair: len(pair[1]))
    reranker = Reranker(golden.folder, device="cpu", max_length=205, long_documents="chunk")
    hit = reranker.rank(query[:60], [passage], explain=True)[0]
    assert hit.span is not None and hit.span[1] - hit.span[0] < len(passage)
    assert hit.parts is not None and hit.parts["passage_tokens_cut"] == 0


@needs_golden
def test_mxbai_probability_is_centred_by_its_size() -> None:
    from secondpass.text.families import recipe_for

    folder = Golden("qwen2-llm-reranker").folder
    assert Reranker(folder, device="cpu").probability(6.0) == 0.5
    config = open_checkpoint(folder).config
    widths = {"base": 896, "large": 1536}  # whatever the folder is called
    midpoints = {size: recipe_for({**config, "hidden_size": width}).midpoint for size, width in widths.items()}
    assert midpoints == {"base": 4.5, "large": 6.0}


@needs_golden
def test_mxbai_lowers_max_length_where_the_fixed_words_would_not_fit() -> None:
    from secondpass.text.families import recipe_for
    from secondpass.text.recipe import Limits
    from secondpass.text.tokenizer import Tokenizer

    folder = Golden("qwen2-llm-reranker").folder
    config = dict(open_checkpoint(folder).config) | {"max_position_embeddings": 168 + 40}
    tokenizer, recipe = Tokenizer.from_folder(folder), recipe_for(config)
    limits = [Limits(max_length=length, truncation="only_second") for length in (40, 1000)]
    rows = [recipe.rows(tokenizer, "which river", ["the river " * 99], limit)[0] for limit in limits]
    assert rows[0].ids == rows[1].ids
    assert len(rows[0]) == 168 + 40


def test_an_encoder_takes_no_instruction(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a bert model reads only query and passage"):
        Reranker(tiny_bert(tmp_path), device="cpu", instruction="find rivers")


def test_a_tied_matrix_may_be_saved_twice(tmp_path: Path) -> None:
    model = random_model("llama-tied")
    folder = save(model, tmp_path)
    weights = load_file(folder / "model.safetensors")
    rows = some_rows()
    once = yes_scores(folder, rows)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors")
    assert yes_scores(folder, rows) == pytest.approx(once, abs=0)
