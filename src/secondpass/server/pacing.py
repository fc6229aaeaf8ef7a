"""How fast the engine is, so how long a batch may be; and how long to wait before a failed engine is opened again."""

from __future__ import annotations

import time

# How long a batch is: what a request waits that has just missed one. It grows to the longest as MANY requests wait,
# since the rows of many requests, sorted together, need less padding.
BATCH_SECONDS, LONGEST_BATCH_SECONDS = 0.2, 0.8
MANY = 16
MIN_BATCH_TOKENS, MAX_BATCH_TOKENS = 2048, 1 << 18
FIRST_RATE = 20_000.0  # tokens per second, before a batch was measured
MIN_MEASURED = 1024  # tokens of a batch that says how fast the engine is; a smaller one is mostly overhead
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 30.0
CALM_S = 60.0  # after so long without a failure the back-off begins at the first again


class Throughput:
    """Tokens per second, as an exponential mean over batches; batch_tokens fixes how long a batch is."""

    def __init__(self, batch_tokens: int | None = None) -> None:
        self._batch_tokens = batch_tokens
        self._rate, self.is_measured = FIRST_RATE, False

    def learn(self, tokens: int, seconds: float) -> None:
        if tokens < MIN_MEASURED:
            return
        rate = tokens / max(seconds, 1e-6)
        self._rate = self._rate + 0.2 * (rate - self._rate) if self.is_measured else rate
        self.is_measured = True

    def seconds_for(self, tokens: int) -> float:
        return tokens / self._rate

    def batch_tokens(self, num_waiting: int) -> int:
        """How many tokens the next batch may have while so many requests wait."""
        if self._batch_tokens is not None:
            return self._batch_tokens
        part = min(num_waiting / MANY, 1.0)
        seconds = BATCH_SECONDS + part * (LONGEST_BATCH_SECONDS - BATCH_SECONDS)
        return min(max(int(seconds * self._rate), MIN_BATCH_TOKENS), MAX_BATCH_TOKENS)


class Backoff:
    """A pause that doubles with each failure, and begins anew after a calm time."""

    def __init__(self) -> None:
        self.seconds = FIRST_BACKOFF_S
        self._failed_at = 0.0

    def failed(self) -> None:
        now = time.monotonic()
        is_calm = now - self._failed_at > CALM_S
        self._failed_at = now
        if is_calm:
            self.seconds = FIRST_BACKOFF_S
        else:
            self.grow()

    def grow(self) -> None:
        self.seconds = min(2 * self.seconds, LONGEST_BACKOFF_S)
