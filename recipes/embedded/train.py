"""Distils the hybrid of a bi-encoder and BM25, and the labels, into a cross-encoder, listwise.

The teacher's logits are a·cosine + b·BM25 with a and b fitted to the labels (the conditional logit of the positive
among its candidates), so that its softmax is a probability. The run fits its schedule to `--minutes`.
"""

import argparse
import ctypes
import json
import time
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import torch
from mine import SOURCES
from model import Reranker, load
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from words import piece_weights

malloc_trim = ctypes.CDLL("libc.so.6").malloc_trim
HELD_OUT = ("covid-qa", "tldr-en")
LEARNT = [name for name in SOURCES if name not in HELD_OUT]
MAX_QUERY_TOKENS = 96
LONG_TOKENS = 256
HAYSTACK_TOKENS = (256, 512)  # lengths of a pair whose passage lies among others
SCALE_RATE = 50.0  # of the weights of word matching, as a multiple of the others' rate: there are two
PATIENCE = 1800.0  # seconds that a worker waits for the others


@dataclass(frozen=True, kw_only=True)
class Settings:
    minutes: float
    lists: int  # per step
    candidates: int  # per list
    rate: float
    label_share: float
    temperature: float
    max_tokens: int
    long_share: float  # of the lists, cut at LONG_TOKENS rather than at max_tokens
    haystack_share: float  # of the lists, whose passages lie among others that do not matter
    workers: int
    threads: int  # per worker
    round_minutes: float  # between two averages of the workers' weights
    seed: int


@dataclass(frozen=True, kw_only=True)
class Lists:
    """One set: candidates as rows of `passages`, the positive first."""

    name: str
    queries: list[list[int]]  # tokens, without markers
    passages: list[list[int]]
    candidates: np.ndarray
    teacher: np.ndarray  # logits
    mask: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Common:
    """What the workers share."""

    weights: Tensor  # (workers, trainable weights)
    barrier: Barrier
    start: float


@dataclass(frozen=True, kw_only=True)
class Batch:
    pairs: list[tuple[list[int], list[int]]]
    teacher: Tensor  # (lists, candidates), -inf where there is none


def fit_teacher(arrays: list[dict[str, np.ndarray]]) -> Tensor:
    """The weights of cosine and BM25 in the conditional logit over BM25's first 30, every set counting the same."""
    weights = torch.tensor([10.0, 5.0], requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=50)
    lists = [torch.tensor(one["natural"][one["natural"][..., 2].any(1)]) for one in arrays]

    def closure() -> Tensor:
        optimiser.zero_grad()
        losses = []
        for one in lists:
            relevant = (one[..., :2] @ weights).log_softmax(1).masked_fill(one[..., 2] == 0, -torch.inf)
            losses.append(-relevant.logsumexp(1).mean())
        loss = torch.stack(losses).mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    return weights.detach()


def teacher_weights(mined: Path) -> np.ndarray:
    """Of cosine and BM25, fitted to the sets that are trained on."""
    return fit_teacher([np.load(mined / name / "lists.npz") for name in LEARNT]).numpy()


def read_lists(mined: Path, name: str, tokenizer: Tokenizer, weights: np.ndarray) -> Lists:
    arrays = np.load(mined / name / "lists.npz")
    texts = json.loads((mined / name / "texts.json").read_text(encoding="utf-8"))
    queries, passages = (
        [encoding.ids for encoding in tokenizer.encode_batch(texts[kind], add_special_tokens=False)]
        for kind in ("queries", "passages")
    )
    teacher = weights[0] * arrays["cosine"] + weights[1] * arrays["bm25"]
    print(name, "teacher's accuracy", round(float((teacher.argmax(1) == 0).mean()), 3), flush=True)
    return Lists(
        name=name,
        queries=[ids[:MAX_QUERY_TOKENS] for ids in queries],
        passages=passages,
        candidates=arrays["candidates"],
        teacher=np.where(arrays["mask"], teacher, -np.inf).astype(np.float32),
        mask=arrays["mask"],
    )


def draw(sets: list[Lists], shares: np.ndarray, settings: Settings, rng: np.random.Generator) -> Batch:
    """Lists from sets drawn by `shares`: the positive and a sample of its negatives."""
    pairs: list[tuple[list[int], list[int]]] = []
    teacher = np.full((settings.lists, settings.candidates), -np.inf, dtype=np.float32)
    for index, chosen in enumerate(rng.choice(len(sets), settings.lists, p=shares)):
        one = sets[chosen]
        query = int(rng.integers(len(one.queries)))
        negatives = rng.permutation(np.flatnonzero(one.mask[query][1:]) + 1)[: settings.candidates - 1]
        kept = np.array([0, *negatives])
        teacher[index, : len(kept)] = one.teacher[query, kept]
        passages = [one.passages[row] for row in np.resize(one.candidates[query, kept], settings.candidates)]
        kind = rng.random()
        if kind < settings.haystack_share:
            limit = int(rng.integers(*HAYSTACK_TOKENS))
            passages = hidden(passages, one.passages, limit - 3 - len(one.queries[query]), rng)
            teacher[index, len(kept) - 1] = one.teacher[query][one.mask[query]].min()
        else:
            limit = LONG_TOKENS if kind < settings.haystack_share + settings.long_share else settings.max_tokens
        room = limit - 3 - len(one.queries[query])
        pairs += [(one.queries[query], passage[:room]) for passage in passages]
    return Batch(pairs=pairs, teacher=torch.from_numpy(teacher))


