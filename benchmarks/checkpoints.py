"""Random-weight checkpoints of real shapes: their scores mean nothing, their cost is the real one."""

from __future__ import annotations

import json
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


def write_checkpoint(folder: Path, shape: str, words: list[str]) -> Path:
    """A cross-encoder of the named shape, XLM-RoBERTa or BERT, with a tokenizer of `words`, one token each."""
    return (write_bert if "MiniLM" in shape else write_xlm_roberta)(folder, shape, words)


def write_bert(folder: Path, shape: str, words: list[str]) -> Path:
    """A BERT cross-encoder of the named shape."""
    width, num_layers, num_heads, mlp_width, vocabulary, positions = SHAPES[shape]
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "hidden_size": width,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "intermediate_size": mlp_width,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "pad_token_id": 0,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
    }
    (folder / "config.json").write_text(json.dumps(config))
    weights = _weights(config, prefix="bert")
    dense, out = weights.pop("classifier.dense.weight"), weights.pop("classifier.out_proj.weight")
    del weights["classifier.dense.bias"], weights["classifier.out_proj.bias"]
    weights |= {"bert.pooler.dense.weight": dense, "bert.pooler.dense.bias": torch.zeros(width)}
    weights |= {"classifier.weight": out, "classifier.bias": torch.zeros(1)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*special, *words]) + "\n")
    inner = tokenizers.implementations.BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=True)
    inner.save(str(folder / "tokenizer.json"))
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]"}
    names |= {"mask_token": "[MASK]"}
    settings = names | {"tokenizer_class": "BertTokenizer", "model_max_length": positions}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(json.dumps(names))
    return folder


def write_xlm_roberta(folder: Path, shape: str, words: list[str]) -> Path:
    """An XLM-RoBERTa cross-encoder of the named shape."""
    width, num_layers, num_heads, mlp_width, vocabulary, positions = SHAPES[shape]
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["XLMRobertaForSequenceClassification"],
        "model_type": "xlm-roberta",
        "hidden_size": width,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "intermediate_size": mlp_width,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu",
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(_weights(config), folder / "model.safetensors", metadata={"format": "pt"})
    _tokenizer(words).save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>", "unk_token": "<unk>"}
    names |= {"pad_token": "<pad>", "mask_token": "<mask>"}
    settings = names | {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": positions - 2}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(json.dumps(names))
    return folder


def _weights(config: dict[str, object], prefix: str = "roberta") -> dict[str, torch.Tensor]:
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
    linear("classifier.dense", width, width)
    linear("classifier.out_proj", 1, width)
    return weights


def _tokenizer(words: list[str]) -> tokenizers.Tokenizer:
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
