"""Files of pairs, labelled or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from secondpass.data.pairs import has_labels, read_labelled, read_pairs
from secondpass.errors import DataError


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no tab here", r"2: neither a JSON object nor query<TAB>passage"),
        ('{"query": "a"', r"2: is not JSON"),
        ('{"query": "a"}', r'2: a "query" and a "passage"'),
        ('{"query": "a", "passage": null}', r'2: "passage" is null; a string is needed'),
        ('{"query": "a", "pos": ["b", 3]}', r'2: "pos" is a list with a number; a list of strings'),
    ],
)
def test_bad_pairs_are_named_by_line(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "pairs.txt"
    file.write_text(f"good query\tgood passage\n{line}\n")
    with pytest.raises(DataError, match=message):
        read_pairs(file)


def test_every_form_of_a_pair_is_read(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(
        '{"query": "a", "passage": "b\\u2028c"}\n{"query": "a", "pos": ["d"], "neg": ["e"]}\n\nq\tp\n', "utf-8"
    )
    assert read_pairs(file) == [("a", "b\u2028c"), ("a", "d"), ("a", "e"), ("q", "p")]


def test_labels_come_from_lines_and_tables(tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    table.write_text('query,text,label\nq,"one, two",1\nq,three,0\n')
    (query,) = read_labelled(str(table))
    assert has_labels(str(table)) and not has_labels(str(tmp_path))
    assert (query.text, query.texts, query.labels) == ("q", ("one, two", "three"), (True, False))
