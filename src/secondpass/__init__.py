"""secondpass: the second pass of retrieval.

>>> from secondpass import Reranker
>>> Reranker().rank("question", ["candidate", "another"], top_n=1)[0].document.text

Names are imported on first use, so that `import secondpass` is quick and never imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from secondpass._lazy import lazy_names

__version__ = "0.1.0"

_HOME = {
    "Calibration": "calibration",
    "Cascade": "cascade",
    "ColBERT": "colbert.colbert",
    "Document": "types",
    "EarlyExit": "types",
    "Embedder": "embedder",
    "Hit": "types",
    "Index": "search.index",
    "Memory": "search.memory",
    "Ranking": "types",
    "RemoteReranker": "remote",
    "Reranker": "reranker",
    "Scorer": "types",
    "SecondpassError": "errors",
    "TokenVectors": "colbert.colbert",
    "exit_bounds": "scoring.early_exit",
}
__all__ = [
    "Calibration",
    "Cascade",
    "ColBERT",
    "Document",
    "EarlyExit",
    "Embedder",
    "Hit",
    "Index",
    "Memory",
    "Ranking",
    "RemoteReranker",
    "Reranker",
    "Scorer",
    "SecondpassError",
    "TokenVectors",
    "exit_bounds",
]

if TYPE_CHECKING:
    from secondpass.calibration import Calibration
    from secondpass.cascade import Cascade
    from secondpass.colbert.colbert import ColBERT, TokenVectors
    from secondpass.embedder import Embedder
    from secondpass.errors import SecondpassError
    from secondpass.remote import RemoteReranker
    from secondpass.reranker import Reranker
    from secondpass.scoring.early_exit import exit_bounds
    from secondpass.search.index import Index
    from secondpass.search.memory import Memory
    from secondpass.types import Document, EarlyExit, Hit, Ranking, Scorer

__getattr__ = lazy_names(__name__, _HOME)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
