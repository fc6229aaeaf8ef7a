"""Peak resident memory of loading a checkpoint in bfloat16 and scoring long passages with it, beside its weights.

    python benchmarks/memory.py --shape bge-reranker-v2-m3 --passages 40

The peak is the kernel's (VmHWM), reset after torch is imported and a tiny model has run, and counts mapped pages of
the file too. Linux only.
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

small, folder, dtype = sys.argv[1:4]
query, texts = json.load(sys.stdin)
Reranker(small, engine="torch", dtype=dtype).score(query, texts[:2])
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
reranker = Reranker(folder, engine="torch", dtype=dtype)
loaded, peak = status("VmRSS") - before, status("VmHWM") - before
Path("/proc/self/clear_refs").write_text("5")
reranker.score(query, texts)
print(json.dumps({"peak of loading": peak, "after loading": loaded, "peak of scoring": status("VmHWM") - before}))
"""


def main() -> None:

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="bge-reranker-v2-m3")
    parser.add_argument("--passages", type=int, default=40)
    parser.add_argument("--mean-tokens", type=int, default=180)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "int8"])
    options = parser.parse_args()
    texts = passages(options.passages, mean_tokens=options.mean_tokens, longest=4 * options.mean_tokens)
    with tempfile.TemporaryDirectory() as folder:
        small = write_checkpoint(Path(folder, "small"), "ms-marco-MiniLM-L6", WORDS)
        large = write_checkpoint(Path(folder, "large"), options.shape, WORDS)
        size = (large / "model.safetensors").stat().st_size
        print(f"{options.shape}: {size / 1e6:.0f} MB in float32, {size / 2e6:.0f} MB in bfloat16\n")
        print("| precision | peak of loading | after loading | peak of scoring |\n|---|---|---|---|")
        for dtype in options.dtypes:
            command = [sys.executable, "-W", "ignore", "-c", MEASURED, str(small), str(large), dtype]
            found = json.loads(subprocess.check_output(command, input=json.dumps([QUERY, texts]), text=True))
            print(
                f"| {dtype} | " + " | ".join(f"{value / 1e6:.0f} MB" for value in found.values()) + " |", flush=True
            )


if __name__ == "__main__":
    main()
