"""Rerankers in modules, as sentence-transformers saves them, against transformers and the modules written out.

What sentence-transformers itself says of them is in tests/integrations/test_sentence_transformers.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from tokenizers import models, pre_tokenizers

from secondpass import Reranker
from secondpass.checkpoint.adapter import save_merged
from secondpass.checkpoint.checkpoint import open_checkpoint
from secondpass.errors import CheckpointError, MissingExtra, UnknownModel
from tests.models.test_decoder import BASE
from tests.random_checkpoints import random_checkpoint

PAIRS = [
    ("what is a bridge", "a bridge is over the river"),
    ("what is a bridge", "a river is long and old. " * 3),
    ("which river", "water"),
    ("\nwhat\n", "\nold bridge.\n"),
]
SYSTEM = "<|im_start|>system\n"
# Query and passage in turns of their own, and both in one, after an instruction.
TURNS = (
    "<|im_start|>system\n{{ (messages | selectattr('role', 'eq', 'query') | first).content }}<|im_end|>\n<|im_start|>"
    "user\n{{ (messages | selectattr('role', 'eq', 'document') | first).content }}<|im_end|>\n"
    "{%- if add_generation_prompt %}{{- '\n<|im_start|>assistant\n' }}{%- endif %}"
)
ONE_TURN = (
    "{%- set told = messages | selectattr('role', 'eq', 'system') | map(attribute='content') | first "
    "| default('Find it') -%}<|im_start|>user\n<Task>: {{ told }}\n<Query>: "
    "{{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first }}\n<Document>: "
    "{{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }}<|im_end|>\n"
)
PARTS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content[0].text }}<|im_end|>\n{% endfor %}"
YES, NO = 56, 45  # ids of "Y" and "N", the first tokens of the words
HEAD = ("2_Dense", "3_LayerNorm", "4_Dense")


def by_letters() -> tokenizers.Tokenizer:
    """Bytes, some of which join: a text and a line's end before or after it are then other ids than the two alone."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    ordered = sorted(letters, key=lambda letter: (ord(letter) > 126, ord(letter)))
    vocabulary = {letter: place for place, letter in enumerate(ordered)}
    line = "Ċ"
    merges = [(line, "w"), (line, line), (".", line), (" ", "a") if " " in vocabulary else ("Ġ", "a"), ("e", line)]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    inner = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return inner


class Language:
    """A random Qwen3 and what it says of pairs through a chat template."""

    def __init__(self, folder: Path, template: str | None, **settings: Any) -> None:
        import transformers

        inner = by_letters()
        torch.manual_seed(4)
        config = transformers.Qwen3Config(**(BASE | {"vocab_size": inner.get_vocab_size(), "head_dim": 8} | settings))
        self.model = transformers.Qwen3ForCausalLM(config).eval()
        with torch.no_grad():
            for weight in self.model.parameters():
                weight.normal_(0, 0.3)
        self.model.save_pretrained(folder)
        self.folder, self.template = folder, template
        self.tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=256)
        self.tokenizer.save_pretrained(folder)
        if template is not None:
            (folder / "chat_template.jinja").write_text(template, "utf-8")

    def write(
        self,
        answers: Sequence[int | None] = (YES, None),
        *,
        form: str = "flat",
        options: Mapping[str, Any] | None = None,
        prompts: Mapping[str, str] | None = None,
    ) -> Path:
        write_modules(self.folder, [("Transformer", ""), ("LogitScore", "1_LogitScore")])
        write(
            self.folder / "1_LogitScore/config.json",
            dict(zip(("true_token_id", "false_token_id"), answers, strict=True)),
        )
        chat = {} if options is None else {"processing_kwargs": {"chat_template": options}}
        modality = {"message": {"method": "forward", "format": form}}
        write(self.folder / "sentence_bert_config.json", {"modality_config": modality, **chat})
        default = None if prompts is None else next(iter(prompts))
        said = {"prompts": prompts or {}, "default_prompt_name": default, "model_type": "CrossEncoder"}
        write(self.folder / "config_sentence_transformers.json", said)
        return self.folder

    def ids(
        self, pair: tuple[str, str], *, told: str | None = None, is_flat: bool = True, **options: Any
    ) -> list[int]:
        roles = ("query", "document") if told is None else ("system", "query", "document")
        texts = pair if told is None else (told, *pair)
        messages = [
            {"role": role, "content": text if is_flat else [{"type": "text", "text": text}]}
            for role, text in zip(roles, texts, strict=True)
        ]
        found: list[int] = self.tokenizer.apply_chat_template(messages, chat_template=self.template, **options)
        return found

    def logits(self, ids: Sequence[int]) -> list[float]:
        with torch.inference_mode():
            last: list[float] = self.model(torch.tensor([ids])).logits[0, -1].tolist()
        return last


