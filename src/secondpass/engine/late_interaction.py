"""A model that reads query and passage apart, on the openvino engine: each different text is read once.

A query is computed once for all its candidates, and a passage once for all queries, as long as its token states are
kept; what joins two texts is cheap (PreTTR, MacAvaney et al. 2020; ColBERT, Khattab and Zaharia 2020). The figures
are those of `models.late_interaction` and `models.word_match`, here without torch.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secondpass.checkpoint.checkpoint import Checkpoint
from secondpass.checkpoint.graph import STATES, import_openvino, read_constants
from secondpass.engine.compiled import processor_features
from secondpass.engine.engine import EngineFacts, Vectors
from secondpass.engine.openvino import OpenVinoEngine
from secondpass.errors import CheckpointError, EngineError
from secondpass.public import opened_once
from secondpass.types import Advance, Row, Run

CACHE_BYTES = 48 << 20  # some 340 passages of 180 tokens
UNDIVIDED, MIN_ROWS = 1 << 18, 8  # multiplications, and rows below which blocks would be too many
TINY = np.float32(1e-6)
WEIGHTS = ("head.scale", "head.bias", "word_match.scale", "word_match.weights")


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadText:
    """ids (L,), their unit states (L, C), how much each tells (L,), and the unit mean (C,) of the plain states."""

    ids: NDArray[np.int64]
    units: NDArray[Any]
    told: Vectors
    pooled: Vectors

    @cached_property
    def num_bytes(self) -> int:
        return self.ids.nbytes + self.units.nbytes + self.told.nbytes + self.pooled.nbytes

    def to_bytes(self) -> bytes:
        """All but what follows from the ids."""
        head = np.array([len(self.ids), len(self.pooled), *self.ids], np.int32)
        return head.tobytes() + self.pooled.tobytes() + self.units.tobytes()


class PassageCache:
    """Texts that were read, by their ids, the least lately used ones forgotten. Safe to use from several threads."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._lock = threading.Lock()
        self._texts: OrderedDict[bytes, ReadText] = OrderedDict()

    def __len__(self) -> int:
        return len(self._texts)

    def get(self, key: bytes) -> ReadText | None:
        with self._lock:
            if key in self._texts:
                self._texts.move_to_end(key)
            return self._texts.get(key)

    def put(self, key: bytes, text: ReadText) -> None:
        """A text that is larger than the cache is not kept."""
        if text.num_bytes > self.max_bytes:
            return
        with self._lock:
            if key not in self._texts:
                self._texts[key] = text
                self.num_bytes += text.num_bytes
            while self.num_bytes > self.max_bytes:
                self.num_bytes -= self._texts.popitem(last=False)[1].num_bytes


