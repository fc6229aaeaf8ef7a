"""The words of sentence-transformers and FlagEmbedding over `Reranker`, so that a switch is one changed import.

>>> from secondpass.compat import CrossEncoder      # was: from sentence_transformers import CrossEncoder
>>> from secondpass.compat import FlagReranker      # was: from FlagEmbedding import FlagReranker

The numbers are the originals': their truncation, their activation, special tokens that a text spells are read as the
originals read them, and float32 unless half precision is asked for, which is then whatever is fast here. Words of
theirs that change nothing here are named in one warning; words that neither side knows are a TypeError.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secondpass.calibration import sigmoid
from secondpass.checkpoint.checkpoint import open_checkpoint
from secondpass.checkpoint.sentence_transformers import named_activation
from secondpass.reranker import Reranker
from secondpass.types import Progress

__all__ = [
    "CrossEncoder",
    "FlagAutoReranker",
    "FlagLLMReranker",
    "FlagReranker",
    "LayerWiseFlagLLMReranker",
    "LightWeightFlagLLMReranker",
]

Pair = Sequence[str]
Scores = NDArray[np.float32]
# As sentence-transformers says them in config.json, of its newer and older versions.
_ACTIVATION, _OLD_ACTIVATION = "activation_fn", "sbert_ce_default_activation_function"
_DTYPES = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16", "auto": "auto"}


class CrossEncoder:
    """sentence-transformers' CrossEncoder for models with one label: `predict` and `rank`.

    activation_fn: a callable on an array of logits, else the checkpoint's own: Identity or Sigmoid. model_kwargs may
    have torch_dtype or dtype. backend "onnx" and "openvino" run the graphs of the checkpoint.
    """

    def __init__(
        self,
        model_name_or_path: str | Path,
        *,
        num_labels: int | None = None,
        max_length: int | None = None,
        activation_fn: Callable[[Any], Any] | None = None,
        device: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        model_kwargs: dict[str, Any] | None = None,
        backend: str = "torch",
        cache_folder: str | None = None,
        trust_remote_code: bool | None = None,
        token: bool | str | None = None,
        tokenizer_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        config_kwargs: dict[str, Any] | None = None,
        model_card_data: Any = None,
        prompts: dict[str, str] | None = None,
    ) -> None:
        if num_labels not in (None, 1):
            raise ValueError(f"num_labels is {num_labels}; a reranker has one")
        if prompts:
            raise ValueError("prompts are not read here; write the prompt before the query")
        _without_meaning(
            cache_folder=cache_folder,
            trust_remote_code=trust_remote_code,
            token=token,
            tokenizer_kwargs=tokenizer_kwargs,
            processor_kwargs=processor_kwargs,
            config_kwargs=config_kwargs,
            model_card_data=model_card_data,
        )
        self.model = Reranker(
            model_name_or_path,
            revision=revision,
            engine="auto" if backend == "torch" else "openvino",
            device=device or "auto",
            dtype=_dtype_of(model_kwargs or {}),
            max_length=max_length,
            truncation="longest_first",
            special_tokens="parse",
            local_files_only=local_files_only,
        )
        checkpoint = open_checkpoint(
            model_name_or_path, revision=revision, local_files_only=local_files_only, graph=backend != "torch"
        )
        self.activation_fn = activation_fn or _activation_of(checkpoint.config, named_activation(checkpoint.folder))

    def predict(
        self,
        inputs: Pair | Iterable[Pair] | None = None,
        *,
        sentences: Pair | Iterable[Pair] | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[[Any], Any] | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | Sequence[str] | None = None,
        num_workers: int = 0,
        chunk_size: int | None = None,
    ) -> Any:
        """Activated scores of (query, passage) pairs in their order: an array (N,), or one number for one pair.

        sentences is the older name of inputs. convert_to_tensor gives a torch tensor, convert_to_numpy=False a list
        of numbers. Batches are cut by tokens, so batch_size, chunk_size and num_workers change nothing; a softmax
        over one label would be 1 for every pair and is refused, and a device that is not the model's.
        """
        self._check_device(device)
        if apply_softmax:
            raise ValueError("apply_softmax over one label is 1.0 for every pair; leave it out")
        pairs, is_one = _pairs_of(sentences if inputs is None else inputs)
        logits = np.array(self.model.score_pairs(pairs, progress=_bar(show_progress_bar)), np.float32)
        scores = _activated(activation_fn or self.activation_fn, logits)
        if convert_to_tensor:
            import torch

            tensor = torch.from_numpy(scores)
            return tensor[0] if is_one else tensor
        if convert_to_numpy:
            return scores[0] if is_one else scores
        return float(scores[0]) if is_one else scores.tolist()

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        *,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[[Any], Any] | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | Sequence[str] | None = None,
        num_workers: int = 0,
        chunk_size: int | None = None,
    ) -> list[dict[str, Any]]:
        """[{"corpus_id", "score", and with return_documents "text"}], best first, at most top_k."""
        texts = list(documents)  # by place: the column of a table that was sorted has other labels
        scores = self.predict(
            [(query, text) for text in texts],
            show_progress_bar=show_progress_bar,
            activation_fn=activation_fn,
            apply_softmax=apply_softmax,
            device=device,
        ).tolist()
        order = sorted(range(len(scores)), key=lambda index: -scores[index])[:top_k]
        found: list[dict[str, Any]] = [{"corpus_id": index, "score": scores[index]} for index in order]
        if return_documents:
            for each in found:
                each["text"] = texts[each["corpus_id"]]
        return found

    def _check_device(self, device: str | Sequence[str] | None) -> None:
        """Raises ValueError for one that the model is not on; without a number it means any of its kind."""
        if device is None:
            return
        own = self.model.info().device
        if _device_of(device) not in (own, own.partition(":")[0]):
            raise ValueError(f"device is {device!r}, but the model is on {own!r}; give device to CrossEncoder")


class FlagReranker:
    """FlagEmbedding's FlagReranker for encoders: `compute_score` gives raw logits, or probabilities by normalize.

    use_fp16 and use_bf16 ask for half precision: the one that is fast and right on this device, float32 where none
    is. query_max_length None is three quarters of max_length, as there.
    """

    _truncation: str | None = "only_second"
    _instructions: tuple[str | None, str | None] = (None, None)  # before query and passage, of the family's own

    def __init__(
        self,
        model_name_or_path: str | Path,
        use_fp16: bool = False,
        *,
        query_instruction_for_rerank: str | None = None,
        query_instruction_format: str = "{}{}",
        passage_instruction_for_rerank: str | None = None,
        passage_instruction_format: str = "{}{}",
        use_bf16: bool = False,
        devices: str | int | Sequence[str | int] | None = None,
        batch_size: int = 128,
        query_max_length: int | None = None,
        max_length: int = 512,
        normalize: bool = False,
        prompt: str | None = None,
        cutoff_layers: Sequence[int] | None = None,
        compress_layers: Sequence[int] | None = None,
        compress_ratio: int | None = None,
        cache_dir: str | None = None,
        trust_remote_code: bool | None = None,
        peft_path: str | None = None,
    ) -> None:
        if peft_path is not None:
            raise ValueError(f"peft_path is {peft_path!r}; give the adapter's folder as the model itself")
        _without_meaning(cache_dir=cache_dir, trust_remote_code=trust_remote_code)
        self._query_format = (query_instruction_format, query_instruction_for_rerank)
        self._passage_format = (passage_instruction_format, passage_instruction_for_rerank)
        if None not in self._instructions:
            self._query_format = _own("query", self._query_format, self._instructions[0])
            self._passage_format = _own("passage", self._passage_format, self._instructions[1])
        self.cutoff_layers, self.normalize = cutoff_layers, normalize
        self.model = Reranker(
            model_name_or_path,
            device=_device_of(devices),
            dtype="auto" if use_fp16 or use_bf16 else "float32",
            max_length=max_length,
            max_query_length=query_max_length,
            truncation=self._truncation,
            instruction=prompt,
            compress_ratio=compress_ratio,
            compress_layers=compress_layers,
            special_tokens="parse",
        )

    def compute_score(
        self,
        sentence_pairs: Pair | Iterable[Pair],
        *,
        batch_size: int | None = None,
        max_length: int | None = None,
        normalize: bool | None = None,
        cutoff_layers: Sequence[int] | None = None,
        compress_layers: Sequence[int] | None = None,
        compress_ratio: int | None = None,
    ) -> Any:
        """Scores in the order of the pairs, a list also for one pair; a list of lists for several cutoff_layers."""
        pairs = [(self._query(query), self._passage(passage)) for query, passage in _pairs_of(sentence_pairs)[0]]
        layers = self.cutoff_layers if cutoff_layers is None else cutoff_layers
        outputs = [
            self.model.score_pairs(
                pairs,
                max_length=max_length,
                cutoff_layer=layer,
                compress_layers=compress_layers,
                compress_ratio=compress_ratio,
            )
            for layer in (sorted(layers) if layers else (None,))
        ]
        if self.normalize if normalize is None else normalize:
            outputs = [[sigmoid(score) for score in scores] for scores in outputs]
        return outputs[0] if len(outputs) == 1 else outputs

    def _query(self, query: str) -> str:
        return _instructed(query, *self._query_format)

    def _passage(self, passage: str) -> str:
        return _instructed(passage, *self._passage_format)


class FlagLLMReranker(FlagReranker):
    """FlagEmbedding's FlagLLMReranker (v2-gemma); its "A: " and "B: " are the family's own, others are refused."""

    _truncation = None
    _instructions = ("A: ", "B: ")


class LayerWiseFlagLLMReranker(FlagLLMReranker):
    """FlagEmbedding's LayerWiseFlagLLMReranker (v2-minicpm-layerwise); each layer has the head that is its own."""


