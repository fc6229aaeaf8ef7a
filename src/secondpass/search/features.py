"""What is known of a chunk by its words alone: the entities that it names, and a hash that near-duplicates share."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secondpass.retrieval.words import words

MAX_ENTITIES = 32  # of a chunk; a long table of names says little of each
NEAR_BITS = 3  # SimHashes that differ in so many bits are of near-duplicates; Manku et al. 2007
_BITS = 64
LANGUAGE_SAMPLE = 600  # characters that tell a text's language
_SCRIPTS = {
    name: re.compile(f"[{characters}]")
    for name, characters in {
        "zh": "\u3400-\u4dbf\u4e00-\u9fff",
        "ja": "\u3040-\u30ff",
        "ko": "\u1100-\u11ff\uac00-\ud7af",
        "ru": "\u0400-\u052f",
        "ar": "\u0600-\u06ff",
        "hi": "\u0900-\u097f",
        "th": "\u0e00-\u0e7f",
        "el": "\u0370-\u03ff",
        "he": "\u0590-\u05ff",
        "bn": "\u0980-\u09ff",
        "ta": "\u0b80-\u0bff",
        "te": "\u0c00-\u0c7f",
        "ka": "\u10a0-\u10ff",
        "hy": "\u0530-\u058f",
    }.items()
}
_FOREIGN = re.compile("[\u0370-\u1dff\u3040-\ud7ff]+")
_LATIN = re.compile("[A-Za-z\u00c0-\u024f]")
_LATIN_WORD = re.compile("[a-z\u00df-\u024f\u1ea0-\u1eff]+")
COMMON_WORDS = {
    name: frozenset(words.split())
    for name, words in {
        "en": "the and of to in is that it for with was are this on be as by from or an not you can",
        "de": "der die und das ist nicht ein eine mit von zu den auf für sich dem im des auch werden als oder wird",
        "fr": "le la les et des est une dans que pour pas sur du qui au en un par avec ce il sont ou",
        "es": "el la los las de que y una en por con para del es se como más un su al o no lo",
        "it": "il di che è per una non sono della con gli nel anche più un la del si da le i in",
        "pt": "o os de que não uma para com do da em por são mais ao um e a as no na dos se",
        "nl": "de het een van en niet dat voor met zijn op is ook aan te in er door worden als",
        "pl": "nie jest się na do że jak przez oraz dla z w i to od po są który",
        "tr": "bir ve bu için ile olarak daha çok gibi olan da de en sonra kadar ise",
        "sv": "och att det som är en på inte för med av den till har ett om var",
        "vi": "và của là không được các một cho trong có những người với này để",
        "id": "yang dan di ini untuk dengan tidak dari adalah pada dalam ke akan atau itu",
    }.items()
}
_LANGUAGES = {
    word: tuple(name for name in COMMON_WORDS if word in COMMON_WORDS[name]) for word in chain(*COMMON_WORDS.values())
}
# What is a name whatever stands around it: links, tags, people, titles, quotations, code, versions.
_MARKED = re.compile(
    r"\[\[([^\]|#\n]{2,60})|(?<![\w&/])#(\w[\w-]{1,40})|(?<![\w.])@([A-Za-z]\w{1,40})|《([^》\n]{1,40})》|"
    r"[「『]([^」』\n]{2,30})[」』]|`([^`\n]{2,60})`|\b([A-Za-z]\w*_\w+|[a-z]+[A-Z]\w+|[A-Z][a-z]+[A-Z]\w+)\b|"
    r"\b(v?\d+\.\d+\.\d+)\b"
)
# Capitalised words that do not begin a sentence, and words in capitals.
_NAMES = re.compile(r"(?<=[a-z,;:] )([A-Z][\w'’-]+(?: [A-Z][\w'’-]+){0,3})|\b([A-Z]{2,}[0-9]*)\b")


def entities_of(text: str, fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Names in the text, in lower case and in their order: links, tags, people, titles, identifiers, capitalised.

    Tags, aliases and entities of front matter or of a record come first.
    """
    found: dict[str, None] = {}
    for name in ("entities", "tags", "aliases", "keywords"):
        given = fields.get(name)
        for each in given if isinstance(given, list) else [given] if isinstance(given, str) else []:
            found.setdefault(str(each).casefold())
    for pattern in (_MARKED, _NAMES):
        for groups in pattern.findall(text):
            name = next(group for group in groups if group).strip()
            if len(name) > 1:
                found.setdefault(name.casefold())
    return tuple(found)[:MAX_ENTITIES]


def language_of(text: str) -> str:
    """The language of a text as ISO 639-1 has it, by its script and its most common words; "" where they do not tell.

    Han with some kana is Japanese, else Chinese. A script of several languages counts as the one that most write in
    it, Cyrillic as Russian; Latin is told apart by the words of COMMON_WORDS.
    """
    sample = text[:LANGUAGE_SAMPLE]
    foreign = "" if sample.isascii() else "".join(_FOREIGN.findall(sample))
    if 3 * len(foreign) > len(_LATIN.findall(sample)):  # Latin names and code stand in texts of all scripts
        counts = {name: len(pattern.findall(foreign)) for name, pattern in _SCRIPTS.items()}
        counts["ja"] += counts["zh"] if 10 * counts["ja"] > counts["zh"] else 0
        found = max(counts, key=lambda name: counts[name])
        if counts[found]:
            return found
    hits: dict[str, int] = {}
    for word in _LATIN_WORD.findall(sample.lower()):
        for name in _LANGUAGES.get(word, ()):
            hits[name] = hits.get(name, 0) + 1
    found = max(hits, key=lambda name: hits[name], default="")
    return found if found and hits[found] > 1 else ""


def similarity_of(text: str) -> int:
    """A 64-bit SimHash of the words: texts that share most of them differ in few bits. Charikar 2002."""
    known = set(words(text))
    if not known:
        return 0
    hashes = np.array([_hash(word) for word in known], ">u8")
    bits = np.unpackbits(hashes.view(np.uint8).reshape(len(known), 8), axis=1)
    return int.from_bytes(np.packbits(bits.sum(axis=0) * 2 > len(known)).tobytes(), "big")


def digest_of(heading: str, text: str) -> bytes:
    return hashlib.blake2b(f"{heading}\0{text}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


def near_duplicates(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of the texts (N,) have a near-duplicate before them.

    Of four 16-bit parts one is equal where three bits differ at most, so sorting by each brings such pairs together.
    """
    found = np.zeros(len(hashes), np.bool_)
    for shift in range(0, _BITS, 16):
        turned = hashes << np.uint64(shift) | hashes >> np.uint64((_BITS - shift) % _BITS)
        order = np.argsort(turned, kind="stable")
        for step in range(1, 9):
            first, second = order[:-step], order[step:]
            near = distance(hashes[first], hashes[second]) <= NEAR_BITS
            found[np.maximum(first, second)[near]] = True
    unique: NDArray[np.bool_] = found & (hashes != 0)
    return unique


def distance(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.int64]:
    """In how many bits SimHashes differ."""
    differing = np.ascontiguousarray(np.atleast_1d(first ^ second)).view(np.uint8).reshape(-1, 8)
    bits: NDArray[np.int64] = np.unpackbits(differing, axis=1).sum(axis=1, dtype=np.int64)
    return bits


@lru_cache(maxsize=1 << 17)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
