"""Weak pairs made from texts at hand: Python functions with their docstrings, and passages split in two."""

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy
from collection import Collection, by_hash, read_collection

SPLIT_SETS = ("medquad", "pubmedqa", "openstax", "wikipedia-vital-en", "docs-software-en", "selqa-dev")
SPLIT_PER_SET = 450
MIN_WORDS = 90  # of a passage that is split
QUERY_WORDS = (15, 30, 60)  # by turns


def code(_: Path) -> Collection:
    """Functions of the standard library, numpy and scipy: the docstring's first line asks for the function.

    Every other function keeps the rest of its docstring.
    """
    passages, queries = {}, {}
    for folder in (Path(sysconfig.get_path("stdlib")), Path(np.__file__).parent, Path(scipy.__file__).parent):
        for path in sorted(folder.rglob("*.py")):
            if {"site-packages", "test", "tests", "idlelib", "lib2to3", "_lib"} & set(path.relative_to(folder).parts):
                continue
            for place, (question, text) in enumerate(functions(path)):
                name = f"{folder.name}/{path.relative_to(folder)}:{place}"
                passages[name], queries[name] = text, question
    firsts = {question: name for name, question in reversed(queries.items())}  # one function per question
    kept = sorted(firsts.values())
    return Collection(
        passages={name: passages[name] for name in kept},
        queries={name: queries[name] for name in kept},
        qrels={name: {name: 1} for name in kept},
    )


def functions(path: Path) -> Iterator[tuple[str, str]]:
    """(first line of the docstring, source without that line) of the functions of 4 to 60 lines in a file."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return
    for place, node in enumerate(ast.walk(tree)):
        if not isinstance(node, ast.FunctionDef) or (document := ast.get_docstring(node)) is None:
            continue
        first, _, rest = document.partition("\n")
        lines = node.end_lineno - node.lineno + 1 if node.end_lineno else 0
        if not 4 <= len(first.split()) <= 16 or not 4 <= lines <= 60:
            continue
        node.body = node.body[1:]
        if place % 2 and rest.strip():
            node.body.insert(0, ast.Expr(ast.Constant(" ".join(rest.split()[:60]))))
        if node.body:
            yield first.rstrip(".").lower(), ast.unparse(node)


def halves(train: Path) -> Collection:
    """Long queries: the beginning of a passage asks for its other half (inverse cloze)."""
    passages, queries = {}, {}
    for source in SPLIT_SETS:
        texts = read_collection(train / source).passages
        long = [name for name, text in texts.items() if len(text.split()) >= MIN_WORDS]
        for place, name in enumerate(by_hash(long, SPLIT_PER_SET)):
            words = texts[name].split()
            middle = min(len(words) // 2, 100)
            queries[f"{source}/{name}"] = " ".join(words[: min(middle, QUERY_WORDS[place % len(QUERY_WORDS)])])
            passages[f"{source}/{name}"] = " ".join(words[middle : middle + 160])
    return Collection(passages=passages, queries=queries, qrels={name: {name: 1} for name in queries})