class LightWeightFlagLLMReranker(FlagLLMReranker):
    """FlagEmbedding's LightWeightFlagLLMReranker (v2.5-gemma2-lightweight)."""


class FlagAutoReranker:
    """FlagEmbedding's FlagAutoReranker: the class by the checkpoint's own settings, not by its name."""

    @staticmethod
    def from_finetuned(
        model_name_or_path: str | Path, model_class: str | None = None, use_fp16: bool = False, **options: Any
    ) -> FlagReranker:
        """options are those of FlagReranker. model_class has no meaning: the checkpoint says what it is."""
        _without_meaning(model_class=model_class)
        recipe = open_checkpoint(model_name_or_path).recipe
        made = FlagReranker if recipe.head == "classifier" else FlagLLMReranker
        return made(model_name_or_path, use_fp16=use_fp16, **options)


def _pairs_of(given: Pair | Iterable[Pair] | None) -> tuple[list[tuple[str, str]], bool]:
    """The pairs, and whether it was one alone, as in predict(["query", "passage"])."""
    if given is None:
        raise TypeError("there are no pairs; give a list of (query, passage) pairs")
    listed: list[Any] = list(given)
    is_one = len(listed) == 2 and all(isinstance(each, str) for each in listed)
    pairs = [listed] if is_one else listed
    for index, pair in enumerate(pairs):
        if isinstance(pair, str) or len(pair) != 2:
            raise ValueError(f"sentences[{index}] is no (query, passage) pair")
    return [(query, passage) for query, passage in pairs], is_one


