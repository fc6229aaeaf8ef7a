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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
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
# In tokenizer_config.json -> of BERT's normalizer in tokenizer.json; transformers' classes that put it there
_NORMALIZER = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
_BERT_CLASSES = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MPNetTokenizer")
_ROBERTA_CLASSES = ("RobertaTokenizer", "GPT2Tokenizer")
_SPECIAL_KEYS = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_MORE_SPECIAL = ("additional_special_tokens", "extra_special_tokens")  # since transformers 5 the second
_SPECIAL = {"special": True, "normalized": False}
_TOKEN_OPTIONS = ("single_word", "lstrip", "rstrip", "normalized", "special")
# transformers writes this where no limit is known
_NO_LIMIT = int(1e30)


@dataclass(frozen=True, slots=True)
class PairTemplate:
    """The special tokens around a query and a passage, and nothing else.

    is_typed: the passage and what follows it have type 1; otherwise all types are 0.
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    is_typed: bool = True

    @property
    def num_special(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)


@dataclass(frozen=True, slots=True)
class SingleTemplate:
    """The special tokens around one text."""

    before: tuple[int, ...]
    after: tuple[int, ...]


class Tokenizer:
    """Ids of texts, without special tokens around them.

    A text is data: a special token that it spells is read as the characters of its name, or it could forge the
    frame that a model trusts. parses_special: as the token that it names, as the references do. keeps_end: texts that
    are too long lose their beginning. has_types: the model is given the token types that the template names.
    num_ids: those that the model has words for, where that is known; a text of a batch with another is an error.
    bos: the token that a decoder's input begins with, "" where it begins with none, None where that is not said.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        *,
        max_length: int | None = None,
        parses_special: bool = False,
        keeps_end: bool = False,
        has_types: bool = True,
        num_ids: int | None = None,
        bos: str | None = None,
    ) -> None:
        inner.no_truncation()
        inner.no_padding()
        inner.encode_special_tokens = not parses_special
        self._inner = inner
        self._cache = TokenCache()
        self.max_length = max_length
        self.keeps_end = keeps_end
        self.has_types = has_types
        self._num_ids = num_ids
        self._bos = bos

    @classmethod
    def from_folder(cls, folder: Path, *, num_ids: int | None = None) -> Tokenizer:
        """From tokenizer.json, or from vocab.txt for a WordPiece checkpoint that has no other."""
        settings_file = folder / "tokenizer_config.json"
        settings = read_json(settings_file) if settings_file.exists() else {}
        max_length = _named_length(settings.get("model_max_length"), settings_file)
        inner = _read_inner(folder, settings)
        _add_tokens(inner, folder, settings)
        side = settings.get("truncation_side") or (inner.truncation or {}).get("direction", "right")
        if str(side).lower() not in ("left", "right"):
            raise CheckpointError(f"{settings_file}: truncation_side is {side!r}; 'left' or 'right' is needed")
        names = settings.get("model_input_names")
        has_types = not isinstance(names, list) or "token_type_ids" in names
        return cls(
            inner,
            max_length=max_length,
            keeps_end=str(side).lower() == "left",
            has_types=has_types,
            num_ids=num_ids,
            bos=_named_bos(settings),
        )

    def reading(self, special_tokens: str) -> Tokenizer:
        """This tokenizer for "text"; for "parse" one that reads special tokens that a text spells as such."""
        if special_tokens == "text":
            return self
        if special_tokens != "parse":
            raise ValueError(f"special_tokens is {special_tokens!r}; give 'text' or 'parse'")
        return self._copied(self._copy_of_inner(), parses_special=True)

    def lowered(self) -> Tokenizer:
        """This tokenizer, with texts in lower case but for special tokens that are parsed."""
        inner = self._copy_of_inner()
        before = [] if inner.normalizer is None else [inner.normalizer]
        inner.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.Lowercase(), *before])
        return self._copied(inner, parses_special=not self._inner.encode_special_tokens)

    def _copy_of_inner(self) -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer.from_str(self._inner.to_str())

    def _copied(self, inner: tokenizers.Tokenizer, *, parses_special: bool) -> Tokenizer:
        return Tokenizer(
            inner,
            max_length=self.max_length,
            parses_special=parses_special,
            keeps_end=self.keeps_end,
            has_types=self.has_types,
            num_ids=self._num_ids,
            bos=self._bos,
        )

    def bos_id(self, default: int | None) -> int | None:
        """The id that a decoder's input begins with: `default`, unless the tokenizer's own settings name another."""
        if self._bos is None:
            return default
        return self.token_id(self._bos) if self._bos else None

    def encode_prompt(self, words: str) -> list[int]:
        """Ids of words of our own, in which special tokens are what they name."""
        ids: list[int] = []
        for part in self._special.split(words):
            found = self.token_id(part) if self._special.fullmatch(part) else None
            ids += self.encode(part) if found is None else [found]
        return ids

    def names_special(self, words: str) -> bool:
        """Whether there is a special token in words of our own."""
        return self._special.search(words) is not None

    def begins_special(self, words: str) -> bool:
        """Whether words of our own begin with a special token."""
        return self._special.match(words) is not None

    def encode_head(self, words: str) -> tuple[list[int], str]:
        """Ids of words of our own up to the last special token in them, and the words after it."""
        last = max((match.end() for match in self._special.finditer(words)), default=0)
        return self.encode_prompt(words[:last]), words[last:]

    def _checked(self, ids: list[int]) -> list[int]:
        """Raises CheckpointError for a word that the model has not: engines read anything, or end, at its id."""
        if self._num_ids is None or (largest := max(ids, default=0)) < self._num_ids:
            return ids
        raise CheckpointError(
            f"the tokenizer makes {self.token_of(largest)!r} of a text, with the id {largest}, and the model has "
            f"{self._num_ids} words (vocab_size in config.json); take the tokenizer that belongs to the weights"
        )

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
        return [self._in_letters(self._checked(encoding.ids)) for encoding in encodings]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids, and for each the (start, end) range of characters that it came from."""
        with _library_errors():
            encoding = self._inner.encode(text, add_special_tokens=False)
        ids = self._checked(encoding.ids)
        if self._spelled.keys().isdisjoint(ids):
            return ids, encoding.offsets
        offsets = [
            offset
            for token, offset in zip(ids, encoding.offsets, strict=True)
            for _ in self._spelled.get(token, (token,))
        ]
        return self._in_letters(ids), offsets

    def encode_with_words(self, text: str) -> tuple[list[int], list[int | None], list[tuple[int, int]]]:
        """Ids, and for each the word that it is a piece of, by the tokenizer's own borders, and its characters.

        The word is None for no word, the characters are (start, end).
        """
        with _library_errors():
            encoding = self._inner.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.word_ids, encoding.offsets

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
        start = sides.index(1)
        typed = [0] * start + [1] * (len(sides) - start)
        if self.has_types and any(pair.type_ids) and pair.type_ids != typed:
            raise CheckpointError(
                f"tokenizer.json gives a pair the token types {pair.type_ids}; "
                "0 everywhere, or 1 from the passage on, is needed"
            )
        return PairTemplate(
            before=tuple(pair.ids[: sides.index(0)]),
            between=tuple(pair.ids[end_of_first:start]),
            after=tuple(pair.ids[end_of_second:]),
            is_typed=self.has_types and any(pair.type_ids),
        )

    @cached_property
    def single_template(self) -> SingleTemplate:
        """What the tokenizer's own post-processor puts around one text."""
        with _library_errors():
            one = self._inner.encode("a")
        sides: list[int | None] = one.sequence_ids
        if 0 not in sides:
            raise CheckpointError("tokenizer.json makes nothing of a letter; it cannot be used as an embedder")
        end = len(sides) - sides[::-1].index(0)
        return SingleTemplate(before=tuple(one.ids[: sides.index(0)]), after=tuple(one.ids[end:]))


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


