"""A file of pairs to scores, a block of rows at a time: what was finished is kept, whatever ends the process.

A job is a folder. score.json says what is scored with what, part-00000.jsonl and on hold the rows of each block with
their scores, errors/part-00000.jsonl the rows that could not be scored, with the reason. A block is written whole or
not at all, so that a row is there once, in the one or the other, however often workers die, and a job that is called
again scores only the blocks that are missing. `ScoreBlock` and `ScoreBatch` know no engine for distribution, so that
every one can call them.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secondpass.atomic import whole_file, write_text
from secondpass.checkpoint.checkpoint import MULTILINGUAL, has_multilingual, open_checkpoint
from secondpass.data.files import files_below, kind_of, records
from secondpass.data.pairs import PASSAGES
from secondpass.errors import DataError, EngineError
from secondpass.public import one_at_a_time, opened_once
from secondpass.reranker import Reranker
from secondpass.scoring.open import ModelOptions, is_auto

FACTS, ERRORS, ROWS = "score.json", "errors", ".rows.jsonl"
ROWS_PER_BLOCK = 2000


@dataclass(frozen=True, kw_only=True)
class Block:
    """Rows of a JSON Lines file, of `size` bytes from `offset` on; `first` is the number of the first, from 0."""

    index: int
    file: Path
    offset: int
    size: int
    first: int

    def lines(self) -> list[bytes]:
        with self.file.open("rb") as stream:
            stream.seek(self.offset)
            return stream.read(self.size).split(b"\n")


@dataclass(frozen=True, kw_only=True)
class BlockOutcome:
    """What a finished block holds."""

    block: int
    scored: int
    failed: int


@dataclass(kw_only=True)
class Job:
    """A folder of results, and what is still to be done for it."""

    folder: Path
    options: ModelOptions
    blocks: list[Block] = field(default_factory=list)

    def part(self, index: int) -> Path:
        return self.folder / f"part-{index:05d}.jsonl"

    def errors(self, index: int) -> Path:
        return self.folder / ERRORS / f"part-{index:05d}.jsonl"

    def missing(self) -> list[Block]:
        """Errors are written before the part, so a part that is there is all of its block."""
        return [block for block in self.blocks if not self.part(block.index).is_file()]

    def totals(self) -> tuple[int, int]:
        """(rows scored, rows in errors) of all finished blocks."""
        done = [block.index for block in self.blocks if self.part(block.index).is_file()]
        return sum(_count(self.part(index)) for index in done), sum(_count(self.errors(index)) for index in done)

    def close(self) -> None:
        (self.folder / ROWS).unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class FolderRows:
    """What rows an input that is a folder has: `read` gives them, and `choices` tells them from others."""

    read: Callable[[Path], Iterable[Mapping[str, Any]]]
    choices: Mapping[str, Any]


def open_job(
    inputs: Sequence[Path],
    folder: Path,
    options: ModelOptions,
    *,
    rows_per_block: int = ROWS_PER_BLOCK,
    folders: FolderRows | None = None,
) -> Job:
    """The job of a folder, new or to be gone on with.

    inputs: JSON Lines, or other files of records (gzipped, CSV, parquet) and folders, which are written out once as
    lines. Raises DataError where the folder holds another job or something else, or an input cannot be read.
    """
    if rows_per_block < 1:
        raise ValueError(f"rows_per_block is {rows_per_block}; give 1 or more")
    options = _settled(options)
    facts = {
        "inputs": [
            [str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns]
            for each in inputs
            for file in (files_below(each) if each.is_dir() else [each])
            if file.is_file() and not file.resolve().is_relative_to(folder.resolve())  # what the job writes there
        ],
        **({"folders": dict(folders.choices)} if folders is not None else {}),
        "weights": _identity(options),
        "options": {name: value for name, value in asdict(options).items() if name != "local_files_only"},
        "rows_per_block": rows_per_block,
    }
    _claim(folder, json.loads(json.dumps(facts)))
    (folder / ERRORS).mkdir(exist_ok=True)
    job = Job(folder=folder, options=options)
    are_lines = all(file.suffix in (".jsonl", ".ndjson") for file in inputs)
    for file in inputs if are_lines else [_as_lines(inputs, folder, folders)]:
        job.blocks += _blocks(file, rows_per_block, job.blocks)
    return job


def _settled(options: ModelOptions) -> ModelOptions:
    """What every worker is told: "auto" only where there is something to choose from."""
    return replace(options, model="default") if is_auto(options.model) and not has_multilingual() else options


def _opened(options: ModelOptions) -> Reranker:
    """Raises CheckpointError where "auto" would choose otherwise than where the work was dealt."""
    if is_auto(options.model):
        open_checkpoint(MULTILINGUAL)
    return Reranker(**vars(options))


def _identity(options: ModelOptions) -> str:
    """What tells the weights from any others."""
    checkpoint = open_checkpoint(options.model, revision=options.revision, local_files_only=options.local_files_only)
    return checkpoint.identity() + (open_checkpoint(MULTILINGUAL).identity() if is_auto(options.model) else "")


def _claim(folder: Path, facts: Mapping[str, Any]) -> None:
    """Make the folder this job's, or see that it is."""
    file = folder / FACTS
    if file.is_file():
        known = json.loads(file.read_text("utf-8"))
        changed = sorted(name for name in facts if known.get(name) != facts[name])
        if changed:
            raise DataError(
                f"{folder}: holds scores of another job ({', '.join(changed)} differ); name another folder"
            )
        return
    try:
        if folder.exists() and any(folder.iterdir()):
            raise DataError(f"{folder}: is not empty and holds no scores; name another folder")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror or error}; name another folder") from error
    write_text(file, json.dumps(facts, indent=2))