def hidden(
    passages: list[list[int]], others: list[list[int]], room: int, rng: np.random.Generator
) -> list[list[int]]:
    """Each passage, but the last, somewhere in a text of `room` tokens; the last gives way to such a text alone.

    Half of the texts are other passages end to end, half are one passage again and again. So length alone is no
    reason for a high score, and an answer counts wherever it stands.
    """
    made = []
    for place, passage in enumerate(passages):
        drawn = iter(lambda: others[int(rng.integers(len(others)))], None)
        repeated = next(drawn) or [0]
        is_repeated = rng.random() < 0.5
        filler: list[int] = []
        while len(filler) < room:
            filler += repeated if is_repeated else next(drawn)
        kept = passage[:128] if place + 1 < len(passages) else []
        before = int(rng.integers(max(1, room - len(kept))))
        made.append(filler[:before] + kept + filler[before:])
    return made


def logits_of(model: torch.nn.Module, pairs: list[tuple[list[int], list[int]]], budget: int = 4096) -> Tensor:
    """(pairs,) float32; pairs of like length run together, at most `budget` tokens at once."""
    order = sorted(range(len(pairs)), key=lambda index: len(pairs[index][0]) + len(pairs[index][1]))
    parts: list[Tensor] = []
    group: list[int] = []
    for position, index in enumerate(order):
        group.append(index)
        longest = sum(map(len, pairs[index])) + 3
        if position + 1 == len(order) or (len(group) + 1) * longest > budget:
            parts.append(_run(model, [pairs[member] for member in group]))
            group = []
    return torch.cat(parts)[torch.tensor(order).argsort()]


def _run(model: torch.nn.Module, pairs: list[tuple[list[int], list[int]]]) -> Tensor:
    rows = [torch.tensor([101, *query, 102, *passage, 102]) for query, passage in pairs]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    places = torch.arange(ids.shape[1])
    lengths = torch.tensor([len(row) for row in rows])[:, None]
    first = torch.tensor([len(query) + 2 for query, _ in pairs])[:, None]
    mask = places < lengths
    types = (places >= first) & mask
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=ids, attention_mask=mask.long(), token_type_ids=types.long())
    return logits[:, 0].float()


def loss_of(logits: Tensor, teacher: Tensor, settings: Settings) -> Tensor:
    """Distillation at a temperature, cross-entropy of the label, and a little of it for each pair alone."""
    there = teacher.isfinite()
    student = logits.view_as(teacher).masked_fill(~there, -torch.inf)
    soft = (teacher / settings.temperature).softmax(1)
    log_student = (student / settings.temperature).log_softmax(1).masked_fill(~there, 0)
    entropy = -(soft * (soft + 1e-9).log()).sum(1)
    divergence = -(soft * log_student).sum(1) - entropy
    label = -student.log_softmax(1)[:, 0]
    relevant = torch.zeros_like(teacher)
    relevant[:, 0] = 1
    single = F.binary_cross_entropy_with_logits(logits.view_as(teacher)[there], relevant[there])
    distilled = settings.temperature**2 * divergence
    return (settings.label_share * label + (1 - settings.label_share) * distilled).mean() + 0.1 * single


@torch.inference_mode()
def accuracy(model: torch.nn.Module, one: Lists, num_queries: int = 40) -> tuple[float, float]:
    """Mean reciprocal rank of the positive among its 16 candidates: the model's and the teacher's."""
    pairs = [
        (one.queries[query], one.passages[row][:125])
        for query in range(min(num_queries, len(one.queries)))
        for row in one.candidates[query]
    ]
    student = logits_of(model, pairs).view(-1, one.candidates.shape[1]).numpy()
    ranks = [1 + (scores[:, 1:] >= scores[:, :1]).sum(1) for scores in (student, one.teacher[: len(student)])]
    return float((1 / ranks[0]).mean()), float((1 / ranks[1]).mean())


