"""Pre-training of encoders on plain texts: RetroMAE, DupMAE, and masked language modelling as their control.

An encoder learns so that one weak layer can rebuild the text from the sentence vector and a few visible words (Xiao
et al. 2022); Liu et al. 2023 add the bag of words. Losses are sums over tokens by the counts of the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recomputed

from secondpass.checkpoint.checkpoint import Checkpoint, open_checkpoint
from secondpass.checkpoint.save import Naming, save_model, write_tensors
from secondpass.checkpoint.weights import read_tensors, rename
from secondpass.engine.batches import memory_checked
from secondpass.models.bert import RENAMES as BERT_RENAMES
from secondpass.packed import Packed, pack, plan
from secondpass.text.families import saved_head
from secondpass.training.auto_encoder import (
    LAYER,
    WORD_HEADS,
    MaskedAutoEncoder,
    Surprise,
    decoder_tensors,
    not_pretrainable,
)
from secondpass.training.embedding import shortest
from secondpass.training.learner import DEFAULT_LENGTH, Step
from secondpass.training.masks import HiddenText, Masker
from secondpass.training.model import Source, Tensors, Trainable, load_float32, make_ready
from secondpass.training.reporting import Kind
from secondpass.training.settings import PretrainingSettings, TrainingSettings
from secondpass.types import Row

DECODER = "decoder.safetensors"  # beside the encoder, so that pre-training can go on from it


class _PretrainingSource(Source):
    """An encoder's tensors with the head that names words, under the names of a masked language model."""

    def __init__(self, checkpoint: Checkpoint, net: MaskedAutoEncoder, seed: int) -> None:
        super().__init__(checkpoint, net, net.renames, None, seed)
        self._saved = saved_head(checkpoint.config)
        self._head = WORD_HEADS[str(checkpoint.config["model_type"])]
        self._own = {name: shape for name, shape in self._shapes.items() if not name.startswith("decoder.")}

    def changed(self, tensors: Tensors) -> Any:
        seen = set()
        for name, tensor in tensors if self._adapted is None else self._adapted(tensors):
            target = rename(name, self.naming.renames).partition("@")[0]
            if target not in self._own or (target.startswith("words.") and tensor.shape != self._own[target]):
                continue
            name = name if target.startswith("words.") else self._saved.full_name(name)
            seen.add(target)
            self.naming.note(name, tensor)
            yield name, tensor
        for target in self._own:
            if target.startswith("words.") and target not in seen:
                name, tensor = self._head.name(target), self._drawn(target, self._own[target])
                self.fresh.append(target)
                self.naming.note(name, tensor)
                yield name, tensor
        for target, shape in self._shapes.items():  # the decoder is read by itself
            if target.startswith("decoder."):
                yield target, self._drawn(target, shape)


def open_pretraining(
    model: str | Path, settings: TrainingSettings, device: torch.device, dtype: torch.dtype
) -> Pretraining:
    """Raises UnknownModel for what cannot be pre-trained, CheckpointError for a damaged checkpoint."""
    assert settings.pretraining is not None
    checkpoint = open_checkpoint(model)
    model_type = str(checkpoint.config.get("model_type"))
    if model_type not in WORD_HEADS:
        raise not_pretrainable(checkpoint.config)
    with torch.device("meta"):
        net = MaskedAutoEncoder(checkpoint.config, has_decoder=settings.pretraining.decoder_weight > 0)
    source = _PretrainingSource(checkpoint, net, settings.seed)
    load_float32(net, checkpoint, source)
    decoder = _read_decoder(net, checkpoint.folder / DECODER)
    architecture = source._saved.architecture.replace("ForSequenceClassification", "ForMaskedLM")
    trainable = Trainable(
        checkpoint=checkpoint,
        model=net,
        config={**checkpoint.config, "architectures": [architecture]},
        naming=source.naming,
        fresh=(*source.fresh, *(["decoder"] if net.decoder is not None and decoder.blocks == {} else [])),
        device=device,
        dtype=dtype,
    )
    make_ready(
        trainable,
        has_frozen_words=settings.has_frozen_words,
        has_gradient_checkpointing=settings.has_gradient_checkpointing,
    )
    return Pretraining(trainable, settings, settings.pretraining, decoder)


