"""Token ids of texts that come again: the same documents are candidates of many queries."""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence

# Four bytes of ids and about four of text a token: some 16 MB when it is full.
MAX_TOKENS = 2_000_000
# A longer text would push too many others out.
MAX_TEXT = 100_000


class TokenCache:
    """The ids of the texts used last, at most `max_tokens` of them together. Safe to use from several threads."""

    def __init__(self, max_tokens: int = MAX_TOKENS) -> None:
        self.max_tokens = max_tokens
        self.num_tokens = 0
        self._ids: OrderedDict[str, array[int]] = OrderedDict()
        self._lock = threading.Lock()

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

    def _keep(self, new: Sequence[tuple[str, list[int]]]) -> None:
        with self._lock:
            for text, ids in new:
                if text not in self._ids:
                    self._ids[text] = array("I", ids)
                    self.num_tokens += 1 + len(ids)
            while self.num_tokens > self.max_tokens:
                self.num_tokens -= 1 + len(self._ids.popitem(last=False)[1])
