"""Files of (query, passage) pairs: what a graph is calibrated with, and what it is compared on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from secondpass.errors import InputError

# Keys of one passage, and of lists of them as FlagEmbedding writes them.
PASSAGES = ("passage", "document", "text", "positive", "negative")
LISTS = ("documents", "passages", "pos", "neg")
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

    Raises InputError that names the file and the line.
    """
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read as UTF-8 text: {error}") from error
    pairs = [
        pair for number, line in enumerate(lines, 1) if line.strip() for pair in _pairs(line, f"{file}:{number}")
    ]
    if not pairs:
        raise InputError(f'{file}: no pairs; lines such as {{"query": "...", "passage": "..."}} are needed')
    return pairs


def _pairs(line: str, where: str) -> Iterator[Pair]:
    if not line.lstrip().startswith("{"):
        asked, tab, passage = line.partition("\t")
        if not tab or not asked.strip():
            raise InputError(f"{where}: neither a JSON object nor query<TAB>passage")
        yield asked.strip(), passage.strip()
        return
    try:
        row: Mapping[str, Any] = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not readable as JSON: {error}") from error
    passages = [row[key] for key in PASSAGES if key in row]
    passages += [passage for key in LISTS for passage in row.get(key) or ()]
    query = row.get("query")
    if not isinstance(query, str) or not query.strip() or not passages:
        raise InputError(f'{where}: a "query" and a "passage" (or "pos" and "neg") are needed')
    if not all(isinstance(passage, str) for passage in passages):
        raise InputError(f"{where}: a passage is not a text")
    yield from ((query, passage) for passage in passages)
