"""A training step beside sentence-transformers' trainer: same model, pairs, batch and loss, by turns on one machine.

    pip install -e ".[train,bench]" datasets
    python benchmarks/training.py --shape ms-marco-MiniLM-L6 --steps 12

Pairs of mixed length (passages of mean about 180 tokens, 30 to 480, cut at 512), random weights of the named shape,
each pair a loss of its own (binary cross-entropy), which both have. Each program runs in a process of its own; the
first steps are left out, and tokens are those of the pairs, without padding. The figure to trust is the ratio. Where
sentence-transformers has an environment of its own: --python /path/to/its/bin/python.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from peers import QUERY, WORDS

from checkpoints import SHAPES, write_checkpoint

LEFT_OUT = 2  # steps that prepare memory and kernels
OURS = """
import json, sys, time
from pathlib import Path
import torch
from peers import QUERY, passages
from secondpass.training import TrainingSettings
from secondpass.training.collators import Group
from secondpass.training.cross_encoding import open_cross_encoding
from secondpass.training.learner import Learner
from secondpass.training.processes import Processes

folder, dtype, queries, group, steps, left_out = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
settings = TrainingSettings(losses={"binary": 1.0}, batch=queries, device="cpu", truncation="longest_first")
objective = open_cross_encoding(folder, settings, torch.device("cpu"), getattr(torch, dtype))
learner = Learner(objective, settings, Processes())
texts = passages(queries * group * steps)
groups = [Group(query=QUERY, passages=tuple(texts[i:i + group])) for i in range(0, len(texts), group)]
seconds = []
for step in range(steps):
    began = time.perf_counter()
    moved = learner.step(groups[step * queries:(step + 1) * queries], rate=1e-5, index=step)
    seconds.append((time.perf_counter() - began, moved.num_tokens))
"""
THEIRS = """
import json, sys, time
from pathlib import Path
import torch
from peers import QUERY, passages
from datasets import Dataset
from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from transformers import TrainerCallback

folder, dtype, queries, group, steps, left_out = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
model = CrossEncoder(folder, num_labels=1, device="cpu", max_length=512)
texts = passages(queries * group * steps)
labels = [float(i % group == 0) for i in range(len(texts))]
read = model.tokenizer([QUERY] * len(texts), texts, truncation=True, max_length=512)["input_ids"]
lengths = [len(ids) for ids in read]
seconds = []

class Clock(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        self.began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        first = (state.global_step - 1) * queries * group
        seconds.append((time.perf_counter() - self.began, sum(lengths[first:first + queries * group])))

arguments = CrossEncoderTrainingArguments(
    output_dir=folder + "-run", per_device_train_batch_size=queries * group, max_steps=steps, learning_rate=1e-5,
    bf16=dtype == "bfloat16", use_cpu=True, save_strategy="no", report_to="none", logging_strategy="no",
    dataloader_drop_last=True, disable_tqdm=True,
)
data = Dataset.from_dict({"query": [QUERY] * len(texts), "passage": texts, "label": labels})

class InOrder(CrossEncoderTrainer):
    def get_batch_sampler(self, dataset, batch_size, drop_last, **kwargs):
        return torch.utils.data.BatchSampler(torch.utils.data.SequentialSampler(dataset), batch_size, drop_last)

loss = BinaryCrossEntropyLoss(model)
InOrder(model=model, args=arguments, train_dataset=data, loss=loss, callbacks=[Clock()]).train()
"""
TOLD = """
line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
print(json.dumps({"steps": seconds[left_out:], "megabytes": int(line.split()[1]) / 1024}))
"""
PROGRAMS = {
    "sentence-transformers float32": (THEIRS, "float32"),
    "sentence-transformers bfloat16": (THEIRS, "bfloat16"),
    "secondpass float32": (OURS, "float32"),
    "secondpass bfloat16": (OURS, "bfloat16"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="ms-marco-MiniLM-L6")
    parser.add_argument("--queries", type=int, default=4, help="per step")
    parser.add_argument("--group", type=int, default=8, help="passages of a query")
    parser.add_argument("--steps", type=int, default=8, help="per turn")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--python", default=sys.executable, help="with sentence-transformers and datasets")
    asked = parser.parse_args()
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in PROGRAMS}
    memory: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = write_checkpoint(Path(folder) / "model", asked.shape, list(dict.fromkeys([*WORDS, *QUERY.split()])))
        for _ in range(asked.turns):
            for name, (script, dtype) in PROGRAMS.items():
                python = asked.python if script is THEIRS else sys.executable
                told = _run(python, script, [str(model), dtype], asked)
                found[name] += [(seconds, tokens) for seconds, tokens in told["steps"]]
                memory[name] = max(memory.get(name, 0.0), told["megabytes"])
    base = _speed(found["sentence-transformers float32"])
    count = len(found["secondpass float32"])
    print(f"{asked.shape}, {asked.queries} x {asked.group} pairs a step, {count} steps each")
    for name, steps in found.items():
        speed = _speed(steps)
        print(f"| {name} | {speed:,.0f} tokens/s | {speed / base:.2f} | {memory[name]:,.0f} MB |")


def _speed(steps: list[tuple[float, int]]) -> float:
    """The median of tokens a second."""
    return statistics.median(tokens / seconds for seconds, tokens in steps)


def _run(python: str, script: str, arguments: list[str], asked: argparse.Namespace) -> dict[str, object]:
    numbers = [str(n) for n in (asked.queries, asked.group, asked.steps, LEFT_OUT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *_paths(python)])}
    done = subprocess.run(
        [python, "-c", script + TOLD, *arguments, *numbers],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _paths(python: str) -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and python == sys.executable]


if __name__ == "__main__":
    main()
