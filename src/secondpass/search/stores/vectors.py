"""Vectors as int8, searched exactly: a scan of all of them, from memory or from a mapped file.

100,000 vectors of 384 take 38 MB and 10 ms of one core, as long as float32 does at four times the size. What the scan
finds is scored again with the stored float16 vectors, so that quantisation changes no result (recall 1.000).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

import numpy as np
from numpy.typing import NDArray

BLOCK = 256  # rows that become float32 at a time: they stay in the cache
THREADED = 40_000  # rows from which a second thread pays
_ALIGNED = 64


@dataclass(frozen=True, slots=True)
class Codes:
    """N vectors: their chunks' ids (N,) ascending, codes (N, C) and the scale (N,) of each row."""

    ids: NDArray[np.int64]
    codes: NDArray[np.int8]
    scales: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, ids: NDArray[np.int64], vectors: NDArray[np.float16]) -> Codes:
        """Codes of vectors (N, C), a block at a time so that memory stays small."""
        codes = np.empty(vectors.shape, np.int8)
        scales = np.empty(len(vectors), np.float32)
        for start in range(0, len(vectors), 4096):
            block = vectors[start : start + 4096].astype(np.float32)
            scale = np.abs(block).max(axis=1, initial=0) / 127
            scales[start : start + 4096] = scale
            codes[start : start + 4096] = np.rint(block / np.where(scale > 0, scale, 1)[:, None])
        return cls(ids, codes, scales)

    def first(self, count: int) -> Codes:
        return Codes(self.ids[:count], self.codes[:count], self.scales[:count])

    def copy_to(self, other: Codes, is_kept: NDArray[np.bool_]) -> None:
        """Put some of these rows where the other's first are."""
        count = int(is_kept.sum())
        for ours, theirs in ((self.ids, other.ids), (self.codes, other.codes), (self.scales, other.scales)):
            np.compress(is_kept, ours, axis=0, out=theirs[:count])

    def fill(self, start: int, rows: Codes) -> None:
        """Put rows in place of those from `start` on."""
        for ours, theirs in ((self.ids, rows.ids), (self.codes, rows.codes), (self.scales, rows.scales)):
            ours[start : start + len(rows)] = theirs

    def nearest(
        self, vector: NDArray[np.float32], limit: int, allowed: NDArray[np.int64] | None
    ) -> NDArray[np.int64]:
        """Ids of about the nearest `limit` chunks, in no order; allowed names the ones that may be found."""
        if not len(self):
            return self.ids
        scores = self._scores(vector)
        if allowed is not None:
            scores[~np.isin(self.ids, allowed)] = -np.inf
        return self.ids[greatest(scores, limit)]

    def _scores(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        found = np.empty(len(self), np.float32)
        if len(self) < THREADED:
            self._scan(vector, found, range(0, len(self), BLOCK))
        else:
            starts = range(0, len(self), BLOCK)
            halves = (starts[: len(starts) // 2], starts[len(starts) // 2 :])
            with ThreadPoolExecutor(2, "secondpass-vectors") as pool:
                list(pool.map(lambda half: self._scan(vector, found, half), halves))
        found *= self.scales
        return found

    def _scan(self, vector: NDArray[np.float32], found: NDArray[np.float32], starts: range) -> None:
        block = np.empty((BLOCK, self.codes.shape[1]), np.float32)
        for start in starts:
            rows = self.codes[start : start + BLOCK]
            np.copyto(block[: len(rows)], rows)
            np.matmul(block[: len(rows)], vector, out=found[start : start + len(rows)])


def greatest(scores: NDArray[np.float32], limit: int) -> NDArray[np.int64]:
    """Indices of the greatest `limit` of scores (N,), in no order, without those of -inf."""
    limit = min(limit, len(scores))
    best: NDArray[np.int64] = np.argpartition(-scores, limit - 1)[:limit]
    return best[scores[best] > -np.inf]


@dataclass(frozen=True, slots=True)
class Version:
    """Of which content codes are: generation counts changes of chunks, epoch those of old chunks' vectors."""

    generation: int
    epoch: int


def save(file: Path, codes: Codes, state: Version) -> None:
    """Write the codes into a file of their own, whole or not at all. It is a copy: nothing is lost without it."""
    facts = {"generation": state.generation, "epoch": state.epoch, "rows": len(codes), "width": codes.codes.shape[1]}
    head = json.dumps(facts).encode()
    head += b" " * (-(len(head) + 1) % _ALIGNED) + b"\n"
    with whole_copy(file) as part:
        part.write(head)
        for array in (codes.ids, codes.scales, codes.codes):
            part.write(np.ascontiguousarray(array).data)


@contextmanager
def whole_copy(file: Path) -> Iterator[IO[bytes]]:
    """A stream into a file that appears whole or not at all, readable by its owner alone; not sure to be on disk.

    Where it cannot be written the one before goes: that may hold what was forgotten meanwhile.
    """
    try:
        with NamedTemporaryFile(dir=file.parent, prefix=file.name, suffix=".part", delete=False) as part:
            try:
                yield part
                part.close()
                os.replace(part.name, file)
            except BaseException:
                discard(Path(part.name))
                raise
    except BaseException:
        discard(file)
        raise


def discard(file: Path) -> None:
    """Delete a copy, if it is there; a folder of that name is none."""
    with suppress(OSError):
        file.unlink()


def load(file: Path) -> tuple[Codes, Version] | None:
    """The codes, mapped, and what they are of; None where there is no such file, or a damaged one."""
    try:
        with file.open("rb") as stream:
            head = stream.readline(1024)
        facts = json.loads(head)
        rows, width = int(facts["rows"]), int(facts["width"])
        if file.stat().st_size != len(head) + rows * (12 + width):
            return None
        return _mapped(file, len(head), rows, width), Version(int(facts["generation"]), int(facts["epoch"]))
    except (OSError, ValueError, KeyError):
        return None


def _mapped(file: Path, start: int, rows: int, width: int) -> Codes:
    if not rows:
        return empty(width)
    ids = np.memmap(file, np.int64, "r", start, (rows,))
    scales = np.memmap(file, np.float32, "r", start + 8 * rows, (rows,))
    return Codes(ids, np.memmap(file, np.int8, "r", start + 12 * rows, (rows, width)), scales)


def empty(width: int = 0) -> Codes:
    return room(0, width)


def room(count: int, width: int) -> Codes:
    """For `count` vectors, to be filled: parts that are put together later would take twice the memory."""
    return Codes(np.empty(count, np.int64), np.empty((count, width), np.int8), np.empty(count, np.float32))


def rescored(vector: NDArray[np.float32], rows: list[tuple[int, bytes]], limit: int) -> list[tuple[int, float]]:
    """(id, cosine) of stored float16 vectors, best first."""
    if not rows:
        return []
    matrix = np.frombuffer(b"".join(row for _, row in rows), np.float16).reshape(len(rows), -1)
    scores = matrix.astype(np.float32) @ vector
    order = np.lexsort((np.array([id for id, _ in rows]), -scores))[:limit]
    return [(rows[at][0], float(scores[at])) for at in order]
