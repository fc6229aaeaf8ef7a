"""Windows over long documents: where a text that is too long for a model is cut, so that it is read in parts."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable

from secondpass.text.tokenizer import Tokenizer

_CLOSING = "\"'”’»›)\\]}）」』】》〉］｝〕"
_MARKS = "!?…。！？；؟۔।"
_PARAGRAPH = re.compile(r"\n(?=[^\S\n]*\n)")
# '!' and '?' inside of an address or of code end nothing: example.com/?q=1, a != b
_SENTENCE = re.compile(
    rf"\.[{_CLOSING}]*(?=\s)|[{_MARKS}][{_CLOSING}]*(?![{_MARKS}{_CLOSING}0-9A-Za-z=])|\n",
)
_SPACE = re.compile(r"\s*")
# Scripts without spaces between words (Thai to Khmer, Han and kana, full-width forms), and pictographs
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ua4cf\uf900-\ufaff\uff00-\uffef"
    "\U0001f000-\U0001faff\U00020000-\U0003ffff]"
)

# What belongs to the character before it and is not of category M: joiners, half-width voicing marks, Thai and
# Lao AM, skin tones, the tags of subdivision flags
_EXTENDING = re.compile("[\u200c\u200d\uff9e\uff9f\u0e33\u0eb3\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]")
# What belongs to the character after it: the joiner, Arabic and Syriac signs that enclose a number
_PREPENDED = re.compile("[\u200d\u0600-\u0605\u06dd\u070f]")
_FLAG_LETTERS = re.compile("[\U0001f1e6-\U0001f1ff]+")
_HANGUL = (
    # kinds of syllable parts that follow each other: leading, vowel, trailing; LV and LVT are whole syllables
    re.compile("[\u1100-\u115f\ua960-\ua97c][\u1100-\u11a7\ua960-\ua97c\uac00-\ud7a3\ud7b0-\ud7c6]"),
    re.compile("[\u1160-\u11a7\ud7b0-\ud7c6][\u1160-\u11ff\ud7b0-\ud7fb]"),
    re.compile("[\uac00-\ud7a3][\u11a8-\u11ff\ud7cb-\ud7fb]"),
    re.compile("[\u11a8-\u11ff\ud7cb-\ud7fb]{2}"),
)


def windows(text: str, tokenizer: Tokenizer, *, max_tokens: int, overlap: int) -> list[tuple[int, int]]:
    """Ranges of characters (start, end), in order, that cover the text but for white space at their edges.

    `text[start:end]` encodes to at most max_tokens tokens, so a window scores as a document of its own would; only
    a single character can be longer. Two neighbours share at most `overlap` tokens. A window ends after a
    paragraph or sentence where one ends in its second half, else between words, else between characters as readers
    see them (Unicode Standard Annex 29); inside of one only where it has too many tokens by itself. A text that
    fits, or that is all white space, is one window. Raises ValueError for max_tokens below 1 and for an overlap
    outside of 0 <= overlap < max_tokens.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}, it must be at least 1")
    if not 0 <= overlap < max_tokens:
        raise ValueError(f"overlap is {overlap}, it must be at least 0 and below max_tokens, {max_tokens}")
    offsets = tokenizer.encode_with_offsets(text)[1]
    if len(offsets) <= max_tokens or not text.strip():
        return [(0, len(text))]
    cutter = _Cutter(text, tokenizer, offsets, max_tokens=max_tokens)
    spans: list[tuple[int, int]] = []
    done = cutter.borders.skip_space(0)
    while done < len(text):
        start = cutter.start(spans[-1], done, overlap=overlap) if spans and overlap else done
        spans.append(cutter.window(start, done))
        done = cutter.borders.skip_space(spans[-1][1])
    return spans


