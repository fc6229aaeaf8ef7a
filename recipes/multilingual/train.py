"""Trains the joint layers on mined lists, from states that were computed once; the rest of the graph stays e5's.

The lists are biased (half of the negatives lie near by cosine), so cosine and word matching have weights of their own
here, which are learnt beside the layers and dropped; `fit.py` fits those that ship to lists with nothing left out.
"""

import argparse
import ctypes
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from encode import Encoded
from fit import conditional_logit
from lists import HELD_OUT, SOURCES
from model import Joint, load
from torch import Tensor

malloc_trim = ctypes.CDLL("libc.so.6").malloc_trim
HELD_BACK = 0.1  # of every set's queries, the last ones: never trained on


@dataclass(frozen=True, kw_only=True)
class Settings:
    steps: int
    lists: int  # per step
    candidates: int  # per list
    rate: float
    label_share: float
    temperature: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Lists:
    name: str
    queries: Encoded
    passages: Encoded
    arrays: dict[str, np.ndarray]

    @property
    def num_learnt(self) -> int:
        return 0 if self.name in HELD_OUT else int(len(self.arrays["mask"]) * (1 - HELD_BACK))


def read_lists(mined: Path, name: str, size: int = 384) -> Lists:
    folder = mined / name
    ids = json.loads((folder / "ids.json").read_text())
    arrays = np.load(folder / "lists.npz")
    return Lists(
        name=name,
        queries=read_encoded(folder / "queries.states", ids["queries"], size),
        passages=read_encoded(folder / "passages.states", ids["passages"], size),
        arrays={key: arrays[key] for key in arrays.files},
    )


def read_encoded(file: Path, ids: list[list[int]], size: int) -> Encoded:
    starts = np.concatenate([[0], np.cumsum([len(row) for row in ids])])
    states = np.memmap(file, np.float16, "r", shape=(int(starts[-1]), size))
    return Encoded(ids=ids, vectors=np.load(file.with_suffix(".vectors.npy")), states=states, starts=starts)


def joint_scores(joint: Joint, pairs: list[tuple[Encoded, int, Encoded, int]], budget: int = 4096) -> Tensor:
    """(pairs,) what the joint layers say of (queries, row, passages, row); like lengths run together."""
    lengths = [len(queries.ids[one]) + len(passages.ids[other]) for queries, one, passages, other in pairs]
    order = np.argsort(lengths, kind="stable").tolist()
    parts, start = [], 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end + 1 - start) * lengths[order[end]] <= budget:
            end += 1
        parts.append(_run(joint, [pairs[index] for index in order[start:end]]))
        start = end
    return torch.cat(parts)[torch.tensor(order).argsort()]


def _run(joint: Joint, pairs: list[tuple[Encoded, int, Encoded, int]]) -> Tensor:
    firsts = [_states(queries, one) for queries, one, _, _ in pairs]
    seconds = [_states(passages, other) for _, _, passages, other in pairs]
    lengths = torch.tensor([[len(first), len(second)] for first, second in zip(firsts, seconds, strict=True)])
    states = torch.zeros(len(pairs), int(lengths.sum(1).max()), firsts[0].shape[1])
    for row, (first, second) in enumerate(zip(firsts, seconds, strict=True)):
        states[row, : len(first)] = first
        states[row, len(first) : len(first) + len(second)] = second
    places = torch.arange(states.shape[1])
    query = places < lengths[:, :1]
    passage = (places < lengths.sum(1, keepdim=True)) & ~query
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return joint(states, query.float(), passage.float()).float()


def _states(encoded: Encoded, row: int) -> Tensor:
    return torch.from_numpy(encoded.states[encoded.starts[row] : encoded.starts[row + 1]].astype(np.float32))


@dataclass(frozen=True, kw_only=True)
class Batch:
    pairs: list[tuple[Encoded, int, Encoded, int]]
    features: Tensor  # (lists, candidates, 2): cosine, word matching
    there: Tensor  # (lists, candidates)


def draw(sets: list[Lists], shares: np.ndarray, settings: Settings, rng: np.random.Generator) -> Batch:
    """Lists from sets drawn by `shares`: the positive and a sample of its negatives."""
    pairs: list[tuple[Encoded, int, Encoded, int]] = []
    features = np.zeros((settings.lists, settings.candidates, 2), np.float32)
    there = np.zeros((settings.lists, settings.candidates), bool)
    for index, chosen in enumerate(rng.choice(len(sets), settings.lists, p=shares)):
        one = sets[chosen]
        query = int(rng.integers(one.num_learnt))
        negatives = rng.permutation(np.flatnonzero(one.arrays["mask"][query][1:]) + 1)[: settings.candidates - 1]
        kept = np.array([0, *negatives])
        there[index, : len(kept)] = True
        kept = np.resize(kept, settings.candidates)
        features[index] = np.stack([one.arrays[name][query, kept] for name in ("cosine", "words")], -1)
        pairs += [(one.queries, query, one.passages, row) for row in one.arrays["candidates"][query, kept]]
    return Batch(pairs=pairs, features=torch.from_numpy(features), there=torch.from_numpy(there))


