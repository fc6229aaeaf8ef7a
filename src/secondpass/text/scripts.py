"""Which script texts are in, as far as that tells whether a model can read them."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice

MAX_LETTERS = 100  # of a text: enough to know, and the names of characters take a microsecond each
LAST_LATIN = "\u024f"  # most letters need no name to be known
# What a person calls a script whose characters Unicode names otherwise.
NAMES = {"CJK": "Chinese", "HIRAGANA": "Japanese", "KATAKANA": "Japanese", "HANGUL": "Korean"}
WORTH = 3  # letters of an alphabet: what one character of these scripts says


@dataclass(frozen=True)
class Unread:
    """Texts in a script that a model cannot read: its name, and `where` they are ("the query")."""

    script: str
    where: str


def foreign_script(text: str, scripts: Collection[str]) -> str | None:
    """The script that `text` is in for the most part, where that is none of `scripts`; None otherwise.

    scripts are first words of Unicode's names of letters, such as LATIN.
    """
    if "LATIN" in scripts and text.isascii():
        return None
    letters = islice((letter for letter in text if letter.isalpha()), MAX_LETTERS)
    counts: Counter[str] = Counter()
    for letter in letters:
        script = "LATIN" if letter <= LAST_LATIN else unicodedata.name(letter, "?").split()[0]
        counts[script] += WORTH if script in NAMES else 1
    foreign = Counter({script: count for script, count in counts.items() if script not in scripts})
    if foreign.total() * 2 <= counts.total():
        return None
    script = foreign.most_common(1)[0][0]
    return NAMES.get(script, script.capitalize())


def unread(query: str, passages: Sequence[str], scripts: Collection[str] | None) -> Unread | None:
    """What a model for some scripts alone cannot read of these texts; None where it reads them all."""
    if scripts is None:
        return None
    asked = foreign_script(query, scripts)
    found = Counter(script for text in passages if (script := foreign_script(text, scripts)))
    if asked is not None:
        return Unread(asked, "the query")
    if not found:
        return None
    return Unread(found.most_common(1)[0][0], f"{found.total()} of {len(passages)} passages")


def warning_of(found: Unread, model: str) -> str:
    """What a person should know before reading the scores."""
    verb = "is" if found.where == "the query" else "are"
    return (
        f"the model {model!r} cannot read {found.script} script, in which {found.where} {verb}, so these scores mean "
        f"nothing; for many languages: pip install secondpass-multilingual, then leave the model out, or name it: "
        "--model multilingual, Reranker('multilingual')"
    )
