"""Labelled pairs for a calibration: from a set's candidates, or from lines with "query", "text" and "label"."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secondpass.data.files import SUFFIXES, Place, records, suffix, text_in
from secondpass.errors import DataError
from secondpass.evaluation.datasets.dataset import Dataset
from secondpass.evaluation.datasets.trec import Run

LABELS = {0: False, 1: True}


@dataclass(frozen=True, kw_only=True)
class Query:
    """A query with its texts and whether each is relevant."""

    name: str
    text: str
    texts: tuple[str, ...]
    labels: tuple[bool, ...]


def has_labels(source: str) -> bool:
    """Whether it is a file of labelled pairs."""
    file = Path(source).expanduser()
    if not file.is_file() or suffix(file) not in SUFFIXES:
        return False
    first = next(iter(records(file)), None)
    return first is not None and "label" in first[1]


def read_labelled(source: str) -> list[Query]:
    """The queries of a file of labelled pairs. Raises DataError with file and line."""
    found: dict[str, dict[str, bool]] = {}
    for place, record in records(Path(source).expanduser()):
        labels = found.setdefault(text_in(record, ("query",), place), {})
        text, label = text_in(record, ("text", "document", "passage"), place), _label(record, place)
        if labels.setdefault(text, label) != label:
            raise DataError(f"{place}: this pair has the label {int(label)} here and another above")
    return [
        Query(name=f"{source}: {query}", text=query, texts=tuple(labels), labels=tuple(labels.values()))
        for query, labels in found.items()
    ]


def _label(record: Mapping[str, Any], place: Place) -> bool:
    label = record.get("label")
    if not isinstance(label, int) or label not in LABELS:
        raise DataError(f'{place}: "label" is {label!r}; 1 or true, 0 or false is needed')
    return LABELS[label]


def from_candidates(dataset: Dataset, run: Run) -> Iterable[Query]:
    """The candidates of each query; those without a judgement count as not relevant."""
    for query, candidates in run.items():
        grades = dataset.qrels[query]
        yield Query(
            name=f"{dataset.name}: {query}",
            text=dataset.queries[query],
            texts=tuple(dataset.documents[name] for name in candidates),
            labels=tuple(grades.get(name, 0) > 0 for name in candidates),
        )
