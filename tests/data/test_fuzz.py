"""Hostile files of data: whatever is in them, there are passages or a sentence, in bounded memory.

`make fuzz` or FUZZ_EXAMPLES=100000 tries more than the suite does.
"""

from __future__ import annotations

import gzip
import os
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from secondpass.data import markdown
from secondpass.data.pairs import read_labelled, read_pairs
from secondpass.data.passages import FOLDER_SUFFIXES, SPLITS, ReadOptions, read_passages
from secondpass.errors import SecondpassError
from secondpass.evaluation.datasets.lists import load_lists
from secondpass.evaluation.datasets.load import load_dataset
from secondpass.evaluation.datasets.trec import read_candidates, read_qrels, read_run

NUM_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "100"))
KINDS = [kind for kind in FOLDER_SUFFIXES if kind != ".parquet"]  # which a package of others reads
PIECES = (
    '{"text": "a"}',
    '{"query": "q", "pos": ["a"], "neg": ["b"]}',
    '{"query": 1e999, "text": NaN, "label": 1}',
    '{"query-id": "q", "corpus-id": null, "score": "1"}',
    '"\\ud800"',
    "[[{",
    "1" * 5000,
    "q 0 d 1",
    "q Q0 d 1 inf t",
    "query-id\tcorpus-id\tscore",
    "a;b;c",
    '"',
    "# h",
    "- a",
    "```",
    "    code",
    "---",
    "a:",
    "> quote",
    "| a | b |",
    "<ul><li>",
    "</ul></li>",
    "<!--",
    "-->",
    "<pre>",
    "<h1>",
    "&#xD800;",
    "<script>",
    "\x0b\x1c\u2028\ufeff",
    "",
)
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=20), max_size=12).map("\n".join)
contents = st.binary(max_size=200) | texts.map(lambda text: text.encode("utf-8", "surrogatepass"))


def read(read: Callable[[Path], object], name: str, data: bytes) -> None:
    """The only ends are a result and an error of ours."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_bytes(data)
        try:
            read(file)
        except SecondpassError as error:
            assert str(error).strip()


@settings(max_examples=NUM_EXAMPLES, deadline=None)
@given(
    data=contents,
    kind=st.sampled_from([*KINDS, ""]),
    split=st.sampled_from(list(SPLITS)),
    is_packed=st.booleans(),
    fields=st.sampled_from([(), ("text",), ("a", "b")]),
)
@example(data=b"\x1f\x8b", kind=".txt", split="auto", is_packed=False, fields=())
@example(data=b"1" * 5000, kind=".jsonl", split="auto", is_packed=False, fields=())
@example(data=b"[" * 100_000, kind=".json", split="auto", is_packed=False, fields=())
@example(data=b"[" * 100_000, kind="", split="auto", is_packed=False, fields=())
@example(data=b'"' * 200_000, kind=".csv", split="auto", is_packed=True, fields=())
def test_passages_of_any_bytes(data: bytes, kind: str, split: str, is_packed: bool, fields: tuple[str, ...]) -> None:
    packed = gzip.compress(data) if is_packed else data
    options = ReadOptions(split=split, fields=fields)
    read(lambda file: read_passages([str(file)], (), options), f"a{kind}", packed)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv"])
@settings(max_examples=NUM_EXAMPLES // 2, deadline=None)
@given(data=contents)
def test_pairs_and_judgements_of_any_bytes(name: str, data: bytes) -> None:
    for reader in (read_pairs, read_qrels, read_run, read_candidates):
        read(reader, name, data)
    read(lambda file: read_labelled(str(file)), name, data)
    read(lambda file: load_lists("any", [file]), name, data)


@pytest.mark.parametrize("corpus", ["corpus.jsonl", "corpus.csv", "collection.tsv"])
@settings(max_examples=NUM_EXAMPLES // 4, deadline=None)
@given(documents=contents, queries=contents, qrels=contents)
def test_a_folder_of_any_bytes_is_a_set_or_a_sentence(
    corpus: str, documents: bytes, queries: bytes, qrels: bytes
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / corpus).write_bytes(documents)
        (Path(folder) / "queries.jsonl").write_bytes(queries)
        (Path(folder) / "qrels.tsv").write_bytes(qrels)
        try:
            load_dataset(folder)
        except SecondpassError as error:
            assert str(error).strip()


@settings(max_examples=NUM_EXAMPLES, deadline=None)
@given(page=texts)
@example(page="a\n\r0\n<ul><li>")
@example(page="- a\n\n- b\n\n  c\n\n# h\n\npara\n---\n\n```\n\n# no\n\n")
def test_a_page_is_read_in_pieces_as_it_is_at_once(page: str) -> None:
    at_once = markdown.sections(page)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(markdown, "PIECE_ROWS", 1)
        assert markdown.sections(page) == at_once


BOMBS: dict[str, Callable[[], bytes]] = {
    "unpacked.txt": lambda: gzip.compress(b"river \n" * 20_000_000),
    "unpacked.jsonl": lambda: gzip.compress(b'{"text": "' + b"a" * 100_000_000 + b'"}'),
    "deep.json": lambda: b"[" * 999_999,
    "digits.jsonl": lambda: b"1" * 999_999,
    "quotes.csv": lambda: b'"' * 999_999,
    "quotes.md": lambda: b"> " * 499_999,
    "headings.md": lambda: b"# a\n" * 8_000,
    "fences.md": lambda: b"```\n" * 10_000,
    "tags.html": lambda: b"<!" * 100_000,
    "comments.html": lambda: b"<!--" * 249_999,
    "lists.html": lambda: b"<ul><li>" * 10_000,
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.slow
def test_a_small_file_does_not_fill_the_memory(name: str) -> None:
    data = BOMBS[name]()
    tracemalloc.start()
    try:
        read(lambda file: read_passages([str(file)], (), ReadOptions()), name, data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100 << 20
