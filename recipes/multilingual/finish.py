"""Weighs cosine, word matching and the joint layers on queries never trained on, and writes `fitted.pt`.

The weights are the conditional logit over the first 30 by word matching, nothing left out, of the held-out sets and
of the last tenth of the others; a slope and an offset then make the logit's sigmoid a probability.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from fit import conditional_logit, logistic
from lists import HELD_OUT, SOURCES
from model import Joint, load
from train import Lists, joint_scores, read_lists

NUM_NEGATIVES = 7  # per positive, for the offset


@dataclass(frozen=True, kw_only=True)
class Table:
    """Lists of one set: features (Q, 30, 3) cosine, words, joint; grades (Q, 30)."""

    name: str
    features: np.ndarray
    grades: np.ndarray


@torch.inference_mode()
def table(joint: Joint | None, one: Lists, max_queries: int) -> Table:
    """Of the set's queries never trained on that have a relevant passage among the first 30."""
    natural, rows = one.arrays["natural"], one.arrays["natural_rows"]
    queries = [query for query in range(one.num_learnt, len(natural)) if natural[query, :, 2].any()][:max_queries]
    added = np.zeros((len(queries), natural.shape[1], 1), np.float32)
    for place, query in enumerate(queries if joint else []):
        pairs = [(one.queries, query, one.passages, row) for row in rows[query]]
        added[place, :, 0] = joint_scores(joint, pairs).numpy()
    return Table(
        name=one.name,
        features=np.concatenate([natural[queries][..., :2], added], -1),
        grades=natural[queries][..., 2] > 0,
    )


def reciprocal_rank(scores: np.ndarray, grades: np.ndarray) -> float:
    """Mean of 1 / the place of the first relevant passage; ties count against it."""
    best = np.where(grades, scores, -np.inf).max(1, keepdims=True)
    return float((1 / np.maximum((scores >= best).sum(1), 1)).mean())


def report(tables: list[Table], weights: np.ndarray, base: np.ndarray) -> None:
    methods = {"cosine": [1, 0, 0], "words": [0, 1, 0], "both": base, "with joint layers": weights}
    for one in tables:
        ranks = {
            name: round(reciprocal_rank(one.features @ np.array(w), one.grades), 4) for name, w in methods.items()
        }
        print(one.name, len(one.grades), "queries, MRR", ranks, flush=True)


def offset_of(scores: np.ndarray, grades: np.ndarray) -> tuple[float, float]:
    """Slope and offset of a probability, as if half of the pairs were relevant: 1 positive, the 7 best others."""
    others = np.sort(np.where(grades, -np.inf, scores), 1)[:, ::-1][:, :NUM_NEGATIVES]
    positives = scores[grades]
    values = np.concatenate([positives, others[np.isfinite(others)]])
    slope, offset = logistic(values, np.arange(len(values)) < len(positives))
    return slope, offset + math.log(NUM_NEGATIVES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mined", type=Path)
    parser.add_argument("encoder", type=Path, help="what prune.py wrote")
    parser.add_argument("out", type=Path, help="fitted.pt")
    parser.add_argument("--joint", type=Path, help="joint.pt of train.py; without it the score has two parts")
    parser.add_argument("--max-queries", type=int, default=60, help="per set")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load(str(arguments.encoder), torch.from_numpy(np.load(arguments.mined / "words.npy")))
    joint = None
    if arguments.joint:
        model.joint.load_state_dict(torch.load(arguments.joint, weights_only=True))
        joint = model.joint
    tables = [table(joint, read_lists(arguments.mined, name), arguments.max_queries) for name in SOURCES]
    width = 3 if joint else 2
    pairs = [(one.features, one.grades) for one in tables]
    base = np.append(conditional_logit([(features[..., :2], grades) for features, grades in pairs]), 0.0)
    weights = np.zeros(3)
    weights[:width] = conditional_logit([(features[..., :width], grades) for features, grades in pairs])
    print("weights of cosine, words, joint layers:", base.round(3).tolist(), weights.round(3).tolist())
    report(tables, weights, base)
    held_out = [one for one in tables if one.name in HELD_OUT]
    scores = np.concatenate([one.features @ weights for one in held_out])
    grades = np.concatenate([one.grades for one in held_out])
    slope, offset = offset_of(scores, grades)
    print("logit: slope and offset", round(slope, 4), round(offset, 4))
    with torch.no_grad():
        model.scales.copy_(torch.tensor([slope * weights[0], slope * weights[1], offset]))
        model.joint.out.weight.mul_(slope * weights[2])
        model.joint.out.bias.mul_(slope * weights[2])
    prefixes = ("joint.", "scales") if joint else ("scales",)
    kept = {name: value for name, value in model.state_dict().items() if name.startswith(prefixes)}
    torch.save(kept, arguments.out)


if __name__ == "__main__":
    main()
