"""Texts to the words that BM25 counts, in any script."""

from __future__ import annotations

import re
import sys
import unicodedata
from functools import lru_cache
from itertools import pairwise

# Scripts written without spaces, and Hangul, whose words carry their particles: Thai, Lao, Tibetan, Myanmar, Hangul,
# Khmer, ideographic iteration marks, Hiragana and Katakana, Bopomofo, Han with its extensions.
_UNSPACED = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3100-\u312f"
    "\u3130-\u318f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
_LAST_WITH_MARKS = 0x1FFFF
# Arabic spelling that writers leave out or vary: short vowels and the stretching stroke; forms of alef, ya and ta.
_ARABIC = {
    **dict.fromkeys((0x640, 0x670, *range(0x64B, 0x660))),
    **str.maketrans("أإآٱىة", "اااايه"),
}


def words(text: str) -> list[str]:
    """The words of a text, in lower case and compatible form (NFKC), without punctuation.

    A run of letters, marks and digits is a word. Where a script has no spaces, and in Korean, each pair of
    neighbouring characters is one, as well as a character that stands alone.
    """
    if text.isascii():
        return _patterns()[0].findall(text.lower())
    found: list[str] = []
    runs, parts = _patterns()
    for run in runs.findall(unicodedata.normalize("NFKC", text).casefold().translate(_ARABIC)):
        if run.isascii():
            found.append(run)
            continue
        for unspaced, word in parts.findall(run):
            found += _pairs(unspaced) if unspaced else [word]
    return found


def _pairs(run: str) -> list[str]:
    characters = _character().findall(run)
    if len(characters) < 2:
        return characters
    return [first + second for first, second in pairwise(characters)]


@lru_cache(maxsize=1)
def _marks() -> str:
    """Combining marks as the inside of a character class: Indic and Thai vowels are no letters to `re`."""
    last = min(sys.maxunicode, _LAST_WITH_MARKS)
    points = [point for point in range(last) if unicodedata.category(chr(point)) in ("Mn", "Mc")]
    return "".join(map(chr, points))


@lru_cache(maxsize=1)
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Runs of letters, marks and digits; and their parts as (unspaced, word)."""
    marks = _marks()
    run = re.compile(f"(?:[^\\W_]|[{marks}])+")
    unspaced = f"[{_UNSPACED}][{_UNSPACED}{marks}]*"
    return run, re.compile(f"({unspaced})|([^{_UNSPACED}]+)")


@lru_cache(maxsize=1)
def _character() -> re.Pattern[str]:
    marks = _marks()
    return re.compile(f".[{marks}]*", re.DOTALL)