def _read_decoder(net: MaskedAutoEncoder, file: Path) -> Naming:
    """Fills the decoder where there is a file of one."""
    naming = Naming(renames=BERT_RENAMES)
    if net.decoder is None or not file.is_file():
        return naming
    parts: dict[str, dict[int, Tensor]] = {}
    for name, tensor in read_tensors([file]):
        target, _, block = rename(LAYER[0] + name, BERT_RENAMES).removeprefix(LAYER[1]).partition("@")
        parts.setdefault(target, {})[int(block or 0)] = tensor
        naming.note(LAYER[0] + name, tensor)
    joined = {name: torch.cat([blocks[index] for index in sorted(blocks)]) for name, blocks in parts.items()}
    net.decoder.load_state_dict({name: tensor.clone() for name, tensor in joined.items()})
    return naming


class Pretraining:
    """A masked auto-encoder, and how hidden texts become its loss."""

    reads_prompts = False

    def __init__(
        self,
        trainable: Trainable[MaskedAutoEncoder],
        settings: TrainingSettings,
        pretraining: PretrainingSettings,
        decoder: Naming,
    ) -> None:
        self.trainable, self._settings = trainable, pretraining
        self._model = trainable.model
        longest = trainable.max_length
        self._length = settings.max_length or min(longest, DEFAULT_LENGTH)
        least = shortest(trainable)
        if not least <= self._length <= longest:
            raise ValueError(
                f"max_length is {self._length}; {trainable.checkpoint.name} reads {least} to {longest} tokens"
            )
        self._masker = Masker(trainable.tokenizer, pretraining, max_length=self._length)
        self._seed = settings.seed

    @property
    def kind(self) -> Kind:
        return Kind(
            family=str(self.trainable.checkpoint.config["model_type"]),
            title="An encoder pre-trained",
            does="Its first token's state is made for retrieval; it is a start for rerankers and embedders.",
            loads=["```\nsecondpass train FOLDER DATA --output RESULT\n```", "It loads in transformers as well."],
            tags=["RetroMAE", "feature-extraction"],
            pipeline="feature-extraction",
            max_length=self._length,
        )

    def drawn(self, text: str, index: int, epoch: int) -> HiddenText:
        """What is hidden of text `index` in an epoch."""
        return self._masker.hidden(text, np.random.default_rng([self._seed, epoch, index]))

    def rows(self, item: HiddenText) -> list[Row]:
        return [Row(ids=item.shown, passage=(len(item.ids), len(item.ids)), cut=(0, item.num_cut))]

    def score(self, query: str, documents: Sequence[str]) -> list[float]:
        raise ValueError("an encoder that is pre-trained has no scores; fine-tune it, and measure that")

    def learn(self, items: Sequence[HiddenText], step: Step) -> tuple[Tensor, int]:
        counts = [float(sum(item.hidden.sum() for item in items)), float(sum(item.asked.sum() for item in items))]
        totals = step.processes.sum_figures([*counts, float(len(items))], self.trainable.device)
        settings = self._settings
        weights = (1.0, settings.decoder_weight, settings.bag_weight)
        total = torch.zeros((), device=self.trainable.device)
        lengths = [len(item.ids) for item in items]
        for batch in plan(lengths, token_budget=step.token_budget):
            sums = self.sums([items[index] for index in batch])
            parts = [w * x / max(t, 1.0) for w, x, t in zip(weights, sums, totals, strict=True)]
            part = torch.stack(parts).sum()
            part.backward()  # type: ignore[no-untyped-call]
            total += part.detach()
        return total, sum(lengths)

    def sums(self, items: Sequence[HiddenText]) -> tuple[Tensor, Tensor, Tensor]:
        """Sums over hidden tokens, over the decoder's tokens, and over texts; 0 for what has no weight."""
        items = sorted(items, key=lambda item: len(item.ids))
        batch = self._packed([item.shown for item in items])
        with memory_checked(len(batch.ids)):
            states = self._model.backbone(batch).float()
            ids = torch.tensor([token for item in items for token in item.ids], device=states.device)
            hidden = torch.from_numpy(np.concatenate([item.hidden for item in items])).to(states.device)
            encoder = self._surprise(states[hidden], ids[hidden])
            none = states.new_zeros(())
            decoder = self._rebuilt(items, states[batch.first()]) if self._model.decoder is not None else none
            bag = self._bag(items, states, batch) if self._settings.bag_weight else none
        return encoder, decoder, bag

    def save(self, folder: Path, texts: Mapping[str, str]) -> None:
        own = {name: x.detach() for name, x in self._model.named_parameters() if not name.startswith("decoder.")}
        folder.mkdir(parents=True, exist_ok=True)
        if self._model.decoder is not None:
            write_tensors(folder / DECODER, {n: x.clone() for n, x in decoder_tensors(self._model.decoder).items()})
        save_model(
            folder,
            config=self.trainable.config,
            tensors=self.trainable.named(own),
            base=self.trainable.checkpoint.folder,
            texts=texts,
        )

    def _packed(self, rows: Sequence[Sequence[int]]) -> Packed:
        return pack([Row(ids=list(ids), passage=(len(ids), len(ids))) for ids in rows]).to(self.trainable.device)

    def _rebuilt(self, items: Sequence[HiddenText], sentence: Tensor) -> Tensor:
        """The decoder's surprise at every token of the texts, summed."""
        assert self._model.decoder is not None
        batch = self._packed([item.ids for item in items])
        queries = self._model.queries(sentence, batch, is_bare=self._settings.has_bare_queries)
        context = self._model.context(sentence, batch)
        length = batch.longest
        flat = batch.rows * length + batch.positions
        padded = [
            x.new_zeros(len(items) * length, x.shape[1]).index_copy(0, flat, x).view(len(items), length, -1)
            for x in (queries, context)
        ]
        with torch.autocast(flat.device.type, self.trainable.dtype, enabled=self.trainable.dtype != torch.float32):
            states = self._model.decoder(*padded, self._visible(items, length)).flatten(0, 1)
        asked = torch.from_numpy(np.concatenate([item.asked for item in items])).to(flat.device)
        return self._surprise(states[flat[asked]].float(), batch.ids[asked])

    def _visible(self, items: Sequence[HiddenText], length: int) -> Tensor:
        """(N, L, L); a token that would see nothing sees the first, so that no softmax is over nothing."""
        seen = np.zeros((len(items), length, length), np.bool_)
        for index, item in enumerate(items):
            seen[index, : len(item.ids), : len(item.ids)] = item.visible
        seen[..., 0] |= ~seen.any(-1)
        return torch.from_numpy(seen).to(self.trainable.device)

    def _surprise(self, states: Tensor, labels: Tensor) -> Tensor:
        """-log p of the labels (M,), summed."""
        words, dtype = self._model.words, self.trainable.dtype
        with torch.autocast(states.device.type, dtype, enabled=dtype != torch.float32):
            ready = words.ready(states)
        total: Tensor = Surprise.apply(ready.to(dtype), self._model.backbone.word.weight, words.bias, labels)  # type: ignore[no-untyped-call]
        return total

    def _bag(self, items: Sequence[HiddenText], states: Tensor, batch: Packed) -> Tensor:
        """DupMAE's bag of words, summed over texts: a text's different tokens from its greatest logits."""
        matrix = self._model.backbone.word.weight
        total = states.new_zeros(())
        starts = batch.starts.tolist()
        for item, start, stop in zip(items, starts, starts[1:], strict=False):
            own = np.array(item.ids)[item.counted]
            wanted = torch.from_numpy(np.unique(own)).to(states.device)
            share = 1 / max(len(own), 1)
            total = total + recomputed(
                self._of_bag, states[start + 1 : stop], wanted, share, matrix, use_reentrant=False
            )
        return total

    def _of_bag(self, states: Tensor, wanted: Tensor, share: float, matrix: Tensor) -> Tensor:
        dtype = self.trainable.dtype
        with torch.autocast(states.device.type, dtype, enabled=dtype != torch.float32):
            greatest: Tensor = self._model.words(states, matrix).float().amax(0)
        return -share * greatest.log_softmax(0)[wanted].sum()