def adamw(model: Reranker, rate: float) -> torch.optim.Optimizer:
    """Weight decay on matrices alone. `share` of a group multiplies the rate."""
    trainable = [parameter for parameter in model.bert.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trainable if parameter.ndim > 1]
    plain = [parameter for parameter in trainable if parameter.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": 0.01, "share": 1.0},
        {"params": plain, "weight_decay": 0.0, "share": 1.0},
        {"params": [model.match.scale], "weight_decay": 0.0, "share": SCALE_RATE},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)


def shares(sets: list[Lists]) -> np.ndarray:
    """How often a list is drawn from each set: by the square root of its size."""
    sizes = [len(one.queries) ** 0.5 * SOURCES[one.name].share for one in sets]
    return np.array(sizes) / sum(sizes)


def work(rank: int, model: Reranker, sets: list[Lists], settings: Settings, common: Common, out: Path) -> None:
    """One worker: takes steps of its own, and at the end of each round takes over the mean of all workers' weights.

    Local stochastic gradient descent: a worker waits for the others once a round instead of once a step, which
    matters where other programs use the cores too.
    """
    torch.set_num_threads(settings.threads)
    rng = np.random.default_rng((settings.seed, rank))
    learnt = [one for one in sets if one.name not in HELD_OUT]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = adamw(model, settings.rate)
    losses: list[float] = []
    rounds = max(1, round(settings.minutes / settings.round_minutes))
    for turn in range(rounds):
        while (done := (time.time() - common.start) / (60 * settings.minutes)) < (turn + 1) / rounds:
            rate = settings.rate * min(1.0, (len(losses) + 1) / 30) * max(0.0, 1 - done)
            losses.append(take_step(model, optimiser, rate, draw(learnt, shares(learnt), settings, rng), settings))
        average(rank, trainable, common)
        malloc_trim(0)  # batches of ever new shapes fragment the heap: several GB within minutes
        print(
            f"worker {rank} round {turn + 1}/{rounds} steps {len(losses)} loss {np.mean(losses[-40:]):.4f}",
            flush=True,
        )
        if rank == 0:
            model.save(out)
            print("word matching", model.match.scale.tolist(), flush=True)
            if turn % 8 == 7:
                held = {one.name: accuracy(model, one) for one in sets if one.name in HELD_OUT}
                print(f"held out, ours and teacher's: {held}", flush=True)


def take_step(
    model: torch.nn.Module, optimiser: torch.optim.Optimizer, rate: float, batch: Batch, settings: Settings
) -> float:
    """One update at `rate`; returns the loss."""
    loss = loss_of(logits_of(model, batch.pairs), batch.teacher, settings)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([one for group in optimiser.param_groups for one in group["params"]], 2.0)
    for group in optimiser.param_groups:
        group["lr"] = rate * group["share"]
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return loss.item()


@torch.no_grad()
def average(rank: int, trainable: list[torch.nn.Parameter], common: Common) -> None:
    """Puts the mean of the workers' weights into every worker."""
    common.weights[rank] = torch.nn.utils.parameters_to_vector(trainable)
    common.barrier.wait(PATIENCE)
    torch.nn.utils.vector_to_parameters(common.weights.mean(0), trainable)
    common.barrier.wait(PATIENCE)


def train(model: Reranker, sets: list[Lists], settings: Settings, out: Path) -> None:
    size = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    context = torch.multiprocessing.get_context("fork")  # the lists are not copied
    common = Common(
        weights=torch.zeros(settings.workers, size).share_memory_(),
        barrier=context.Barrier(settings.workers),
        start=time.time(),
    )
    workers = [
        context.Process(target=work, args=(rank, model, sets, settings, common, out))
        for rank in range(settings.workers)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        if worker.exitcode:
            raise SystemExit(f"a worker ended with {worker.exitcode}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mined", type=Path)
    parser.add_argument("start", type=Path, help="folder of all-MiniLM-L6-v2, or of a checkpoint")
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=45)
    parser.add_argument("--lists", type=int, default=8)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--label-share", type=float, default=0.4)
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--long-share", type=float, default=0.12)
    parser.add_argument("--haystack-share", type=float, default=0.05)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--round-minutes", type=float, default=3)
    parser.add_argument("--seed", type=int, default=1)
    arguments = vars(parser.parse_args())
    mined, start, out = (arguments.pop(name) for name in ("mined", "start", "out"))
    settings = Settings(**arguments)
    torch.set_num_threads(1)  # a process that has started threads cannot be forked safely
    torch.manual_seed(settings.seed)
    tokenizer = Tokenizer.from_file(str(start / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    weights = teacher_weights(mined)
    print("teacher: cosine, BM25 weights", weights, flush=True)
    model = load(start, piece_weights(mined, LEARNT, tokenizer), attention="eager")
    model.bert.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    train(model, [read_lists(mined, name, tokenizer, weights) for name in SOURCES], settings, out)


if __name__ == "__main__":
    main()
