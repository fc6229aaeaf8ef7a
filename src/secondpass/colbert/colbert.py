"""ColBERT: token vectors of queries and documents, compared by late interaction.

Documents are encoded once, without a query; a query is then one small forward and one matrix product over all
stored tokens. Khattab and Zaharia 2020; Santhanam et al. 2022 (ColBERTv2).
"""

from __future__ import annotations

import string
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from secondpass.checkpoint.checkpoint import open_checkpoint
from secondpass.checkpoint.layout import COLBERT, LENGTH, inside
from secondpass.checkpoint.sentence_transformers import (
    SETTINGS,
    dense_layers,
    dense_settings,
    prompts_of,
    read_if_there,
    read_modules,
)
from secondpass.cognitive import Cognitive
from secondpass.colbert.maxsim import maxsim, unit
from secondpass.colbert.store import Origin, TokenVectors
from secondpass.engine.engine import Heads, Vectors
from secondpass.engine.open import open_encoder
from secondpass.errors import CheckpointError, UnknownModel
from secondpass.json_file import read_json
from secondpass.public import Opened, check_kind, check_whole, for_each_query, hinted, in_thread
from secondpass.scoring.ranking import RankOptions, log_odds, one_score, ranked, unscored_hit
from secondpass.text.documents import as_documents, clean_query, is_blank, text_of
from secondpass.text.prompts import single_rows
from secondpass.text.tokenizer import Tokenizer
from secondpass.types import DocumentLike, EarlyExit, Hit, Info, Progress, Ranking, Row, Usage

__all__ = ["ColBERT", "TokenVectors"]

# [CLS], marker and [SEP]
MIN_LENGTH = 3
# Where a MultiVectorEncoder names no length: of queries, which have as many vectors, and of documents
MAX_QUERY, NO_LIMIT = 512, 1 << 30
_MASK = "MultiVectorMask"
_MODULES = f"Transformer, Dense, {_MASK} and Normalize"


@dataclass(frozen=True, kw_only=True)
class ColbertSettings:
    """What artifact.metadata, PyLate's config or a MultiVectorEncoder's modules say; defaults are the libraries'.

    An empty marker is none. skipped: words that documents have no vectors of, as tokens of the vocabulary; None is
    all punctuation, as colbert-ai finds it. expands: queries are filled up with a token, [MASK] where `filler` is
    None, whose vectors count. prompted: the markers are words before a text, that may begin with a token.
    """

    token_width: int
    max_query_length: int
    max_length: int
    query_marker: str
    document_marker: str
    attends_to_masks: bool
    skips_punctuation: bool = True
    skipped: Sequence[str] | None = None
    expands: bool = True
    filler: str | None = None
    prompted: bool = False
    layers: Sequence[Path] = ()

    @classmethod
    def read(cls, folder: Path) -> ColbertSettings:
        """Raises UnknownModel for a folder of none of the libraries."""
        if (folder / COLBERT).is_file():
            return cls._of_colbert_ai(read_json(folder / COLBERT))
        file = folder / SETTINGS
        config = read_if_there(file)
        modules = read_modules(folder)
        if any(kind == _MASK for kind, _ in modules):
            return cls._of_modules(folder, modules)
        layers = dense_layers(folder, modules) if "query_length" in config else []
        if not layers:
            raise UnknownModel(
                f"{folder}: neither an artifact.metadata of the colbert-ai library, nor modules.json and "
                f"{SETTINGS} of PyLate or of a MultiVectorEncoder; one of these makes a checkpoint ColBERT's"
            )
        expands = bool(config.get("do_query_expansion", True))
        return cls(
            token_width=_whole(file, dense_settings(layers[-1]), "out_features", None),
            max_query_length=_whole(file, config, "query_length", 32),
            max_length=_whole(file, config, "document_length", 180),
            query_marker=str(config.get("query_prefix", "[Q] ")),
            document_marker=str(config.get("document_prefix", "[D] ")),
            attends_to_masks=expands and bool(config.get("attend_to_expansion_tokens", False)),
            skipped=[str(word) for word in config.get("skiplist_words", string.punctuation)],
            expands=expands,
            layers=layers,
        )

    @classmethod
    def _of_modules(cls, folder: Path, modules: Sequence[tuple[str, str]]) -> ColbertSettings:
        """Of a MultiVectorEncoder, which sentence-transformers has from version 6 on."""
        kinds = [kind for kind, _ in modules]
        layers = dense_layers(folder, [module for module in modules if module[0] not in (_MASK, "Normalize")])
        if sorted(kinds)[-2:] != ["Normalize", "Transformer"] or kinds.count(_MASK) != 1 or not layers:
            raise UnknownModel(f"{folder}: modules.json has {', '.join(kinds)}; {_MODULES} are needed")
        file, mask = folder / LENGTH, inside(folder, dict(modules)[_MASK]) / "config.json"
        saved, said = read_if_there(file), read_json(mask)
        filled = saved.get("query_expansion")
        if filled is not None and (not isinstance(filled, dict) or filled.get("strategy") != "fixed"):
            raise UnknownModel(f"{file}: query_expansion is {filled}; there are 'fixed', and none")
        tasks, words = said.get("skiplist_tasks") or ["document"], said.get("skiplist_words") or []
        if not isinstance(words, list):
            raise CheckpointError(f"{mask}: skiplist_words is {words!r}; a list of words is needed")
        if said.get("keep_only_token_ids") is not None or tasks != ["document"]:
            raise UnknownModel(f"{mask}: skips tokens of {tasks}, or all but some; of documents by words are needed")
        prompts = prompts_of(folder / SETTINGS)
        query = _whole(file, filled, "length", None) if filled else _whole(file, saved, "query_length", MAX_QUERY)
        return cls(
            token_width=_whole(mask, dense_settings(layers[-1]), "out_features", None),
            max_query_length=query,
            max_length=_whole(file, saved, "document_length", NO_LIMIT),
            query_marker=prompts.get("query", ""),
            document_marker=prompts.get("document", ""),
            attends_to_masks=bool(filled and filled.get("attend")),
            skipped=[str(word) for word in words],
            expands=bool(filled),
            filler=filled.get("token") if filled else None,
            prompted=True,
            layers=layers,
        )

    @classmethod
    def _of_colbert_ai(cls, metadata: Mapping[str, Any]) -> ColbertSettings:
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


