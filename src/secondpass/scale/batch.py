"""A file of pairs to scores, a block of rows at a time: what was finished is kept, whatever ends the process.

A job is a folder. score.json says what is scored with what, part-00000.jsonl and on hold the rows of each block with
their scores, errors/part-00000.jsonl the rows that could not be scored, with the reason. A block is written whole or
not at all, so that a row is there once, in the one or the other, however often workers die, and a job that is called
again scores only the blocks that are missing. `ScoreBlock` and `ScoreBatch` know no engine for distribution, so that
every one can call them.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import pickle
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import date, time
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secondpass.atomic import whole_file, write_text
from secondpass.checkpoint.checkpoint import MULTILINGUAL, Checkpoint, has_multilingual, open_checkpoint
from secondpass.data.files import Source, files_below, is_packed, kind_of, raw_lines, suffix, values
from secondpass.data.pairs import PASSAGES
from secondpass.errors import CheckpointError, DataError, EngineError, SecondpassError
from secondpass.public import one_at_a_time, opened_once
from secondpass.reranker import Reranker
from secondpass.scoring.open import ModelOptions, is_auto

FACTS, ERRORS, ROWS = "score.json", "errors", ".rows.jsonl"
LINES = (".jsonl", ".ndjson")
ROWS_PER_BLOCK = 2000
_COMMIT = re.compile(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})")  # how the identity of a hub's model begins


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
            read = stream.read(self.size)
        return (read.removeprefix(codecs.BOM_UTF8) if self.offset == 0 else read).split(b"\n")


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

    inputs: JSON Lines, or other files of records (gzipped, CSV, parquet), pipes and folders, which are written out
    once as lines. Raises DataError where the folder holds another job or something else, or an input cannot be read;
    of a job that is new nothing is left then.
    """
    if rows_per_block < 1:
        raise ValueError(f"rows_per_block is {rows_per_block}; give 1 or more")
    asked = _as_json(_settled(options))
    options = _pinned(_settled(options), folder, asked)
    facts = {
        "inputs": [
            [str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns]
            for each in inputs
            for file in (files_below(each) if each.is_dir() else [each])
            if file.is_file() and not file.resolve().is_relative_to(folder.resolve())  # what the job writes there
        ],
        **({"folders": dict(folders.choices)} if folders is not None else {}),
        "weights": _identity(options),
        "options": asked,
        "rows_per_block": rows_per_block,
    }
    with _claimed(folder, json.loads(json.dumps(facts))):
        (folder / ERRORS).mkdir(exist_ok=True)
        job = Job(folder=folder, options=options)
        for file in inputs if all(map(_is_lines, inputs)) else [_as_lines(inputs, folder, folders)]:
            job.blocks += _blocks(file, rows_per_block, job.blocks)
    return job


def _is_lines(file: Path) -> bool:
    """Whether it is a plain file of JSON Lines. Raises DataError where it is named so and is no text."""
    return file.is_file() and file.suffix in LINES and not is_packed(file)


def _settled(options: ModelOptions) -> ModelOptions:
    """What every worker is told: "auto" only where there is something to choose from."""
    return replace(options, model="default") if is_auto(options.model) and not has_multilingual() else options


def _as_json(options: ModelOptions) -> dict[str, Any]:
    told = {name: value for name, value in asdict(options).items() if name != "local_files_only"}
    return dict(json.loads(json.dumps(told, default=str)))


def _pinned(options: ModelOptions, folder: Path, asked: Mapping[str, Any]) -> ModelOptions:
    """Of a model of a hub the commit that the job was begun with, whatever its branch has come to since.

    So all workers read the same weights, and a job can be gone on with.
    """
    known = _facts(folder) if (folder / FACTS).is_file() else {}
    begun = _COMMIT.match(str(known.get("weights"))) if known.get("options") == asked else None
    if begun:
        return replace(options, model=begun[1], revision=begun[2])
    found = _checkpoint(options)
    return options if found.revision is None else replace(options, model=found.name, revision=found.revision)


