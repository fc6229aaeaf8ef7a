"""What a run leaves: a Hugging Face folder with a model card that says what was done and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from secondpass import __version__
from secondpass.checkpoint.checkpoint import EMBEDDED
from secondpass.checkpoint.save import save_model
from secondpass.text.recipe import Limits
from secondpass.training.data import Data
from secondpass.training.dev import MEASURES, DevSet
from secondpass.training.lora import merged_tensors, save_adapter
from secondpass.training.model import Trainable
from secondpass.training.settings import TrainingSettings

CARD = "README.md"
# Of the settings, those that say nothing of the model.
_UNTOLD = ("device", "log_every", "save_every", "has_tensorboard", "token_budget")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a run so far; history has the figures on the dev set with their steps."""

    data: Data
    dev: DevSet | None
    history: Sequence[Mapping[str, float]]
    best_step: int
    num_steps: int
    limits: Limits


def save_result(folder: Path, trainable: Trainable, settings: TrainingSettings, outcome: Outcome) -> None:
    """Write the model as it is: config, tokenizer, card, weights with low-rank updates merged in."""
    save_model(
        folder,
        config=trainable.config,
        tensors=trainable.naming.named(merged_tensors(trainable.model)),
        base=trainable.checkpoint.folder,
        max_length=outcome.limits.max_length,
        texts={CARD: card(trainable, settings, outcome)},
    )
    if settings.lora is not None and settings.lora.saves_adapter:
        save_adapter(trainable, settings.lora, folder / "adapter")


def card(trainable: Trainable, settings: TrainingSettings, outcome: Outcome) -> str:
    """The model card in Markdown, with the hub's front matter."""
    parts = [
        _front_matter(trainable),
        f"# A reranker trained from {_base_name(trainable)}",
        "A cross-encoder: it reads a query and a passage together and gives one logit, higher for a better answer.",
        "```python\nfrom secondpass import Reranker\n\nReranker(folder).rank(query, passages, top_n=5)\n```",
        "It loads as `sentence_transformers.CrossEncoder` as well.",
        "## Data\n\n" + _data(outcome),
        "## Figures\n\n" + _figures(outcome),
        "## Settings\n\n" + _settings(trainable, settings, outcome),
    ]
    return "\n\n".join(parts) + "\n"


def _base_name(trainable: Trainable) -> str:
    """A hub's name, or the last part of a folder's: a card is published, paths of a machine are not for it."""
    checkpoint = trainable.checkpoint
    if checkpoint.folder == EMBEDDED:
        return "secondpass's embedded model"
    return checkpoint.name if checkpoint.revision else Path(checkpoint.name).resolve().name


def _front_matter(trainable: Trainable) -> str:
    base = [f"base_model: {trainable.checkpoint.name}"] if trainable.checkpoint.revision else []
    tags = ["tags:", "- secondpass", "- sentence-transformers", "- cross-encoder", "- reranker"]
    return "\n".join(["---", "pipeline_tag: text-ranking", *base, *tags, "---"])


def _data(outcome: Outcome) -> str:
    examples = outcome.data.examples
    num_positives = sum(len(example.positives) for example in examples)
    num_negatives = sum(len(example.negatives) for example in examples)
    names = ", ".join(f"`{Path(name).name}`" for name in outcome.data.names) or "examples of the caller"
    lines = [
        f"{len(examples):,} queries with {num_positives:,} positive and {num_negatives:,} negative passages, "
        f"from {names}; sha256 `{outcome.data.fingerprint[:16]}`."
    ]
    if outcome.data.problems:
        lines.append(f"{len(outcome.data.problems):,} lines that were not usable were left out.")
    return "\n".join(lines)


def _figures(outcome: Outcome) -> str:
    if outcome.dev is None:
        return "No set was named to measure on; the weights are those of the last step."
    rows = ["| | " + " | ".join(MEASURES) + " |", "|---|" + "---|" * len(MEASURES)]
    if outcome.dev.has_first_stage:
        rows.append(_row("first stage, not reranked", outcome.dev.first_stage()))
    for figures in outcome.history:
        step = int(figures["step"])
        name = "reranked by the start" if step == 0 else f"reranked after step {step:,}"
        rows.append(_row(name + (" (kept)" if step == outcome.best_step else ""), figures))
    depth = max(len(query.documents) for query in outcome.dev.queries)
    told = f"{len(outcome.dev.queries):,} queries of `{outcome.dev.name}`, up to {depth} candidates each."
    return told + "\n\n" + "\n".join(rows)


def _row(name: str, figures: Mapping[str, float]) -> str:
    return f"| {name} | " + " | ".join(f"{figures[measure]:.4f}" for measure in MEASURES) + " |"


def _settings(trainable: Trainable, settings: TrainingSettings, outcome: Outcome) -> str:
    told = {key: value for key, value in settings.as_json().items() if key not in _UNTOLD and value is not None}
    told |= {
        "steps": outcome.num_steps,
        "max_length": outcome.limits.max_length,
        "truncation": outcome.limits.truncation,
        "dtype": str(trainable.dtype).removeprefix("torch."),
        "secondpass": __version__,
    }
    if trainable.fresh:
        told["fresh"] = ", ".join(trainable.fresh)
    rows = [f"| {key} | {_written(value)} |" for key, value in told.items()]
    return "\n".join(["| setting | value |", "|---|---|", *rows])


def _written(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_written(one)}" for key, one in value.items())
    return str(value)
