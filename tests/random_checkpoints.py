"""Fresh random checkpoints, written by transformers, with the model of transformers that wrote them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import models, pre_tokenizers, processors
from torch import Tensor

from tests.checkpoints import SPECIAL, WORDS, word_piece

VOCABULARY = list(dict.fromkeys((*SPECIAL, *WORDS.split())))
ROBERTA_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 56}
LARGER = {"hidden_size": 48, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 64}
RELATIVE = {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"]}
MODERN = {"reference_compile": False, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
BIASES = dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), True)
# name -> what the names of transformers' classes begin with, settings beyond its own
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert-small": ("Bert", SMALL),
    "bert-larger": ("Bert", LARGER | {"hidden_act": "gelu_new"}),
    "xlm-roberta-small": ("XLMRoberta", SMALL | {"type_vocab_size": 1}),
    "xlm-roberta-larger": ("XLMRoberta", LARGER | {"type_vocab_size": 1}),
    "camembert-small": ("Camembert", SMALL | {"type_vocab_size": 1}),
    "camembert-larger": ("Camembert", LARGER | {"type_vocab_size": 1}),
    "electra-small": ("Electra", SMALL | {"embedding_size": 20}),  # embeddings are projected
    "electra-larger": ("Electra", LARGER | {"embedding_size": 48}),
    "distilbert-small": ("DistilBert", {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 56}),
    "distilbert-larger": ("DistilBert", {"dim": 48, "n_layers": 6, "n_heads": 3, "hidden_dim": 64}),
    "mpnet-small": ("MPNet", SMALL),
    "mpnet-larger": ("MPNet", LARGER),
    "modernbert-small": (
        "ModernBert",
        SMALL | MODERN | {"num_hidden_layers": 5, "local_attention": 8, "classifier_pooling": "mean"},
    ),
    # The last layer is a local one.
    "modernbert-larger": (
        "ModernBert",
        LARGER | MODERN | BIASES | {"global_attn_every_n_layers": 4, "local_attention": 12},
    ),
    "deberta-v2-small": (
        "DebertaV2",
        SMALL | RELATIVE | {"position_buckets": 8, "share_att_key": True, "norm_rel_ebd": "layer_norm"},
    ),
    # Own projections of the distances, no buckets, and positions and types added to the words.
    "deberta-v2-larger": (
        "DebertaV2",
        LARGER
        | RELATIVE
        | {"position_biased_input": True, "type_vocab_size": 2, "max_relative_positions": 12}
        | {"pooler_hidden_act": "tanh"},
    ),
    "deberta-v2-content": (
        "DebertaV2",
        SMALL | RELATIVE | {"position_buckets": 8, "share_att_key": True, "pos_att_type": []},
    ),
}


def _transformers() -> Any:
    """The package with its DeBERTa; importing them takes seconds, so not at collection."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about torch.jit in the code of DeBERTa
        import transformers
        import transformers.models.deberta_v2.modeling_deberta_v2

        for family in {family for family, _ in CASES.values()}:
            getattr(transformers, f"{family}ForSequenceClassification")
    return transformers


def bucket_positions(distances: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    deberta = _transformers().models.deberta_v2.modeling_deberta_v2
    buckets: Tensor = deberta.make_log_bucket_position(distances, num_buckets, max_distance)
    return buckets.long()


@dataclass(frozen=True)
class RandomCheckpoint:
    """A folder in Hugging Face layout, and what transformers scores with it."""

    folder: Path
    model: Any
    tokenizer: Any

    def score(self, pairs: Sequence[tuple[str, str]], max_length: int) -> list[float]:
        queries, passages = map(list, zip(*pairs, strict=True))
        inputs = self.tokenizer(
            queries,
            passages,
            padding=True,
            truncation="longest_first",
            max_length=max_length,
            return_tensors="pt",
        )
        with torch.inference_mode():
            logits: Tensor = self.model(**inputs).logits
        scores: list[float] = logits[:, 0].tolist()
        return scores


def random_checkpoint(
    folder: Path, name: str, *, dtype: torch.dtype = torch.float32, max_shard_size: str = "1GB"
) -> RandomCheckpoint:
    """The case `name` with seeded weights, large enough that a wrong detail moves the scores."""
    family, settings = CASES[name]
    transformers = _transformers()
    model_class = getattr(transformers, f"{family}ForSequenceClassification")
    is_roberta = family in ("XLMRoberta", "Camembert", "MPNet")
    vocabulary = [*ROBERTA_SPECIAL, *VOCABULARY[len(SPECIAL) :]] if is_roberta else VOCABULARY
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(vocabulary), max_position_embeddings=160, num_labels=1, **settings
    )
    model = model_class._from_config(config, attn_implementation="eager")
    _fill(model)
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    inner = _word_level(vocabulary) if is_roberta else word_piece(vocabulary)
    pad = "<pad>" if is_roberta else "[PAD]"
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token=pad, model_max_length=158)
    if settings.get("type_vocab_size") == 1 or family in ("ModernBert", "DistilBert", "MPNet"):
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(folder)
    # Read back: model.to(bfloat16) rounds the rotary frequencies too, and a file does not hold them.
    model = model_class.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return RandomCheckpoint(folder, model.eval(), tokenizer)


def _fill(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.2
            is_gain = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(1 + noise if is_gain else noise)


def _word_level(vocabulary: list[str]) -> tokenizers.Tokenizer:
    """Words at white space, with RoBERTa's template of a pair."""
    ids = {word: index for index, word in enumerate(vocabulary)}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(ROBERTA_SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", ids["<s>"]), ("</s>", ids["</s>"])],
    )
    return tokenizer