def _named_bos(settings: Mapping[str, Any]) -> str | None:
    """bos_token of tokenizer_config.json; FlagEmbedding puts none before an input where it is null or the padding."""
    if "bos_token" not in settings:
        return None
    bos, pad = (
        token.get("content") if isinstance(token, dict) else token
        for token in (settings["bos_token"], settings.get("pad_token"))
    )
    return str(bos) if bos and bos != pad else ""


def _read_inner(folder: Path, settings: Mapping[str, object]) -> tokenizers.Tokenizer:
    file = folder / "tokenizer.json"
    if file.exists():
        check_plain(file, MAX_FILE)
        try:
            with _library_errors(str(file)):
                return _suited(tokenizers.Tokenizer.from_file(str(file)), settings)
        except Exception as error:  # the library raises plain Exception for a damaged file
            raise CheckpointError(f"{file}: cannot be read as a tokenizer: {error}") from error
    vocabulary = folder / "vocab.txt"
    if not vocabulary.exists():
        raise CheckpointError(f"{folder}: no tokenizer.json; save one with a fast tokenizer of transformers")
    check_plain(vocabulary, MAX_FILE)
    try:
        return _word_piece(vocabulary, settings)
    except Exception as error:  # as above, and a TypeError where a special token is not in the list
        raise CheckpointError(f"{vocabulary}: cannot be read as a vocabulary: {error}") from error


