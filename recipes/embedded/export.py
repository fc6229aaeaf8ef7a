"""From a training checkpoint to the files that ship: fit the logit's scale, save for Hugging Face, quantise.

`final/` is the float32 folder for other libraries; `assets/` has the int8 graph (`openvino/openvino_model.xml`) with
the tokenizer. The affine map of the logit is fitted by logistic regression on pairs of the held-out training sets.
"""

import argparse
import json
import math
import shutil
from pathlib import Path

import nncf
import numpy as np
import openvino
import torch
from mine import SOURCES
from tokenizers import Tokenizer
from torch import Tensor
from train import HELD_OUT, Lists, logits_of, read_lists
from transformers import BertForSequenceClassification, BertTokenizerFast

NUM_NEGATIVES = 7  # per positive, when the logit is calibrated
VECTORS = {"linear/Add": "bias", "layer_norm/Multiply_1": "weight", "layer_norm/Add": "bias"}
MAX_TOKENS = 256
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


class Graph(torch.nn.Module):
    """The inputs in the order of the exported graph, the logits alone as output."""

    def __init__(self, model: BertForSequenceClassification) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).logits


@torch.inference_mode()
def calibrate(model: BertForSequenceClassification, sets: list[Lists], num_queries: int = 150) -> tuple[float, float]:
    """Folds a·z + b into the classifier, so that the sigmoid of the logit is a probability; returns a and b."""
    scores, labels = [], []
    for one in sets:
        columns = 1 + NUM_NEGATIVES
        pairs = [
            (one.queries[query], one.passages[row][:180])
            for query in range(min(num_queries, len(one.queries)))
            for row in one.candidates[query, [0, *range(1, 15, 2)]]
        ]
        logits = logits_of(model, pairs).view(-1, columns)
        scores.append(logits.flatten())
        labels.append(torch.zeros_like(logits).index_fill_(1, torch.tensor([0]), 1.0).flatten())
    slope, offset = fit_affine(torch.cat(scores), torch.cat(labels))
    # as if half of the pairs were relevant: a good match should not look unlikely for the company it was fitted in
    offset += math.log(NUM_NEGATIVES)
    model.classifier.weight.mul_(slope)
    model.classifier.bias.mul_(slope).add_(offset)
    return slope, offset


@torch.inference_mode(mode=False)
@torch.enable_grad()
def fit_affine(scores: Tensor, labels: Tensor) -> tuple[float, float]:
    scores, labels = scores.clone(), labels.clone()
    affine = torch.tensor([1.0, 0.0], requires_grad=True)
    optimiser = torch.optim.LBFGS([affine], max_iter=100)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(affine[0] * scores + affine[1], labels)
        loss.backward()
        return loss

    optimiser.step(closure)
    slope, offset = affine.tolist()
    return slope, offset


def save_folder(model: BertForSequenceClassification, start: Path, out: Path) -> None:
    model.config.update(
        {
            "architectures": ["BertForSequenceClassification"],
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1,
            "num_labels": 1,
            "id2label": {0: "LABEL_0"},
            "label2id": {"LABEL_0": 0},
            "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"},
        }
    )
    model.save_pretrained(out)
    tokenizer = BertTokenizerFast(vocab_file=str(start / "vocab.txt"), do_lower_case=True, model_max_length=512)
    tokenizer.save_pretrained(out)
    config = json.loads((out / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in {"_name_or_path", "gradient_checkpointing"}}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def convert(model: BertForSequenceClassification) -> openvino.Model:
    ids = torch.ones(2, 8, dtype=torch.long)
    example = {"input_ids": ids, "attention_mask": ids, "token_type_ids": torch.zeros_like(ids)}
    shapes = {name: ([-1, -1], openvino.Type.i64) for name in example}
    graph = openvino.convert_model(Graph(model).eval(), example_input=example, input=shapes)
    for port, name in zip(graph.inputs, example, strict=True):
        port.get_tensor().set_names({name})
    graph.outputs[0].get_tensor().set_names({"logits"})
    name_vectors(graph)
    return graph


def name_vectors(graph: openvino.Model) -> None:
    """Names the biases and LayerNorm weights as the matrices are named, so that a reader of the graph finds them."""
    for node in graph.get_ops():
        module, _, operation = node.get_friendly_name().partition("/aten::")
        kind = VECTORS.get(operation)
        if kind is None:
            continue
        for port in node.inputs():
            source = port.get_source_output().get_node()
            if source.get_type_name() == "Constant":
                source.set_friendly_name(f"self.{module.removeprefix('__module.')}.{kind}")


def calibration_inputs(sets: list[Lists], count: int = 200) -> list[dict[str, np.ndarray]]:
    """Single pairs of the training sets, positives and negatives by turns, for post-training quantisation."""
    rng = np.random.default_rng(0)
    inputs = []
    for index in range(count):
        one = sets[index % len(sets)]
        query = int(rng.integers(len(one.queries)))
        first = [101, *one.queries[query], 102]
        row = one.candidates[query, (index // len(sets)) % 2 * int(rng.integers(1, 16))]
        second = [*one.passages[row][: 253 - len(first)], 102]
        ids = np.array([first + second])
        types = np.array([[0] * len(first) + [1] * len(second)])
        inputs.append({"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": types})
    return inputs


def quantise(graph: openvino.Model, sets: list[Lists]) -> openvino.Model:
    """Activations and weights in int8 (transformer scheme); the rest of the weights, embeddings too, in int8 rows."""
    dataset = nncf.Dataset(calibration_inputs(sets))
    quantised = nncf.quantize(graph, dataset, model_type=nncf.ModelType.TRANSFORMER, subset_size=200)
    return nncf.compress_weights(quantised, mode=nncf.CompressWeightsMode.INT8_SYM)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mined", type=Path)
    parser.add_argument("start", type=Path, help="folder of all-MiniLM-L6-v2 (tokenizer)")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path, help="gets final/, assets/ and, with --static, static/")
    parser.add_argument("--static", action="store_true", help="also quantise the activations, to compare")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    tokenizer = Tokenizer.from_file(str(arguments.start / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    model = BertForSequenceClassification.from_pretrained(arguments.checkpoint, attn_implementation="sdpa").eval()
    weights = np.ones(2)  # the teacher is not needed here
    held_out = [read_lists(arguments.mined, name, tokenizer, weights) for name in HELD_OUT]
    print("logit: slope and offset", calibrate(model, held_out))
    final = arguments.out / "final"
    save_folder(model, arguments.start, final)
    model = BertForSequenceClassification.from_pretrained(final, attn_implementation="sdpa").eval()
    weights_only = nncf.compress_weights(convert(model), mode=nncf.CompressWeightsMode.INT8_SYM)
    graphs = {"assets": weights_only}
    if arguments.static:
        others = [name for name in SOURCES if name not in HELD_OUT]
        graphs["static"] = quantise(
            convert(model), [read_lists(arguments.mined, name, tokenizer, weights) for name in others]
        )
    for folder, graph in graphs.items():
        (arguments.out / folder / "openvino").mkdir(parents=True, exist_ok=True)
        openvino.save_model(graph, arguments.out / folder / "openvino" / "openvino_model.xml", compress_to_fp16=False)
        for name in ("config.json", *TOKENIZER_FILES):
            shutil.copy(final / name, arguments.out / folder / name)
        length = json.dumps({"max_seq_length": MAX_TOKENS}) + "\n"  # as it is trained and measured
        (arguments.out / folder / "sentence_bert_config.json").write_text(length)


if __name__ == "__main__":
    main()
