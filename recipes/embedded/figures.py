"""The figures that the head weighs, of every candidate: computed by the model that ships, on torch."""

import argparse
from pathlib import Path

import numpy as np
import torch
from sets import Lists, read_lists

from secondpass.checkpoint.checkpoint import open_checkpoint
from secondpass.checkpoint.export.trace import traceable
from secondpass.models.cross_encoder import CrossEncoderModel
from secondpass.models.late_interaction import LateInteraction
from secondpass.packed import pack, plan
from secondpass.text.recipe import Limits
from secondpass.types import Row

LIMITS = Limits(max_length=256)
TOKEN_BUDGET = 4096


@torch.inference_mode()
def figures(model: CrossEncoderModel, rows: list[Row]) -> np.ndarray:
    """(rows, figures of the head and shares of word matching)."""
    head, matching = model.head, model.word_match
    assert isinstance(head, LateInteraction) and matching is not None
    found = np.zeros((len(rows), len(head.scale) + len(matching.scale)), dtype=np.float32)
    for batch in plan([len(row) for row in rows], token_budget=TOKEN_BUDGET):
        pairs = pack([rows[index] for index in batch])
        apart = head.apart(pairs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            states = model.backbone(apart.batch, keep="all").float()
        parts = [head.figures(states, pairs, apart, matching.weights), matching.shares(pairs)]
        found[batch] = torch.cat(parts, 1).numpy()
    return found


def of_lists(folder: Path, lists: Lists) -> np.ndarray:
    """(Q * D, F) in the order of the candidates."""
    checkpoint = open_checkpoint(folder)
    model = traceable(checkpoint).model
    found = []
    for query, row in zip(lists.queries, lists.candidates, strict=True):
        passages = [lists.passages[place] for place in row]
        found.append(figures(model, checkpoint.recipe.rows(checkpoint.tokenizer, query, passages, LIMITS)))
    return np.concatenate(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lists", type=Path, help="what sets.py wrote: train/ and dev/")
    parser.add_argument("folder", type=Path, help="what build.py wrote")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for split in ("train", "dev"):
        for lists in read_lists(arguments.lists / split):
            file = arguments.lists / split / f"{lists.name.replace('/', '.')}.npy"
            if not file.exists():  # so that a run cut short goes on where it stopped
                np.save(file, of_lists(arguments.folder, lists))
                print(split, lists.name, flush=True)


if __name__ == "__main__":
    main()