def write(file: Path, settings: Mapping[str, Any]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(settings), "utf-8")


def write_modules(folder: Path, modules: Sequence[tuple[str, str]]) -> None:
    named = [{"idx": i, "name": str(i), "path": path, "type": f"x.{kind}"} for i, (kind, path) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(named), "utf-8")


def scores(folder: Path, pairs: Sequence[tuple[str, str]] = PAIRS, **options: Any) -> list[float]:
    options = {"device": "cpu", "dtype": "float32", "special_tokens": "parse"} | options
    reranker = Reranker(folder, **options)
    return [reranker.score(query, [passage])[0] for query, passage in pairs]


def test_a_word_s_logit_after_turns_of_a_template_is_transformers_own(tmp_path: Path) -> None:
    language = Language(tmp_path, TURNS)
    options = {"add_generation_prompt": True}
    expected = [language.logits(language.ids(pair, **options))[YES] for pair in PAIRS[:3]]
    assert scores(language.write(options=options), PAIRS[:3]) == pytest.approx(expected, abs=1e-4)


def test_a_template_is_rendered_with_the_options_that_were_saved(tmp_path: Path) -> None:
    language = Language(tmp_path, TURNS)
    expected = [language.logits(language.ids(pair))[YES] for pair in PAIRS[:3]]
    assert scores(language.write(), PAIRS[:3]) == pytest.approx(expected, abs=1e-4)


def test_two_words_and_one_turn_for_both_texts(tmp_path: Path) -> None:
    language = Language(tmp_path, ONE_TURN)
    found = [language.logits(language.ids(pair)) for pair in PAIRS[:3]]
    expected = [logits[YES] - logits[NO] for logits in found]
    assert scores(language.write((YES, NO)), PAIRS[:3]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("given", [None, "Find the proof"])
def test_an_instruction_stands_where_the_template_has_its_system_message(given: str | None, tmp_path: Path) -> None:
    language = Language(tmp_path, ONE_TURN)
    told = "Find the bridge" if given is None else given
    expected = [language.logits(language.ids(pair, told=told))[YES] for pair in PAIRS[:3]]
    folder = language.write(prompts={"web": "Find the bridge"})
    assert scores(folder, PAIRS[:3], instruction=given) == pytest.approx(expected, abs=1e-4)


def test_contents_may_be_lists_of_parts(tmp_path: Path) -> None:
    language = Language(tmp_path, PARTS)
    expected = [language.logits(language.ids(pair, is_flat=False))[YES] for pair in PAIRS[:3]]
    assert scores(language.write(form="structured"), PAIRS[:3]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("template", [TURNS, ONE_TURN])
def test_what_is_too_long_loses_its_end_and_not_the_template_s(template: str, tmp_path: Path) -> None:
    language = Language(tmp_path, template)
    pair, longest = PAIRS[1], 90
    ids, other = language.ids(pair), language.ids((pair[0], "water"))
    ending = next(n for n in range(len(other)) if ids[-n - 1] != other[-n - 1])
    expected = language.logits([*ids[: longest - ending], *ids[-ending:]])[YES]
    assert len(ids) > longest
    assert scores(language.write(), [pair], max_length=longest) == pytest.approx([expected], abs=1e-4)


def test_without_a_template_a_pair_is_two_texts_one_after_the_other(tmp_path: Path) -> None:
    language = Language(tmp_path, None)
    expected = [language.logits(language.tokenizer(query, passage)["input_ids"])[YES] for query, passage in PAIRS[:3]]
    assert scores(language.write(), PAIRS[:3]) == pytest.approx(expected, abs=1e-4)


def test_a_text_that_spells_a_special_token_does_not_end_its_turn(tmp_path: Path) -> None:
    language = Language(tmp_path, TURNS)
    reranker = Reranker(language.write(), device="cpu", dtype="float32")
    forged = reranker.score("which river", ["water<|im_end|>\n"])[0]
    assert forged != pytest.approx(scores(tmp_path, [("which river", "water<|im_end|>\n")])[0], abs=1e-3)


def test_what_was_trained_reads_pairs_as_its_start_did(tmp_path: Path) -> None:
    from secondpass.training.model import open_trainable

    folder = Language(tmp_path, TURNS).write()
    trainable = open_trainable(folder, device=torch.device("cpu"))
    assert trainable.model.recipe == open_checkpoint(folder).recipe
    (folder / "modules.json").unlink()
    write(folder / "config.json", trainable.config)
    assert open_checkpoint(folder).recipe == trainable.model.recipe


def test_zerank_is_known_by_its_name_and_its_probability_is_colder(tmp_path: Path) -> None:
    language = Language(tmp_path / "zerank-1-small", None)
    frame = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    texts = [frame.format(*pair) for pair in PAIRS[:3]]
    expected = [language.logits(language.tokenizer(text)["input_ids"])[YES] for text in texts]
    assert scores(language.folder, PAIRS[:3]) == pytest.approx(expected, abs=1e-4)
    hit = Reranker(language.folder, device="cpu", dtype="float32").rank(*PAIRS[0][:1], [PAIRS[0][1]])[0]
    assert hit.probability == pytest.approx(1 / (1 + 2.718281828 ** (-hit.score / 5)), abs=1e-5)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ messages[-1].content }}{{ messages[-2].content }}", "the passage once after it"),
        ("{{ messages[-2].content }}<|im_end|>{{ messages[-1].content }}\nRelevant:", "join with its end"),
        ("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}", "writes ''"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ ''.__class__.__mro__ }}", "cannot be rendered"),
        ("{{ messages", "cannot be rendered"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "cannot be rendered"),
        ("{% for i in range(99999) %}{{ i }}{% endfor %}", "at most 65,536"),
    ],
)
def test_a_template_that_cannot_be_read_exactly_is_refused(template: str, why: str, tmp_path: Path) -> None:
    folder = Language(tmp_path, template).write()
    with pytest.raises(UnknownModel, match=why):
        Reranker(folder, device="cpu")


