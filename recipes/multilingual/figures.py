"""The figures that the head weighs, of every candidate: each text is read once, by the model that ships, on torch."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sets import Lists, read_lists
from torch import Tensor

from secondpass.checkpoint.checkpoint import Checkpoint, open_checkpoint
from secondpass.checkpoint.export.trace import traceable
from secondpass.models.cross_encoder import CrossEncoderModel
from secondpass.models.late_interaction import LateInteraction
from secondpass.packed import pack, plan
from secondpass.text.recipe import Limits
from secondpass.types import Row

QUERY_LENGTH = 96  # with the markers
LENGTHS = {"train": 256, "dev": 512}  # of a pair's passage, with the markers
TOKEN_BUDGET = 4096


@dataclass(frozen=True, kw_only=True)
class Read:
    """Texts as the model reads them alone: token ids, and the states of text i in starts[i]..starts[i + 1]."""

    ids: list[list[int]]
    states: np.ndarray  # (T, C) float16
    starts: np.ndarray

    def of(self, row: int) -> Tensor:
        return torch.from_numpy(self.states[self.starts[row] : self.starts[row + 1]].astype(np.float32))


def sides(checkpoint: Checkpoint, texts: list[str], length: int, *, is_query: bool) -> list[list[int]]:
    """Token ids of the texts as a pair has them, with their prefix and end."""
    pairs = [(text, "") if is_query else ("", text) for text in texts]
    limits = Limits(max_length=512, truncation="only_second")
    rows = [checkpoint.recipe.rows(checkpoint.tokenizer, query, [text], limits)[0] for query, text in pairs]
    (blank,) = checkpoint.recipe.rows(checkpoint.tokenizer, "", [""], limits)
    lead = int(checkpoint.config["late_interaction"]["num_lead"])
    split = blank.passage[0] - lead  # what an empty query takes, and before the end what an empty passage does
    end = blank.ids[-1:]
    found = [row.ids[: row.passage[0] - lead] if is_query else row.ids[split:] for row in rows]
    return [ids if len(ids) <= length else [*ids[: length - 1], *end] for ids in found]


@torch.inference_mode()
def read(model: CrossEncoderModel, ids: list[list[int]]) -> Read:
    starts = np.concatenate([[0], np.cumsum([len(row) for row in ids])])
    states = np.zeros((starts[-1], model.backbone.config.width), np.float16)
    for batch in plan([len(row) for row in ids], token_budget=TOKEN_BUDGET):
        packed = pack([Row(ids[row], (len(ids[row]), len(ids[row]))) for row in batch])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            values = model.backbone(packed, keep="all").half().numpy()
        for row, part in zip(batch, np.split(values, packed.starts.numpy()[1:-1]), strict=True):
            states[starts[row] : starts[row + 1]] = part
    return Read(ids=ids, states=states, starts=starts)


@torch.inference_mode()
def figures(model: CrossEncoderModel, lists: Lists, queries: Read, passages: Read) -> np.ndarray:
    """(candidates of all queries, figures of the head and shares of word matching)."""
    head, matching, found = model.head, model.word_match, []
    assert isinstance(head, LateInteraction) and matching is not None
    lead = head.config.num_lead
    for query, candidates in enumerate(lists.candidates):
        first = queries.ids[query]
        second = [passages.ids[row] for row in candidates]
        pairs = pack([Row([*first, *ids], (len(first) + lead, len(first) + len(ids))) for ids in second])
        states = [queries.of(query)] * len(second) + [passages.of(row) for row in candidates]
        parts = [head.figures(torch.cat(states), pairs, head.apart(pairs), matching.weights), matching.shares(pairs)]
        found.append(torch.cat(parts, 1).numpy())
    return np.concatenate(found)


def of_lists(checkpoint: Checkpoint, model: CrossEncoderModel, lists: Lists, length: int) -> np.ndarray:
    queries = read(model, sides(checkpoint, lists.queries, QUERY_LENGTH, is_query=True))
    passages = read(model, sides(checkpoint, lists.passages, length, is_query=False))
    return figures(model, lists, queries, passages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lists", type=Path, help="what lists.py wrote: train/ and dev/")
    parser.add_argument("folder", type=Path, help="what build.py wrote, with all pieces")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    checkpoint = open_checkpoint(arguments.folder)
    model = traceable(checkpoint).model
    for split, length in LENGTHS.items():
        for lists in read_lists(arguments.lists / split):
            file = arguments.lists / split / f"{lists.name.replace('/', '.')}.npy"
            if not file.exists():  # so that a run cut short goes on where it stopped
                np.save(file, of_lists(checkpoint, model, lists, length))
                print(split, lists.name, flush=True)


if __name__ == "__main__":
    main()