class _Borders:
    """Where a text may be cut. A position p is between text[p - 1] and text[p]."""

    def __init__(self, text: str) -> None:
        self.text = text
        # known beforehand: counting back from every cut would be quadratic in a text of flags
        self._flags = [match.start() for match in _FLAG_LETTERS.finditer(text)]

    def is_character(self, position: int) -> bool:
        """No grapheme cluster is cut at `position`."""
        before, after = self.text[position - 1], self.text[position]
        if before.isascii() and after.isascii():
            return before + after != "\r\n"
        if after.isspace() or unicodedata.category(before) in ("Cc", "Zl", "Zp"):
            return True
        if unicodedata.category(after)[0] == "M" or _EXTENDING.match(after) or _PREPENDED.match(before):
            return False
        # a conjunct: a virama binds the consonant after it
        if unicodedata.combining(before) == 9 and unicodedata.category(after) == "Lo":
            return False
        if _FLAG_LETTERS.match(before) and _FLAG_LETTERS.match(after):
            return (position - self._flags[bisect_right(self._flags, position) - 1]) % 2 == 0
        return not self._cuts_syllable(position)

    def is_word(self, position: int) -> bool:
        """No word is cut at `position`, and no bracket or full stop is left alone on the wrong side."""
        before, after = self.text[position - 1], self.text[position]
        if before.isspace() or after.isspace():
            return self.is_character(position)
        if before.isascii() and after.isascii():
            return False
        if not (UNSPACED.match(before) or UNSPACED.match(after)) or unicodedata.category(before) in ("Ps", "Pi"):
            return False
        return unicodedata.category(after) not in ("Pe", "Pf", "Po") and self.is_character(position)

    def end(self, low: int, middle: int, high: int) -> int | None:
        """The best position in low < position <= high; sentences count from `middle` on. None: all cut a cluster."""
        if high >= len(self.text):
            return len(self.text)
        for pattern in (_PARAGRAPH, _SENTENCE):
            # one character more than may be used, to see what follows
            ends = [match.end() for match in pattern.finditer(self.text, max(low, middle), high + 1)]
            found = _first(reversed(ends), lambda position: position <= high and self.is_character(position))
            if found is not None:
                return found
        word = _first(range(high, low, -1), self.is_word)
        return word if word is not None else _first(range(high, low, -1), self.is_character)

    def start(self, low: int, high: int) -> int:
        """The best position in low <= position < high; sentences count up to half-way. `high` where there is none."""
        if low >= high:
            return high
        ends = (match.end() for match in _SENTENCE.finditer(self.text, max(low - 2, 0), (low + high) // 2 + 1))
        starts = (self.skip_space(position) for position in ends if self.is_character(position))
        found = _first(starts, lambda position: low <= position < high)
        if found is None:
            found = _first(range(low, high), self.is_word)
        if found is None:
            found = _first(range(low, high), self.is_character)
        return high if found is None else min(self.skip_space(found), high)

    def skip_space(self, position: int) -> int:
        """The first position from `position` on without white space after it, or with one that carries a mark."""
        match = _SPACE.match(self.text, position)
        end = match.end() if match else position
        return end - 1 if position < end < len(self.text) and not self.is_character(end) else end

    def _cuts_syllable(self, position: int) -> bool:
        # a whole syllable with a trailing part (LVT) takes no vowel, one without (LV) does
        before, after = self.text[position - 1], self.text[position]
        if "\uac00" <= before <= "\ud7a3" and (ord(before) - 0xAC00) % 28 == 0 and _HANGUL[1].match("\u1160" + after):
            return True
        return any(pattern.match(self.text, position - 1) for pattern in _HANGUL)


class _Cutter:
    """Windows of one text. Places come from the tokens of the whole text; every window is then encoded by itself,
    since what stands at its edges may become other tokens than it was inside the text."""

    def __init__(self, text: str, tokenizer: Tokenizer, offsets: list[tuple[int, int]], *, max_tokens: int) -> None:
        self.text = text
        self.borders = _Borders(text)
        self._tokenizer = tokenizer
        self._starts = [start for start, _ in offsets]
        self._ends = [end for _, end in offsets]
        self._max_tokens = max_tokens

    def start(self, previous: tuple[int, int], done: int, *, overlap: int) -> int:
        """Where the window after `previous` begins: at most `overlap` tokens before the end of it."""
        shared = bisect_left(self._starts, previous[1]) - overlap
        low = self._ends[shared - 1] if shared > 0 else 0
        return self.borders.start(max(low, previous[0] + 1), done)

    def window(self, start: int, done: int) -> tuple[int, int]:
        """A window from `start` to beyond `done`; it begins at `done` where that is too far from `start`."""
        for begin in {start: None, done: None}:
            end = self._end(begin, done)
            if end is not None:
                return begin, end
        return done, self._end_of_character(done)

    def _end(self, start: int, done: int) -> int | None:
        first = bisect_left(self._starts, start)
        middle = self._position(first + self._max_tokens // 2)
        count, step = self._max_tokens, 1
        while count > 0 and (high := self._position(first + count)) > done:
            end = self.borders.end(done, middle, high)
            if end is None:
                return None
            end = max(start + len(self.text[start:end].rstrip()), done + 1)
            excess = self._num_tokens(start, end) - self._max_tokens
            if excess <= 0:
                return end
            count = min(count, bisect_left(self._starts, end) - first) - max(excess, step)
            step *= 2  # so that few rounds are enough, whatever the tokenizer does
        return None

    def _end_of_character(self, start: int) -> int:
        # a cluster of more than twice as many tokens inside the text is too long by itself: no need to see its end
        limit = self._position(bisect_left(self._starts, start) + 2 * self._max_tokens + 8)
        end = start + 1
        while end < limit and not self.borders.is_character(end):
            end += 1
        if self._num_tokens(start, end) <= self._max_tokens:
            return end
        end = min(end, max(self._position(bisect_left(self._starts, start) + self._max_tokens), start + 1))
        while end > start + 1 and self._num_tokens(start, end) > self._max_tokens:
            end = start + (end - start) // 2
        return end

    def _position(self, token: int) -> int:
        return self._starts[token] if token < len(self._starts) else len(self.text)

    def _num_tokens(self, start: int, end: int) -> int:
        return len(self._tokenizer.encode(self.text[start:end]))


def _first(positions: Iterable[int], is_wanted: Callable[[int], bool]) -> int | None:
    return next((position for position in positions if is_wanted(position)), None)
