"""Each promise of the docs has its fault beside it, and the table of them is what the tests say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.faults.promises import ROOT, TABLE, Promise, promises, table

WRITE = "python -m tests.faults.promises writes it anew"


@pytest.fixture(scope="module")
def found() -> list[Promise]:
    return promises()


@pytest.mark.slow
def test_the_words_are_those_of_the_docs(found: list[Promise]) -> None:
    assert [(each.page, each.words, each.test) for each in found if each.index < 0] == []


@pytest.mark.slow
def test_the_table_is_what_the_tests_say() -> None:
    assert TABLE.read_text("utf-8") == table(), WRITE


def items(page: str, heading: str, begin: str) -> list[str]:
    """What begins like that in a section: rows of a table, or entries of a list, joined to lines."""
    section = Path(ROOT / page).read_text("utf-8").split(f"\n## {heading}\n", 1)[1].split("\n## ")[0]
    joined = re.sub(r"\n {2,}(?=\S)", " ", section)
    return [" ".join(line.split()) for line in joined.splitlines() if re.match(begin, line)]


@pytest.mark.parametrize(
    ("page", "heading", "begin"),
    [
        ("docs/security.md", "What it guards", r"\| (?!who|---)"),
        ("docs/scores.md", "What is guaranteed", r"\d\. "),
        ("docs/serving.md", "Size", r"\* "),
        ("docs/serving.md", "Secure", r"\* "),
    ],
)
def test_each_has_its_fault_beside_it(found: list[Promise], page: str, heading: str, begin: str) -> None:
    words = [" ".join(each.words.split()) for each in found if each.page == page]
    entries = items(page, heading, begin)
    assert len(entries) >= 3
    assert [entry for entry in entries if not any(said in entry for said in words)] == []
