"""The files that ship: the fitted weights put in, the graph with its matrices in float16."""

import argparse
import json
from pathlib import Path

from build import build
from safetensors.torch import load_file

from secondpass.checkpoint.checkpoint import open_checkpoint
from secondpass.checkpoint.export.export import export
from secondpass.checkpoint.export.openvino import write_openvino
from secondpass.checkpoint.export.trace import traceable

# As an embedder it is cut as sentence-transformers cuts it, and its vectors have length 1.
MODULES = {"Transformer": "0_Transformer", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
SETTINGS = {
    "0_Transformer/sentence_bert_config.json": {"max_seq_length": 256},
    "1_Pooling/config.json": {"word_embedding_dimension": 384, "pooling_mode_mean_tokens": True},
}


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
    for name, settings in SETTINGS.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(json.dumps(settings) + "\n", encoding="utf-8")
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (kind, path) in enumerate(MODULES.items())
    ]
    (out / "modules.json").write_text(json.dumps(modules, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