def _suited(inner: tokenizers.Tokenizer, settings: Mapping[str, object]) -> tokenizers.Tokenizer:
    """As tokenizer_config.json has it where transformers' class of the tokenizer lets that come first."""
    name = str(settings.get("tokenizer_class") or "").removesuffix("Fast")
    if name in ("", *_BERT_CLASSES) and isinstance(inner.normalizer, tokenizers.normalizers.BertNormalizer):
        for key, ours in _NORMALIZER.items():
            if key in settings:
                setattr(inner.normalizer, ours, settings[key])
    if name in _ROBERTA_CLASSES and isinstance(inner.pre_tokenizer, tokenizers.pre_tokenizers.ByteLevel):
        inner.pre_tokenizer.add_prefix_space = settings.get("add_prefix_space", inner.pre_tokenizer.add_prefix_space)
    return inner


def _add_tokens(inner: tokenizers.Tokenizer, folder: Path, settings: Mapping[str, Any]) -> None:
    """Tokens that only the files beside tokenizer.json name, as transformers adds them.

    Raises CheckpointError for files in another form.
    """
    present = {token.content for token in inner.get_added_tokens_decoder().values()}
    file = folder / "added_tokens.json"
    try:
        named = settings.get("added_tokens_decoder") or {}
        tokens = [named[key] for key in sorted(named, key=int)]
        if not named and file.is_file():
            ids = read_json(file)
            tokens = [
                {"content": content, "normalized": False} for content in sorted(ids, key=lambda name: ids[name])
            ]
        special = [settings.get(key) for key in _SPECIAL_KEYS]
        for key in _MORE_SPECIAL:
            more = settings.get(key) or ()
            special += more.values() if isinstance(more, dict) else more
        tokens += [x if isinstance(x, dict) else {"content": x} | _SPECIAL for x in special if x]
        missing = [token for token in tokens if token["content"] not in present]
        for token in missing:
            options = {key: bool(token[key]) for key in _TOKEN_OPTIONS if key in token}
            inner.add_tokens([tokenizers.AddedToken(token["content"], **options)])
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: tokenizer_config.json or added_tokens.json: its tokens: {error!r}"
        ) from error


def _word_piece(vocabulary: Path, settings: Mapping[str, object]) -> tokenizers.Tokenizer:
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
