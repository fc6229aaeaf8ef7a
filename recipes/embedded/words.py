"""How much each word piece tells: its rarity among the passages that are trained on, every set counting the same."""

import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

CHUNK = 2000


def piece_weights(mined: Path, names: list[str], tokenizer: Tokenizer) -> np.ndarray:
    """(V,) -log of the share of passages with the piece, averaged over the sets; 0 for markers."""
    shares = []
    for name in names:
        passages = json.loads((mined / name / "texts.json").read_text(encoding="utf-8"))["passages"]
        found = np.zeros(tokenizer.get_vocab_size())
        for start in range(0, len(passages), CHUNK):
            for encoding in tokenizer.encode_batch(passages[start : start + CHUNK], add_special_tokens=False):
                found[list(set(encoding.ids))] += 1
        shares.append((found + 0.5) / (len(passages) + 1))
    weights = -np.log(np.mean(shares, 0))
    markers = [place for place, token in tokenizer.get_added_tokens_decoder().items() if token.special]
    weights[markers] = 0
    return weights.astype(np.float32)