def _as_lines(inputs: Sequence[Path], folder: Path, folders: FolderRows | None) -> Path:
    """Rows of any kind of file as one file of JSON lines, so that a worker finds its rows by their bytes."""
    file = folder / ROWS
    if not file.is_file():
        with whole_file(file) as partial, partial.open("w", encoding="utf-8") as stream:
            for each in inputs:
                rows: Iterable[Mapping[str, Any]]
                if folders is not None and each.is_dir():
                    rows = folders.read(each)
                else:
                    rows = (row for _, row in records(each))
                stream.writelines(json.dumps(row, ensure_ascii=True) + "\n" for row in rows)
    return file


def _blocks(file: Path, rows: int, before: Sequence[Block]) -> Iterator[Block]:
    index, first = len(before), 0
    offset = size = count = 0
    with file.open("rb") as stream:
        for line in stream:
            size, count = size + len(line), count + 1
            if count == rows:
                yield Block(index=index, file=file, offset=offset, size=size, first=first)
                index, offset, first = index + 1, offset + size, first + count
                size = count = 0
    if count:
        yield Block(index=index, file=file, offset=offset, size=size, first=first)


@dataclass(frozen=True, kw_only=True)
class ScoreBlock:
    """Scores a block and writes what comes of it; the same block gives the same bytes wherever it is scored.

    Travels to other processes as its words; the model opens there, at the first block.
    """

    folder: Path
    options: ModelOptions

    @opened_once
    def reranker(self) -> Reranker:
        return _opened(self.options)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "options": self.options}

    def __call__(self, block: Block) -> BlockOutcome:
        job = Job(folder=self.folder, options=self.options)
        rows: list[tuple[dict[str, Any], str, str]] = []
        failures: list[dict[str, Any]] = []
        for number, line in enumerate(block.lines(), block.first):
            if not line.strip():
                continue
            try:
                rows.append(_row(line))
            except DataError as error:
                source = f"{block.file}:{number + 1}"
                failures.append({"source": source, "line": line.decode("utf-8", "replace"), "reason": str(error)})
        scores = self._scores([(query, passage) for _, query, passage in rows])
        written = []
        for (record, *_), score in zip(rows, scores, strict=True):
            if isinstance(score, EngineError):
                failures.append({"record": record, "reason": str(score)})
                continue
            probability = self.reranker.probability(score)
            written.append({**record, "score": score, "probability": probability})
        _write(job.errors(block.index), failures)
        _write(job.part(block.index), written)
        return BlockOutcome(block=block.index, scored=len(written), failed=len(failures))

    def _scores(self, pairs: Sequence[tuple[str, str]]) -> list[float | EngineError]:
        """Raw logits; where the engine fails, of halves, until the pair that it fails at is alone."""
        try:
            return list(self.reranker.score_pairs(pairs))
        except EngineError as error:
            if len(pairs) == 1:
                return [error]
            middle = len(pairs) // 2
            return self._scores(pairs[:middle]) + self._scores(pairs[middle:])


