"""Peak resident memory of loading a checkpoint in bfloat16 and scoring long passages with it, beside its weights.

    python benchmarks/memory.py --shape bge-reranker-v2-m3 --passages 40
    python benchmarks/memory.py --layers 2 --passages 200 10000 --mean-tokens 1000 --max-length 64 --dtypes bfloat16

The second shows in minutes, with a model of few layers, whether the number of candidates counts. The peak is the
kernel's (VmHWM), reset after torch is imported and a tiny model has run; it counts mapped pages of the file too, but
not the texts. Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from peers import QUERY, WORDS, passages

from checkpoints import SHAPES, write_checkpoint

MEASURED = """
import json, sys
from pathlib import Path
from secondpass import Reranker

def status(name):
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024

small, folder, dtype, length = sys.argv[1:5]
query, texts = json.load(sys.stdin)
Reranker(small, engine="torch", dtype=dtype).score(query, texts[:2])
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
reranker = Reranker(folder, engine="torch", dtype=dtype, max_length=int(length))
loaded, peak = status("VmRSS") - before, status("VmHWM") - before
Path("/proc/self/clear_refs").write_text("5")
reranker.score(query, texts)
print(json.dumps({"peak of loading": peak, "after loading": loaded, "peak of scoring": status("VmHWM") - before}))
"""


def measured(folders: tuple[Path, Path], dtype: str, max_length: int, texts: list[str]) -> dict[str, int]:
    """Bytes by what they were measured after, in a process of their own."""
    command = [sys.executable, "-W", "ignore", "-c", MEASURED, *map(str, folders), dtype, str(max_length)]
    found: dict[str, int] = json.loads(subprocess.check_output(command, input=json.dumps([QUERY, texts]), text=True))
    return found


def shallow(shape: str, num_layers: int | None) -> str:
    """The name of the shape with so many layers."""
    if num_layers is None:
        return shape
    name = f"{shape} with {num_layers} layers"
    SHAPES[name] = (SHAPES[shape][0], num_layers, *SHAPES[shape][2:])
    return name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="bge-reranker-v2-m3")
    parser.add_argument("--layers", type=int, help="instead of the shape's own")
    parser.add_argument("--passages", type=int, nargs="+", default=[40])
    parser.add_argument("--mean-tokens", type=int, default=180)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "int8"])
    options = parser.parse_args()
    shape, mean = shallow(options.shape, options.layers), options.mean_tokens
    with tempfile.TemporaryDirectory() as folder:
        small = write_checkpoint(Path(folder, "small"), "ms-marco-MiniLM-L6", WORDS)
        large = write_checkpoint(Path(folder, "large"), shape, WORDS)
        size = (large / "model.safetensors").stat().st_size
        print(f"{shape}: {size / 1e6:.0f} MB in float32, {size / 2e6:.0f} MB in bfloat16\n")
        print("| precision | passages | peak of loading | after loading | peak of scoring |\n|---|---|---|---|---|")
        for count in options.passages:
            texts = passages(count, mean_tokens=mean, longest=4 * mean)
            for dtype in options.dtypes:
                found = measured((small, large), dtype, options.max_length, texts)
                cells = " | ".join(f"{value / 1e6:.0f} MB" for value in found.values())
                print(f"| {dtype} | {count} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
