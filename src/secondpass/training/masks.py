"""What pre-training hides of a text: whole words, from the encoder once, from the decoder anew for each token.

Xiao et al. 2022, "RetroMAE: Pre-Training Retrieval-oriented Language Models Via Masked Auto-Encoder". Everything is
drawn from a generator that the caller seeds, for many patterns of a text at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secondpass.errors import CheckpointError
from secondpass.text.tokenizer import Tokenizer
from secondpass.text.windows import UNSPACED
from secondpass.training.settings import PretrainingSettings

MASKS = ("[MASK]", "<mask>")
MAX_HIDDEN = 512  # tokens of a pattern in the reference: the default of transformers' collator, which it inherits
# Of what is hidden from the encoder: shown as the mask, as another token; the rest as it is (Devlin et al. 2019).
AS_MASK, AS_OTHER = 0.8, 0.1


@dataclass(frozen=True, kw_only=True)
class HiddenText:
    """A text of n tokens: its ids, those that the encoder sees, which of them it has to name, and what token i of the
    decoder sees (n, n). asked: tokens that the decoder has to name; counted: those that are the text's own.
    num_cut: of the text's end.
    """

    ids: list[int]
    shown: list[int]
    hidden: NDArray[np.bool_]
    visible: NDArray[np.bool_]
    asked: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    num_cut: int = 0


class Masker:
    """Draws what is hidden of a text. Raises CheckpointError for a tokenizer without a mask."""

    def __init__(self, tokenizer: Tokenizer, settings: PretrainingSettings, *, max_length: int) -> None:
        self._tokenizer, self._settings = tokenizer, settings
        self._max_length = max_length
        found = [tokenizer.token_id(token) for token in MASKS]
        known = [token for token in found if token is not None]
        if not known:
            raise CheckpointError(f"the tokenizer has no {' or '.join(MASKS)}, which pre-training needs")
        self._mask = known[0]
        self._num_words = tokenizer.num_words  # the library counts them anew, for milliseconds
        template = tokenizer.single_template
        self._before, self._after = list(template.before), list(template.after)

    def hidden(self, text: str, draw: np.random.Generator) -> HiddenText:
        ids, words, num_cut = self._read(text)
        length = len(ids)
        settings = self._settings
        most = MAX_HIDDEN if settings.has_reference_masks else length
        encoder = _patterns(words, settings.encoder_share, 1, draw, most=most)[0]
        special = np.ones(length, np.bool_)
        special[len(self._before) : length - len(self._after)] = False
        encoder &= ~special
        shown = np.array(ids)
        fate = draw.random(length)
        shown[encoder & (fate < AS_MASK)] = self._mask
        is_other = encoder & (fate >= AS_MASK) & (fate < AS_MASK + AS_OTHER)
        shown[is_other] = draw.integers(self._num_words, size=int(is_other.sum()))
        patterns = _patterns(words, settings.decoder_share, min(length, settings.num_patterns), draw, most=most)
        visible = ~patterns[draw.integers(len(patterns), size=length)]
        np.fill_diagonal(visible, False)
        asked = np.ones(length, np.bool_)
        asked[[0, -1]] = False
        return HiddenText(
            ids=ids,
            shown=shown.tolist(),
            hidden=encoder,
            visible=visible,
            asked=asked,
            counted=~special,
            num_cut=num_cut,
        )

    def _read(self, text: str) -> tuple[list[int], list[int], int]:
        """Ids with special tokens, the word that each is of, -1 for what is never hidden, and how many were cut."""
        ids, borders, spans = self._tokenizer.encode_with_words(text)
        room = self._max_length - len(self._before) - len(self._after)
        num_cut = max(len(ids) - room, 0)
        ids = ids[:room]
        every = [*self._before, *ids, *self._after]
        if self._settings.has_reference_masks:
            return every, _joined_by_marks([self._tokenizer.token_of(token) for token in every]), num_cut
        numbers = _numbered(text, borders[:room], spans[:room])
        return every, [*[-1] * len(self._before), *numbers, *[-1] * len(self._after)], num_cut


def _numbered(text: str, borders: Sequence[int | None], spans: Sequence[tuple[int, int]]) -> list[int]:
    """The word of each token: the tokenizer's own, but of a script without spaces each piece by itself.

    XLM-R's tokenizer takes what stands between two spaces for a word, of Chinese a sentence and more.
    """
    numbers: list[int] = []
    last = -1
    for index, (word, (start, _)) in enumerate(zip(borders, spans, strict=True)):
        is_apart = index == 0 or word is None or word != borders[index - 1]
        if not is_apart and start >= spans[index - 1][1]:  # not within a character, as of bytes
            is_apart = UNSPACED.search(text, start - 1, start + 1) is not None
        last += is_apart
        numbers.append(last)
    return numbers


def _joined_by_marks(tokens: Sequence[str]) -> list[int]:
    """The words of the reference: pieces with ## join the word before, BERT's own special tokens are none."""
    numbers: list[int] = []
    last = -1
    for token in tokens:
        if token in ("[CLS]", "[SEP]"):
            numbers.append(-1)
            continue
        last += not (token.startswith("##") and last >= 0)
        numbers.append(last)
    return numbers


def _patterns(
    words: Sequence[int], share: float, count: int, draw: np.random.Generator, *, most: int
) -> NDArray[np.bool_]:
    """`count` draws (count, n) of whole words that cover at most `share` of the tokens, at least one, up to `most`.

    Words are taken in a random order while they fit; one that does not is skipped, later ones may.
    """
    numbers = np.array(words)
    num_words = int(numbers.max()) + 1 if len(numbers) else 0
    taken = np.zeros((count, max(num_words, 1)), np.bool_)
    sizes = np.bincount(numbers[numbers >= 0], minlength=max(num_words, 1))
    room = np.full(count, min(max(1, round(len(words) * share)), most))
    rows = np.arange(count)
    order = draw.random((count, max(num_words, 1))).argsort(axis=1)
    for column in order.T:
        fits = (sizes[column] <= room) & (sizes[column] > 0)
        taken[rows, column] = fits
        room -= sizes[column] * fits
    found: NDArray[np.bool_] = np.where(numbers >= 0, taken[:, np.maximum(numbers, 0)], False)
    return found