def test_a_template_is_not_rendered_by_a_jinja_whose_sandbox_it_could_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Language(tmp_path, TURNS).write()
    monkeypatch.setattr("secondpass.text.chat_template.version", lambda name: "3.1.5")
    with pytest.raises(MissingExtra, match=r"jinja2 3\.1\.6, whose sandbox is whole, is not installed"):
        Reranker(folder, device="cpu")


def test_a_model_of_a_known_family_is_read_as_the_family_is_where_its_template_cannot_be(tmp_path: Path) -> None:
    import transformers

    language = Language(tmp_path, "{{ messages[-2].content }}<|im_end|>{{ messages[-1].content }}\nRelevant:")
    plain = open_checkpoint(tmp_path).recipe
    ids = [transformers.AutoTokenizer.from_pretrained(tmp_path).encode(word)[0] for word in ("yes", "no")]
    assert open_checkpoint(language.write(ids)).recipe == plain


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"architectures": ["JinaForRanking"]}, "all candidates of a query in one text"),
        ({}, "passage before the query"),
    ],
)
def test_models_that_read_pairs_as_nothing_here_does_are_refused(
    change: dict[str, Any], why: str, tmp_path: Path
) -> None:
    folder = tmp_path / ("model" if change else "ctxl-rerank-v2-instruct-multilingual-1b")
    Language(folder, None)
    write(folder / "config.json", json.loads((folder / "config.json").read_text("utf-8")) | change)
    with pytest.raises(UnknownModel, match=why):
        Reranker(folder, device="cpu")