@dataclass(frozen=True, kw_only=True, eq=False)
class Joining:
    """What joins a query and a passage: how much each word piece tells (V,), scale (5,) of the figures, and bias.

    k1, b and mean_length are word matching's; num_lead tokens before the passage are read with it.
    """

    weights: Vectors
    scale: Vectors
    bias: float
    num_lead: int
    k1: float
    b: float
    mean_length: float

    @classmethod
    def read(cls, graph: Path, config: Mapping[str, Any]) -> Joining:
        """Raises CheckpointError for a graph or config.json without what is needed."""
        found = {name: values for name, values in read_constants(graph, WEIGHTS)}
        try:
            head, shares = found["head.scale"], found["word_match.scale"]
            return cls(
                weights=found["word_match.weights"],
                scale=np.concatenate([head, shares]),
                bias=float(found["head.bias"][0]),
                num_lead=int(config["late_interaction"]["num_lead"]),
                **{name: float(config["word_match"][name]) for name in ("k1", "b", "mean_length")},
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise CheckpointError(
                f"{graph}: the head of a model that reads query and passage apart is not whole ({error!r}); "
                "export it again"
            ) from error

    def score(self, query: ReadText, passage: ReadText) -> float:
        """The cosine, MaxSim twice and both shares of matched words, weighed."""
        figures = [float(query.pooled @ passage.pooled), *self._maxsim(query, passage)]
        return float(np.dot([*figures, *self._shares(query, passage)], self.scale)) + self.bias

    def _maxsim(self, query: ReadText, passage: ReadText) -> tuple[float, float]:
        """Means over the query's pieces of the best cosine with a piece of the passage, plain and by weight."""
        pieces = query.told > 0
        said = passage.units[passage.told > 0].astype(np.float32, copy=False)
        if not pieces.any() or not len(said):
            return 0.0, 0.0
        best = _best(query.units[pieces].astype(np.float32, copy=False), said)
        told = query.told[pieces]
        return float(best.mean()), float(best @ told / max(told.sum(), TINY))

    def _shares(self, query: ReadText, passage: ReadText) -> tuple[float, float]:
        """The query's weight in the passage, by pieces and by pairs of neighbours, saturated as in BM25."""
        said = passage.ids[self.num_lead :]
        equal = query.ids[:, None] == said[None, :]
        norm = self.k1 * (1 - self.b + self.b / self.mean_length * len(said))
        pairs = np.minimum(query.told[:-1], query.told[1:])
        found = ((query.told, equal.sum(1)), (pairs, (equal[:-1, :-1] & equal[1:, 1:]).sum(1)))
        first, second = (float((w * n / (n + norm)).sum() / max(w.sum(), TINY)) for w, n in found)
        return first, second

    def text(self, ids: Sequence[int], states: Vectors, dtype: type[np.floating[Any]]) -> ReadText:
        """A text with its states (L, C), kept in `dtype`."""
        pieces = np.array(ids, np.int64)
        units = states / np.sqrt(np.maximum((states**2).sum(1, keepdims=True), TINY))
        pooled = states.mean(0)
        pooled /= max(np.linalg.norm(pooled), TINY)
        return ReadText(ids=pieces, units=units.astype(dtype), told=self.weights[pieces], pooled=pooled)

    def from_bytes(self, data: bytes, dtype: type[np.floating[Any]]) -> ReadText:
        """What `ReadText.to_bytes` wrote, with units of `dtype`. Raises ValueError for what is not whole."""
        length, width = np.frombuffer(data, np.int32, 2).tolist()
        start = 4 * (2 + length)
        if min(length, width) < 0 or len(data) != start + width * (4 + length * np.dtype(dtype).itemsize):
            raise ValueError(f"{len(data)} bytes are not the states of {length} tokens")
        pieces = np.frombuffer(data, np.int32, length, offset=8).astype(np.int64)
        pooled = np.frombuffer(data, np.float32, width, offset=start)
        units = np.frombuffer(data, dtype, offset=start + pooled.nbytes).reshape(length, width)
        return ReadText(ids=pieces, units=units, told=self.weights[pieces], pooled=pooled)


def _best(pieces: Vectors, said: Vectors) -> Vectors:
    """The best cosine of each row of pieces (Q, C) with one of said (P, C).

    OpenBLAS gives a larger product than this to several threads, whose waiting for one another takes longer than it.
    """
    rows = UNDIVIDED // pieces.size
    rows = len(said) if rows < MIN_ROWS else rows
    parts = [(pieces @ said[start : start + rows].T).max(1) for start in range(0, len(said), rows)]
    best: Vectors = np.max(parts, axis=0)
    return best


class LateInteractionEngine(OpenVinoEngine):
    """A graph that gives token states, and what joins them; cache_bytes bounds what is kept of passages."""

    output = STATES

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str = "auto",
        dtype: str = "auto",
        token_budget: int | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        super().__init__(checkpoint, device=device, dtype=dtype, token_budget=token_budget)
        graph = checkpoint.graph()
        assert graph is not None
        self._graph = graph
        self._joining = Joining.read(graph, checkpoint.config)
        self._dtype = np.float32 if self.facts.dtype == "float32" else np.float16
        self.cache = PassageCache(CACHE_BYTES if cache_bytes is None else cache_bytes)
        self.facts: EngineFacts = replace(self.facts, keeps_passages=self.cache.max_bytes > 0)

    @opened_once
    def states_mark(self) -> str:
        """What the bits of states depend on: weights, precision, the release of OpenVINO and the processor."""
        files = (self._graph, self._graph.with_suffix(".bin"))
        weights = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
        made = (weights, self.facts.dtype, import_openvino().__version__, processor_features())
        return hashlib.sha256(repr(made).encode()).hexdigest()[:16]

    def states(self, rows: Sequence[Row]) -> list[bytes]:
        """What is read of each row's passage, to be kept elsewhere and given back to `keep`."""
        keys = [self._halves(row)[1] for row in rows]
        found: dict[bytes, bytes] = {}
        different = sorted(set(keys))

        def note(index: int, text: ReadText) -> int:
            found[different[index]] = text.to_bytes()
            return 0

        self._read(different, note)
        return [found[key] for key in keys]

    def keep(self, states: Iterable[bytes]) -> None:
        """Keep what `states` said, as if it was read just now; what is damaged is left out, so read again."""
        for data in states:
            with suppress(ValueError, IndexError):
                text = self._joining.from_bytes(data, self._dtype)
                self.cache.put(text.ids.tobytes(), text)

    def run(self, rows: Sequence[Row], run: Run, progress: Advance | None = None) -> NDArray[np.float32]:
        """Passages that are not kept are read beside the queries; a row of the others is done without computing."""
        self.check(run)
        halves = [self._halves(row) for row in rows]
        asked = sorted({query for query, _ in halves})
        queries: dict[bytes, ReadText] = {}
        scores = np.empty((len(rows), 1), np.float32)
        asking: dict[bytes, list[int]] = {}
        for index, (_, passage) in enumerate(halves):
            asking.setdefault(passage, []).append(index)

        def join(key: bytes, text: ReadText) -> int:
            for index in asking[key]:
                scores[index] = self._joining.score(queries[halves[index][0]], text)
            return len(asking[key])

        kept = {key: text for key in asking if (text := self.cache.get(key)) is not None}
        missing = [key for key in asking if key not in kept]

        def use(index: int, text: ReadText) -> int:
            if index >= len(asked):
                self.cache.put(missing[index - len(asked)], text)
                return join(missing[index - len(asked)], text)
            queries[asked[index]] = text
            if kept and len(queries) == len(asked):
                num_kept = sum(join(key, each) for key, each in kept.items())
                if progress is not None:
                    progress(num_kept, 0.0)
            return 0

        self._read([*asked, *missing], use, progress, num_first=len(asked))
        if not np.isfinite(scores).all():
            raise EngineError(f"{int((~np.isfinite(scores)).sum())} of {len(rows)} scores are not finite")
        return scores

    def _halves(self, row: Row) -> tuple[bytes, bytes]:
        """The ids of query and passage, each a text for itself."""
        split = row.passage[0] - self._joining.num_lead
        return tuple(np.array(ids, np.int64).tobytes() for ids in (row.ids[:split], row.ids[split:]))  # type: ignore[return-value]

    def _read(
        self,
        keys: Sequence[bytes],
        use: Callable[[int, ReadText], int],
        progress: Advance | None = None,
        *,
        num_first: int = 0,
    ) -> None:
        """Texts by their ids, each given to `use` by its index, which says how many rows are done with it.

        The first `num_first` come before the others.
        """
        ids = [np.frombuffer(key, np.int64).tolist() for key in keys]
        done = 0

        def advance(_: int, seconds: float) -> None:
            nonlocal done
            if progress is not None:
                progress(done, seconds)
            done = 0

        rows = [Row(each, (len(each), len(each))) for each in ids]
        for batch, states in self._requests.run(rows, self.facts.token_budget, advance, num_first=num_first):
            for index, text in zip(batch, states, strict=True):
                read = self._joining.text(ids[index], text[: len(ids[index])], self._dtype)
                done += use(index, read)
