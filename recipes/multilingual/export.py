"""Writes the model folder: config, tokenizer and the graph with weights in int8 (`openvino/openvino_model.xml`)."""

import argparse
import json
from pathlib import Path

import nncf
import numpy as np
import openvino
import torch
from model import Reranker, load
from tokenizers import Tokenizer
from torch import Tensor

MAX_LENGTH = 512  # of a pair, markers included


def convert(model: Reranker) -> openvino.Model:
    """The graph in float32, of any batch and length."""
    ids = torch.tensor([[0, 41, 12, 5, 2, 0, 46, 12, 7, 2]]).repeat(2, 1)
    types = (torch.arange(10) >= 8).long().repeat(2, 1)
    example: dict[str, Tensor] = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": types}
    shapes = {name: ([-1, -1], openvino.Type.i64) for name in example}
    graph = openvino.convert_model(model.eval(), example_input=tuple(example.values()), input=list(shapes.values()))
    for port, name in zip(graph.inputs, example, strict=True):
        port.get_tensor().set_names({name})
    graph.outputs[0].get_tensor().set_names({"logits"})
    return graph


def compress(graph: openvino.Model, num_pieces: int) -> openvino.Model:
    """Matrices in int8 with a scale per row; the vector of piece weights stays as it is."""
    gathers = [node for node in graph.get_ops() if node.get_type_name() == "Gather"]
    vectors = [node for node in gathers if list(node.input(0).get_partial_shape()) == [num_pieces]]
    ignored = nncf.IgnoredScope(names=[node.get_friendly_name() for node in vectors])
    return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_SYM, ignored_scope=ignored)


def save_texts(encoder: Path, out: Path) -> None:
    """config.json, tokenizer.json and the tokenizer's settings."""
    source = json.loads((encoder / "config.json").read_text())
    kept = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    config = {
        "architectures": ["E5PairForSequenceClassification"],
        "model_type": "bert",  # as it writes and cuts a pair; only the graph knows the layers
        **{name: source[name] for name in kept},
        "max_position_embeddings": MAX_LENGTH,
        "pad_token_id": 1,
        "num_labels": 1,
        "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"},
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    Tokenizer.from_file(str(encoder / "tokenizer.json")).save(str(out / "tokenizer.json"), pretty=False)
    markers = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    others = {"mask_token": "<mask>", "pad_token": "<pad>", "unk_token": "<unk>"}
    settings = {**markers, **others, "model_max_length": MAX_LENGTH, "tokenizer_class": "PreTrainedTokenizerFast"}
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (out / "special_tokens_map.json").write_text(json.dumps({**markers, **others}, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("encoder", type=Path, help="what prune.py wrote")
    parser.add_argument("words", type=Path, help="words.npy of mine.py")
    parser.add_argument("fitted", type=Path, help="joint.pt as fit.py wrote it, with the scales")
    parser.add_argument("out", type=Path)
    parser.add_argument("--float", action="store_true", help="weights in float32, to compare")
    arguments = parser.parse_args()
    model = load(str(arguments.encoder), torch.from_numpy(np.load(arguments.words)))
    fitted = torch.load(arguments.fitted, weights_only=True)
    model.load_state_dict(fitted, strict=False)
    if not any(name.startswith("joint.") for name in fitted):
        model.joint = None
    graph = convert(model)
    if not arguments.float:
        graph = compress(graph, len(model.words))
    (arguments.out / "openvino").mkdir(parents=True, exist_ok=True)
    openvino.save_model(graph, arguments.out / "openvino" / "openvino_model.xml", compress_to_fp16=False)
    save_texts(arguments.encoder, arguments.out)


if __name__ == "__main__":
    main()
