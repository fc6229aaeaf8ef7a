"""What retrievers read of a store's texts, as rows of it: searched through what is gathered of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from secondpass.errors import StoreError
from secondpass.retrieval.bm25 import Found
from secondpass.search.stores.gathered import Gathered, Parts
from secondpass.search.stores.store import Filter, Retriever

READ = 512  # readings that are read at a time, so that memory stays small
SAMPLE = 1024  # readings that are learnt from, at least, where there are as many
RESCORED = 4  # times as many as are asked for are scored by their readings

Connection = TypeVar("Connection")


class GatheredReadings(ABC, Generic[Connection]):
    """Searches the readings of one stage, which are rows of a store, through what is gathered of them.

    copy: a file for what is gathered; without one each process gathers it for itself.
    """

    def __init__(self, stage: str, location: str, copy: Path | None = None) -> None:
        self.stage, self.copy = stage, copy
        self._location = location
        self._gathered: tuple[str, Gathered] | None = None  # and the mark of its readings

    @abstractmethod
    def _reading(self) -> AbstractContextManager[Connection]: ...

    @abstractmethod
    def _mark(self, connection: Connection) -> str | None:
        """What made the readings that there are; None where the index keeps none."""

    @abstractmethod
    def _count(self, connection: Connection) -> tuple[int, int | None]:
        """How many readings there are, and the last id, if any. No id is used twice."""

    @abstractmethod
    def _ids(self, connection: Connection) -> NDArray[np.int64]:
        """Of all readings, ascending."""

    @abstractmethod
    def _values(self, connection: Connection, ids: NDArray[np.int64]) -> dict[int, bytes]:
        """Readings by their ids, ascending."""

    @abstractmethod
    def _allowed(self, connection: Connection, only: Filter) -> NDArray[np.int64] | None:
        """Ids of the readings of what a filter lets through; None where that is all."""

    @abstractmethod
    def _chunks(self, connection: Connection, ids: NDArray[np.int64], only: Filter) -> Iterable[tuple[int, int]]:
        """The chunks that a filter lets through, by these readings, each with its reading's id."""

    def search(self, retriever: Retriever, query: str, limit: int, only: Filter) -> Found:
        asked = retriever.ask(query)
        with self._reading() as connection:
            if (mark := self._mark(connection)) != retriever.mark:
                kept = "no readings" if mark is None else "readings of another model"
                raise StoreError(
                    f"{self._location}: it keeps {kept} for {self.stage!r}; make them with Index.update, or "
                    f"with: secondpass update --{self.stage} MODEL"
                )
            gathered = self._refreshed(connection, retriever)
            allowed = self._allowed(connection, only)
            may_be = None if allowed is None else np.isin(gathered.ids, allowed)
            near = gathered.ids[retriever.nearest(asked, gathered, RESCORED * limit, may_be)]
            read = self._values(connection, near)
            scores = dict(zip(read, retriever.scores(asked, list(read.values())), strict=True))
            rows = self._chunks(connection, near, only)
            found = [(int(chunk), scores[id]) for chunk, id in rows if scores.get(id, 0.0) > retriever.least]
        return sorted(found, key=lambda each: (-each[1], each[0]))[:limit]

    def tidy(self, retriever: Retriever) -> None:
        """After many writes: save what is gathered."""
        if self.copy is None:
            return
        with self._reading() as connection:
            if self._mark(connection) != retriever.mark:
                return
            gathered = self._refreshed(connection, retriever)
            with suppress(OSError):  # a copy, made again when it is missing
                gathered.save(self.copy, retriever.mark)

    def _check_mark(self, connection: Connection, mark: str) -> None:
        if self._mark(connection) != mark:
            raise StoreError(
                f"{self._location}: another process has taken another model for {self.stage!r} meanwhile; "
                f"what it keeps is that one's; secondpass update --{self.stage} MODEL changes it"
            )

    def _saved(self, retriever: Retriever) -> Gathered | None:
        return None if self.copy is None else Gathered.load(self.copy, retriever.mark)

    def _refreshed(self, connection: Connection, retriever: Retriever) -> Gathered:
        """What is gathered, with the readings as the store has them now.

        Where they are many more by now than what was learnt was made of, it is learnt anew, or another process has.
        """
        mark, base = self._gathered or ("", None)
        base = base if mark == retriever.mark else None
        now = self._count(connection)
        if base is None or now[0] > len(base) + READ:  # another process has saved what it added
            base = max((each for each in (base, self._saved(retriever)) if each is not None), key=len, default=None)
        base = self._caught_up(connection, retriever, base, now)
        if base.is_outgrown:
            base = self._caught_up(connection, retriever, self._saved(retriever), now)
        if base.is_outgrown:
            base = self._caught_up(connection, retriever, None, now)
        self._gathered = retriever.mark, base
        return base

    def _caught_up(
        self, connection: Connection, retriever: Retriever, base: Gathered | None, now: tuple[int, int | None]
    ) -> Gathered:
        count, last = now  # as many, and the same last one, are the same
        if base is not None and len(base) == count and (not count or int(base.ids[-1]) == last):
            return base
        live = self._ids(connection)
        if base is None or not len(base):
            sample = self._values(connection, live[:: max(1, len(live) // SAMPLE)])
            base = retriever.gathered(list(sample.values()), len(live))
        base = base.only(live)
        newer, lengths, parts = [base.ids[:0]], list[NDArray[np.int64]](), list[Parts]()
        left = live[~np.isin(live, base.ids)]
        for start in range(0, len(left), READ):
            # others may write meanwhile: some may be gone by now
            if values := self._values(connection, left[start : start + READ]):
                of_block, found = retriever.parts(list(values.values()), base.learnt)
                newer.append(np.array(list(values), np.int64))
                lengths.append(of_block)
                parts.append(found)
        return base.with_more(np.concatenate(newer), lengths, parts)
