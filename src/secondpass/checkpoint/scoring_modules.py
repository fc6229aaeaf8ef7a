"""Rerankers that sentence-transformers (from 5.4 on) saved in modules: what modules.json says of the score.

A language model and LogitScore: the logit of one word after a chat of the checkpoint's own template, less that of a
second where there are two. An encoder, Pooling, Dense, LayerNorm and Dense: a classifier's head in files of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secondpass.checkpoint.layout import CHAT_TEMPLATE, LENGTH, TOKENIZER_SETTINGS, inside
from secondpass.checkpoint.sentence_transformers import (
    SETTINGS,
    computed_modules,
    dense_settings,
    layer_file,
    pooling_of,
    read_if_there,
)
from secondpass.checkpoint.weights import Change, read_tensors
from secondpass.errors import CheckpointError, UnknownModel
from secondpass.json_file import read_json, read_text
from secondpass.text.chat_template import prompt_of
from secondpass.text.families import OWN_PROMPT, PROMPT_PARTS, QUERY_PROMPT, family_of, is_classifier, saved_head
from secondpass.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

_HEAD = ["Pooling", "Dense", "LayerNorm", "Dense"]
# model_type whose own head computes the same -> our names of its poolings, which config.json names alike
_HEADED = {"modernbert": ("cls", "mean")}
MAX_TEMPLATE = 1 << 18  # bytes
_EPSILON = 1e-5  # of sentence-transformers' LayerNorm
Module = tuple[str, Path]


def told(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the modules of a folder add to its config.json; nothing where they make no score, or there are none.

    Raises UnknownModel for a score that is not computed here, CheckpointError for damaged files.
    """
    modules = _modules(folder)
    kinds = [kind for kind, _ in modules]
    if kinds[1:] == ["LogitScore"]:
        return _logit_score(folder, modules[1][1], config)
    if "LogitScore" not in kinds and not _makes_score(modules):
        return _query_prompt(folder) if is_classifier(config) else {}
    if kinds[1:] != _HEAD or config.get("model_type") not in _HEADED:
        raise UnknownModel(
            f"{folder}: modules.json scores with {', '.join(kinds)} on model_type {config.get('model_type')!r}; "
            f"there are LogitScore on language models, and {', '.join(_HEAD)} on {', '.join(_HEADED)}"
        )
    return _classifier(modules, config) | _query_prompt(folder)