def _row(line: bytes) -> tuple[dict[str, Any], str, str]:
    """A row with its query and its passage. Raises DataError with what is wrong with it."""
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"not readable as JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"is {kind_of(record)}; an object with query and passage is needed")
    name = next((name for name in PASSAGES if name in record), None)
    if name is None or "query" not in record:
        raise DataError(f'has no "query" or no passage (one of {", ".join(PASSAGES)})')
    for each in ("query", name):
        if not isinstance(record[each], str):
            raise DataError(f'"{each}" is {kind_of(record[each])}; a string is needed')
    return record, record["query"], record[name]


def _write(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with whole_file(file) as partial:
        partial.write_bytes(b"".join(_dumped(row) + b"\n" for row in rows))


def _dumped(row: Mapping[str, Any]) -> bytes:
    """JSON that people can read; with escapes where a text has halves of characters, which UTF-8 cannot hold."""
    try:
        return json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(row).encode("ascii")


def _count(file: Path) -> int:
    with file.open("rb") as stream:
        return sum(1 for _ in stream)


@one_at_a_time
@lru_cache(maxsize=4)
def _shared(options: bytes) -> Reranker:
    """The model of pickled ModelOptions, opened once in this process, whichever task or thread asks for it."""
    return _opened(pickle.loads(options))


class ScoreBatch:
    """Columns of a batch with their scores added: what Ray Data, Daft, Dask, Spark or Beam calls.

    Takes and gives a mapping of columns: query and document in, the same with score (raw logits, float32) and
    probability out; query and document name other columns. It travels as its words; the model opens at the first
    call, once in a process. Raises DataError for a column or a text that is not there.
    """

    def __init__(
        self, model: ModelOptions | str = "default", *, query: str = "query", document: str = "document"
    ) -> None:
        self._options = _settled(ModelOptions(model=model) if isinstance(model, str) else model)
        self._query, self._document = query, document

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        columns = {"query": self._query, "document": self._document}
        for role, name in columns.items():
            if name not in batch:
                there = ", ".join(map(repr, batch))
                raise DataError(f"the batch has no column {name!r}; it has {there}: name one by {role}=")
        pairs = zip(*(_column_texts(batch[name], name) for name in columns.values()), strict=True)
        reranker = _shared(pickle.dumps(self._options))
        scores: NDArray[np.float32] = np.asarray(reranker.score_pairs(pairs), np.float32)
        probabilities = np.asarray([reranker.probability(float(score)) for score in scores], np.float32)
        return {**batch, "score": scores, "probability": probabilities}


def _column_texts(values: Iterable[Any], name: str) -> list[str]:
    """The values as texts, numbers too. Raises DataError for another, which would be read as the word None or nan."""
    found = [value.as_py() if hasattr(value, "as_py") else value for value in values]  # of Arrow
    for row, value in enumerate(found):
        is_missing = value != value  # NaN, as pandas has it
        if is_missing or not isinstance(value, str | int | float | np.number):
            raise DataError(f"column {name!r}: row {row} of the batch is {value!r}; a text is needed, leave it out")
    return [str(value) for value in found]
