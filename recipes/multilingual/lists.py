"""The sets by language and kind of source, and the first 50 passages of each query by BM25 that knows CJK."""

import argparse
from pathlib import Path

import numpy as np
from collection import Collection, read_collection
from sets import Lists, read_jsonl, subset

from secondpass.retrieval.bm25 import BM25, best

DEPTH = 50
NUM_PASSAGES = 2500
MIN_LETTERS = 240  # of a text that is cut in halves
# Set -> language and kind; what has a "/" is made. Development sets are measured only, and fit no weight that ships.
TRAIN = {
    "cmrc2018-trial": "zh encyclopaedia",
    "tldr-zh": "zh commands",
    "docs-software-zh": "zh software",
    "half/docs-software-zh": "zh software",
    "jaquad": "ja encyclopaedia",
    "half/jaquad": "ja encyclopaedia",
    "docs-software-other": "mixed software",
    "tldr-other": "mixed commands",
    "wikipedia-vital-es": "es encyclopaedia",
    "wikipedia-vital-fr": "fr encyclopaedia",
    "covid-faq": "en medicine",
    "medquad": "en medicine",
    "squad-sentences": "en encyclopaedia",
    "stackexchange-coffee": "en forum",
}
DEV = {
    "cmrc2018-dev": "zh encyclopaedia",
    "cmrc2018-sentences": "zh encyclopaedia",
    "docs-zh-dev": "zh software",
    "xquad-zh": "zh encyclopaedia",
    "jaquad-dev": "ja encyclopaedia",
    "xquad-de": "de encyclopaedia",
    "xquad-ar": "ar encyclopaedia",
    "xquad-es": "es encyclopaedia",
    "xquad-en": "en encyclopaedia",
}


def listed(name: str, kind: str, collection: Collection) -> Lists:
    names, texts = list(collection.passages), list(collection.passages.values())
    queries = [query for query in collection.queries if any(collection.qrels.get(query, {}).values())]
    bm25 = BM25(texts)
    tops = [best(bm25.scores(collection.queries[query]), DEPTH) for query in queries]
    rows = sorted({row for top in tops for row, _ in top})
    place = {row: number for number, row in enumerate(rows)}
    judged = [collection.qrels[query] for query in queries]
    return Lists(
        name=name,
        kind=kind,
        queries=[collection.queries[query] for query in queries],
        passages=[texts[row] for row in rows],
        candidates=[[place[row] for row, _ in top] for top in tops],
        bm25=[[score for _, score in top] for top in tops],
        grades=[[found.get(names[row], 0) for row, _ in top] for found, top in zip(judged, tops, strict=True)],
        ideal=[sorted(found.values(), reverse=True) for found in judged],
    )


def halves(folder: Path, num_queries: int, num_passages: int) -> Collection:
    """Long requests: the first half of a text, up to 300 characters, asks for the other."""
    rows = [row for row in read_jsonl(folder / "corpus.jsonl.gz") if len(row["text"]) >= MIN_LETTERS]
    texts = {row["_id"]: row["text"] for row in rows}
    cuts = {name: min(len(text) // 2, 300) for name, text in texts.items()}
    made = Collection(
        passages={name: text[cuts[name] :] for name, text in texts.items()},
        queries={name: text[: cuts[name]] for name, text in texts.items()},
        qrels={name: {name: 1} for name in texts},
    )
    return subset(made, num_queries, num_passages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with train/ and dev/")
    parser.add_argument("out", type=Path)
    parser.add_argument("--max-queries", type=int, default=60, help="of each training or made set")
    parser.add_argument("--max-dev-queries", type=int, default=100)
    arguments = parser.parse_args()
    for split, sets in (("train", TRAIN), ("dev", DEV)):
        (arguments.out / split).mkdir(parents=True, exist_ok=True)
        for name, kind in sets.items():
            shape, _, source = name.rpartition("/")
            folder = arguments.data / split / source
            count = arguments.max_queries if split == "train" else arguments.max_dev_queries
            size = NUM_PASSAGES if split == "train" else 10**9
            whole = halves(folder, count, size) if shape else subset(read_collection(folder), count, size)
            lists = listed(name, kind, whole)
            lists.save(arguments.out / split)
            found = np.mean([max(row) > 0 for row in lists.grades])
            print(split, name, kind, len(lists.queries), len(lists.passages), round(float(found), 3), flush=True)


if __name__ == "__main__":
    main()
