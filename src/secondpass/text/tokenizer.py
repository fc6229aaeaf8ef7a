"""A tokenizer that several threads may use at once.

The `tokenizers` library raises 'Already borrowed' when one thread changes truncation or padding while another
encodes. Here both are switched off once, at load, and nothing is changed afterwards: cutting and joining is done
by the recipe, on ids.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from weakref import WeakSet

import tokenizers

from secondpass.errors import CheckpointError
from secondpass.json_file import check_plain, read_json

# What texts that were read before may take, ids and all.
MAX_BYTES = 16 << 20
# A longer text would push too many others out.
MAX_TEXT = 100_000


class TokenCache:
    """The ids of the texts used last, at most `max_bytes` of both. Safe to use from several threads."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._ids: OrderedDict[str, array[int]] = OrderedDict()
        self._lock = threading.Lock()
        _CACHES.add(self)

    def __len__(self) -> int:
        return len(self._ids)

    def get(
        self, texts: Sequence[str], encode: Callable[[Sequence[str]], Sequence[Sequence[int]]]
    ) -> list[list[int]]:
        """Ids of each text; `encode` is called once, for the different ones that are not here."""
        found: dict[str, list[int]] = {}
        with self._lock:
            for text in texts:
                if text in self._ids:
                    self._ids.move_to_end(text)
                    found[text] = self._ids[text].tolist()
        missing = list(dict.fromkeys(text for text in texts if text not in found))
        if missing:
            for text, ids in zip(missing, encode(missing), strict=True):
                found[text] = list(ids)
            self._keep([(text, found[text]) for text in missing if len(text) <= MAX_TEXT])
        return [found[text] for text in texts]

    def unlock(self) -> None:
        """In a forked process, where no thread is left that would do it."""
        self._lock = threading.Lock()

    def _keep(self, new: Sequence[tuple[str, list[int]]]) -> None:
        with self._lock:
            for text, ids in new:
                if text not in self._ids:
                    self._ids[text] = array("I", ids)
                    self.num_bytes += _size(text, self._ids[text])
            while self.num_bytes > self.max_bytes:
                self.num_bytes -= _size(*self._ids.popitem(last=False))


def _size(text: str, ids: array[int]) -> int:
    return sys.getsizeof(text) + sys.getsizeof(ids) + 200  # and of the entry


_CACHES: WeakSet[TokenCache] = WeakSet()


def _unlock_all() -> None:
    for cache in _CACHES:
        cache.unlock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_unlock_all)


# What letters become that a vocabulary has not: no frame is made of it.
_UNKNOWN = ("[UNK]", "<unk>")
MAX_FILE = 512 << 20  # bytes of a tokenizer; Gemma's, of 256,000 words, has 34 MB
# transformers writes this where no limit is known
_NO_LIMIT = int(1e30)


