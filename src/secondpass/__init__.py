"""secondpass: the second pass of retrieval.

>>> from secondpass import Reranker
>>> Reranker().rank("question", ["candidate", "another"], top_n=1)[0].document.text

Names are imported on first use, so that `import secondpass` is quick and never imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Calibration": "calibration",
    "Cascade": "cascade",
    "ColBERT": "colbert",
    "Document": "types",
    "Embedder": "embedder",
    "Hit": "types",
    "Ranking": "types",
    "RemoteReranker": "remote",
    "Reranker": "reranker",
    "Scorer": "types",
    "SecondpassError": "errors",
    "TokenVectors": "colbert",
}
__all__ = [
    "Calibration",
    "Cascade",
    "ColBERT",
    "Document",
    "Embedder",
    "Hit",
    "Ranking",
    "RemoteReranker",
    "Reranker",
    "Scorer",
    "SecondpassError",
    "TokenVectors",
]

if TYPE_CHECKING:
    from secondpass.calibration import Calibration
    from secondpass.cascade import Cascade
    from secondpass.colbert import ColBERT, TokenVectors
    from secondpass.embedder import Embedder
    from secondpass.errors import SecondpassError
    from secondpass.remote import RemoteReranker
    from secondpass.reranker import Reranker
    from secondpass.types import Document, Hit, Ranking, Scorer


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'secondpass' has no attribute {name!r}")
    return getattr(import_module(f"secondpass.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
