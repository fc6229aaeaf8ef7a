"""Random-weight checkpoints of real shapes: their scores mean nothing, their cost is the real one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import decoders, models, pre_tokenizers, processors

SHAPES = {  # width, layers, heads, mlp width, vocabulary, positions
    "bge-reranker-base": (768, 12, 12, 3072, 250002, 514),
    "bge-reranker-large": (1024, 24, 16, 4096, 250002, 514),
    "bge-reranker-v2-m3": (1024, 24, 16, 4096, 250002, 8194),
    "ms-marco-MiniLM-L6": (384, 6, 12, 1536, 30522, 512),
    "ms-marco-MiniLM-L12": (384, 12, 12, 1536, 30522, 512),
}


BERT = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
XLM_ROBERTA = {
    "architectures": ["XLMRobertaForSequenceClassification"],
    "model_type": "xlm-roberta",
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
BERT_TOKENS = {
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "unk_token": "[UNK]",
    "pad_token": "[PAD]",
    "mask_token": "[MASK]",
}
XLM_ROBERTA_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}


def write_checkpoint(folder: Path, shape: str, words: list[str]) -> Path:
    """A cross-encoder of the named shape, XLM-RoBERTa or BERT, with a tokenizer of `words`, one token each."""
    folder.mkdir(parents=True, exist_ok=True)
    positions = SHAPES[shape][-1]
    if "MiniLM" in shape:
        config, names = _config(shape) | BERT, BERT_TOKENS
        tokenizer = _wordpiece(folder / "vocab.txt", words)
        settings = {"tokenizer_class": "BertTokenizer", "model_max_length": positions}
    else:
        config, names = _config(shape) | XLM_ROBERTA, XLM_ROBERTA_TOKENS
        tokenizer = _unigram(words)
        settings = {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": positions - 2}
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file(_weights(config), folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", config)
    _write_json(folder / "tokenizer_config.json", names | settings)
    _write_json(folder / "special_tokens_map.json", names)
    return folder


def _write_json(file: Path, value: Mapping[str, object]) -> None:
    file.write_text(json.dumps(value))


def _config(shape: str) -> dict[str, object]:
    """What both architectures have in config.json."""
    width, num_layers, num_heads, mlp_width, vocabulary, positions = SHAPES[shape]
    return {
        "hidden_size": width,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "intermediate_size": mlp_width,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "hidden_act": "gelu",
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
    }


def _weights(config: Mapping[str, object]) -> dict[str, torch.Tensor]:
    is_bert = config["model_type"] == "bert"
    prefix = "bert" if is_bert else "roberta"
    generator = torch.Generator().manual_seed(0)
    width, mlp = int(str(config["hidden_size"])), int(str(config["intermediate_size"]))
    weights: dict[str, torch.Tensor] = {}

    def linear(name: str, rows: int, columns: int) -> None:
        weights[f"{name}.weight"] = torch.randn(rows, columns, generator=generator) * 0.02
        weights[f"{name}.bias"] = torch.zeros(rows)

    def norm(name: str) -> None:
        weights[f"{name}.weight"], weights[f"{name}.bias"] = torch.ones(width), torch.zeros(width)

    for name, rows in (
        ("word", "vocab_size"),
        ("position", "max_position_embeddings"),
        ("token_type", "type_vocab_size"),
    ):
        shape = (int(str(config[rows])), width)
        weights[f"{prefix}.embeddings.{name}_embeddings.weight"] = torch.randn(shape, generator=generator) * 0.02
    norm(f"{prefix}.embeddings.LayerNorm")
    for index in range(int(str(config["num_hidden_layers"]))):
        layer = f"{prefix}.encoder.layer.{index}"
        for part in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{part}", width, width)
        linear(f"{layer}.attention.output.dense", width, width)
        norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", mlp, width)
        linear(f"{layer}.output.dense", width, mlp)
        norm(f"{layer}.output.LayerNorm")
    linear("bert.pooler.dense" if is_bert else "classifier.dense", width, width)
    linear("classifier" if is_bert else "classifier.out_proj", 1, width)
    return weights


def _wordpiece(file: Path, words: list[str]) -> tokenizers.Tokenizer:
    """BERT's kind of tokenizer, with one token for each of `words`; its vocabulary goes to `file` too."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    file.write_text("\n".join([*special, *words]) + "\n")
    return tokenizers.implementations.BertWordPieceTokenizer(str(file), lowercase=True)


def _unigram(words: list[str]) -> tokenizers.Tokenizer:
    """XLM-RoBERTa's kind of tokenizer, with one token for each of `words`."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    vocabulary = [(token, 0.0) for token in special] + [("\u2581" + word, -4.0) for word in words]
    tokenizer = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([*special, "<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer
