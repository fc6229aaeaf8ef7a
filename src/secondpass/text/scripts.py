"""Which script texts are in, as far as that tells whether a model can read them."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import islice

# Enough of a text, and enough texts, to know; the names of characters take a microsecond each.
MAX_LETTERS, MAX_TEXTS = 100, 20
# What a person calls a script whose characters Unicode names otherwise.
NAMES = {"CJK": "Chinese", "HIRAGANA": "Japanese", "KATAKANA": "Japanese", "HANGUL": "Korean"}


def foreign_script(texts: Sequence[str], scripts: Collection[str]) -> str | None:
    """The script that most letters of `texts` are in, where most are in none of `scripts`; None otherwise.

    scripts are first words of Unicode's names of letters, such as LATIN.
    """
    counts: Counter[str] = Counter()
    for text in texts[:MAX_TEXTS]:
        letters = islice((letter for letter in text if letter.isalpha()), MAX_LETTERS)
        counts.update(unicodedata.name(letter, "?").split()[0] for letter in letters)
    foreign = Counter({script: count for script, count in counts.items() if script not in scripts})
    if foreign.total() * 2 <= counts.total():
        return None
    script = foreign.most_common(1)[0][0]
    return NAMES.get(script, script.capitalize())


def warnings_of(query: str, passages: Sequence[str], scripts: Collection[str] | None, model: str) -> tuple[str, ...]:
    """What a person should know before reading the scores of a model that was made for some scripts alone."""
    if scripts is None:
        return ()
    script = foreign_script([query], scripts) or foreign_script(passages, scripts)
    if script is None:
        return ()
    return (
        f"the model {model!r} cannot read {script} script, its scores mean nothing here; for many languages: "
        "pip install secondpass-multilingual, then --model multilingual, or Reranker('multilingual')",
    )
