"""`secondpass mine`: hard negatives for queries and their positives."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from secondpass.atomic import at_home
from secondpass.command.flags import EMBEDDER, JudgedSplit, Opening, Search, wrong_use
from secondpass.command.output import watched
from secondpass.command.plain import argument, option
from secondpass.errors import DataError, WrongUse

if TYPE_CHECKING:
    from secondpass.embedder import Embedder
    from secondpass.training.data import Example
    from secondpass.training.mining import Collection, MiningSettings
    from secondpass.training.mining import Search as Searcher
    from secondpass.types import Progress


@dataclass(frozen=True, kw_only=True)
class Miner:
    """What negatives are mined with: a search, perhaps a judge, and the split of judgements."""

    search: Search = "bm25"
    judge: Annotated[
        str | None,
        option(metavar="MODEL", help="A reranker (or embedder:NAME) whose scores filter and are kept."),
    ] = None
    split: JudgedSplit = None


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which of the passages that are found become negatives."""

    negatives: Annotated[int, option(min=1, help="Per query.")] = 15
    first: Annotated[int, option(min=0, help="Ranks to leave out at the top.")] = 0
    depth: Annotated[int, option(min=1, help="Ranks to look at.")] = 100
    margin: Annotated[float | None, option(help="A negative scores so much below the lowest positive, at least.")] = (
        None
    )
    ratio: Annotated[float | None, option(help="A negative scores this share of the lowest positive, at most.")] = (
        None
    )
    spread: Annotated[bool, option("--spread", help="Evenly from all ranks, not the first ones.")] = False

    def settings(self) -> MiningSettings:
        from secondpass.training.mining import MiningSettings

        with wrong_use():
            return MiningSettings(
                num_negatives=self.negatives,
                first=self.first,
                depth=self.depth,
                margin=self.margin,
                ratio=self.ratio,
                is_spread=self.spread,
            )


def mine(
    data: Annotated[
        list[str], argument(metavar="DATA", help="BEIR folders, or JSONL files with queries and positives.")
    ],
    *,
    output: Annotated[str, option(metavar="FILE", help="File to write, .jsonl or .jsonl.gz.")],
    miner: Miner,
    choice: Choice,
    opening: Opening,
) -> None:
    """Find hard negatives for training. Interrupted, it goes on where it stopped when it is called again."""
    from secondpass.training.data import save_data

    settings = choice.settings()
    file = at_home(output)
    if file.exists():
        raise WrongUse(f"{file} is there already; name another file")
    if not file.absolute().parent.is_dir():
        raise WrongUse(f"{file}: there is no folder {file.absolute().parent}")
    partial = file.with_name(file.name + ".partial")
    try:
        examples = mined(collections(data, miner.split), partial, miner=miner, settings=settings, opening=opening)
        save_data(examples, file)
    except OSError as error:
        raise DataError(f"{file}: cannot be written: {error.strerror or error}; what is done is kept") from error
    forget(partial)
    sys.stderr.write(f"{len(examples):,} queries with negatives in {file}\n")


def collections(paths: Sequence[str], split: str | None = None) -> list[Collection]:
    """BEIR folders each by itself, the examples of all other files together."""
    from secondpass.evaluation.datasets.load import load_dataset
    from secondpass.training.data import read_data
    from secondpass.training.mining import collection_of, collection_of_examples

    folders, files = parted(paths)
    found = [collection_of(load_dataset(folder, split=split or "train")) for folder in folders]
    if files:
        found.append(collection_of_examples(read_data(files, needs_negatives=False), "examples"))
    return found


def parted(paths: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """BEIR folders, and all other files and folders."""
    from secondpass.evaluation.datasets.beir import is_collection

    every = [at_home(path) for path in paths]
    folders = [path for path in every if path.is_dir() and is_collection(path)]
    return folders, [path for path in every if path not in folders]


def mined(
    collections: Sequence[Collection],
    partial: Path,
    *,
    miner: Miner,
    settings: MiningSettings,
    opening: Opening,
) -> list[Example]:
    """Examples that have negatives, from all collections; goes on where an interrupted run of the same stopped."""
    from secondpass.training.mining import continued
    from secondpass.training.mining import mine as mine_negatives

    judge = None if miner.judge is None else opening.scorer(miner.judge)
    embedder = _open_embedder(miner.search, opening)
    examples: list[Example] = []
    for number, collection in enumerate(collections):
        key = _key(collection, miner, settings, opening)
        with watched(f"reading {collection.name}") as progress:
            search = _search(embedder, collection, progress)
        num_queries = len(collection.queries)

        def make(start: int, collection: Collection = collection, search: Searcher = search) -> Iterator[Example]:
            return mine_negatives(collection, search, settings, judge=judge, start=start)

        file = partial.with_name(f"{partial.name}-{number}")
        with watched(f"mining {collection.name}") as progress:
            found = continued(file, key, num_queries, make, progress=progress)
        kept = [example for example in found if example.negatives]
        sys.stderr.write(f"{collection.name}: negatives for {len(kept):,} of {num_queries:,} queries\n")
        examples += kept
    if not examples:
        raise DataError("no negatives were found; raise --depth or --ratio, or lower --first or --margin")
    return examples


def forget(partial: Path) -> None:
    """Remove what `mined` kept for an interrupted run."""
    for file in partial.parent.glob(f"{partial.name}-*"):
        file.unlink()


def _open_embedder(search: str, opening: Opening) -> Embedder | None:
    if search == "bm25":
        return None
    if not search.startswith(EMBEDDER):
        raise WrongUse(f"--search is {search!r}; give bm25, or {EMBEDDER}NAME with a folder or a model of the hub")
    return opening.embedder(search.removeprefix(EMBEDDER))


def _search(embedder: Embedder | None, collection: Collection, progress: Progress | None) -> Searcher:
    from secondpass.retrieval.bm25 import BM25
    from secondpass.retrieval.vectors import VectorIndex

    if embedder is None:
        return BM25(collection.passages)
    return VectorIndex(embedder, collection.passages, progress=progress)


def _key(collection: Collection, miner: Miner, settings: MiningSettings, opening: Opening) -> str:
    """What the result depends on."""
    digest = hashlib.sha256(repr((asdict(miner), asdict(settings))).encode())
    digest.update(b"" if opening == Opening() else repr(asdict(opening)).encode())
    for text in (*collection.passages, *(judged.query for judged in collection.queries)):
        digest.update(text.encode(errors="surrogatepass") + b"\0")
    digest.update(repr([(judged.positives, judged.prompt) for judged in collection.queries]).encode())
    return digest.hexdigest()
