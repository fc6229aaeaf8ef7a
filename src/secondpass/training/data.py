"""Training data in FlagEmbedding's layout: one JSON object a line, checked before anything is trained.

{"query": str, "pos": [str], "neg": [str], "pos_scores": [number], "neg_scores": [number]}; the scores are a teacher's
and may be left out. Plain or gzipped, in files or in folders of them; a .json file may hold them as one list.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from secondpass.atomic import at_home, write_lines
from secondpass.data.files import Source, files_below, is_list, lines, parsed, suffix, values
from secondpass.errors import DataError
from secondpass.text.documents import clean_query

KEYS = ("query", "pos", "neg", "pos_scores", "neg_scores", "prompt")
SUFFIXES = (".jsonl", ".ndjson", ".json")  # each .gz too
MAX_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Example:
    """A query with passages that answer it and passages that do not; scores are a teacher's, None where unknown.

    prompt is the instruction that an LLM reranker reads with it; None: the model's own.
    """

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    positive_scores: tuple[float, ...] | None = None
    negative_scores: tuple[float, ...] | None = None
    prompt: str | None = None
    source: str = ""  # file:line

    @property
    def has_scores(self) -> bool:
        return self.positive_scores is not None and (self.negative_scores is not None or not self.negatives)

    def as_json(self) -> str:
        """The line of a file that is read as this example."""
        line: dict[str, Any] = {"query": self.query, "pos": self.positives, "neg": self.negatives}
        if self.has_scores:
            line |= {"pos_scores": self.positive_scores, "neg_scores": self.negative_scores or ()}
        if self.prompt is not None:
            line["prompt"] = self.prompt
        return json.dumps(line, ensure_ascii=False)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Examples, where they come from, problems that were skipped, and keys of the files that nothing here reads."""

    examples: Sequence[Example] = field(repr=False)  # a notebook would show all of them
    names: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    unread: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over what is learnt from."""
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(example.as_json().encode(errors="surrogatepass") + b"\n")
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Plain texts to pre-train on, and where they come from."""

    texts: Sequence[str]
    names: tuple[str, ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over what is learnt from."""
        digest = hashlib.sha256()
        for text in self.texts:
            digest.update(text.encode(errors="surrogatepass") + b"\0")
        return digest.hexdigest()


def read_data(
    paths: str | Path | Iterable[str | Path], *, is_skipping: bool = False, needs_negatives: bool = True
) -> Data:
    """All examples of files and folders. is_skipping: lines with problems are left out instead of refused.

    Raises DataError that names every problem by file and line, the first MAX_SHOWN in full.
    """
    every = [paths] if isinstance(paths, str | Path) else paths
    files = [file for path in every for file in data_files(at_home(path))]
    examples: list[Example] = []
    problems: list[str] = []
    broken: list[str] = []
    unread: Counter[str] = Counter()
    for file in files:
        try:
            for source, read in _rows(file):
                try:
                    fields = _object(read(), source)
                    examples.append(read_example(fields, source, needs_negatives=needs_negatives))
                    unread.update(key for key in fields if key not in KEYS)
                except DataError as error:
                    problems.append(str(error))
        except DataError as error:
            broken.append(str(error))  # what comes after it in the file cannot be read
    if broken or (problems and not is_skipping):
        raise DataError(told([*broken, *problems]))
    if not examples:
        raise DataError(f"no examples in {', '.join(map(str, files))}" + (f"; {told(problems)}" if problems else ""))
    return Data(examples=examples, names=tuple(map(str, files)), problems=tuple(problems), unread=dict(unread))


def _rows(file: Path) -> Iterator[tuple[Source, Callable[[], Any]]]:
    """What reads each line of a file, or each item where the file is one JSON list."""
    if suffix(file) == ".json" and is_list(file):
        for source, value in values(file):
            yield source, lambda value=value: value  # type: ignore[misc]
    else:
        for source, line in lines(file):
            yield source, partial(parsed, line, source)


def told(problems: Sequence[str]) -> str:
    """The first problems in full and how many more there are."""
    more = len(problems) - MAX_SHOWN
    return "; ".join(problems[:MAX_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def data_files(path: Path) -> list[Path]:
    """The file, or a folder's data files in order of their names. Raises DataError where there is none."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: there is no such file or folder")
    if (path / "config.json").is_file():
        raise DataError(f"{path}: holds a model, no training data; give files or a folder of them")
    files = [file for file in files_below(path) if suffix(file) in SUFFIXES]
    if not files:
        raise DataError(f"{path}: holds no {', '.join(SUFFIXES)} file")
    return files


def read_example(fields: Mapping[str, Any], source: str, *, needs_negatives: bool = True) -> Example:
    """One line. Raises DataError that says what is wrong with it."""
    try:
        return _example(fields, source, needs_negatives=needs_negatives)
    except ValueError as error:
        raise DataError(f"{source}: {error}") from error


def _example(fields: Mapping[str, Any], source: str, *, needs_negatives: bool) -> Example:
    query = fields.get("query")
    if not isinstance(query, str):
        lacks = query is None
        raise ValueError(_lacks("query", fields) if lacks else f"'query' is a {type(query).__name__}, not a string")
    if not query.strip():
        raise ValueError("'query' is empty")
    positives, negatives = _texts(fields, "pos"), _texts(fields, "neg")
    if not positives:
        raise ValueError("'pos' is empty; one passage that answers the query is needed")
    if needs_negatives and not negatives:
        raise ValueError(f"{_lacks('neg', fields)}; find some with `secondpass mine`")
    _check_apart(positives, negatives)
    return Example(
        query=clean_query(query),
        positives=positives,
        negatives=negatives,
        positive_scores=_scores(fields, "pos_scores", len(positives)),
        negative_scores=_scores(fields, "neg_scores", len(negatives)),
        prompt=_prompt(fields.get("prompt")),
        source=source,
    )


def _lacks(key: str, fields: Mapping[str, Any]) -> str:
    """What is said of a line without a key; others that are there tell of another layout."""
    return f"has no {key!r}" + ("" if key in fields else f" (it has {', '.join(fields) or 'nothing'})")


def _object(value: Any, source: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{source}: holds a {type(value).__name__}; a JSON object is needed")
    return value


def folded(text: str) -> str:
    """A text as duplicates are found by: without case and without differences in white space."""
    return " ".join(text.casefold().split())


def _texts(fields: Mapping[str, Any], key: str) -> tuple[str, ...]:
    if key not in fields and key == "pos":
        raise ValueError(_lacks("pos", fields))
    values = fields.get(key) or []
    if not isinstance(values, list):
        raise ValueError(f"{key!r} is a {type(values).__name__}, not a list of strings")
    for position, value in enumerate(values):
        if not isinstance(value, str):
            raise ValueError(f"{key}[{position}] is a {type(value).__name__}, not a string")
        if not value.strip():
            raise ValueError(f"{key}[{position}] is empty")
    return tuple(map(clean_query, values))


def _prompt(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"'prompt' is a {type(value).__name__}, not a string")
    return clean_query(value) if value else None


def _check_apart(positives: Sequence[str], negatives: Sequence[str]) -> None:
    positions = {folded(text): position for position, text in enumerate(positives)}
    for position, text in enumerate(negatives):
        if (same := positions.get(folded(text))) is not None:
            raise ValueError(f"neg[{position}] is the same text as pos[{same}]")


def _scores(fields: Mapping[str, Any], key: str, length: int) -> tuple[float, ...] | None:
    values = fields.get(key)
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != length:
        seen = f"{len(values)} values" if isinstance(values, list) else f"a {type(values).__name__}"
        raise ValueError(f"{key!r} has {seen}, {length} numbers are needed")
    for position, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
            raise ValueError(f"{key}[{position}] is {value!r}, a finite number is needed")
    return tuple(float(value) for value in values)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def save_data(examples: Iterable[Example], file: Path) -> None:
    """The examples in FlagEmbedding's layout, gzipped where the name ends in .gz."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_lines(file, (example.as_json() for example in examples))
