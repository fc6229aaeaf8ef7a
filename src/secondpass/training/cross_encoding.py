"""Training of rerankers: pairs of a query and a passage, one score each, or one at every layer."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from secondpass.checkpoint.save import save_model
from secondpass.engine.batches import memory_checked
from secondpass.models.cross_encoder import CrossEncoderModel
from secondpass.models.heads import LayerHeads
from secondpass.packed import pack, plan
from secondpass.text.recipe import TRUNCATIONS, Limits
from secondpass.training.collators import Group
from secondpass.training.learner import DEFAULT_LENGTH, TOKEN_BUDGETS, Step
from secondpass.training.lora import add_lora, check_four_bits, merged_tensors, pack_base, save_adapter
from secondpass.training.losses import LayerLoss, Scores, group_losses
from secondpass.training.model import Trainable, open_trainable
from secondpass.training.reporting import Kind
from secondpass.training.settings import LayerSettings, TrainingSettings
from secondpass.types import Row, Run

NUM_BOUNDING = 256  # of the last pairs that are read, those by which the bounds of early exit are measured


def open_cross_encoding(
    model: str | Path, settings: TrainingSettings, device: torch.device, dtype: torch.dtype
) -> CrossEncoding:
    """Raises as `open_trainable` and CrossEncoding do."""
    has_four_bits = settings.lora is not None and settings.lora.has_four_bits
    if has_four_bits:
        check_four_bits(device)
        if settings.has_shards:
            raise ValueError("a base in four bits is not shared out; leave out --shard or --lora-base")
    trainable = open_trainable(
        model,
        device=device,
        dtype=dtype,
        seed=settings.seed,
        is_low_rank=settings.lora is not None,
        start_layer=None if settings.layers is None else settings.layers.start_layer,
        has_frozen_words=settings.has_frozen_words,
        has_gradient_checkpointing=settings.has_gradient_checkpointing,
        is_on_host=settings.has_shards or has_four_bits,
    )
    if has_four_bits and not trainable.model.is_decoder:
        raise ValueError(f"a base in four bits is for decoders; {trainable.checkpoint.name} is an encoder")
    if settings.lora is not None:
        add_lora(trainable, settings.lora, seed=settings.seed)
    if has_four_bits:
        pack_base(trainable)
    return CrossEncoding(trainable, settings)


class CrossEncoding:
    """A reranker, and how groups of passages become its loss.

    Raises ValueError for a length that is too long or too short, and for layers or compression that are not there.
    """

    def __init__(self, trainable: Trainable[CrossEncoderModel], settings: TrainingSettings) -> None:
        self.trainable, self._settings = trainable, settings
        self._model, self._recipe = trainable.model, trainable.model.recipe
        self.limits = _limits(trainable, settings)
        self._layer_loss = _layer_loss(self._model, settings)
        self._layers = _layers_of(self._model, settings)
        self._recent: deque[Row] = deque(maxlen=NUM_BOUNDING)
        self._budget = settings.token_budget or TOKEN_BUDGETS[trainable.device.type]

    @property
    def kind(self) -> Kind:
        is_encoder = not self.reads_prompts
        loads = ["```python\nfrom secondpass import Reranker\n\nReranker(folder).rank(query, passages, top_n=5)\n```"]
        if is_encoder:
            loads.append("It loads as `sentence_transformers.CrossEncoder` as well.")
        return Kind(
            family=self._recipe.family,
            title="A reranker",
            does="It reads a query and a passage together and gives one logit, higher for a better answer.",
            loads=loads,
            tags=["sentence-transformers", "cross-encoder", "reranker"] if is_encoder else ["reranker"],
            pipeline="text-ranking",
            max_length=self.limits.max_length,
            facts={"truncation": self.limits.truncation},
        )

    @property
    def reads_prompts(self) -> bool:
        return self._recipe.template != "pair"

    def rows(self, item: Group) -> list[Row]:
        recipe = self._recipe.instructed(item.prompt) if self.reads_prompts else self._recipe
        return recipe.rows(self.trainable.tokenizer, item.query, item.passages, self.limits)

    def learn(self, items: Sequence[Group], step: Step) -> tuple[Tensor, int]:
        rows = [self.rows(item) for item in items]
        if self._layers:
            self._recent.extend(row for part in rows for row in part)
        return self.learn_rows(items, rows, step)

    def recall(self, items: Sequence[Group]) -> None:
        """What was learnt from last, before a run was stopped: bounds of early exit are measured on it."""
        if self._layers:
            self._recent.extend(row for item in items for row in self.rows(item))

    def learn_rows(self, items: Sequence[Group], rows: Sequence[Sequence[Row]], step: Step) -> tuple[Tensor, int]:
        """As `learn`, of groups whose rows are made already."""
        lengths = [sum(map(len, part)) for part in rows]
        total = torch.zeros((), device=self.trainable.device)  # read once, at the end: reading waits for the device
        for weight, batch in step.processes.evened(plan(lengths, token_budget=step.token_budget)):
            losses = self.losses([items[i] for i in batch], [rows[i] for i in batch], step=step.index)
            part = losses.sum() * (weight / step.num_items)
            part.backward()  # type: ignore[no-untyped-call]
            total += part.detach()
        return total, sum(lengths)

    def losses(self, groups: Sequence[Group], rows: Sequence[Sequence[Row]], *, step: int = 0) -> Tensor:
        """The loss of each group (G,), from one packed forward pass over all their rows."""
        teacher = _teacher(groups, self.trainable.device) if self._settings.needs_teacher else None
        losses, temperature = self._settings.losses, self._settings.temperature
        if self._layer_loss is None:
            return group_losses(self._scores(rows, None, teacher)[0], losses, temperature=temperature)
        layers, inner = self.layer_scores(rows, teacher, step=step)
        return self._layer_loss(layers, inner)

    def layer_scores(
        self, rows: Sequence[Sequence[Row]], teacher: Tensor | None, *, step: int = 0
    ) -> tuple[list[Scores], list[Tensor]]:
        """The scores of each layer, and the logits (G, P) of each that layers below are taught by, detached."""
        compression = self._settings.compression
        if compression is None:
            layers = self._scores(rows, Run(cutoff_layers=self._layers), teacher)
            return layers, [scores.logits.detach() for scores in layers]
        ratio, positions = compression.drawn(self._settings.seed, step)
        smaller = Run(cutoff_layers=self._layers, compress_ratio=ratio, compress_layers=positions)
        layers = self._scores(rows, smaller, teacher)
        if self._layer_loss is None or self._layer_loss.inner_teacher == "none":
            return layers, []
        with torch.no_grad():
            full = self._scores(rows, Run(cutoff_layers=self._layers, compress_ratio=1), None)
        return layers, [scores.logits for scores in full]

    @torch.no_grad()  # not inference_mode, whose tensors a sharded model could not use again
    def score(self, query: str, documents: Sequence[str]) -> list[float]:
        rows = self.rows(Group(query=query, passages=tuple(documents)))
        scores = [0.0] * len(rows)
        for batch in plan([len(row) for row in rows], token_budget=self._budget):
            values = self.logits([rows[index] for index in batch])[:, -1].tolist()
            for index, value in zip(batch, values, strict=True):
                scores[index] = value
        return scores

    def logits(self, rows: Sequence[Row], run: Run | None = None) -> Tensor:
        """Scores (N, outputs) of the rows in float32, by the forward pass that the saved model has."""
        with memory_checked(sum(map(len, rows))):
            batch = pack(rows).to(self.trainable.device)
            scores: Tensor = self._model(batch) if run is None else self._model(batch, self._model.resolved(run))
        return scores

    @torch.inference_mode()
    def exit_bounds(self) -> dict[str, float]:
        """For early exit: how much the score of any of the last pairs changes from a layer to the last one."""
        layers = self._layers
        has_exits = self._recipe.family != "mistral-matroyshka" and len(layers) > 1
        if not has_exits or not self._recent or self._settings.has_shards:
            return {}
        rows, most = list(self._recent), torch.zeros(len(layers) - 1, device=self.trainable.device)
        for batch in plan([len(row) for row in rows], token_budget=self._budget):
            scores = self.logits([rows[index] for index in batch], Run(cutoff_layers=layers))
            most = torch.maximum(most, (scores[:, :-1] - scores[:, -1:]).abs().amax(0))
        return {str(layer): round(bound, 4) for layer, bound in zip(layers, most.tolist(), strict=False)}

    def save(self, folder: Path, texts: Mapping[str, str]) -> None:
        length = self.limits.max_length if self._recipe.template == "pair" else None
        config = {key: value for key, value in self.trainable.config.items() if key != "exit_bounds"}
        if bounds := self.exit_bounds():
            config["exit_bounds"] = bounds
        save_model(
            folder,
            config=config,
            tensors=self.trainable.named(merged_tensors(self._model)),
            base=self.trainable.checkpoint.folder,
            max_length=length,
            texts=texts,
        )
        if self._settings.lora is not None and self._settings.lora.saves_adapter:
            save_adapter(self.trainable, self._settings.lora, folder / "adapter", max_length=length)

    def _scores(self, rows: Sequence[Sequence[Row]], run: Run | None, teacher: Tensor | None) -> list[Scores]:
        """The scores of each output, from one pass in which rows of one length lie side by side."""
        flat = [row for part in rows for row in part]
        order = sorted(range(len(flat)), key=lambda index: len(flat[index]))
        width = max(map(len, rows))
        slots = torch.tensor([n * width + p for n, part in enumerate(rows) for p in range(len(part))])[order]
        slots = slots.to(self.trainable.device)
        logits = self.logits([flat[index] for index in order], run)
        empty = logits.new_zeros(len(rows) * width)
        is_there = empty.bool().scatter(0, slots, True).view(-1, width)
        return [
            Scores(logits=empty.scatter(0, slots, values).view(-1, width), is_there=is_there, teacher=teacher)
            for values in logits.unbind(1)
        ]


def _teacher(groups: Sequence[Group], device: torch.device) -> Tensor:
    """Their scores (G, P), 0 where a group has fewer passages."""
    width = max(len(group.passages) for group in groups)
    padded = [[*(group.teacher or ()), *[0.0] * (width - len(group.passages))] for group in groups]
    return torch.tensor(padded, device=device)


def _layers_of(model: CrossEncoderModel, settings: TrainingSettings) -> tuple[int, ...]:
    if not isinstance(model.head, LayerHeads):
        return ()
    is_alone = settings.layers is not None and settings.layers.trains_last_alone
    return model.head.layers[-1:] if is_alone else model.head.layers


def _layer_loss(model: CrossEncoderModel, settings: TrainingSettings) -> LayerLoss | None:
    """How the layers learn; None for a model with one score."""
    if not isinstance(model.head, LayerHeads):
        if settings.layers is not None or settings.compression is not None:
            raise ValueError(f"layers and compression need heads at layers; {model.recipe.family} has one score")
        return None
    if settings.compression is not None:
        model.resolved(Run(compress_ratio=2, compress_layers=settings.compression.layers))
    layers = settings.layers or LayerSettings()
    usual = "eighth" if settings.compression is not None else "none" if settings.needs_teacher else "last"
    return LayerLoss(
        losses=settings.losses,
        temperature=settings.temperature,
        inner_teacher=usual if layers.inner_teacher is None else layers.inner_teacher,
        teaches_all=layers.teaches_all,
    )


def _limits(trainable: Trainable[CrossEncoderModel], settings: TrainingSettings) -> Limits:
    longest = trainable.max_length
    length = min(longest, DEFAULT_LENGTH) if settings.max_length is None else settings.max_length
    if length > longest:
        raise ValueError(f"max_length is {length}; {trainable.checkpoint.name} reads up to {longest} tokens")
    truncation = trainable.model.recipe.truncation if settings.truncation is None else settings.truncation
    if truncation not in TRUNCATIONS:
        raise ValueError(f"truncation is {truncation!r}; give {' or '.join(map(repr, TRUNCATIONS))}")
    limits = Limits(max_length=length, max_query_length=settings.max_query_length, truncation=truncation)
    if not trainable.model.recipe.frame(trainable.tokenizer, "a", limits).room(trainable.tokenizer):
        raise ValueError(f"max_length is {length}; what stands around the texts leaves no room for any")
    return limits
