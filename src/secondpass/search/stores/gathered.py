"""What a retriever searches: parts of all its readings end to end, in memory, from a copy beside the store."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from secondpass.search.stores.vectors import whole_copy

GROWN = 4  # times as many parts as it was learnt from: it is learnt anew
Parts = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Gathered:
    """The parts (T, ...) of N readings end to end; lengths (N,), each 1 or more, cut them.

    ids (N,) of the readings, ascending; learnt is what the parts refer to, if anything, made when there were about
    `learnt_of` parts.
    """

    ids: NDArray[np.int64]
    lengths: NDArray[np.int64]
    parts: Parts
    learnt: Parts
    learnt_of: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def is_outgrown(self) -> bool:
        """Whether what was learnt was made of much fewer parts."""
        return bool(self.learnt) and int(self.lengths.sum()) > GROWN * self.learnt_of

    @property
    def starts(self) -> NDArray[np.int64]:
        """Where each reading's parts begin (N,)."""
        starts: NDArray[np.int64] = np.cumsum(self.lengths) - self.lengths
        return starts

    def only(self, ids: NDArray[np.int64]) -> Gathered:
        """Without the readings that are not among `ids`."""
        is_kept = np.isin(self.ids, ids)
        if is_kept.all():
            return self
        stay = np.repeat(is_kept, self.lengths)
        return replace(
            self,
            ids=self.ids[is_kept],
            lengths=self.lengths[is_kept],
            parts={name: part[stay] for name, part in self.parts.items()},
        )

    def with_more(
        self, ids: NDArray[np.int64], lengths: Sequence[NDArray[np.int64]], parts: Sequence[Parts]
    ) -> Gathered:
        """With newer readings, whose lengths and parts come in blocks."""
        return replace(
            self,
            ids=np.concatenate([self.ids, ids]),
            lengths=np.concatenate([self.lengths, *lengths]),
            parts={name: np.concatenate([part, *(p[name] for p in parts)]) for name, part in self.parts.items()},
        )

    def of(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of the readings at `indices` the indices (T,) of their parts, and where each begins among those."""
        lengths = self.lengths[indices]
        begins: NDArray[np.int64] = np.cumsum(lengths) - lengths
        return np.arange(int(lengths.sum())) + np.repeat(self.starts[indices] - begins, lengths), begins

    def save(self, file: Path, mark: str) -> None:
        """Write a copy, whole or not at all, readable by its owner alone; mark says what made the readings."""
        facts = np.frombuffer(json.dumps({"mark": mark, "learnt_of": self.learnt_of}).encode(), np.uint8)
        named: dict[str, Any] = {f"part-{name}": part for name, part in self.parts.items()}
        named |= {f"learnt-{name}": part for name, part in self.learnt.items()}
        with whole_copy(file) as part:
            np.savez(part, facts=facts, ids=self.ids, lengths=self.lengths, **named)

    @classmethod
    def load(cls, file: Path, mark: str) -> Gathered | None:
        """The copy; None where there is none of this mark, or a damaged one."""
        try:
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as kept:
                facts = json.loads(kept["facts"].tobytes())
                if facts["mark"] != mark:
                    return None
                named = {name: kept[name] for name in kept.files}
            found = cls(
                ids=named.pop("ids"),
                lengths=named.pop("lengths"),
                parts={name.removeprefix("part-"): part for name, part in named.items() if name.startswith("part-")},
                learnt={name.removeprefix("learnt-"): p for name, p in named.items() if name.startswith("learnt-")},
                learnt_of=int(facts["learnt_of"]),
            )
        except (OSError, ValueError, KeyError, EOFError, RuntimeError, BadZipFile, zlib.error):
            return None  # RuntimeError: an archive that is encrypted, or of a later version
        total = int(found.lengths.sum())
        is_whole = len(found.ids) == len(found.lengths) and all(len(part) == total for part in found.parts.values())
        return found if is_whole else None
