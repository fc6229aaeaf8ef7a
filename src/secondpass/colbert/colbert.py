"""ColBERT: token vectors of queries and documents, compared by late interaction.

Documents are encoded once, without a query; a query is then one small forward and one matrix product over all
stored tokens. Khattab and Zaharia 2020; Santhanam et al. 2022 (ColBERTv2).
"""

from __future__ import annotations

import string
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secondpass.checkpoint.checkpoint import open_checkpoint
from secondpass.colbert.store import Origin, TokenVectors
from secondpass.engine.engine import Heads, Vectors
from secondpass.engine.open import open_encoder
from secondpass.errors import CheckpointError, UnknownModel
from secondpass.json_file import read_json
from secondpass.text.documents import as_documents, clean_query, text_of
from secondpass.text.prompts import single_rows
from secondpass.text.tokenizer import Tokenizer
from secondpass.types import Document, DocumentLike, Hit, Info, Ranking, Row, Usage

__all__ = ["ColBERT", "TokenVectors", "maxsim"]

# Document tokens in one matrix product: the similarities of a block (8 MB for 32 query vectors) stay in the cache,
# and a mapped or half-precision file is widened a block at a time.
BLOCK_TOKENS = 1 << 16
# [CLS], marker and [SEP]
MIN_LENGTH = 3


def maxsim(query: Vectors, vectors: NDArray[Any], lengths: NDArray[np.int64]) -> Vectors:
    """Late-interaction scores (N,): each query token's best document token, summed.

    query (L, D) and vectors (T, D) are unit vectors, `lengths` (N,) cuts T. An empty document scores -inf. One
    matrix product over the tokens of all documents, in blocks, then the maximum over each document's part.
    Raises ValueError when lengths does not sum to T. Khattab and Zaharia 2020, equation 3.
    """
    if int(lengths.sum()) != len(vectors):
        raise ValueError(f"lengths sum to {int(lengths.sum())}, there are {len(vectors)} vectors")
    stops = np.cumsum(lengths)
    starts = stops - lengths
    scores = np.full(len(lengths), -np.inf, np.float32)
    for first, last in _blocks(stops):
        filled = np.arange(first, last)[lengths[first:last] > 0]
        if not len(filled):
            continue
        tokens = vectors[starts[first] : stops[last - 1]].astype(np.float32, copy=False)
        similarities = query @ tokens.T  # (L, T): a maximum over neighbours in memory, twice as fast as (T, L)
        scores[filled] = np.maximum.reduceat(similarities, starts[filled] - starts[first], axis=1).sum(axis=0)
    return scores


