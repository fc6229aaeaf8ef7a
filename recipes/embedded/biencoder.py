"""Unit vectors of texts from the bi-encoder that the training starts from."""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import BertModel

TOKENS_PER_BATCH = 8192


class BiEncoder:
    def __init__(self, folder: Path, max_length: int) -> None:
        self.model = BertModel.from_pretrained(folder, attn_implementation="sdpa").eval()
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(max_length)
        self.tokenizer.no_padding()

    def encode(self, texts: list[str]) -> np.ndarray:
        """(texts, 384) float32: the mean of the token states, of length 1."""
        tokens = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        order = sorted(range(len(texts)), key=lambda index: len(tokens[index]))
        vectors = np.zeros((len(texts), self.model.config.hidden_size), dtype=np.float32)
        start = 0
        while start < len(order):
            size = max(1, TOKENS_PER_BATCH // len(tokens[order[min(start + 63, len(order) - 1)]]))
            rows = order[start : start + size]
            vectors[rows] = self._encode([tokens[row] for row in rows])
            start += size
        return vectors

    @torch.inference_mode()
    def _encode(self, tokens: list[list[int]]) -> np.ndarray:
        lengths = torch.tensor([len(ids) for ids in tokens])
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in tokens], batch_first=True)
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            states = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()
        mean = (states * mask[..., None]).sum(1) / lengths[:, None]
        return torch.nn.functional.normalize(mean, dim=1).numpy()
