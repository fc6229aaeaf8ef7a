"""Search on sets in the layout of BEIR: how the first stages are joined, and beside LanceDB's hybrid search.

    python benchmarks/search.py DEV/{cranfield,medquad-dev,nq-qed,docs-en-dev,cosqa,squad-dev-sentences}
    pip install lancedb; python benchmarks/search.py ... --peers

A row for each rule over one and the same store, and for each set the rule that is best by the others. With --peers
the same documents, vectors (of the embedded embedder) and questions in both programs, in turns, the time of embedding
left out; LanceDB with its English full-text index and its own fusion.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from secondpass import Embedder, Reranker
from secondpass.colbert.maxsim import unit
from secondpass.evaluation.measures import parse
from secondpass.evaluation.pipeline import TimedSet, fill, load_timed
from secondpass.retrieval.bm25 import Found
from secondpass.retrieval.fusion import Fused, convex, reciprocal
from secondpass.search.pipeline import Pipeline, Question
from secondpass.search.stores.sqlite import SqliteStore

DEPTH = 100
Rule = Callable[[Mapping[str, Found]], list[Fused]]
RULES: Mapping[str, Rule] = {
    "BM25": lambda runs: reciprocal({"bm25": runs["bm25"]}),
    "vectors": lambda runs: reciprocal({"dense": runs["dense"]}),
    "RRF, k 60": reciprocal,
    **{f"convex, vectors {w}": partial(convex, weights={"dense": w, "bm25": 1 - w}) for w in (0.5, 0.6, 0.7, 0.8)},
}


class KeptVectors:
    """The embedder, with what it has read before."""

    def __init__(self) -> None:
        self._embedder = Embedder()
        self._known: dict[str, NDArray[np.float32]] = {}

    def encode(self, texts: Iterable[str], *, kind: str = "document") -> NDArray[np.float32]:
        texts = list(texts)
        new = list(dict.fromkeys(text for text in texts if text not in self._known))
        self._known |= dict(zip(new, self._embedder.encode(new, kind=kind), strict=True))
        return np.array([self._known[text] for text in texts], np.float32)


def measured(name: str, timed: TimedSet, found: Mapping[str, list[str]]) -> NDArray[np.float64]:
    """The measure of each question, by its best names."""
    measure = parse(name)
    scores = {query: {each: 1.0 / (at + 1) for at, each in enumerate(names)} for query, names in found.items()}
    return np.array([measure(grades, scores[query]) for query, grades in timed.dataset.qrels.items()])


def fused_by_rules(timed: TimedSet, encoder: KeptVectors) -> dict[str, dict[str, list[str]]]:
    with TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder) / "set.sqlite")
        names = fill(store, timed, encoder)
        pipeline = Pipeline(store=store, encoder=encoder, open_reranker=lambda _: (None, ()))
        found: dict[str, dict[str, list[str]]] = {rule: {} for rule in RULES}
        for query, text in timed.dataset.queries.items():
            runs = pipeline.first_stages(Question(text=text, depth=DEPTH))
            for name, rule in RULES.items():
                found[name][query] = [names[each.index] for each in rule(runs)]
        store.close()
    return found


def show_fusion(sets: Mapping[str, TimedSet], encoder: KeptVectors) -> None:
    found = {name: fused_by_rules(timed, encoder) for name, timed in sets.items()}
    means = {rule: [measured("nDCG@10", sets[name], found[name][rule]).mean() for name in sets] for rule in RULES}
    recall = {rule: [measured("recall@50", sets[name], found[name][rule]).mean() for name in sets] for rule in RULES}
    print(f"| rule | {' | '.join(sets)} | mean | recall@50 |\n|---{'|---' * (len(sets) + 2)}|")
    for rule, row in means.items():
        figures = " | ".join(f"{value:.3f}" for value in [*row, np.mean(row), np.mean(recall[rule])])
        print(f"| {rule} | {figures} |")
    print()
    for at, name in enumerate(sets if len(sets) > 1 else ()):
        others = {rule: np.mean(np.delete(row, at)) for rule, row in means.items()}
        chosen = max(others, key=lambda rule: others[rule])
        print(f"{name}: by the others {chosen}, which has {means[chosen][at]:.3f} here")


def ours(
    folder: Path, timed: TimedSet, encoder: KeptVectors, reranker: Reranker | None
) -> tuple[Callable[[str], list[str]], float, int]:
    """A search, the seconds that writing took, and the bytes."""
    started = time.perf_counter()
    store = SqliteStore(folder / "set.sqlite")
    names = fill(store, timed, encoder)
    seconds = time.perf_counter() - started
    pipeline = Pipeline(store=store, encoder=encoder, open_reranker=lambda _: (reranker, ()))

    def search(text: str) -> list[str]:
        return [names[hit.index] for hit in pipeline.search(Question(text=text, top_n=30))]

    return search, seconds, store.counts().bytes


def lancedb_hybrid(
    folder: Path, timed: TimedSet, encoder: KeptVectors, rule: str
) -> tuple[Callable[[str], list[str]], float, int]:
    import lancedb
    from lancedb.index import FTS
    from lancedb.rerankers import LinearCombinationReranker, RRFReranker

    documents = timed.dataset.documents
    vectors = unit(encoder.encode(documents.values()))
    started = time.perf_counter()
    table = lancedb.connect(folder).create_table(
        "set",
        [
            {"name": name, "text": text, "vector": row}
            for (name, text), row in zip(documents.items(), vectors, strict=True)
        ],
    )
    table.create_index("text", config=FTS())
    seconds = time.perf_counter() - started
    join = RRFReranker() if rule == "rrf" else LinearCombinationReranker(weight=0.7)

    def search(text: str) -> list[str]:
        vector = unit(encoder.encode([text], kind="query"))[0]
        asked = table.search(query_type="hybrid").vector(vector).text(text)
        return [row["name"] for row in asked.distance_type("cosine").rerank(join).limit(DEPTH).to_list()][:30]

    return search, seconds, sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def show_peers(sets: Mapping[str, TimedSet], encoder: KeptVectors) -> None:
    reranker = Reranker()
    programs = {
        "secondpass, fused": partial(ours, reranker=None),
        "secondpass, reranked": partial(ours, reranker=reranker),
        "LanceDB, RRF": partial(lancedb_hybrid, rule="rrf"),
        "LanceDB, linear 0.7": partial(lancedb_hybrid, rule="linear"),
    }
    print(f"| program | {' | '.join(sets)} | mean | writing, s | a question, ms | MB |")
    print(f"|---{'|---' * (len(sets) + 4)}|")
    for timed in sets.values():
        encoder.encode([*timed.dataset.documents.values(), *timed.dataset.queries.values()])
    for program, opened in programs.items():
        means, writing, asking, size = list[float](), 0.0, list[float](), 0
        for timed in sets.values():
            with TemporaryDirectory() as folder:
                search, seconds, number = opened(Path(folder), timed, encoder)
                writing, size = writing + seconds, size + number
                found = {}
                for query, text in timed.dataset.queries.items():
                    started = time.perf_counter()
                    found[query] = search(text)
                    asking.append(1000 * (time.perf_counter() - started))
            means.append(measured("nDCG@10", timed, found).mean())
        figures = " | ".join(f"{value:.3f}" for value in [*means, np.mean(means)])
        print(f"| {program} | {figures} | {writing:.1f} | {statistics.median(asking):.1f} | {size / 1e6:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--peers", action="store_true")
    options = parser.parse_args()
    sets = {Path(name).name: load_timed(name, num_queries=options.questions) for name in options.sets}
    encoder = KeptVectors()
    show_fusion(sets, encoder)
    if options.peers:
        print()
        show_peers(sets, encoder)


if __name__ == "__main__":
    main()