def _opened(options: ModelOptions) -> Reranker:
    """Raises CheckpointError where "auto" would choose otherwise than where the work was dealt."""
    if is_auto(options.model):
        open_checkpoint(MULTILINGUAL)
    return Reranker(**vars(options))


def _checkpoint(options: ModelOptions) -> Checkpoint:
    """What the workers will open, with no files fetched but theirs."""
    return open_checkpoint(
        options.model,
        revision=options.revision,
        local_files_only=options.local_files_only,
        graph=options.engine == "openvino",
    )


def _identity(options: ModelOptions) -> str:
    """What tells the weights from any others."""
    return _checkpoint(options).identity() + (
        open_checkpoint(MULTILINGUAL).identity() if is_auto(options.model) else ""
    )


@contextmanager
def _claimed(folder: Path, facts: Mapping[str, Any]) -> Iterator[None]:
    """The folder is this job's, or is made so; one that is new is as it was before where its job cannot be begun."""
    was_there = folder.exists()
    try:
        found = [each.name for each in folder.iterdir()] if was_there else []
        is_begun = (folder / FACTS).is_file()  # asked after that: another process may begin the same job just now
        if not is_begun and any(not name.startswith(f".{FACTS}.") for name in found):
            raise DataError(f"{folder}: is not empty and holds no scores; name another folder")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror or error}; name another folder") from error
    if is_begun:
        known = _facts(folder)
        changed = sorted(name for name in facts if known.get(name) != facts[name])
        if changed:
            raise DataError(
                f"{folder}: holds scores of another job ({', '.join(changed)} differ); name another folder"
            )
        yield
        return
    write_text(folder / FACTS, json.dumps(facts, indent=2))
    try:
        yield
    except BaseException:
        for name in (FACTS, ROWS):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / ERRORS, ignore_errors=True)
        if not was_there:
            with suppress(OSError):
                folder.rmdir()
        raise


def _facts(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / FACTS).read_text("utf-8")))


def _as_lines(inputs: Sequence[Path], folder: Path, folders: FolderRows | None) -> Path:
    """Rows of any kind of file as one file of JSON lines, so that a worker finds its rows by their bytes.

    A pipe is read whenever the job is gone on with, to see that it gives the same rows.
    """
    file = folder / ROWS
    is_piped = not all(each.is_file() or each.is_dir() for each in inputs)
    if is_piped or not file.is_file():
        with whole_file(file) as partial:
            with partial.open("wb") as stream:
                for each in inputs:
                    stream.writelines(_kept(line, source) for source, line in _lines_of(each, folders))
            if is_piped:
                _check_piped(folder, partial)
    return file


def _lines_of(file: Path, folders: FolderRows | None) -> Iterator[tuple[Source, bytes]]:
    """Each row of a file or a folder as a line of JSON, which may be damaged where the file is JSON Lines."""
    if folders is not None and file.is_dir():
        yield from ((str(file), json.dumps(row).encode("ascii")) for row in folders.read(file))
        return
    kind = suffix(file)
    if kind in (".parquet", ".csv", ".json"):
        yield from ((source, json.dumps(row, default=_as_text).encode("ascii")) for source, row in values(file))
        return
    is_known = kind in LINES
    for source, line in raw_lines(file):
        line = line.removeprefix(codecs.BOM_UTF8).strip()
        if line and not is_known and not line.startswith(b"{"):
            raise DataError(f"{source}: is no JSON object; JSON Lines, .json, .csv and .parquet are read")
        is_known = is_known or bool(line)
        if line:
            yield source, line


def _kept(line: bytes, source: Source) -> bytes:
    """The line, or where it is no row a list of where it stood, what it was, and why."""
    try:
        _row(line)
    except DataError as error:
        line = json.dumps([source, line.decode("utf-8", "replace"), str(error)]).encode("ascii")
    return line + b"\n"


