"""Small real checkpoints, built where a test needs them."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (
    "the a of to in is are was which what how who when where river bridge water winter light long short old new city "
    "house road tree stone fire cold warm day night year people king queen ship sea wind rain snow bread milk salt "
    "a b c d e f g h i j k l m n o p q r s t u v w x y z 0 1 2 3 4 5 6 7 8 9 . , : ? ! - ##a ##e ##s ##er ##ing"
)


def tiny_bert(folder: Path, *, num_labels: int = 1, width: int = 16, num_layers: int = 2, seed: int = 0) -> Path:
    """A BERT cross-encoder in Hugging Face layout with seeded random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = list(dict.fromkeys((*SPECIAL, *WORDS.split())))
    config = {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "hidden_size": width,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 2,
        "intermediate_size": 2 * width,
        "vocab_size": len(vocabulary),
        "max_position_embeddings": 128,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "pad_token_id": 0,
        "id2label": {str(label): f"LABEL_{label}" for label in range(num_labels)},
    }
    (folder / "config.json").write_text(json.dumps(config))
    word_piece(vocabulary).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 128}))
    save_file(bert_weights(config, num_labels, seed), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def word_piece(vocabulary: list[str]) -> tokenizers.Tokenizer:
    """BERT's lower-casing tokenizer over a list of words."""
    ids = {word: place for place, word in enumerate(vocabulary)}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    return tokenizer


def bert_weights(config: dict[str, object], num_labels: int, seed: int) -> dict[str, torch.Tensor]:
    """Seeded normal weights under the names that transformers writes."""
    generator = torch.Generator().manual_seed(seed)
    width, mlp = int(str(config["hidden_size"])), int(str(config["intermediate_size"]))
    shapes: dict[str, tuple[int, ...]] = {
        "bert.embeddings.word_embeddings.weight": (int(str(config["vocab_size"])), width),
        "bert.embeddings.position_embeddings.weight": (int(str(config["max_position_embeddings"])), width),
        "bert.embeddings.token_type_embeddings.weight": (2, width),
        "bert.embeddings.LayerNorm.weight": (width,),
        "bert.embeddings.LayerNorm.bias": (width,),
        "bert.pooler.dense.weight": (width, width),
        "bert.pooler.dense.bias": (width,),
        "classifier.weight": (num_labels, width),
        "classifier.bias": (num_labels,),
    }
    for index in range(int(str(config["num_hidden_layers"]))):
        layer = f"bert.encoder.layer.{index}"
        linears = {f"attention.self.{part}": (width, width) for part in ("query", "key", "value")}
        linears |= {"attention.output.dense": (width, width)}
        linears |= {"intermediate.dense": (mlp, width), "output.dense": (width, mlp)}
        for name, shape in linears.items():
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{layer}.{name}.weight": (width,), f"{layer}.{name}.bias": (width,)}
    return {
        name: torch.randn(shape, generator=generator) * 0.3 + ("LayerNorm.weight" in name)
        for name, shape in shapes.items()
    }
