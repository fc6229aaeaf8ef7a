"""What Ray Data costs beside one process: the same 10,000 pairs, without the first block of each actor.

    python benchmarks/ray_batch.py process && python benchmarks/ray_batch.py ray --actors 1 --cpus 2

Wall time is from the first blocks to the last, CPU time that of the whole tree of processes, Ray's own among them.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from secondpass.scale.batch import Job, ScoreBlock, open_job
from secondpass.scoring.open import ModelOptions
from secondpass.types import Progress

WORDS = "river bridge water long short deep stone market garden winter song paper light glass north road".split()
TICKS = 100.0  # of the kernel, a second


class Way(str, Enum):
    process = "process"
    ray = "ray"


def pairs(count: int, words: int) -> list[dict[str, str]]:
    """Lists of 20 passages of some `words` words, no two the same, so that none is read once for several."""
    drawn = random.Random(0)
    return [
        {
            "query": f"which {WORDS[number // 20 % len(WORDS)]} is number {number // 20}",
            "passage": " ".join(drawn.choices(WORDS, k=words)),
        }
        for number in range(count)
    ]


def tree(pid: int) -> dict[int, tuple[str, float, float]]:
    """Name, CPU seconds and resident MB of a process and all beneath it."""
    found: dict[int, tuple[str, float, float]] = {}
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            _, _, rest = (folder / "stat").read_text().rpartition(")")
            name = (folder / "cmdline").read_text().replace("\0", " ").strip()[:60]
            memory = int((folder / "statm").read_text().split()[1]) * 4096 / 1e6
        except OSError:
            continue
        fields = rest.split()
        parents[int(folder.name)] = int(fields[1])
        found[int(folder.name)] = (name, (int(fields[11]) + int(fields[12])) / TICKS, memory)
    kept = {pid}
    while more := {child for child, parent in parents.items() if parent in kept} - kept:
        kept |= more
    return {each: found[each] for each in kept if each in found}


def run_here(job: Job, progress: Progress) -> None:
    score = ScoreBlock(folder=job.folder, options=job.options)
    for done, block in enumerate(job.blocks, 1):
        score(block)
        progress(done, len(job.blocks))


def main(
    way: Way,
    rows: Annotated[int, typer.Option(help="Pairs.")] = 10_000,
    words: Annotated[int, typer.Option(help="Of a passage.")] = 80,
    per_block: Annotated[int, typer.Option(help="Rows of a block.")] = 500,
    actors: int = 1,
    cpus: float = 2.0,
    model: str = "default",
) -> None:
    from os import getpid

    marks: list[tuple[int, float, float, float]] = []  # blocks, time, CPU time of all and of those that score
    largest: list[tuple[str, float, float]] = []

    def mark(done: int, total: int) -> None:
        now = tree(getpid())
        scoring = sum(cpu for name, cpu, _ in now.values() if way is Way.process or "BlockActor" in name)
        marks.append((done, time.monotonic(), sum(cpu for _, cpu, _ in now.values()), scoring))
        if done == total - actors:  # all are still there
            largest.extend(sorted(now.values(), key=lambda each: -each[2])[:6])

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pairs.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in pairs(rows, words)))
        job = open_job([file], Path(folder) / "out", ModelOptions(model=model), rows_per_block=per_block)
        began = time.monotonic()
        if way is Way.process:
            run_here(job, mark)
        else:
            from secondpass.scale.ray import Actors, score_blocks, start_ray

            start_ray()
            score_blocks(job, Actors(min_size=actors, max_size=actors, cpus=cpus), mark)
        first, last = marks[actors], marks[-1]
        done = (last[0] - first[0]) * per_block
        seconds, cpu, scoring = (last[column] - first[column] for column in (1, 2, 3))
        typer.echo(f"{way.value}, {actors} of {cpus:g} CPUs: {done} pairs, {done / seconds:.0f} a second")
        typer.echo(f"  {seconds:.1f} s, CPU {cpu:.1f} s, {1000 * cpu / done:.3f} ms a pair")
        typer.echo(
            f"  of it scoring {scoring:.1f} s, Ray {cpu - scoring:.1f} s: {(cpu - scoring) / seconds:.2f} of a core"
        )
        typer.echo(f"  the first blocks were there after {first[1] - began:.1f} s")
        for name, used, memory in largest:
            typer.echo(f"  {memory:6.0f} MB {used:6.1f} s  {name}")


if __name__ == "__main__":
    typer.run(main)
