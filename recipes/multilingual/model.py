"""A pair in one graph: multilingual-e5-small's cosine, word matching, and layers in which the two texts meet.

Query and passage pass e5's 12 layers each for itself, so the cosine is e5's own. Copies of two late layers start from
the states below them and let every token see both texts (as in PreTTR, MacAvaney et al. 2020); what it reads is added
to the score with a weight that begins at zero. The lower layers stay frozen: their states are computed once per text.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertModel

NUM_UPPER = 3  # layers of e5 above the states from which the joint layers start
NUM_JOINT = 2  # copies of the first of those, in which the texts meet
K1, B, MEAN_LENGTH = 0.9, 0.4, 110.0  # of the word matching
NUM_FIRST = 3  # tokens of type 0 before the passage that belong to it: <s> passage :


def mean_of(states: Tensor, mask: Tensor) -> Tensor:
    """Means (N, H) of the states (N, L, H) where mask (N, L) is 1, of length 1."""
    return F.normalize((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=1)


def additive(allowed: Tensor) -> Tensor:
    """(N, 1, L, L) or (N, 1, 1, L): 0 where attention is allowed, a very low figure elsewhere."""
    return (1.0 - allowed.float()) * -1e4


class Joint(nn.Module):
    """Layers over both texts and what they add to the score (N,)."""

    def __init__(self, bert: BertModel) -> None:
        super().__init__()
        size = bert.config.hidden_size
        self.kinds = nn.Parameter(torch.zeros(2, size))
        self.layers = nn.ModuleList(copy.deepcopy(layer) for layer in bert.encoder.layer[-NUM_UPPER:][:NUM_JOINT])
        self.hidden = nn.Linear(3 * size, size)
        self.out = nn.Linear(size, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, states: Tensor, query: Tensor, passage: Tensor) -> Tensor:
        """states (N, L, H), masks of the query's and the passage's tokens (N, L), as floats."""
        states = states + query[..., None] * self.kinds[0] + passage[..., None] * self.kinds[1]
        mask = additive((query + passage)[:, None, None, :])
        for layer in self.layers:
            states = layer(states, mask)[0]
        states = states.float()
        first, second = mean_of(states, query), mean_of(states, passage)
        scale = float(states.shape[-1]) ** 0.5
        read = torch.cat([first * scale, second * scale, first * second * scale * scale / 4], 1)
        return self.out(F.gelu(self.hidden(read)))[:, 0]


class Reranker(nn.Module):
    """Logits (N, 1) of pairs as the tokenizer of `prune.py` frames them.

    `scales` holds the weights of cosine and word matching and the offset; `words` (V,) how much a piece tells.
    """

    def __init__(self, bert: BertModel, words: Tensor) -> None:
        super().__init__()
        self.bert = bert
        self.joint: Joint | None = Joint(bert)  # None: the score has its first two parts alone
        self.register_buffer("words", words)
        self.register_buffer("scales", torch.tensor([20.0, 5.0, 0.0]))

    def lower(self, input_ids: Tensor, places: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """States (N, L, H) below the joint layers and after the last, e5's own; mask is additive."""
        states = self.bert.embeddings(input_ids=input_ids, position_ids=places)
        layers = self.bert.encoder.layer
        for layer in layers[:-NUM_UPPER]:
            states = layer(states, mask)[0]
        below = states
        for layer in layers[-NUM_UPPER:]:
            states = layer(states, mask)[0]
        return below, states

    def matched(self, input_ids: Tensor, query: Tensor, passage: Tensor) -> Tensor:
        """(N,) 0..1: the share of the weight of the query's pieces that the passage has, as BM25 counts them."""
        equal = (input_ids[:, :, None] == input_ids[:, None, :]).float()
        counts = (equal * passage[:, None, :]).sum(2)
        norm = K1 * (1 - B + B * passage.sum(1, keepdim=True) / MEAN_LENGTH)
        weights = self.words[input_ids] * query
        return (weights * counts / (counts + norm)).sum(1) / weights.sum(1).clamp(min=1e-6)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        length, running = attention_mask.sum(1, keepdim=True), torch.cumsum(torch.ones_like(input_ids), 1) - 1
        num_query = length - (token_type_ids * attention_mask).sum(1, keepdim=True) - NUM_FIRST
        second = (running >= num_query).long() * attention_mask
        first = attention_mask - second
        places = running - second * num_query
        same = (second[:, :, None] == second[:, None, :]) & (attention_mask[:, None, :] == 1)
        below, states = self.lower(input_ids, places * attention_mask, additive(same[:, None]))
        query, passage = first.float(), second.float()
        cosine = (mean_of(states.float(), query) * mean_of(states.float(), passage)).sum(1)
        words = self.matched(input_ids, query, passage)
        base = self.scales[0] * cosine + self.scales[1] * words + self.scales[2]
        added = 0.0 if self.joint is None else self.joint(below, query, passage)
        return (base + added)[:, None]


def load(folder: str, words: Tensor, attention: str = "sdpa") -> Reranker:
    """The start: e5's weights, no dropout. On a CPU "eager" attention trains faster, "sdpa" runs faster."""
    bert = BertModel.from_pretrained(
        folder,
        add_pooling_layer=False,
        attn_implementation=attention,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return Reranker(bert, words).eval()