def _as_text(value: object) -> str:
    """What parquet has and JSON has not: texts without their mark, dates, decimal numbers."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value.isoformat() if isinstance(value, date | time) else str(value)


def _check_piped(folder: Path, rows: Path) -> None:
    """Raises DataError where a pipe gives other rows than those that the job was begun with."""
    digest = hashlib.sha256()
    with rows.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    facts = _facts(folder)
    if facts.setdefault("piped", digest.hexdigest()) != digest.hexdigest():
        raise DataError(f"{folder}: holds scores of another job (what is piped in differs); name another folder")
    write_text(folder / FACTS, json.dumps(facts, indent=2))


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
            if block.file.name == ROWS and line.startswith(b"["):  # put aside when the rows were written out
                failures.append(dict(zip(("source", "line", "reason"), json.loads(line), strict=True)))
                continue
            try:
                rows.append(_row(line))
            except DataError as error:
                source = f"{block.file}:{number + 1}"
                failures.append({"source": source, "line": line.decode("utf-8", "replace"), "reason": str(error)})
        reranker = self.reranker  # a model that cannot be opened is no row's fault
        scores = self._scores([(query, passage) for _, query, passage in rows])
        written = []
        for (record, *_), score in zip(rows, scores, strict=True):
            if isinstance(score, SecondpassError):
                failures.append({"record": record, "reason": str(score)})
                continue
            probability = reranker.probability(score)
            written.append({**record, "score": score, "probability": probability})
        _write(job.errors(block.index), failures)
        _write(job.part(block.index), written)
        return BlockOutcome(block=block.index, scored=len(written), failed=len(failures))

    def _scores(self, pairs: Sequence[tuple[str, str]]) -> list[float | SecondpassError]:
        """Raw logits; where engine or tokenizer fails, of halves, until the pair that it fails at is alone."""
        try:
            return list(self.reranker.score_pairs(pairs))
        except (EngineError, CheckpointError) as error:
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
        self, model: ModelOptions | str | Path = "default", *, query: str = "query", document: str = "document"
    ) -> None:
        self._options = _settled(model if isinstance(model, ModelOptions) else ModelOptions(model=model))
        self._query, self._document = query, document

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        if not hasattr(batch, "keys"):  # as polars' frames; pandas' are mappings here
            needed = "a mapping of columns, as frame.to_dict(as_series=False) of polars or table.to_pydict() of Arrow"
            raise DataError(f"the batch is a {type(batch).__name__}; give {needed}")
        columns = {"query": self._query, "document": self._document}
        for role, name in columns.items():
            if name not in batch:
                there = ", ".join(map(repr, batch))
                raise DataError(f"the batch has no column {name!r}; it has {there}: name one by {role}=")
        queries, documents = (_column_texts(batch[name], name) for name in columns.values())
        if len(queries) != len(documents):
            seen = f"{len(queries)} rows of {self._query!r} and {len(documents)} of {self._document!r}"
            raise DataError(f"the batch has {seen}; give as many of one as of the other")
        pairs = list(zip(queries, documents, strict=True))
        reranker = _shared(pickle.dumps(self._options))
        scores: NDArray[np.float32] = np.asarray(reranker.score_pairs(pairs), np.float32)
        probabilities = np.asarray([reranker.probability(float(score)) for score in scores], np.float32)
        return {**batch, "score": scores, "probability": probabilities}


def _column_texts(values: Iterable[Any], name: str) -> list[str]:
    """The values as texts, numbers too. Raises DataError for another, which would be read as the word None or nan."""
    if isinstance(values, str | bytes):  # one query for all would be read as its letters
        raise DataError(f"column {name!r} is a {type(values).__name__}; a list of texts is needed, one for each row")
    found = [value.as_py() if hasattr(value, "as_py") else value for value in values]  # of Arrow
    for row, value in enumerate(found):
        is_missing = value != value  # NaN, as pandas has it
        if is_missing or not isinstance(value, str | int | float | np.number):
            raise DataError(f"column {name!r}: row {row} of the batch is {value!r}; a text is needed, leave it out")
    return [str(value) for value in found]