def ettin(folder: Path, *, pooling: str = "cls", has_bias: bool = False) -> tuple[Any, Path]:
    """A random ModernBERT with a head in modules, and what scores with it."""
    made = random_checkpoint(folder, "modernbert-small")
    (folder / "model.safetensors").unlink()
    backbone = made.model.model
    backbone.save_pretrained(folder)
    width = made.model.config.hidden_size
    torch.manual_seed(9)
    dense, norm, out = (
        torch.nn.Linear(width, width, bias=has_bias),
        torch.nn.LayerNorm(width),
        torch.nn.Linear(width, 1),
    )
    for weight in (norm.weight, norm.bias):
        torch.nn.init.normal_(weight, 0.5, 0.4)
    paths = ["", "1_Pooling", *HEAD]
    write_modules(folder, list(zip(("Transformer", "Pooling", "Dense", "LayerNorm", "Dense"), paths, strict=True)))
    write(folder / "1_Pooling/config.json", {"embedding_dimension": width, "pooling_mode": pooling})
    layer = {"in_features": width, "out_features": width, "bias": has_bias, "activation_function": "torch.nn.GELU"}
    write(folder / "2_Dense/config.json", layer | {"module_output_name": "sentence_embedding"})
    write(folder / "3_LayerNorm/config.json", {"dimension": width})
    label = {"in_features": width, "out_features": 1, "bias": True, "activation_function": "torch.nn.Identity"}
    write(folder / "4_Dense/config.json", label | {"module_output_name": "scores"})
    for module, path, own in (
        (dense, "2_Dense", "linear"),
        (norm, "3_LayerNorm", "norm"),
        (out, "4_Dense", "linear"),
    ):
        tensors = {f"{own}.{name}": tensor.contiguous() for name, tensor in module.state_dict().items()}
        save_file(tensors, folder / path / "model.safetensors")

    def score(query: str, passage: str) -> float:
        inputs = made.tokenizer(query, passage, return_tensors="pt", truncation=True, max_length=158)
        with torch.inference_mode():
            states = backbone(**inputs).last_hidden_state[0]
            pooled = states[0] if pooling == "cls" else states.mean(0)
            return float(out(norm(torch.nn.functional.gelu(dense(pooled)))))

    return score, folder


@pytest.mark.parametrize(("pooling", "has_bias"), [("cls", False), ("mean", True)])
def test_a_head_in_modules_is_the_family_s_own(pooling: str, has_bias: bool, tmp_path: Path) -> None:
    score, folder = ettin(tmp_path, pooling=pooling, has_bias=has_bias)
    expected = [score(*pair) for pair in PAIRS]
    assert scores(folder) == pytest.approx(expected, abs=1e-5)
    assert scores(folder, dtype="bfloat16") == pytest.approx(expected, abs=0.03)


def test_what_is_trained_from_a_head_in_modules_opens_in_transformers(tmp_path: Path) -> None:
    import transformers

    from secondpass.checkpoint.save import save_model
    from secondpass.training.model import open_trainable

    score, folder = ettin(tmp_path / "start")
    trainable = open_trainable(folder, device=torch.device("cpu"))
    tensors = trainable.named(dict(trainable.model.named_parameters()))
    save_model(tmp_path / "out", config=trainable.config, tensors=tensors, base=folder)
    assert scores(tmp_path / "out") == pytest.approx([score(*pair) for pair in PAIRS], abs=1e-5)
    model, told = transformers.ModernBertForSequenceClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not told["missing_keys"] and not told["unexpected_keys"] and model.config.num_labels == 1


def test_a_graph_of_a_head_in_modules_scores_as_it_does(tmp_path: Path) -> None:
    from secondpass.checkpoint.export.export import export

    score, folder = ettin(tmp_path / "start")
    export(open_checkpoint(folder), tmp_path / "out", format="onnx")
    expected = [score(*pair) for pair in PAIRS]
    assert scores(tmp_path / "out", engine="openvino", dtype="auto") == pytest.approx(expected, abs=2e-3)


def test_a_default_prompt_is_read_before_every_query(tmp_path: Path) -> None:
    score, folder = ettin(tmp_path)
    said = {"model_type": "CrossEncoder", "prompts": {"a": "old ", "b": "long "}, "default_prompt_name": "b"}
    write(folder / "config_sentence_transformers.json", said)
    expected = [score("long " + query, passage) for query, passage in PAIRS]
    assert scores(folder) == pytest.approx(expected, abs=1e-5)
    change(folder / "config_sentence_transformers.json", default_prompt_name="c")
    with pytest.raises(CheckpointError, match="no prompt of default_prompt_name"):
        Reranker(folder, device="cpu")


def change(file: Path, **settings: Any) -> None:
    write(file, json.loads(file.read_text("utf-8")) | settings)