def head_of(folder: Path, config: Mapping[str, Any]) -> Change | None:
    """What adds a head that lies in modules of its own to the tensors of a checkpoint; None where none does."""
    modules = _modules(folder)
    if [kind for kind, _ in modules[1:]] != _HEAD or not _makes_score(modules):
        return None
    dense, norm, out = (path for _, path in modules[2:])
    names, has_norm_bias = saved_head(config), bool(config.get("norm_bias", False))

    def changed(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors:
            yield names.full_name(name), tensor
        for ours, tensor in _head(dense, norm, out, has_norm_bias=has_norm_bias):
            module, _, kind = ours.rpartition(".")
            yield f"{names.head[module]}.{kind}", tensor

    return changed


def _head(dense: Path, norm: Path, out: Path, *, has_norm_bias: bool) -> Iterator[tuple[str, Tensor]]:
    """A classifier's tensors by our names. Its norm has no weights of its own: those of `norm` go into `out`."""
    first, scale, last = (dict(read_tensors([layer_file(layer)])) for layer in (dense, norm, out))
    try:
        weight, bias = last["linear.weight"].float(), last["linear.bias"].float()
        gain, shift = scale["norm.weight"].float(), scale["norm.bias"].float()
        yield from ((f"head.dense.{name.removeprefix('linear.')}", tensor) for name, tensor in first.items())
        yield "head.norm.weight", gain.new_ones(gain.shape)
        if has_norm_bias:
            yield "head.norm.bias", gain.new_zeros(gain.shape)
        yield "head.out.weight", weight * gain
        yield "head.out.bias", bias + weight @ shift
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{norm} and {out}: not a norm and a layer of one label: {error}") from error


def _modules(folder: Path) -> list[Module]:
    """(kind, folder) of each."""
    return [(kind, inside(folder, path)) for kind, path in computed_modules(folder)]


def _makes_score(modules: Sequence[Module]) -> bool:
    """Whether the last module makes a score, and not a vector."""
    return bool(modules) and modules[-1][0] == "Dense" and _output(modules[-1][1]) == "scores"


def _output(layer: Path) -> str:
    return str(dense_settings(layer).get("module_output_name"))


def _classifier(modules: Sequence[Module], config: Mapping[str, Any]) -> dict[str, Any]:
    """As transformers names a classifier with this head."""
    pooling, dense, out = (dict(modules)["Pooling"], modules[2][1], modules[4][1])
    named = pooling_of(pooling / "config.json")
    first, last = dense_settings(dense), dense_settings(out)
    if named not in _HEADED[str(config["model_type"])]:
        raise UnknownModel(f"{pooling}: a reranker pools by {named}; there are cls and mean")
    if _activation(last) != "identity" or last.get("out_features") != 1 or last.get("bias") is False:
        raise UnknownModel(f"{out}: one label with a bias and no activation is needed; it has {last}")
    if first.get("use_residual") or last.get("use_residual") or _output(dense) == "scores":
        raise UnknownModel(f"{dense}: a plain layer over the pooled vector is needed; it has {first}")
    if config.get("norm_eps", _EPSILON) != _EPSILON:
        raise UnknownModel(f"config.json: norm_eps is {config['norm_eps']}; the norm of modules.json has {_EPSILON}")
    return {
        "architectures": [saved_head(config).architecture],
        "num_labels": 1,
        "classifier_pooling": named,
        "classifier_bias": bool(first.get("bias", True)),
        "classifier_activation": _activation(first),
    }


def _query_prompt(folder: Path) -> dict[str, Any]:
    prompt = _own_prompt(folder, read_if_there(folder / SETTINGS))
    return {} if prompt is None else {QUERY_PROMPT: prompt}


def _own_prompt(folder: Path, said: Mapping[str, Any]) -> str | None:
    """The prompt that a CrossEncoder takes where nobody gives one."""
    if said.get("model_type") != "CrossEncoder" or said.get("default_prompt_name") is None:
        return None
    prompts = said.get("prompts")
    found = prompts.get(said["default_prompt_name"]) if isinstance(prompts, dict) else None
    if not isinstance(found, str):
        raise CheckpointError(f"{folder / SETTINGS}: there is no prompt of default_prompt_name among prompts")
    return found


def _activation(layer: Mapping[str, Any]) -> str:
    return str(layer.get("activation_function") or "Tanh").rsplit(".", 1)[-1].lower()


def _logit_score(folder: Path, module: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    settings = read_json(module / "config.json")
    answers = [settings.get("true_token_id"), settings.get("false_token_id")]
    answers = answers[: 1 if answers[1] is None else 2]
    if any(not isinstance(answer, int) or isinstance(answer, bool) or answer < 0 for answer in answers):
        raise CheckpointError(f"{module}: true_token_id and false_token_id are {answers}; ids of tokens are needed")
    tokenizer = Tokenizer.from_folder(folder)
    try:
        return {OWN_PROMPT: {"answers": answers, **_prompt(folder, tokenizer)}}
    except UnknownModel as error:
        usual = family_of(config).recipe
        if usual is not None and usual.answers and usual.answer_ids(tokenizer) == answers:
            return {}  # a model of the family, which is read as its own reference reads it
        raise UnknownModel(f"{folder}: its chat template {error}") from error


def _prompt(folder: Path, tokenizer: Tokenizer) -> dict[str, str]:
    """The words around a pair by the names of `Prompt`; none where a pair is read without a template."""
    source = _template(folder)
    if source is None:
        return {}
    saved, said, named = (read_if_there(folder / name) for name in (LENGTH, SETTINGS, TOKENIZER_SETTINGS))
    try:
        form = ((saved.get("modality_config") or {}).get("message") or {}).get("format", "flat")
        options = {key: _content(value) for key, value in named.items() if key.endswith("_token")}
        options |= (saved.get("processing_kwargs") or {}).get("chat_template") or {}
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: {LENGTH} or {SETTINGS} is not as sentence-transformers writes it"
        ) from error
    prompt = prompt_of(source, instruction=_own_prompt(folder, said), is_flat=form == "flat", options=options)
    if prompt.answer and not tokenizer.begins_special(prompt.answer):
        raise UnknownModel(f"writes {prompt.answer!r} after the passage, which a tokenizer may join with its end")
    return {name: getattr(prompt, name) for name in PROMPT_PARTS}


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _template(folder: Path) -> str | None:
    """The template that transformers takes: of a file of its own, or of the tokenizer's settings."""
    if (folder / CHAT_TEMPLATE).is_file():
        return read_text(folder / CHAT_TEMPLATE, MAX_TEMPLATE)
    found = read_if_there(folder / TOKENIZER_SETTINGS).get("chat_template")
    if isinstance(found, list):  # several by name
        found = next((x.get("template") for x in found if isinstance(x, dict) and x.get("name") == "default"), None)
    if found is not None and not isinstance(found, str):
        raise CheckpointError(f"{folder / TOKENIZER_SETTINGS}: chat_template is no text")
    return found