@dataclass(frozen=True, slots=True)
class PairTemplate:
    """The special tokens around a query and a passage, and nothing else."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def num_special(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)


class Tokenizer:
    """Ids of texts, without special tokens around them.

    A text is data: a special token that it spells is read as the characters of its name, or it could forge the
    frame that a model trusts. parses_special: as the token that it names, as the references do.
    """

    def __init__(
        self, inner: tokenizers.Tokenizer, *, max_length: int | None = None, parses_special: bool = False
    ) -> None:
        inner.no_truncation()
        inner.no_padding()
        inner.encode_special_tokens = not parses_special
        self._inner = inner
        self._cache = TokenCache()
        self.max_length = max_length

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """From tokenizer.json, or from vocab.txt for a WordPiece checkpoint that has no other."""
        settings_file = folder / "tokenizer_config.json"
        settings = read_json(settings_file) if settings_file.exists() else {}
        max_length = _named_length(settings.get("model_max_length"), settings_file)
        file = folder / "tokenizer.json"
        if file.exists():
            check_plain(file, MAX_FILE)
            try:
                with _library_errors(str(file)):
                    return cls(tokenizers.Tokenizer.from_file(str(file)), max_length=max_length)
            except Exception as error:  # the library raises plain Exception for a damaged file
                raise CheckpointError(f"{file}: cannot be read as a tokenizer: {error}") from error
        vocabulary = folder / "vocab.txt"
        if not vocabulary.exists():
            raise CheckpointError(f"{folder}: no tokenizer.json; save one with a fast tokenizer of transformers")
        check_plain(vocabulary, MAX_FILE)
        try:
            return cls(_word_piece(vocabulary, settings), max_length=max_length)
        except Exception as error:  # as above, and a TypeError where a special token is not in the list
            raise CheckpointError(f"{vocabulary}: cannot be read as a vocabulary: {error}") from error

    def reading(self, special_tokens: str) -> Tokenizer:
        """This tokenizer for "text"; for "parse" one that reads special tokens that a text spells as such."""
        if special_tokens == "text":
            return self
        if special_tokens != "parse":
            raise ValueError(f"special_tokens is {special_tokens!r}; give 'text' or 'parse'")
        inner = tokenizers.Tokenizer.from_str(self._inner.to_str())
        return Tokenizer(inner, max_length=self.max_length, parses_special=True)

    def encode_prompt(self, words: str) -> list[int]:
        """Ids of words of our own, in which special tokens are what they name."""
        ids: list[int] = []
        for part in self._special.split(words):
            found = self.token_id(part) if self._special.fullmatch(part) else None
            ids += self.encode(part) if found is None else [found]
        return ids

    def _in_letters(self, ids: list[int]) -> list[int]:
        """A SentencePiece vocabulary has special tokens among its pieces, so a text can still spell them."""
        if self._spelled.keys().isdisjoint(ids):
            return ids
        return [letter for token in ids for letter in self._spelled.get(token, (token,))]

    @cached_property
    def _spelled(self) -> dict[int, list[int]]:
        """The letters of each special token's name, as ids; none where special tokens are parsed."""
        if not self._inner.encode_special_tokens:
            return {}
        found = self._inner.get_added_tokens_decoder().items()
        special = {key: token.content for key, token in found if token.special and token.content not in _UNKNOWN}
        with _library_errors():
            letters = {
                key: [i for letter in name for i in self._inner.encode(letter, add_special_tokens=False).ids]
                for key, name in special.items()
            }
        return {key: [i for i in ids if i not in special] for key, ids in letters.items()}

    @cached_property
    def _special(self) -> re.Pattern[str]:
        tokens = self._inner.get_added_tokens_decoder().values()
        names = sorted((token.content for token in tokens if token.special), key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, names)) or '(?!)'})")

    def encode(self, text: str) -> list[int]:
        with _library_errors():
            ids: list[int] = self._inner.encode(text, add_special_tokens=False).ids
        return self._in_letters(ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; those of texts that were read before are remembered, up to a bound."""
        return self._cache.get(texts, self._encode_batch)

    def _encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        with _library_errors():
            encodings = self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self._in_letters(encoding.ids) for encoding in encodings]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids, and for each the (start, end) range of characters that it came from."""
        with _library_errors():
            encoding = self._inner.encode(text, add_special_tokens=False)
        if self._spelled.keys().isdisjoint(encoding.ids):
            return encoding.ids, encoding.offsets
        offsets = [
            offset
            for token, offset in zip(encoding.ids, encoding.offsets, strict=True)
            for _ in self._spelled.get(token, (token,))
        ]
        return self._in_letters(encoding.ids), offsets

    def encode_with_words(self, text: str) -> tuple[list[int], list[int | None]]:
        """Ids, and for each the word that it is a piece of, by the tokenizer's own borders; None for no word."""
        with _library_errors():
            encoding = self._inner.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.word_ids

    def token_of(self, token_id: int) -> str:
        """The piece of the vocabulary that an id stands for; "" for none."""
        return str(self._inner.id_to_token(token_id) or "")

    @property
    def num_words(self) -> int:
        """How many ids there are."""
        count: int = self._inner.get_vocab_size()
        return count

    def token_id(self, token: str) -> int | None:
        found: int | None = self._inner.token_to_id(token)
        return found

    @cached_property
    def pair_template(self) -> PairTemplate:
        """What the tokenizer's own post-processor puts around a pair."""
        with _library_errors():
            pair = self._inner.encode("a", "a")
        sides: list[int | None] = pair.sequence_ids
        if 0 not in sides or 1 not in sides:
            raise CheckpointError("tokenizer.json has no template for pairs; it cannot be used as a reranker")
        end_of_first = len(sides) - sides[::-1].index(0)
        end_of_second = len(sides) - sides[::-1].index(1)
        return PairTemplate(
            before=tuple(pair.ids[: sides.index(0)]),
            between=tuple(pair.ids[end_of_first : sides.index(1)]),
            after=tuple(pair.ids[end_of_second:]),
        )


@contextmanager
def _library_errors(where: str = "tokenizer.json") -> Iterator[None]:
    """A failure of the library on a text, as for an unknown word without a token for such, is an error of ours.

    Its panics, as of a regular expression without end, are BaseExceptions of a class that cannot be imported, so that
    `except Exception` would let them pass.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"{where}: the tokenizer failed on a text: {error}") from error


def _named_length(limit: object, file: Path) -> int | None:
    if limit is None:
        return None
    if not isinstance(limit, int | float) or isinstance(limit, bool) or limit < 1:
        raise CheckpointError(f"{file}: model_max_length is {limit!r}; a number from 1 is needed")
    return int(limit) if limit < _NO_LIMIT else None


def _word_piece(vocabulary: Path, settings: dict[str, object]) -> tokenizers.Tokenizer:
    """The tokenizer of BERT (Devlin et al. 2019) from its list of words."""
    from tokenizers.implementations import BertWordPieceTokenizer

    accents = settings.get("strip_accents")
    inner = BertWordPieceTokenizer(
        tokenizers.models.WordPiece.read_file(str(vocabulary)),
        lowercase=bool(settings.get("do_lower_case", True)),
        strip_accents=accents if isinstance(accents, bool) else None,
        handle_chinese_chars=bool(settings.get("tokenize_chinese_chars", True)),
    )
    return inner._tokenizer