def _blocks(stops: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Half-open ranges of documents, each of at most BLOCK_TOKENS tokens or of one document."""
    first = 0
    while first < len(stops):
        before = int(stops[first - 1]) if first else 0
        last = max(int(np.searchsorted(stops, before + BLOCK_TOKENS, side="right")), first + 1)
        yield first, last
        first = last


def unit(vectors: Vectors) -> Vectors:
    """The vectors at length 1; a zero vector stays as it is."""
    lengths: Vectors = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: Vectors = vectors / np.maximum(lengths, np.float32(1e-12))
    return scaled


@dataclass(frozen=True, kw_only=True)
class ColbertSettings:
    """What artifact.metadata says; the defaults are those of the colbert-ai library."""

    token_width: int
    max_query_length: int
    max_length: int
    query_marker: str
    document_marker: str
    attends_to_masks: bool
    skips_punctuation: bool

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> ColbertSettings:
        if metadata.get("similarity", "cosine") != "cosine":
            raise UnknownModel(f"artifact.metadata has similarity {metadata['similarity']!r}; 'cosine' is needed")
        return cls(
            token_width=metadata.get("dim", 128),
            max_query_length=metadata.get("query_maxlen", 32),
            max_length=metadata.get("doc_maxlen", 220),
            query_marker=metadata.get("query_token_id", "[unused0]"),
            document_marker=metadata.get("doc_token_id", "[unused1]"),
            attends_to_masks=metadata.get("attend_to_mask_tokens", False),
            skips_punctuation=metadata.get("mask_punctuation", True),
        )


class ColBERT:
    """Late interaction: ranks documents by their token vectors, which can be computed beforehand and stored.

    model: a folder in Hugging Face layout with artifact.metadata, or a hub name such as "colbert-ir/colbertv2.0".
    max_length and max_query_length count tokens with markers; a query always has max_query_length vectors. Every
    option that is None is as the checkpoint says. Safe to use from several threads. Raises CheckpointError,
    DownloadError, UnknownModel or MissingExtra.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        max_length: int | None = None,
        max_query_length: int | None = None,
        attends_to_masks: bool | None = None,
        skips_punctuation: bool | None = None,
        token_budget: int | None = None,
        local_files_only: bool = False,
    ) -> None:
        self._checkpoint = open_checkpoint(model, revision=revision, local_files_only=local_files_only)
        settings = ColbertSettings.from_metadata(_read_metadata(self._checkpoint.folder))
        self._tokenizer = self._checkpoint.tokenizer
        heads = Heads(token_width=settings.token_width)
        self._encoder = open_encoder(self._checkpoint, heads, device=device, dtype=dtype, token_budget=token_budget)
        self._max_length = self._limit("max_length", max_length, settings.max_length)
        self._max_query_length = self._limit("max_query_length", max_query_length, settings.max_query_length)
        self._attends_to_masks = _or(attends_to_masks, settings.attends_to_masks)
        skips = _or(skips_punctuation, settings.skips_punctuation)
        self._token_width = settings.token_width
        self._query_marker = _token_id(self._tokenizer, settings.query_marker)
        self._document_marker = _token_id(self._tokenizer, settings.document_marker)
        self._mask_id = _token_id(self._tokenizer, "[MASK]", "<mask>")
        self._pad_id = _token_id(self._tokenizer, "[PAD]", "<pad>")
        self._skipped = np.array([self._pad_id, *(_punctuation(self._tokenizer) if skips else ())])
        self._origin = Origin(
            model=self._checkpoint.name,
            revision=self._checkpoint.revision,
            fingerprint=self._encoder.current.fingerprint,
            settings={"max_length": self._max_length, "skips_punctuation": skips},
        )

    def encode(self, documents: Iterable[DocumentLike]) -> TokenVectors:
        """The documents' token vectors, to be kept with `save` and ranked any number of times."""
        return self._read(documents)[0]

    def encode_queries(self, queries: Iterable[str]) -> Vectors:
        """Unit vectors (N, max_query_length, D) of queries, those of the [MASK] tokens included."""
        if isinstance(queries, str):
            raise TypeError("queries is a str; give a list of queries, [query] for one")
        rows, visible = self._query_rows([clean_query(query) for query in queries])
        seen = None if self._attends_to_masks else visible
        shape = (len(rows), self._max_query_length, self._token_width)
        return self._token_vectors(rows, seen).reshape(shape)

    def score(self, query: str, documents: Iterable[DocumentLike] | TokenVectors) -> list[float]:
        """Sums of cosines in input order, each from -max_query_length to max_query_length."""
        return self._score(clean_query(query), self._read(documents)[0])

    def rank(
        self, query: str, documents: Iterable[DocumentLike] | TokenVectors, *, top_n: int | None = None
    ) -> Ranking:
        """The documents, best first; equal scores keep their input order.

        Stored vectors cost one forward of the query and a matrix product. A hit's probability is the mean cosine
        of the query's tokens, moved to 0..1: it compares, but is not calibrated.
        """
        started = time.perf_counter()
        if top_n is not None and top_n < 1:
            raise ValueError(f"top_n is {top_n}; give 1 or more, or None for all")
        cleaned = clean_query(query)
        vectors, rows = self._read(documents)
        scores = self._score(cleaned, vectors)
        order = sorted(range(len(scores)), key=lambda i: -scores[i])[:top_n]
        usage = Usage(
            rows=len(scores),
            tokens=self._max_query_length * bool(scores) + sum(map(len, rows)),
            truncated=sum(any(row.cut) for row in rows),
            seconds=time.perf_counter() - started,
        )
        hits = (self._hit(i, rank, vectors.documents[i], scores[i]) for rank, i in enumerate(order))
        return Ranking(query, tuple(hits), usage)

    def info(self) -> Info:
        """What this model runs on, and why."""
        return self._encoder.facts.info(
            model=self._checkpoint.name,
            revision=self._checkpoint.revision,
            family="colbert",
            max_length=self._max_length,
            truncation="end",
        )

    def probability(self, score: float) -> float:
        """A score as the mean cosine of the query's tokens, moved to 0..1; not calibrated."""
        return min(max((score / self._max_query_length + 1) / 2, 0.0), 1.0)

    def _read(self, documents: Iterable[DocumentLike] | TokenVectors) -> tuple[TokenVectors, list[Row]]:
        """Vectors of the documents, and the rows that had to be encoded for them."""
        if isinstance(documents, TokenVectors):
            self._check_origin(documents.origin)
            return documents, []
        candidates = as_documents(documents)
        texts = [text_of(document, None, index) for index, document in enumerate(candidates)]
        rows = single_rows(self._tokenizer, texts, max_length=self._max_length, marker=self._document_marker)
        vectors = self._token_vectors(rows)
        ids = np.array([token for row in rows for token in row.ids], np.int64)
        places = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        is_kept = ~np.isin(ids, self._skipped)
        lengths = np.bincount(places[is_kept], minlength=len(rows)).astype(np.int64)
        kept = TokenVectors(
            vectors=vectors[is_kept], lengths=lengths, documents=tuple(candidates), origin=self._origin
        )
        return kept, rows

    def _query_rows(self, queries: Sequence[str]) -> tuple[list[Row], list[int]]:
        """Rows of max_query_length tokens, filled up with [MASK], and how many tokens of each are the query's."""
        length = self._max_query_length
        rows = single_rows(self._tokenizer, queries, max_length=length, marker=self._query_marker)
        filled = []
        for row in rows:
            ids = [*row.ids, *[self._pad_id] * (length - len(row))]
            # A literal [PAD] in the query becomes [MASK] too, as in colbert-ai.
            ids = [self._mask_id if token == self._pad_id else token for token in ids]
            filled.append(Row(ids=ids, passage=(length, length), cut=row.cut))
        return filled, [len(row) for row in rows]

    def _token_vectors(self, rows: Sequence[Row], visible: Sequence[int] | None = None) -> Vectors:
        if not rows:
            return np.empty((0, self._token_width), np.float32)
        return unit(self._encoder.current.run(rows, ["tokens"], visible)["tokens"])

    def _score(self, query: str, vectors: TokenVectors) -> list[float]:
        if not len(vectors):
            return []
        scores: list[float] = maxsim(self.encode_queries([query])[0], vectors.vectors, vectors.lengths).tolist()
        return scores

    def _check_origin(self, origin: Origin) -> None:
        if origin.fingerprint != self._origin.fingerprint:
            raise ValueError(
                f"the vectors were made by {_pin(origin)}, which has other weights than {_pin(self._origin)}; "
                "load that model, or encode the documents with this one"
            )
        if origin.settings != self._origin.settings:
            raise ValueError(
                f"the vectors were made with {dict(origin.settings)}, this model is set to "
                f"{dict(self._origin.settings)}; give it the same, or encode the documents again"
            )

    def _limit(self, name: str, asked: int | None, default: int) -> int:
        known = [self._tokenizer.max_length, self._encoder.facts.max_length]
        longest = min(length for length in known if length is not None)
        length = min(default, longest) if asked is None else asked
        if not MIN_LENGTH <= length <= longest:
            raise ValueError(f"{name} is {length}; {self._checkpoint.name} reads {MIN_LENGTH} to {longest} tokens")
        return length

    def _hit(self, index: int, rank: int, document: Document, score: float) -> Hit:
        return Hit(index=index, document=document, score=score, probability=self.probability(score), rank=rank)


def _or(asked: bool | None, default: bool) -> bool:
    return default if asked is None else asked


def _read_metadata(folder: Path) -> dict[str, Any]:
    file = folder / "artifact.metadata"
    if not file.is_file():
        raise UnknownModel(f"{folder}: no artifact.metadata; ColBERT reads checkpoints of the colbert-ai library")
    return read_json(file)


def _token_id(tokenizer: Tokenizer, *names: str) -> int:
    """The id of the first of `names` that the vocabulary has."""
    for name in names:
        found = tokenizer.token_id(name)
        if found is not None:
            return found
    raise CheckpointError(f"the tokenizer has no {' or '.join(names)}, which ColBERT needs")


def _punctuation(tokenizer: Tokenizer) -> set[int]:
    """The first id of each ASCII punctuation character: what colbert-ai leaves out of documents."""
    return {ids[0] for ids in tokenizer.encode_batch(list(string.punctuation)) if ids}


def _pin(origin: Origin) -> str:
    return origin.model if origin.revision is None else f"{origin.model}@{origin.revision}"
