"""Rerankers and late interaction that sentence-transformers saves in modules score here what they score there.

In an environment of its own: make test-frameworks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from secondpass import ColBERT, Embedder, Reranker
from tests.goldens import golden_folder

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]

PAIRS = [
    ("what is a bridge", "A bridge spans a river."),
    ("what is a bridge", "Paris is in France. " * 30),
    ("水管漏水", "先关掉总阀门，再换垫圈。"),
    ("q", "d"),
    ("\n which one\n", "\n an old bridge. \n"),
]
TURNS = (
    "{{- '<|im_start|>system\n' + (messages | selectattr('role', 'eq', 'query') | first).content }}"
    "{{- '<|im_end|>\n<|im_start|>user\n' + (messages | selectattr('role', 'eq', 'document') | first).content }}"
    "{{- '<|im_end|>\n' }}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
ONE_TURN = (
    "{%- set told = messages | selectattr('role', 'eq', 'system') | map(attribute='content') | first"
    " | default('Find the answer') -%}\n<|im_start|>user\n<Instruct>: {{ told }}\n"
    "<Query>: {{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first }}\n"
    "<Document>: {{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }}"
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n\n"
)


def theirs() -> Any:
    return pytest.importorskip("sentence_transformers", minversion="5.4")


def check(model: Any, folder: Path, **options: Any) -> None:
    import torch

    model.save_pretrained(str(folder))
    expected: Sequence[float] = model.predict(PAIRS, activation_fn=torch.nn.Identity(), batch_size=1).tolist()
    ours = Reranker(folder, device="cpu", dtype="float32", special_tokens="parse", **options)
    assert [ours.score(query, [text])[0] for query, text in PAIRS] == pytest.approx(expected, abs=1e-4)


def language_model(template: str | None, **options: Any) -> Any:
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.cross_encoder.modules import LogitScore

    processor = {} if template is None else {"chat_template": template}
    read = Transformer(
        str(golden_folder("qwen3-llm-reranker")),
        transformer_task="text-generation",
        processor_kwargs=processor,
        processing_kwargs={"chat_template": {"add_generation_prompt": True}},
    )
    words = [read.tokenizer.convert_tokens_to_ids(word) for word in ("Yes", "no")]
    return theirs().CrossEncoder(modules=[read, LogitScore(words[0], options.pop("other", words[1]))], **options)


@pytest.mark.parametrize("name", ["bert-cross-encoder", "modernbert-cross-encoder-cls", "xlm-roberta-cross-encoder"])
def test_a_classifier_with_modules_json(name: str, tmp_path: Path) -> None:
    folder = str(golden_folder(name))
    check(theirs().CrossEncoder(folder), tmp_path / "plain")
    prompts = {"other": "find ", "web": "which bridge: "}
    check(theirs().CrossEncoder(folder, prompts=prompts, default_prompt_name="web"), tmp_path / "prompted")


@pytest.mark.parametrize("template", [TURNS, ONE_TURN, None])
def test_a_language_model_with_a_chat_template(template: str | None, tmp_path: Path) -> None:
    theirs()
    check(language_model(template), tmp_path / "two")
    check(language_model(template, other=None), tmp_path / "one")


def test_its_prompt_is_the_instruction(tmp_path: Path) -> None:
    theirs()
    prompts = {"web": "Find the bridge", "other": "Find the river"}
    check(language_model(ONE_TURN, prompts=prompts, default_prompt_name="web"), tmp_path / "own")
    model = language_model(ONE_TURN, prompts=prompts, default_prompt_name="other")
    check(model, tmp_path / "other", instruction="Find the river")


def test_what_is_too_long_is_cut_as_there(tmp_path: Path) -> None:
    theirs()
    for name, template in {"turns": TURNS, "one": ONE_TURN}.items():
        model = language_model(template)
        model.max_seq_length = 96
        check(model, tmp_path / name, max_length=96)


def test_a_head_of_layers_in_modules(tmp_path: Path) -> None:
    theirs()
    import torch
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling
    from transformers import AutoTokenizer, ModernBertConfig, ModernBertModel

    source = golden_folder("modernbert-cross-encoder-cls")
    config = ModernBertConfig.from_pretrained(source)
    ModernBertModel(config).save_pretrained(tmp_path / "backbone")
    AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path / "backbone")
    width = config.hidden_size
    norm = LayerNorm(width)
    for weight in norm.norm.parameters():
        torch.nn.init.normal_(weight, 0.5, 0.3)
    layers = [
        Transformer(str(tmp_path / "backbone"), transformer_task="feature-extraction"),
        Pooling(width, "cls"),
        Dense(width, width, bias=False, activation_function=torch.nn.GELU()),
        norm,
        Dense(width, 1, activation_function=torch.nn.Identity(), module_output_name="scores"),
    ]
    check(theirs().CrossEncoder(modules=layers), tmp_path / "out")


@pytest.mark.parametrize("name", ["colbertv2", "bert-cross-encoder", "modernbert-cross-encoder-cls"])
def test_a_multi_vector_encoder(name: str, tmp_path: Path) -> None:
    model = pytest.importorskip("sentence_transformers", minversion="6").MultiVectorEncoder(str(golden_folder(name)))
    model.save_pretrained(str(tmp_path))
    documents = [text for _, text in PAIRS]
    expected = model.similarity(model.encode_query(["what is a bridge"]), model.encode_document(documents))[0]
    ours = ColBERT(tmp_path, device="cpu", dtype="float32", special_tokens="parse")
    assert ours.score("what is a bridge", documents) == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize(
    "name",
    ["bert-embedder-cls", "bert-embedder-mean", "bge-m3", "modernbert-cross-encoder-cls", "qwen3-llm-reranker"],
)
def test_an_embedder(name: str, tmp_path: Path) -> None:
    model = theirs().SentenceTransformer(str(golden_folder(name)))
    model.save_pretrained(str(tmp_path))
    texts = [*(text for _, text in PAIRS), "  water \n", "the river "]
    found = Embedder(tmp_path, device="cpu", dtype="float32", special_tokens="parse").encode(texts)
    assert found.ravel().tolist() == pytest.approx(model.encode(texts).ravel().tolist(), abs=1e-4)


def test_nomic_as_transformers_saves_it_since_version_5(tmp_path: Path) -> None:
    import torch
    import transformers

    source = golden_folder("bert-embedder-cls")
    torch.manual_seed(1)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = transformers.NomicBertModel(transformers.NomicBertConfig(vocab_size=1700, **small))
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.2)
    model.save_pretrained(tmp_path / "backbone")
    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path / "backbone")
    embedder = theirs().SentenceTransformer(str(tmp_path / "backbone"))
    embedder.save_pretrained(str(tmp_path / "out"))
    texts = [text for _, text in PAIRS]
    ours = Embedder(tmp_path / "out", device="cpu", dtype="float32", prompts={"document": ""})
    assert ours.encode(texts).ravel().tolist() == pytest.approx(embedder.encode(texts).ravel().tolist(), abs=1e-4)
