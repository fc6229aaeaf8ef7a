"""The table docs/promises.md: what the docs promise, and the tests that try it where it could fail.

    python -m tests.faults.promises

writes it anew from the tests' marks, `@pytest.mark.promise("docs/PAGE.md", "words of the page")`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "promises.md"
HEAD = """# Promises

What the docs promise, in their words, and the tests that try it in trouble: with a disk that is full, an engine that
dies, a client that lies. `python -m tests.faults.promises` writes this page from the marks of the tests.
"""


@dataclass(frozen=True)
class Promise:
    """Words of a page of the docs, and a test of them."""

    page: str
    words: str
    test: str

    @property
    def index(self) -> int:
        """Where the words stand in their page; -1: they do not."""
        return plain(self.page).find(" ".join(self.words.split()))


def plain(page: str) -> str:
    """A page with its lines joined."""
    return " ".join((ROOT / page).read_text("utf-8").split())


def promises() -> list[Promise]:
    """Of all tests, in the order of the pages and of the words in them."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    found = [promise for file in files for promise in _of_file(file)]
    return sorted(found, key=lambda promise: (promise.page, promise.index, promise.test))


def _of_file(file: Path) -> Iterator[Promise]:
    text = file.read_text("utf-8")
    if "mark.promise(" not in text:
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.promise":
                    page, words = (ast.literal_eval(argument) for argument in mark.args)
                    yield Promise(page, words, f"{file.relative_to(ROOT).as_posix()}::{node.name}")


def table() -> str:
    tests: dict[str, dict[str, list[str]]] = {}
    for each in promises():
        tests.setdefault(each.page, {}).setdefault(" ".join(each.words.split()), []).append(each.test)
    text = HEAD
    for page, found in tests.items():
        name = page.removeprefix("docs/")
        target = name if page != name else f"../{page}"
        text += f"\n## [{page}]({target})\n\n| promise | tried by |\n|---|---|\n"
        for words, names in found.items():
            text += f"| {words.replace('|', chr(92) + '|')} | {', '.join(f'`{each}`' for each in names)} |\n"
    return text


if __name__ == "__main__":
    TABLE.write_text(table(), "utf-8")
