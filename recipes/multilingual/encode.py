"""Texts once through e5: unit vectors, and the states below the joint layers, kept in a file."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from model import Reranker, additive, mean_of
from tokenizers import Tokenizer

TOKENS_PER_BATCH = 6_000
QUERY_LENGTH = 64  # with the markers


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Texts as e5 sees them. States of text i are rows starts[i]..starts[i + 1] of `states`, float16."""

    ids: list[list[int]]  # with prefix and markers
    vectors: np.ndarray  # (texts, H) float32, of length 1
    states: np.ndarray  # (tokens, H)
    starts: np.ndarray  # (texts + 1,)


def tokens_of(tokenizer: Tokenizer, kind: str, texts: list[str], max_length: int) -> list[list[int]]:
    """Ids with the prefix of `kind` ("query" or "passage") and the end, at most max_length of them."""
    parts = {"query": ["<s>", "▁que", "ry", ":"], "passage": ["<s>", "▁passage", ":"]}[kind]
    before, after = [tokenizer.token_to_id(part) for part in parts], tokenizer.token_to_id("</s>")
    room = max_length - len(before) - 1
    found = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [[*before, *encoding.ids[:room], after] for encoding in found]


def encode(model: Reranker, ids: list[list[int]], file: Path) -> Encoded:
    """Runs every text alone through e5's layers; a file that is there already is read instead."""
    starts = np.concatenate([[0], np.cumsum([len(row) for row in ids])])
    vectors_file, size = file.with_suffix(".vectors.npy"), model.bert.config.hidden_size
    shape = (int(starts[-1]), size)
    if not vectors_file.exists():
        states = np.memmap(file, np.float16, "w+", shape=shape)
        vectors = np.zeros((len(ids), size), np.float32)
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        while order:
            count = max(1, TOKENS_PER_BATCH // len(ids[order[-1]]))
            rows, order = order[-count:], order[:-count]
            below, vectors[rows] = _run(model, [ids[row] for row in rows])
            for row, values in zip(rows, below, strict=True):
                states[starts[row] : starts[row + 1]] = values[: len(ids[row])]
        states.flush()
        np.save(vectors_file, vectors)
    states = np.memmap(file, np.float16, "r", shape=shape)
    return Encoded(ids=ids, vectors=np.load(vectors_file), states=states, starts=starts)


@torch.inference_mode()
def _run(model: Reranker, ids: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in ids], batch_first=True, padding_value=1)
    places = torch.arange(padded.shape[1])
    mask = (places < torch.tensor([len(row) for row in ids])[:, None]).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        below, states = model.lower(padded, places.expand_as(padded), additive(mask[:, None, None, :]))
    return below.half().numpy(), mean_of(states.float(), mask).numpy()
