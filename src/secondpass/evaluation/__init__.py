"""Evaluation: does a reranker help, on which data, and at what cost?

>>> from secondpass import Reranker
>>> from secondpass.evaluation import evaluate, load_dataset
>>> result = evaluate(Reranker(), load_dataset("path/to/beir/scifact"), depths=[20, 100])
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from secondpass._lazy import lazy_names

_HOME = {
    "Dataset": "datasets.dataset",
    "Evaluation": "evaluation",
    "Report": "report",
    "bm25_run": "first_stage",
    "compare": "report",
    "evaluate": "evaluation",
    "fit_calibration": "calibrate",
    "load_dataset": "datasets.load",
    "read_run": "datasets.trec",
    "vector_run": "first_stage",
}
__all__ = [
    "Dataset",
    "Evaluation",
    "Report",
    "bm25_run",
    "compare",
    "evaluate",
    "fit_calibration",
    "load_dataset",
    "read_run",
    "vector_run",
]

if TYPE_CHECKING:
    from secondpass.evaluation.calibrate import fit_calibration
    from secondpass.evaluation.datasets.dataset import Dataset
    from secondpass.evaluation.datasets.load import load_dataset
    from secondpass.evaluation.datasets.trec import read_run
    from secondpass.evaluation.evaluation import Evaluation, evaluate
    from secondpass.evaluation.first_stage import bm25_run, vector_run
    from secondpass.evaluation.report import Report, compare

__getattr__ = lazy_names(__name__, _HOME)


def __dir__() -> list[str]:
    return list(__all__)
