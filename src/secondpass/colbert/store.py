"""Token vectors of documents: computed once, saved in a folder, memory-mapped when they are loaded.

A folder holds vectors.npy (T, D), lengths.npy (N,), documents.jsonl and vectors.json, which says what made them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secondpass.atomic import whole_folder
from secondpass.errors import CheckpointError
from secondpass.json_file import read_json
from secondpass.types import Document

FORMAT = 1
DTYPES = ("float32", "float16")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What made the vectors. fingerprint tells weights apart wherever they lie; settings change the vectors."""

    model: str
    revision: str | None
    fingerprint: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenVectors:
    """Unit vectors (T, D) of all documents' tokens end to end, the number (N,) that each document has, and the
    documents themselves."""

    vectors: NDArray[Any]
    lengths: NDArray[np.int64]
    documents: tuple[Document, ...]
    origin: Origin

    def __post_init__(self) -> None:
        tokens = int(self.lengths.sum())
        if self.vectors.ndim != 2 or len(self.vectors) != tokens or len(self.lengths) != len(self.documents):
            raise ValueError(
                f"vectors are {self.vectors.shape}, lengths sum to {tokens} over {len(self.lengths)} documents, "
                f"and there are {len(self.documents)} documents; these must fit"
            )

    def __len__(self) -> int:
        return len(self.documents)

    def __repr__(self) -> str:
        """Without the documents, which a notebook would show all of."""
        return f"<TokenVectors of {len(self):,} documents: {self.vectors.shape} {self.vectors.dtype}, {self.origin}>"

    def take(self, indices: Sequence[int]) -> TokenVectors:
        """The documents at `indices`, in that order: what a first stage found of a whole collection."""
        wanted = np.asarray(indices, np.int64).reshape(-1)
        if len(wanted) and not (0 <= wanted.min() and wanted.max() < len(self)):
            raise IndexError(f"indices reach from {wanted.min()} to {wanted.max()}; there are {len(self)} documents")
        stops = np.cumsum(self.lengths)
        parts = [self.vectors[stops[i] - self.lengths[i] : stops[i]] for i in wanted]
        return TokenVectors(
            vectors=np.concatenate(parts) if parts else self.vectors[:0],
            lengths=self.lengths[wanted],
            documents=tuple(self.documents[i] for i in wanted),
            origin=self.origin,
        )

    def save(self, folder: str | Path, *, dtype: str = "float32") -> None:
        """Write a folder, whole or not at all; vectors saved there before are replaced.

        dtype "float16" halves the size and moves scores by about 1e-3. Raises FileExistsError for a folder that
        holds anything else, ValueError for fields of documents that JSON cannot hold.
        """
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}; give {' or '.join(map(repr, DTYPES))}")
        folder = Path(folder)
        if folder.exists() and not (folder / "vectors.json").is_file():
            raise FileExistsError(f"{folder}: is there and holds no vectors; give another folder")
        lines = [_as_line(document, index) for index, document in enumerate(self.documents)]
        with whole_folder(folder) as partial:  # what others have mapped of the old one stays readable to them
            np.save(partial / "vectors.npy", self.vectors.astype(dtype, copy=False))
            np.save(partial / "lengths.npy", self.lengths)
            (partial / "documents.jsonl").write_text("".join(lines), "utf-8")
            (partial / "vectors.json").write_text(json.dumps({"format": FORMAT, **asdict(self.origin)}), "utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> TokenVectors:
        """The saved vectors, mapped from disk: only what is scored is read. Raises CheckpointError for damage."""
        folder = Path(folder)
        note = read_json(folder / "vectors.json")
        if note.pop("format", None) != FORMAT:
            raise CheckpointError(f"{folder}: vectors of another version; encode the documents again")
        try:
            with (folder / "documents.jsonl").open(encoding="utf-8") as lines:
                documents = tuple(_from_line(line) for line in lines)
            return cls(
                vectors=np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False),
                lengths=np.load(folder / "lengths.npy", allow_pickle=False),
                documents=documents,
                origin=Origin(**note),
            )
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{folder}: not whole ({error}); encode the documents again") from error


def _as_line(document: Document, index: int) -> str:
    """A line of JSON. A document's text is not always its field "text", so both are kept."""
    try:
        return json.dumps({"text": document.text, "fields": dict(document.fields)}) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"documents[{index}] has fields that cannot be saved as JSON: {error}") from error


def _from_line(line: str) -> Document:
    content = json.loads(line)
    return Document(content["text"], content["fields"])
