"""What is known of a chunk by its words alone: the entities that it names, and a hash that near-duplicates share."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secondpass.retrieval.words import words

MAX_ENTITIES = 32  # of a chunk; a long table of names says little of each
NEAR_BITS = 3  # SimHashes that differ in so many bits are of near-duplicates; Manku et al. 2007
_BITS = 64
# Of words between blanks. Chinese and other scripts without them stand right beside names in Latin letters.
_LETTER = "[0-9A-Za-z_\u00aa-\u0dff\u1e00-\u1fff]"
# What is a name whatever stands around it: links, tags, people, titles, quotations, code, versions.
_MARKED = re.compile(
    rf"\[\[([^\]|#\n]{{2,60}})|(?<!{_LETTER})(?<![&/])#(\w[\w-]{{1,40}})|(?<!{_LETTER})(?<!\.)@([A-Za-z]{_LETTER}{{1,40}})|"
    r"《([^》\n]{1,40})》|[「『]([^」』\n]{2,30})[」』]|`([^`\n]{2,60})`|"
    rf"(?<!{_LETTER})([A-Za-z]{_LETTER}*_{_LETTER}+|[a-z]+[A-Z]{_LETTER}+|[A-Z][a-z]+[A-Z]{_LETTER}+|"
    rf"v?\d+\.\d+\.\d+)(?!{_LETTER})"
)
# Capitalised words that do not begin a sentence, and words in capitals.
_NAMES = re.compile(
    rf"(?<=[a-z,;:] )([A-Z][\w'’-]+(?: [A-Z][\w'’-]+){{0,3}})|(?<!{_LETTER})([A-Z]{{2,}}[0-9]*)(?!{_LETTER})"
)


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
