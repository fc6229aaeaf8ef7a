"""The cross-encoder that is trained: BERT with one logit, and secondpass.models.word_match added to it."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertForSequenceClassification

from secondpass.models.word_match import WordMatch, WordMatchConfig

# A small k1 counts whether rather than how often: how rare a piece is differs between fields, and the weights here do
# not know the field.
SETTINGS = {"k1": 0.2, "b": 0.4, "mean_length": 110.0}
FIRST_SCALE = (1.0, 1.0)  # of shared pieces and of shared pairs, before training


class Reranker(nn.Module):
    """Logits (N, 1) of padded inputs (N, L)."""

    def __init__(
        self, bert: BertForSequenceClassification, words: Tensor, settings: dict[str, float] = SETTINGS
    ) -> None:
        super().__init__()
        self.bert = bert
        self.settings = settings
        self.match = WordMatch(WordMatchConfig(num_words=len(words), **settings))
        self.match.weights = nn.Parameter(words, requires_grad=False)
        self.match.scale = nn.Parameter(torch.tensor(FIRST_SCALE))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        read = self.bert(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).logits
        with torch.autocast("cpu", enabled=False):
            shares = self.match.of_padded(input_ids, attention_mask, token_type_ids)
            return read.float() + (shares * self.match.scale).sum(1, keepdim=True)

    def save(self, out: Path) -> None:
        """A folder as `secondpass` loads it: BERT's, with the tensors word_match.* and a key in config.json."""
        self.bert.save_pretrained(out)
        tensors = load_file(out / "model.safetensors")
        tensors |= {f"word_match.{name}": tensor.detach().clone() for name, tensor in self.match.state_dict().items()}
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((out / "config.json").read_text(encoding="utf-8"))
        (out / "config.json").write_text(json.dumps(config | {"word_match": self.settings}, indent=2) + "\n")


def load(folder: Path, words: np.ndarray | None = None, attention: str = "sdpa") -> Reranker:
    """What `save` wrote; or a BERT alone, such as the bi-encoder, which gets a head and matching by `words` (V,).

    No dropout. On a CPU "eager" attention trains 1.4 times faster: the fused kernel's backward pass is slow.
    """
    bert = BertForSequenceClassification.from_pretrained(
        folder,
        num_labels=1,
        attn_implementation=attention,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    tensors = load_file(folder / "model.safetensors")
    if "word_match.weights" not in tensors:
        return Reranker(bert, torch.from_numpy(words))
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))["word_match"]
    model = Reranker(bert, tensors["word_match.weights"], settings)
    model.match.scale.data.copy_(tensors["word_match.scale"])
    return model