def _whole(file: Path, config: Mapping[str, Any], name: str, default: int | None) -> int:
    value = config.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{file}: {name} is {value!r}; a whole number from 1 is needed")
    return value


class ColBERT(Opened):
    """Late interaction: ranks documents by their token vectors, which can be computed beforehand and stored.

    model: a folder in the layout of colbert-ai (artifact.metadata), of PyLate (modules.json with its layers) or of a
    MultiVectorEncoder of sentence-transformers, or a hub name such as "colbert-ir/colbertv2.0".
    max_length and max_query_length count tokens with markers; a query always has max_query_length vectors. Every
    option that is None is as the checkpoint says. special_tokens: "text", so that "[SEP]" in a text is just letters,
    or "parse", as the references do. Safe to use from several threads. Raises CheckpointError,
    DownloadError, UnknownModel or MissingExtra.
    """

    @hinted
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
        special_tokens: str = "text",
    ) -> None:
        self._arguments = {name: value for name, value in locals().items() if name != "self"}
        check_whole("token_budget", token_budget, 1)
        self._checkpoint = open_checkpoint(model, revision=revision, local_files_only=local_files_only)
        settings = ColbertSettings.read(self._checkpoint.folder)
        self._tokenizer = self._checkpoint.tokenizer.reading(special_tokens)
        heads = Heads(token_width=None if settings.layers else settings.token_width, layers=settings.layers)
        self._encoder = open_encoder(self._checkpoint, heads, device=device, dtype=dtype, token_budget=token_budget)
        self._max_length = self._limit("max_length", max_length, settings.max_length)
        self._max_query_length = self._limit("max_query_length", max_query_length, settings.max_query_length)
        self._attends_to_masks = _or(attends_to_masks, settings.attends_to_masks)
        skips = _or(skips_punctuation, settings.skips_punctuation)
        self._token_width = settings.token_width
        self._expands = settings.expands
        self._query_marker, self._query_prompt = _marker(self._tokenizer, settings.query_marker, settings.prompted)
        self._document_marker, self._prompt = _marker(self._tokenizer, settings.document_marker, settings.prompted)
        self._mask_id = _token_id(self._tokenizer, *((settings.filler,) if settings.filler else ("[MASK]", "<mask>")))
        self._pad_id = _token_id(self._tokenizer, "[PAD]", "<pad>")
        words = _punctuation(self._tokenizer) if settings.skipped is None else _ids(self._tokenizer, settings.skipped)
        self._skipped = np.array([self._pad_id, *(words if skips else ())])
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
        """Unit vectors (N, max_query_length, D) of queries, those of the [MASK] tokens included.

        Of a checkpoint whose queries are not filled up those are 0, which adds nothing to a score.
        """
        if isinstance(queries, str):
            raise TypeError("queries is a str; give a list of queries, [query] for one")
        cleaned = [clean_query(query) for query in queries]
        shape = (len(cleaned), self._max_query_length, self._token_width)
        if self._expands:
            rows, visible = self._query_rows(cleaned)
            return self._token_vectors(rows, None if self._attends_to_masks else visible).reshape(shape)
        own = self._own_rows(cleaned)
        vectors = np.zeros(shape, np.float32)
        vectors[np.arange(shape[1]) < np.array([len(row) for row in own], int)[:, None]] = self._token_vectors(own)
        return vectors

    def score(self, query: str, documents: Iterable[DocumentLike] | TokenVectors) -> list[float]:
        """Sums of cosines in input order, each from -max_query_length to max_query_length."""
        vectors, _, texts = self._read(documents)
        return self._score(clean_query(query), vectors, texts)

    @hinted
    def rank(
        self,
        query: str,
        documents: Iterable[DocumentLike] | TokenVectors,
        *,
        top_n: int | None = None,
        rank_fields: Sequence[str] | None = None,
        explain: bool = False,
        budget_ms: float | None = None,
        first_scores: Sequence[float] | None = None,
        early_exit: EarlyExit | float | Mapping[int, float] | None = None,
        cognitive: Cognitive | Mapping[str, Any] | bool | None = None,
        progress: Progress | None = None,
    ) -> Ranking:
        """The documents, best first; equal scores keep their input order.

        Stored vectors cost one forward of the query and a matrix product; they were read without rank_fields. A hit's
        probability is the mean cosine of the query's tokens, moved to 0..1: it compares, but is not calibrated.
        progress is called once, with all. budget_ms, first_scores and early_exit are refused.
        """
        started = time.perf_counter()
        options = RankOptions(
            top_n=top_n,
            rank_fields=rank_fields,
            explain=explain,
            budget_ms=budget_ms,
            first_scores=first_scores,
            early_exit=early_exit,
            cognitive=cognitive,
            progress=progress,
        )
        options.refuse("ColBERT", budget_ms="compares all documents at once", early_exit="has one output")
        if isinstance(documents, TokenVectors):
            options.refuse("ColBERT", rank_fields="has read these documents before")
        cleaned = clean_query(query)
        vectors, rows, texts = self._read(documents, rank_fields)
        scores = self._score(cleaned, vectors, texts)
        if progress is not None:
            progress(len(scores), len(scores))
        order = sorted(range(len(scores)), key=lambda i: (is_blank(texts[i]), -scores[i]))
        hits = [self._hit(i, vectors, scores[i], texts[i], rows, options) for i in order]
        usage = Usage(
            rows=len(scores),
            tokens=self._max_query_length * bool(scores) + sum(map(len, rows)),
            truncated=sum(any(row.cut) for row in rows),
            seconds=time.perf_counter() - started,
            unscored=sum(not hit.is_scored for hit in hits),
        )
        return Ranking(cleaned, ranked(cleaned, hits, options, log_odds), usage)

    arank = in_thread(rank)
    rank_many = for_each_query(rank)

    def info(self) -> Info:
        """What this model runs on, and why."""
        return self._encoder.facts.info(
            model=self._checkpoint.name,
            revision=self._checkpoint.revision,
            family="colbert",
            max_length=self._max_length,
            truncation="end",
        )

    @property
    def fingerprint(self) -> str:
        """Names what the vectors of documents depend on: weights and settings."""
        return f"{self._origin.fingerprint} {dict(self._origin.settings)} {self._arguments['special_tokens']}"

    def probability(self, score: float) -> float:
        """A score as the mean cosine of the query's tokens, moved to 0..1; not calibrated."""
        return min(max((one_score(score) / self._max_query_length + 1) / 2, 0.0), 1.0)

    def _read(
        self, documents: Iterable[DocumentLike] | TokenVectors, rank_fields: Sequence[str] | None = None
    ) -> tuple[TokenVectors, list[Row], list[str]]:
        """Vectors of the documents, the rows that had to be encoded for them, and what is read of each."""
        if isinstance(documents, TokenVectors):
            self._check_origin(documents.origin)
            return documents, [], [document.text for document in documents.documents]
        candidates = as_documents(documents, rank_fields)
        texts = [text_of(document, rank_fields, index) for index, document in enumerate(candidates)]
        prompted = [self._prompt + text for text in texts] if self._prompt else texts
        rows = single_rows(self._tokenizer, prompted, max_length=self._max_length, marker=self._document_marker)
        vectors = self._token_vectors(rows)
        ids = np.array([token for row in rows for token in row.ids], np.int64)
        owners = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        is_kept = ~np.isin(ids, self._skipped)
        lengths = np.bincount(owners[is_kept], minlength=len(rows)).astype(np.int64)
        kept = TokenVectors(
            vectors=vectors[is_kept], lengths=lengths, documents=tuple(candidates), origin=self._origin
        )
        return kept, rows, texts

    def _own_rows(self, queries: Sequence[str]) -> list[Row]:
        prompted = [self._query_prompt + query for query in queries]
        return single_rows(self._tokenizer, prompted, max_length=self._max_query_length, marker=self._query_marker)

    def _query_rows(self, queries: Sequence[str]) -> tuple[list[Row], list[int]]:
        """Rows of max_query_length tokens, filled up with [MASK], and how many tokens of each are the query's."""
        length, rows, filled = self._max_query_length, self._own_rows(queries), []
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

    def _score(self, query: str, vectors: TokenVectors, texts: Sequence[str]) -> list[float]:
        if not len(vectors):
            return []
        scores: list[float] = maxsim(self.encode_queries([query])[0], vectors.vectors, vectors.lengths).tolist()
        first: dict[str, float] = {}  # a product may round by position, so that equal texts differ in the last bit
        return [first.setdefault(text, score) for text, score in zip(texts, scores, strict=True)]

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
        check_kind(name, asked, Integral, "a whole number of tokens")
        length = min(default, longest) if asked is None else asked
        if not MIN_LENGTH <= length <= longest:
            raise ValueError(f"{name} is {length}; {self._checkpoint.name} reads {MIN_LENGTH} to {longest} tokens")
        return length

    def _hit(
        self,
        index: int,
        vectors: TokenVectors,
        score: float,
        text: str,
        rows: Sequence[Row],
        options: RankOptions,
    ) -> Hit:
        document = vectors.documents[index]
        read_text = None if options.rank_fields is None else text
        if is_blank(text):
            return unscored_hit(index, document, read_text)
        parts: dict[str, float | int | str] = {}
        if options.explain:
            parts["tokens"] = int(vectors.lengths[index])
            parts |= {"passage_tokens_cut": rows[index].cut[1]} if rows else {}
        return Hit(
            index=index,
            document=document,
            score=score,
            probability=self.probability(score),
            rank=0,
            parts=parts or None,
            read_text=read_text,
        )

    def close(self) -> None:
        """Give the memory of the model back; calls after that raise EngineError."""
        self._encoder.close()


def _or(asked: bool | None, default: bool) -> bool:
    return default if asked is None else asked


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


def _marker(tokenizer: Tokenizer, name: str, is_prompt: bool) -> tuple[int | None, str]:
    """The token that stands after the first one, and the words that stand before a text: of a prompt what is left."""
    if not name:
        return None, ""
    if not is_prompt:
        return _token_id(tokenizer, name), ""
    ids, words = tokenizer.encode_head(name)
    if len(ids) > 1:
        raise UnknownModel(f"the prompt {name!r} begins with {len(ids)} tokens; one, and words after it, are needed")
    return ids[0] if ids else None, words


def _ids(tokenizer: Tokenizer, words: Sequence[str]) -> set[int]:
    """The ids of words that are tokens; PyLate takes the unknown token for the others."""
    unknown = [token for name in ("[UNK]", "<unk>") if (token := tokenizer.token_id(name)) is not None]
    known = [tokenizer.token_id(word) for word in words]
    return {token for token in known if token is not None} | set(unknown[:1] if None in known else [])
