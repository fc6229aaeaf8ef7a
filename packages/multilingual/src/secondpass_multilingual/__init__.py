"""The multilingual model of secondpass, as a folder: `Reranker("multilingual")` finds it where this is installed."""

from pathlib import Path

MODEL = Path(__file__).parent / "model"