def loss_of(base: Tensor, added: Tensor, there: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """The loss of a step (and at a temperature the divergence from the base), and the label's part of it.

    base (lists, candidates) is the score without the joint layers, added what they say.
    """
    student, teacher = (values.masked_fill(~there, -1e4) for values in (base + added, base.detach()))
    soft = (teacher / settings.temperature).log_softmax(1)
    ours = (student / settings.temperature).log_softmax(1)
    divergence = settings.temperature**2 * (soft.exp() * (soft - ours)).sum(1).mean()
    label = -student.log_softmax(1)[:, 0].mean()
    return settings.label_share * label + (1 - settings.label_share) * divergence, label


def shares_of(sets: list[Lists]) -> np.ndarray:
    """How often a list is drawn from each set: by the square root of its size, twice where people wrote it."""
    sizes = [one.num_learnt**0.5 * (2 if SOURCES[one.name].written_by_people else 1) for one in sets]
    return np.array(sizes) / sum(sizes)


def optimiser_of(joint: Joint, scales: Tensor, rate: float) -> torch.optim.Optimizer:
    head = [*joint.hidden.parameters(), *joint.out.parameters(), joint.kinds]
    groups = [
        {"params": list(joint.layers.parameters()), "factor": 1.0},
        {"params": head, "factor": 4.0},
        {"params": [scales], "factor": 100.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)


def start_scales(sets: list[Lists]) -> Tensor:
    """The weights of cosine and word matching that suit the mined lists."""
    pairs = []
    for one in sets:
        features = np.stack([one.arrays["cosine"], one.arrays["words"]], -1)[: one.num_learnt]
        full = features[one.arrays["mask"][: one.num_learnt].all(1)]
        pairs.append((full, np.tile(np.arange(full.shape[1]) == 0, (len(full), 1))))
    return torch.tensor(conditional_logit(pairs)).float().requires_grad_()


def train(joint: Joint, sets: list[Lists], settings: Settings, out: Path) -> None:
    rng = np.random.default_rng(settings.seed)
    learnt = [one for one in sets if one.num_learnt]
    scales, shares = start_scales(learnt), shares_of(learnt)
    print("weights of cosine and words on the mined lists", scales.tolist(), flush=True)
    optimiser = optimiser_of(joint, scales, settings.rate)
    seen: list[tuple[float, float]] = []
    for step in range(settings.steps):
        batch = draw(learnt, shares, settings, rng)
        base = batch.features @ scales
        added = joint_scores(joint, batch.pairs).view(batch.there.shape)
        loss, label = loss_of(base, added, batch.there, settings)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(joint.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = group["factor"] * settings.rate * min(1.0, (step + 1) / 30) * (1 - step / settings.steps)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        seen.append((label.item(), loss_of(base.detach(), torch.zeros_like(added), batch.there, settings)[1].item()))
        if step % 20 == 19 or step + 1 == settings.steps:
            ours, before = np.mean(seen[-20:], 0)
            spent = time.process_time()
            malloc_trim(0)  # batches of ever new shapes fragment the heap: several GB within minutes
            print(f"{step + 1} label's loss {ours:.4f}, of the base {before:.4f}, cpu {spent:.0f} s", flush=True)
            torch.save(joint.state_dict(), out / "joint.pt.new")
            (out / "joint.pt.new").replace(out / "joint.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mined", type=Path)
    parser.add_argument("encoder", type=Path, help="what prune.py wrote")
    parser.add_argument("out", type=Path)
    parser.add_argument("--start", type=Path, help="joint.pt to go on from")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--lists", type=int, default=8)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--label-share", type=float, default=0.8)
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    arguments = vars(parser.parse_args())
    mined, encoder, out, start = (arguments.pop(name) for name in ("mined", "encoder", "out", "start"))
    torch.set_num_threads(arguments.pop("threads"))
    settings = Settings(**arguments)
    torch.manual_seed(settings.seed)
    joint = load(str(encoder), torch.from_numpy(np.load(mined / "words.npy")), "eager").joint
    if start:
        joint.load_state_dict(torch.load(start, weights_only=True))
    out.mkdir(parents=True, exist_ok=True)
    train(joint, [read_lists(mined, name) for name in SOURCES], settings, out)


if __name__ == "__main__":
    main()
