"""The files that ship: the fitted weights put in, the graph with its matrices in float16."""

import argparse
import json
from pathlib import Path

from build import build
from embedder import tell
from safetensors.torch import load_file

from secondpass.checkpoint.checkpoint import open_checkpoint
from secondpass.checkpoint.export.export import export
from secondpass.checkpoint.export.openvino import write_openvino
from secondpass.checkpoint.export.trace import traceable


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("start", type=Path, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("folder", type=Path, help="what build.py wrote")
    parser.add_argument("fitted", type=Path, help="what fit.py wrote")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    fitted = json.loads(arguments.fitted.read_text(encoding="utf-8"))
    pieces = load_file(arguments.folder / "model.safetensors")["word_match.weights"].numpy()
    checkpoint = open_checkpoint(build(arguments.start, arguments.folder, pieces, fitted["scales"], fitted["bias"]))
    out = export(checkpoint, arguments.out, overwrite=True)
    write_openvino(traceable(checkpoint), out / "openvino" / "openvino_model.xml", "float16", ())
    tell(out, width=384, length=256)  # as sentence-transformers cuts all-MiniLM-L6-v2


if __name__ == "__main__":
    main()
