"""The float32 folder: all-MiniLM-L6-v2 unchanged, rarity of word pieces, and a head with given weights."""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from collection import read_collection
from safetensors.torch import load_file, save_file
from sets import TRAIN
from tokenizers import Tokenizer, processors

from secondpass.models.late_interaction import NUM_FIGURES

MATCHING = {"k1": 0.2, "b": 0.4, "mean_length": 110.0}
KEPT = (
    *("hidden_act", "hidden_size", "intermediate_size", "layer_norm_eps", "max_position_embeddings", "pad_token_id"),
    *("num_attention_heads", "num_hidden_layers", "type_vocab_size", "vocab_size"),
)
TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json")
PIECES = [*(name for name in TRAIN if "/" not in name and name not in ("covid-faq", "qamr")), "selqa-dev"]
MAX_PASSAGES = 8000  # of a set, to count its pieces
CHUNK = 2000


def piece_weights(train: Path, tokenizer: Tokenizer) -> np.ndarray:
    """(V,) -log of the share of passages with the piece, averaged over the sets; 0 for markers."""
    shares = []
    for name in PIECES:
        passages = list(read_collection(train / name).passages.values())[:MAX_PASSAGES]
        found = np.zeros(tokenizer.get_vocab_size())
        for start in range(0, len(passages), CHUNK):
            for encoding in tokenizer.encode_batch(passages[start : start + CHUNK], add_special_tokens=False):
                found[list(set(encoding.ids))] += 1
        shares.append((found + 0.5) / (len(passages) + 1))
    weights = -np.log(np.mean(shares, 0))
    weights[[place for place, token in tokenizer.get_added_tokens_decoder().items() if token.special]] = 0
    return weights.astype(np.float32)


def build(start: Path, out: Path, pieces: np.ndarray, scales: Sequence[float], bias: float) -> Path:
    """scales: of the head's figures, then of the two shares of word matching."""
    out.mkdir(parents=True, exist_ok=True)
    read = load_file(start / "model.safetensors")
    weights = {f"bert.{name}": x for name, x in read.items() if "pooler" not in name and "position_ids" not in name}
    head, shares = torch.tensor(scales[:NUM_FIGURES]), torch.tensor(scales[NUM_FIGURES:])
    weights |= {"head.scale": head, "head.bias": torch.tensor([bias])}
    weights |= {"word_match.weights": torch.from_numpy(pieces), "word_match.scale": shares}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    source = json.loads((start / "config.json").read_text(encoding="utf-8"))
    config = {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        **{name: source[name] for name in KEPT},
        "num_labels": 1,
        "word_match": MATCHING,
        "scripts": ["LATIN"],
        "languages": ["en"],
        "late_interaction": {"num_lead": 1},
        "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"},
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_texts(start, out)
    return out


def save_texts(start: Path, out: Path) -> None:
    """The tokenizer, which puts a [CLS] before the passage too, and what sentence-transformers is told."""
    tokenizer = Tokenizer.from_file(str(start / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    markers = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] [CLS] $B:1 [SEP]:1", special_tokens=markers
    )
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    for name in TOKENIZER:
        shutil.copyfile(start / name, out / name)
    (out / "sentence_bert_config.json").write_text('{"max_seq_length": 512}\n', encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train", type=Path, help="folder of the training sets")
    parser.add_argument("start", type=Path, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    pieces = piece_weights(arguments.train, Tokenizer.from_file(str(arguments.start / "tokenizer.json")))
    build(arguments.start, arguments.out, pieces, [1.0] * (NUM_FIGURES + 2), 0.0)


if __name__ == "__main__":
    main()
