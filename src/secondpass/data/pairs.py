"""Pairs of a query and a passage: what a graph is calibrated with and compared on, and labelled ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secondpass.atomic import at_home
from secondpass.data.files import SUFFIXES, Source, lines, parsed, records, suffix, text_in, texts_in
from secondpass.errors import DataError

# Keys of one passage, and of lists of them as FlagEmbedding writes them.
PASSAGES = ("passage", "document", "text", "positive", "negative")
LISTS = ("documents", "passages", "pos", "neg")
LABELS = {0: False, 1: True}
Pair = tuple[str, str]
# Pairs to compare on where no file is given: short and long, alike and not, in several languages.
SAMPLE: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "how long does it take to boil an egg",
        (
            "A soft egg needs about four minutes in boiling water, a hard one nine or ten.",
            "Eggs keep for three to four weeks in the refrigerator.",
            "Water boils at 100 degrees Celsius at sea level, and at a lower temperature in the mountains, where "
            "cooking takes longer: at 3,000 metres an egg needs about a third more time than on the coast.",
            "The parliament met for the first time in 1901.",
        ),
    ),
    (
        "which command removes a directory and everything in it",
        (
            "rm -r deletes a folder and all files below it; -f does not ask.",
            "rmdir removes a directory, but only when it is empty.",
            "mkdir -p makes a directory together with those above it.",
            "Sparrows nest under roofs and in hedges.",
        ),
    ),
    (
        "灯塔是什么时候建造的",
        (
            "这座灯塔建于1841年，高三十二米。",
            "港口每年接待两百艘船只。",
            "The lighthouse was built in 1841 and is 32 metres high.",
            "图书馆周一关闭。",
        ),
    ),
    (
        "¿Cuándo cierra la biblioteca?",
        (
            "La biblioteca cierra a las ocho de la tarde, los sábados a la una.",
            "El museo abre todos los días excepto el lunes.",
            "Die Bibliothek schließt um zwanzig Uhr.",
            "El pan se hace con harina, agua y sal.",
        ),
    ),
)


def sample_pairs() -> list[Pair]:
    return [(query, passage) for query, passages in SAMPLE for passage in passages]


def read_pairs(file: Path) -> list[Pair]:
    """Pairs of JSONL ({"query", "passage"} or FlagEmbedding's {"query", "pos", "neg"}) or of query<TAB>passage lines.

    Raises DataError that names the file and the line.
    """
    pairs = [pair for source, line in lines(file) for pair in _pairs(line, source)]
    if not pairs:
        raise DataError(f'{file}: no pairs; lines such as {{"query": "...", "passage": "..."}} are needed')
    return pairs


def _pairs(line: str, source: Source) -> Iterator[Pair]:
    if not line.lstrip().startswith("{"):
        query, tab, passage = line.partition("\t")
        if not tab or not query.strip():
            raise DataError(f"{source}: neither a JSON object nor query<TAB>passage")
        yield query.strip(), passage.strip()
        return
    record = parsed(line, source)
    query = text_in(record, ("query",), source)
    passages = [text_in(record, (name,), source) for name in PASSAGES if name in record]
    passages += [passage for name in LISTS for passage in texts_in(record, name, source)]
    if not query.strip() or not passages:
        raise DataError(f'{source}: a "query" and a "passage" (or "pos" and "neg") are needed')
    yield from ((query, passage) for passage in passages)


@dataclass(frozen=True, kw_only=True)
class LabelledQuery:
    """A query with its texts and whether each is relevant."""

    name: str
    text: str
    texts: tuple[str, ...]
    labels: tuple[bool, ...]


def has_labels(path: str) -> bool:
    """Whether it is a file of labelled pairs."""
    file = at_home(path)
    if not file.is_file() or suffix(file) not in SUFFIXES:
        return False
    first = next(iter(records(file)), None)
    return first is not None and "label" in first[1]


def read_labelled(path: str) -> list[LabelledQuery]:
    """The queries of a file of labelled pairs: "query", "text", "label". Raises DataError with file and line."""
    found: dict[str, dict[str, bool]] = {}
    for source, record in records(at_home(path)):
        labels = found.setdefault(text_in(record, ("query",), source), {})
        text, label = text_in(record, ("text", "document", "passage"), source), _label(record, source)
        if labels.setdefault(text, label) != label:
            raise DataError(f"{source}: this pair has the label {int(label)} here and another above")
    return [
        LabelledQuery(name=f"{path}: {query}", text=query, texts=tuple(labels), labels=tuple(labels.values()))
        for query, labels in found.items()
    ]


def _label(record: Mapping[str, Any], source: Source) -> bool:
    label = record.get("label")
    if isinstance(label, str) and label.isdecimal():
        label = int(label)  # as tables have it
    if not isinstance(label, int) or label not in LABELS:
        raise DataError(f'{source}: "label" is {label!r}; 1 or true, 0 or false is needed')
    return LABELS[label]
