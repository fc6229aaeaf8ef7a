"""The sets by kind, queries made from texts where no set has their shape, and BM25's first 50 passages of each."""

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from collection import Bm25, Collection, by_hash, read_collection, read_jsonl

DEPTH = 50
NUM_PASSAGES = 2500
MIN_WORDS = 60  # of a text that queries are made from
NUM_MADE_PASSAGES = 1000
# Set -> kind; what has a "/" is made: SHAPE/SET. Development sets are measured only, and in what ships fit no weight.
TRAIN = {
    "squad-sentences": "encyclopaedia",
    "qamr": "encyclopaedia",
    "wikipedia-vital-en": "encyclopaedia",
    "medquad": "medicine",
    "pubmedqa": "medicine",
    "covid-qa": "medicine",
    "covid-faq": "medicine",
    "docs-software-en": "software",
    "debian-descriptions": "software",
    "tldr-en": "software",
    "stackexchange-coffee": "forum",
    "openstax": "textbook",
    "half/pubmedqa": "medicine",
    "first/pubmedqa": "medicine",
    "statement/covid-qa": "medicine",
    "statement/openstax": "textbook",
    "first/docs-software-en": "software",
    "keywords/wikipedia-vital-en": "encyclopaedia",
    "statement/selqa-dev": "encyclopaedia",
    "half/stackexchange-coffee": "forum",
    "title/cisi": "abstracts",
    "half/cisi": "abstracts",
    "title/cranfield": "abstracts",
    "half/cranfield": "abstracts",
}
DEV = {
    "selqa-rerank": "encyclopaedia",
    "squad-dev-sentences": "encyclopaedia",
    "xquad-en": "encyclopaedia",
    "selqa-test": "encyclopaedia",
    "nq-qed": "web",
    "cosqa": "web",
    "cranfield": "abstracts",
    "cisi": "abstracts",
    "docs-en-dev": "software",
    "medquad-dev": "medicine",
}
SENTENCE = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True, kw_only=True)
class Lists:
    """Queries with their candidates: `candidates` (Q, D) are rows of `passages`, `ideal` all grades of each query."""

    name: str
    kind: str
    queries: list[str]
    passages: list[str]
    candidates: list[list[int]]
    bm25: list[list[float]]
    grades: list[list[int]]
    ideal: list[list[int]]

    def save(self, folder: Path) -> None:
        file = folder / f"{self.name.replace('/', '.')}.json"
        file.write_text(json.dumps(self.__dict__, ensure_ascii=False), encoding="utf-8")


def read_lists(folder: Path) -> list[Lists]:
    return [Lists(**json.loads(file.read_text(encoding="utf-8"))) for file in sorted(folder.glob("*.json"))]


def listed(name: str, kind: str, collection: Collection) -> Lists:
    names, texts = list(collection.passages), list(collection.passages.values())
    queries = [query for query in collection.queries if any(collection.qrels.get(query, {}).values())]
    scores = Bm25(texts).scores([collection.queries[query] for query in queries])
    tops = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH].tolist()
    rows = sorted({row for top in tops for row in top})
    place = {row: number for number, row in enumerate(rows)}
    judged = [collection.qrels[query] for query in queries]
    return Lists(
        name=name,
        kind=kind,
        queries=[collection.queries[query] for query in queries],
        passages=[texts[row] for row in rows],
        candidates=[[place[row] for row in top] for top in tops],
        bm25=[[float(scores[number, row]) for row in top] for number, top in enumerate(tops)],
        grades=[[found.get(names[row], 0) for row in top] for found, top in zip(judged, tops, strict=True)],
        ideal=[sorted(found.values(), reverse=True) for found in judged],
    )


def subset(collection: Collection, num_queries: int, num_passages: int) -> Collection:
    """So many queries, the passages that are judged for them, and others up to a number."""
    asked = [
        query for query, judged in collection.qrels.items() if any(judged.values()) and query in collection.queries
    ]
    queries = by_hash(sorted(asked), num_queries)
    kept = {passage for query in queries for passage in collection.qrels[query]}
    kept |= set(by_hash(sorted(set(collection.passages) - kept), max(0, num_passages - len(kept))))
    return Collection(
        passages={name: text for name, text in collection.passages.items() if name in kept},
        queries={query: collection.queries[query] for query in queries},
        qrels={query: collection.qrels[query] for query in queries},
    )


def title(row: dict[str, str]) -> tuple[str, str]:
    """A title asks for its own text."""
    name = row.get("title", "")
    return name, row["text"].removeprefix(name).strip()


def first(row: dict[str, str]) -> tuple[str, str]:
    """The first sentence, or two short ones, asks for the rest."""
    sentences = SENTENCE.split(row["text"])
    count = 1 if len(sentences[0].split()) >= 5 else 2
    return " ".join(sentences[:count]), " ".join(sentences[count:])


def statement(row: dict[str, str]) -> tuple[str, str]:
    """A sentence out of the middle asks for what stands around it."""
    sentences = SENTENCE.split(row["text"])
    middle = len(sentences) // 2
    is_whole = len(sentences) >= 4 and len(sentences[middle].split()) >= 6
    return sentences[middle] if is_whole else "", " ".join(sentences[:middle] + sentences[middle + 1 :])


def half(row: dict[str, str]) -> tuple[str, str]:
    """A long request: the first half, up to 150 words, asks for the other."""
    words = row["text"].split()
    count = min(len(words) // 2, 150)
    return " ".join(words[:count]), " ".join(words[count : count + 250])


def keywords(row: dict[str, str]) -> tuple[str, str]:
    """Five long words of the text, in alphabetical order."""
    words = sorted(set(re.findall(r"[a-z]{4,}", row["text"].lower())), key=lambda word: (-len(word), word))
    return " ".join(sorted(words[4:9])), row["text"]


SHAPES: dict[str, Callable[[dict[str, str]], tuple[str, str]]] = {
    "title": title,
    "first": first,
    "statement": statement,
    "half": half,
    "keywords": keywords,
}


def made(shape: str, folder: Path, num_queries: int) -> Collection:
    """Queries of a shape from the texts of a set, each for its own text."""
    rows = {
        row["_id"]: row for row in read_jsonl(folder / "corpus.jsonl.gz") if len(row["text"].split()) >= MIN_WORDS
    }
    pairs = {name: SHAPES[shape](rows[name]) for name in by_hash(sorted(rows), NUM_MADE_PASSAGES)}
    queries = {name: query for name, (query, _) in list(pairs.items())[:num_queries] if query}
    passages = {name: text for name, (_, text) in pairs.items() if text}
    return Collection(passages=passages, queries=queries, qrels={name: {name: 1} for name in queries})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with train/ and dev/")
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--max-queries", type=int, default=28, help="of each training or made set; of the others 9 for 5"
    )
    arguments = parser.parse_args()
    for split, sets in (("train", TRAIN), ("dev", DEV)):
        (arguments.out / split).mkdir(parents=True, exist_ok=True)
        for name, kind in sets.items():
            shape, _, source = name.rpartition("/")
            folder = arguments.data / ("train" if split == "train" and source not in DEV else "dev") / source
            count = arguments.max_queries if split == "train" else arguments.max_queries * 9 // 5
            size = NUM_PASSAGES if split == "train" else 10**9
            whole = made(shape, folder, count) if shape else subset(read_collection(folder), count, size)
            lists = listed(name, kind, whole)
            lists.save(arguments.out / split)
            print(split, name, kind, len(lists.queries), len(lists.passages), flush=True)


if __name__ == "__main__":
    main()
