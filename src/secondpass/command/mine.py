"""`secondpass mine`: hard negatives for queries and their positives."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from secondpass.command.progress import watched
from secondpass.errors import DataError, WrongUse

if TYPE_CHECKING:
    from secondpass.embedder import Embedder
    from secondpass.training.data import Example
    from secondpass.training.mining import Collection, MiningSettings, Search
    from secondpass.types import Progress, Scorer

EMBEDDER = "embedder:"


@dataclass(frozen=True, kw_only=True)
class Source:
    """What negatives are mined with: a search, perhaps a judge, and the split of judgements."""

    search: str = "bm25"
    judge: str | None = None
    split: str | None = None


def mine(data: Sequence[str], output: str, *, source: Source, settings: MiningSettings) -> None:
    """Write examples with negatives to `output`. Raises WrongUse or SecondpassError."""
    from secondpass.training.data import save_data

    file = Path(output).expanduser()
    if file.exists():
        raise WrongUse(f"{file} is there already; name another file")
    partial = file.with_name(file.name + ".partial")
    examples = mined(collections(data, source.split), partial, source=source, settings=settings)
    save_data(examples, file)
    forget(partial)
    sys.stderr.write(f"{len(examples):,} queries with negatives in {file}\n")


def collections(paths: Sequence[str], split: str | None = None) -> list[Collection]:
    """BEIR folders each by itself, the examples of all other files together."""
    from secondpass.evaluation.datasets.beir import is_collection
    from secondpass.evaluation.datasets.dataset import load_dataset
    from secondpass.training.data import read_data
    from secondpass.training.mining import collection_of, collection_of_examples

    places = [Path(path).expanduser() for path in paths]
    folders = [place for place in places if place.is_dir() and is_collection(place)]
    found = [collection_of(load_dataset(folder, split=split or "train")) for folder in folders]
    files = [place for place in places if place not in folders]
    if files:
        found.append(collection_of_examples(read_data(files, needs_negatives=False), "examples"))
    return found


def mined(
    collections: Sequence[Collection], partial: Path, *, source: Source, settings: MiningSettings
) -> list[Example]:
    """Examples that have negatives, from all collections; goes on where an interrupted run of the same stopped."""
    from secondpass.training.mining import continued
    from secondpass.training.mining import mine as mine_negatives

    judge = None if source.judge is None else open_scorer(source.judge)
    embedder = _open_embedder(source.search)
    examples: list[Example] = []
    for number, collection in enumerate(collections):
        key = _key(collection, source, settings)
        with watched(f"reading {collection.name}") as progress:
            search = _search(embedder, collection, progress)
        num_queries = len(collection.queries)

        def make(start: int, collection: Collection = collection, search: Search = search) -> Iterator[Example]:
            return mine_negatives(collection, search, settings, judge=judge, start=start)

        place = partial.with_name(f"{partial.name}-{number}")
        with watched(f"mining {collection.name}") as progress:
            found = continued(place, key, num_queries, make, progress=progress)
        kept = [example for example in found if example.negatives]
        sys.stderr.write(f"{collection.name}: negatives for {len(kept):,} of {num_queries:,} queries\n")
        examples += kept
    if not examples:
        raise DataError("no negatives were found for any query; widen --range, or lower --margin")
    return examples


def forget(partial: Path) -> None:
    """Remove what `mined` kept for an interrupted run."""
    for place in partial.parent.glob(f"{partial.name}-*"):
        place.unlink()


def open_scorer(name: str) -> Scorer:
    """A reranker, or an embedder where the name begins so."""
    from secondpass.embedder import Embedder
    from secondpass.reranker import Reranker

    return Embedder(name.removeprefix(EMBEDDER)) if name.startswith(EMBEDDER) else Reranker(name)


def _open_embedder(search: str) -> Embedder | None:
    from secondpass.embedder import Embedder

    if search == "bm25":
        return None
    if not search.startswith(EMBEDDER):
        raise WrongUse(f"--search is {search!r}; give bm25, or {EMBEDDER}NAME with a folder or a model of the hub")
    return Embedder(search.removeprefix(EMBEDDER))


def _search(embedder: Embedder | None, collection: Collection, progress: Progress | None) -> Search:
    from secondpass.retrieval.bm25 import BM25
    from secondpass.retrieval.vectors import VectorIndex

    if embedder is None:
        return BM25(collection.passages)
    return VectorIndex(embedder, collection.passages, progress=progress)


def _key(collection: Collection, source: Source, settings: MiningSettings) -> str:
    """What the result depends on."""
    digest = hashlib.sha256(repr((asdict(source), asdict(settings))).encode())
    for text in (*collection.passages, *(judged.query for judged in collection.queries)):
        digest.update(text.encode(errors="surrogatepass") + b"\0")
    return digest.hexdigest()
