"""Texts to the words that BM25 counts, in any script."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from secondpass.text.han import simplified

# Scripts written without spaces, and Hangul, whose words carry their particles: Thai, Lao, Tibetan, Myanmar, Hangul,
# Khmer, ideographic iteration marks, Hiragana and Katakana, Bopomofo, Han with its extensions.
_UNSPACED = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3100-\u312f"
    "\u3130-\u318f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
_LAST_WITH_MARKS = 0x1FFFF
_ASCII = re.compile("[a-z0-9]+")
# Arabic spelling that writers leave out or vary: short vowels and the stretching stroke; forms of alef, ya and ta.
_ARABIC = {
    **dict.fromkeys((0x640, 0x670, *range(0x64B, 0x660))),
    **str.maketrans("أإآٱىة", "اااايه"),
}


# What else writers leave out or vary, in `terms`: letters that Unicode does not take apart, Hindi's dots, digits.
_BARE: dict[int, str | int] = {
    **{ord("æ"): "ae", ord("œ"): "oe", 0x93C: ""},
    **str.maketrans("øłđðıёکیँ", "olddiеكيं"),
    **{zero + digit: str(digit) for zero in (0x660, 0x6F0, 0x966) for digit in range(10)},
}
_ARTICLE = re.compile("\\A(?:[وبكف]?ال|لل)(?=\\w\\w)")  # with what is written together with it, as in Lucene
_MARKED = re.compile("[\u00c0-\u03ff\u0590-\u05ff\u1e00-\u1fff]")  # Latin, Greek, Hebrew
_VARIED = re.compile("[\u00c0-\u03ff\u0451\u0590-\u06ff\u0900-\u097f\u1e00-\u1fff]")


# What is neither letter, digit nor mark: ASCII, punctuation, symbols, emoji. Anything else that is no word character
# may be a mark; a class of the 2,155 marks takes `re` thirty times as long.
_NO_MARKS = (
    "\0-\u02ff\u060c\u061b\u061f\u066a-\u066d\u06d4\u2000-\u20cf\u2100-\u2bff\u3000-\u3029\u3030-\u303f\u309b\u309c"
    "\u30a0\u30fb\uff00-\uffff\U0001f000-\U0001ffff"
)
_ODD = re.compile(f"[^\\w{_NO_MARKS}]")
_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")  # which form of a character is drawn
_WORD = re.compile("\\w+")
_SCRIPTS = re.compile(f"([{_UNSPACED}]+)|([^{_UNSPACED}]+)")  # (unspaced, word) of a run without marks
_ARABIC_RANGE = re.compile("[\u0600-\u06ff]")
# Where a capital begins another part of a name: getUserName, HTTPServer.
_PARTS = re.compile("[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+|[0-9]+")
# Where a line ends between two characters of a script without spaces, so that it may end within a word.
_HAN_KANA = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
_LINE_END = re.compile(f"([{_HAN_KANA}])[ \t\r]*\n[ \t]*(?=([{_HAN_KANA}]))")
_THOUSANDS = re.compile("(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])")
_LAST_HAN = re.compile(f"(?<=[{_UNSPACED}])[\u3400-\u4dbf\u4e00-\u9fff](?![{_UNSPACED}])")
_INNER_CAPITAL = re.compile("[a-z0-9][A-Z]|[A-Z]{2}[a-z]")
_MIXED = re.compile("[A-Za-z0-9]*[a-z0-9][A-Z][A-Za-z0-9]*|[A-Z]{2,}[a-z][A-Za-z0-9]*")


def words(text: str) -> list[str]:
    """The words of a text, in lower case and compatible form (NFKC), without punctuation.

    A run of letters, marks and digits is a word. Where a script has no spaces, and in Korean, each pair of
    neighbouring characters is one, as well as a character that stands alone.
    """
    if text.isascii():
        return _ASCII.findall(text.lower())
    if not unicodedata.is_normalized("NFKC", text):
        text = unicodedata.normalize("NFKC", text)
    text = text.casefold()
    if _ARABIC_RANGE.search(text):
        text = text.translate(_ARABIC)
    text = text.replace("_", " ")
    for unseen in "\u00ad\u200b\u2060\ufeff":  # where a word may part, or may not
        text = text.replace(unseen, "")
    if _ODD.search(text):
        return _marked_words(_SELECTORS.sub("", text))
    found: list[str] = []
    for run in _WORD.findall(text):
        if run.isascii():
            found.append(run)
        else:
            for unspaced, word in _SCRIPTS.findall(run):
                found += [word] if word else _pairs(unspaced)
    return found


def terms(text: str) -> list[str]:
    """The words of a text as a search compares them, and after them the parts of names like getUserName.

    A figure with commas, as 1,280, is there without them too.

    Letters are without their marks in Latin, Greek and Hebrew, and Arabic words without their article: not all who
    write a word, or ask for it, write those. In Chinese and Japanese a word may go on in the next line. Traditional
    Chinese characters are simplified ones.
    """
    return _terms(simplified(text))


def _terms(text: str) -> list[str]:
    """Of a text in simplified characters."""
    found = words(text)
    if "\n" in text and not text.isascii():
        found += [first + second for first, second in _LINE_END.findall(text)]
    if not text.isascii() and _VARIED.search(text):
        found = [word if word.isascii() else _bare(word) for word in found]
    if "," in text:
        found += [figure.replace(",", "") for figure in _THOUSANDS.findall(text)]
    if not _INNER_CAPITAL.search(text):
        return found
    for name in _MIXED.findall(text):
        found += [part.lower() for part in _PARTS.findall(name)]
    return found


def indexed_terms(text: str) -> list[str]:
    """The terms of a text that is searched: of pairs of characters the last one of a run again, alone.

    A Chinese character that is asked for alone is then what some term begins with, wherever it stands.
    """
    text = simplified(text)
    found = _terms(text)
    return found if text.isascii() else found + _LAST_HAN.findall(text)


@lru_cache(maxsize=1 << 16)
def _bare(word: str) -> str:
    """The word without what writers leave out or vary; itself where nothing else is left."""
    if _MARKED.search(word):
        word = "".join(each for each in unicodedata.normalize("NFD", word) if not unicodedata.combining(each)) or word
    return _ARTICLE.sub("", word).translate(_BARE) or word


def _pairs(characters: Sequence[str]) -> list[str]:
    """Each two neighbours; a character that stands alone."""
    return [first + second for first, second in pairwise(characters)] or list(characters)


def _marked_words(text: str) -> list[str]:
    """The words of a text with combining marks, which are no letters to `re` and belong to the letter before them."""
    marks = _marks()
    found: list[str] = []
    for run in _pattern(f"[\\w{marks}]+").findall(text):
        if run.isascii():
            found.append(run)
            continue
        for unspaced, word in _pattern(f"([{_UNSPACED}][{_UNSPACED}{marks}]*)|([^{_UNSPACED}]+)").findall(run):
            found += [word] if word else _pairs(_pattern(f"(?s:.)[{marks}]*").findall(unspaced))
    return found


@lru_cache(maxsize=1)
def _marks() -> str:
    """Combining marks as the inside of a character class: Indic and Thai vowels."""
    last = min(sys.maxunicode, _LAST_WITH_MARKS)
    points = [point for point in range(last) if unicodedata.category(chr(point)) in ("Mn", "Mc")]
    return "".join(map(chr, points))


_pattern = lru_cache(maxsize=3)(re.compile)