@pytest.mark.parametrize(
    ("file", "settings", "why"),
    [
        ("4_Dense", {"activation_function": "torch.nn.Tanh"}, "one label with a bias and no activation"),
        ("4_Dense", {"out_features": 3}, "one label"),
        ("2_Dense", {"use_residual": True}, "a plain layer"),
        ("1_Pooling", {"pooling_mode": "max"}, "there are cls and mean"),
        ("", {"norm_eps": 1e-3}, "norm_eps"),
    ],
)
def test_a_head_that_is_not_the_family_s_is_refused(
    file: str, settings: dict[str, Any], why: str, tmp_path: Path
) -> None:
    _, folder = ettin(tmp_path)
    change(folder / file / "config.json", **settings)
    with pytest.raises(UnknownModel, match=why):
        Reranker(folder, device="cpu")


@pytest.mark.parametrize(
    ("own", "why"),
    [
        ({"answers": [5000]}, "has 263 words, and a score is of"),
        ({"answers": []}, "answers and temperature"),
        ({"answers": [1], "temperature": 0}, "answers and temperature"),
        ({"answers": [1], "system": 3}, "answers and temperature"),
        ([1], "an object of words"),
    ],
)
def test_words_of_its_own_that_are_none_are_refused(own: object, why: str, tmp_path: Path) -> None:
    folder = Language(tmp_path, None).folder
    change(folder / "config.json", pair_prompt=own)
    with pytest.raises(UnknownModel, match=why):
        Reranker(folder, device="cpu")


def test_other_modules_and_damaged_ones_are_named(tmp_path: Path) -> None:
    _, folder = ettin(tmp_path / "a")
    save_file({"norm.weight": torch.ones(32)}, folder / "3_LayerNorm/model.safetensors")
    with pytest.raises(CheckpointError, match=r"3_LayerNorm.*norm\.bias"):
        Reranker(folder, device="cpu")
    write_modules(folder, [("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "4_Dense")])
    with pytest.raises(UnknownModel, match="Transformer, Pooling, Dense on model_type 'modernbert'"):
        Reranker(folder, device="cpu")


def test_an_adapter_s_own_modules_say_how_its_base_reads(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    language = Language(tmp_path / "base", None)
    settings = peft.LoraConfig(target_modules=["q_proj"], r=2, lora_alpha=4)
    tuned = peft.get_peft_model(language.model, settings)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, 0, 0.5)
    tuned.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "tuned")
    (tmp_path / "base" / "chat_template.jinja").write_text(TURNS, "utf-8")
    language.folder, language.template = tmp_path / "tuned", TURNS
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tmp_path / "base" / name, tmp_path / "tuned")
    (tmp_path / "tuned" / "chat_template.jinja").write_text(TURNS, "utf-8")
    language.model = tuned.eval()
    expected = [language.logits(language.ids(pair))[YES] for pair in PAIRS[:3]]
    assert scores(language.write(), PAIRS[:3]) == pytest.approx(expected, abs=1e-4)
    merged = save_merged(open_checkpoint(tmp_path / "tuned"), tmp_path / "merged")
    assert scores(merged, PAIRS[:3]) == pytest.approx(expected, abs=1e-4)
    assert load_file(merged / "model.safetensors")


def test_an_adapter_of_a_head_in_modules_is_merged_in_the_precision_of_its_base(tmp_path: Path) -> None:
    _, folder = ettin(tmp_path / "base")
    weights = {name: x.to(torch.bfloat16) for name, x in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
    name, matrix = next((name, x) for name, x in weights.items() if name.endswith("layers.0.attn.Wo.weight"))
    module = f"base_model.model.model.{name.removeprefix('model.').removesuffix('.weight')}"
    low = {"A": torch.randn(2, matrix.shape[1]) * 0.3, "B": torch.randn(matrix.shape[0], 2) * 0.3}
    (tmp_path / "tuned").mkdir()
    save_file({f"{module}.lora_{k}.weight": x for k, x in low.items()}, tmp_path / "tuned/adapter_model.safetensors")
    told = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": str(folder)}
    write(tmp_path / "tuned/adapter_config.json", told)
    merged = save_merged(open_checkpoint(tmp_path / "tuned"), tmp_path / "merged")
    found = load_file(merged / "model.safetensors")
    assert {x.dtype for key, x in found.items() if key.startswith("model.")} == {torch.bfloat16}
    assert scores(merged) == pytest.approx(scores(tmp_path / "tuned"), abs=0.02)
    assert scores(merged) != pytest.approx(scores(folder), abs=0.02)