def _own(name: str, given: tuple[str, str | None], own: str | None) -> tuple[str, None]:
    """Nothing more, where the family itself writes its instruction. Raises ValueError for another one."""
    form, instruction = given
    if form != "{}{}" or instruction not in (None, own):
        raise ValueError(
            f"{name}_instruction_for_rerank is {instruction!r}, in the format {form!r}; this family writes {own!r}"
        )
    return form, None


def _instructed(text: str, form: str, instruction: str | None) -> str:
    """A line end may be written as a command line has it, backslash and n."""
    return text if instruction is None else form.replace("\\n", "\n").format(instruction, text)


def _activation_of(config: Any, named: str | None = None) -> Callable[[Any], Any]:
    older = (config.get("sentence_transformers") or {}).get(_ACTIVATION) or config.get(_OLD_ACTIVATION)
    said = named or older or "Sigmoid"
    name = str(said).rsplit(".", 1)[-1]
    if name not in _ACTIVATIONS:
        raise ValueError(f"the checkpoint asks for the activation {said!r}; give activation_fn")
    return _ACTIVATIONS[name]


def _sigmoid(logits: Scores) -> Scores:
    return np.array([sigmoid(float(logit)) for logit in logits], np.float32)


def _identity(logits: Scores) -> Scores:
    return logits


_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {"Sigmoid": _sigmoid, "Identity": _identity}


def _activated(activation: Callable[[Any], Any], logits: Scores) -> Scores:
    """By our own functions on arrays, or by one of torch's modules, which want a tensor."""
    if activation in _ACTIVATIONS.values():
        return np.asarray(activation(logits), np.float32)
    import torch

    return np.asarray(activation(torch.from_numpy(logits)), np.float32)


def _dtype_of(model_kwargs: dict[str, Any]) -> str:
    unknown = sorted(set(model_kwargs) - {"torch_dtype", "dtype", "attn_implementation"})
    if unknown:
        raise ValueError(f"model_kwargs has {', '.join(unknown)}; here are torch_dtype (or dtype)")
    name = str(model_kwargs.get("dtype", model_kwargs.get("torch_dtype", "float32"))).removeprefix("torch.")
    if name not in _DTYPES:
        raise ValueError(f"the dtype is {name!r}; give {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _device_of(devices: str | int | Sequence[str | int] | None) -> str:
    if devices is None:
        return "auto"
    listed = [devices] if isinstance(devices, str | int) else list(devices)
    if len(listed) != 1:
        raise ValueError(f"devices is {devices!r}; a reranker here runs on one")
    device = str(listed[0])
    return f"cuda:{device}" if device.isdigit() else device


def _without_meaning(**given: Any) -> None:
    named = sorted(name for name, value in given.items() if value)
    if named:
        warnings.warn(
            f"{', '.join(named)}: without meaning here and left unread (no code of a checkpoint is run; the hub's "
            "cache and token are those of huggingface_hub)",
            stacklevel=3,
        )


def _bar(is_shown: bool | None) -> Progress | None:
    if not is_shown:
        return None
    import sys

    def show(done: int, total: int) -> None:
        if sys.stderr.isatty():
            end = "\n" if done == total else ""
            sys.stderr.write(f"\r{done} of {total} pairs{end}")

    return show
