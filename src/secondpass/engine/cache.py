"""Scores kept on disk, so that an evaluation that runs again, or was interrupted, computes only what is new.

What a model says of a row depends on the model, its precision and the row's token ids, and the ids hold the query,
the passage, the prompt and how they were cut. All of these make the key.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secondpass.engine.engine import Engine, EngineFacts
from secondpass.errors import SecondpassError
from secondpass.packed import plan
from secondpass.types import Advance, Row, Run

logger = logging.getLogger(__name__)

_TABLE = "CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, logits BLOB NOT NULL) WITHOUT ROWID"
# Batches between two commits: what an interruption can lose.
BATCHES = 16
# Keys in one question; sqlite bounds the number of parameters.
CHUNK = 500


class ScoreCache:
    """An engine that looks scores up in a file before it computes them. Safe to use from several threads.

    identity names the model and its revision. Several processes may use one file. Raises SecondpassError for a file
    that is no such cache; a file that cannot be read or written any more costs a warning, never the scores.
    """

    def __init__(self, inner: Engine, file: Path, identity: str) -> None:
        self._inner = inner
        self._identity = identity
        self._lock = threading.Lock()
        self._file = file
        self._is_writable = self._is_readable = True
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._store = sqlite3.connect(file, timeout=30, check_same_thread=False)
            weakref.finalize(self, self._store.close)
            self._store.execute("PRAGMA journal_mode=WAL")
            self._store.execute(_TABLE)
            self._store.execute("SELECT key, logits FROM scores LIMIT 1").fetchall()
        except (OSError, sqlite3.Error) as error:
            raise SecondpassError(
                f"{file}: not usable as a cache of scores ({error}); delete it or name another"
            ) from error

    @property
    def facts(self) -> EngineFacts:
        return self._inner.facts

    def check(self, run: Run) -> None:
        if run.early_exit is not None:
            raise ValueError("early_exit: where a candidate leaves depends on the others; open without a score_cache")
        self._inner.check(run)

    def run(self, rows: Sequence[Row], run: Run, progress: Advance | None = None) -> NDArray[np.float32]:
        """Logits (N, outputs): the known ones from the file, the others computed and written as they come."""
        self.check(run)
        if not rows:
            return self._inner.run(rows, run)
        keys = self._keys(rows, run)
        found = self._read(keys)
        missing = [position for position, key in enumerate(keys) if key not in found]
        if progress is not None and len(missing) < len(rows):
            progress(len(rows) - len(missing), 0.0)
        lengths = [len(rows[position]) for position in missing]
        for batch in plan(lengths, token_budget=BATCHES * self.facts.token_budget):
            positions = [missing[index] for index in batch]
            scores = self._inner.run([rows[position] for position in positions], run, progress)
            new = {keys[position]: scores[index] for index, position in enumerate(positions)}
            self._write(new)
            found |= new
        return np.stack([found[key] for key in keys])

    def _keys(self, rows: Sequence[Row], run: Run) -> list[bytes]:
        facts = self.facts
        said = repr((self._identity, facts.name, facts.dtype, run))
        begun = hashlib.blake2b(said.encode(), digest_size=24)
        keys = []
        for row in rows:
            whole = begun.copy()
            whole.update(np.array([*row.passage, *row.ids], np.int64).tobytes())
            keys.append(whole.digest())
        return keys

    def _read(self, keys: Sequence[bytes]) -> dict[bytes, NDArray[np.float32]]:
        found: dict[bytes, NDArray[np.float32]] = {}
        if not self._is_readable:
            return found
        try:
            with self._lock:
                for start in range(0, len(keys), CHUNK):
                    some = keys[start : start + CHUNK]
                    question = f"SELECT key, logits FROM scores WHERE key IN ({','.join('?' * len(some))})"
                    for key, logits in self._store.execute(question, some):
                        found[key] = np.frombuffer(logits, np.float32)
        except (sqlite3.Error, ValueError) as error:  # a damaged file, or one that was deleted
            self._is_readable = self._is_writable = False
            logger.warning("%s: kept scores are no longer used, since reading failed: %s", self._file, error)
            return {}
        return found

    def _write(self, new: dict[bytes, NDArray[np.float32]]) -> None:
        if not self._is_writable:
            return
        items = [(key, logits.astype(np.float32).tobytes()) for key, logits in new.items()]
        try:
            with self._lock, self._store:
                self._store.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?)", items)
        except sqlite3.Error as error:
            self._is_writable = False
            logger.warning("%s: scores are no longer kept, since writing failed: %s", self._file, error)
