"""From a training checkpoint to the files that ship: fit the logit's scale, save for Hugging Face, quantise.

`final/` is the float32 folder, as `secondpass` loads it; `assets/` has the int8 graph (`openvino/openvino_model.xml`)
with the tokenizer. The affine map of the logit is fitted by logistic regression on pairs of the held-out sets.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from model import Reranker, load
from tokenizers import Tokenizer
from torch import Tensor
from train import HELD_OUT, Lists, logits_of, read_lists
from transformers import BertTokenizerFast

from secondpass.checkpoint.checkpoint import open_checkpoint
from secondpass.checkpoint.export.export import export

NUM_NEGATIVES = 7  # per positive, when the logit is calibrated
MAX_TOKENS = 512  # that the model reads unless less is asked for; it has learnt that long texts may be irrelevant
DROPPED = ("_name_or_path", "gradient_checkpointing")
SETTINGS = {
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "num_labels": 1,
    "id2label": {"0": "LABEL_0"},
    "label2id": {"LABEL_0": 0},
    "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"},
}


@torch.inference_mode()
def calibrate(model: Reranker, sets: list[Lists], num_queries: int = 150) -> tuple[float, float]:
    """Folds a·z + b into the last weights, so that the sigmoid of the logit is a probability; returns a and b."""
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
    classifier = model.bert.classifier
    classifier.weight.mul_(slope)
    classifier.bias.mul_(slope).add_(offset)
    model.match.scale.mul_(slope)
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


def save_folder(model: Reranker, start: Path, out: Path) -> None:
    model.save(out)
    tokenizer = BertTokenizerFast(vocab_file=str(start / "vocab.txt"), do_lower_case=True, model_max_length=512)
    tokenizer.save_pretrained(out)
    config = json.loads((out / "config.json").read_text(encoding="utf-8")) | SETTINGS
    config = {key: value for key, value in config.items() if key not in DROPPED}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (out / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": MAX_TOKENS}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mined", type=Path)
    parser.add_argument("start", type=Path, help="folder of all-MiniLM-L6-v2 (tokenizer)")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path, help="gets final/ and assets/")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    tokenizer = Tokenizer.from_file(str(arguments.start / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    model = load(arguments.checkpoint).eval()
    weights = np.ones(2)  # the teacher is not needed here
    held_out = [read_lists(arguments.mined, name, tokenizer, weights) for name in HELD_OUT]
    print("logit: slope and offset", calibrate(model, held_out))
    final = arguments.out / "final"
    save_folder(model, arguments.start, final)
    export(open_checkpoint(final), arguments.out / "assets", dtype="int8", overwrite=True)


if __name__ == "__main__":
    main()
