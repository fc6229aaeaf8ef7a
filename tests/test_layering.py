"""Imports point one way, and importing the package is quick."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from secondpass.text.families import FAMILIES

PACKAGE = Path(__file__).parents[1] / "src" / "secondpass"
# Each layer may import itself and the ones before it.
LAYERS = (
    ("_lazy", "atomic", "errors", "json_file", "public", "types"),
    ("packed", "text", "calibration"),
    ("models",),
    ("checkpoint",),
    ("engine",),
    ("scoring", "wire", "cognitive", "data"),
    ("reranker", "cascade", "embedder", "colbert", "remote", "compat"),
    ("fusion", "retrieval"),
    ("search",),
    ("evaluation", "training", "server", "integrations", "scale", "mcp"),
    ("command", "cli", "__main__"),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def imports(file: Path) -> set[str]:
    """The parts of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name.split(".")[1] for name in names if name.startswith("secondpass.")}
    return found


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_part_has_a_layer() -> None:
    parts = {part_of(file) for file in PACKAGE.rglob("*.py")} - {"__init__"}
    assert parts <= set(RANK)


def test_imports_point_one_way() -> None:
    wrong = [
        f"{file.relative_to(PACKAGE)} imports {name}"
        for file in PACKAGE.rglob("*.py")
        if part_of(file) in RANK
        for name in imports(file)
        if RANK[name] > RANK[part_of(file)]
    ]
    assert wrong == []


def test_architectures_do_not_import_each_other() -> None:
    architectures = {family.backbone.partition(".")[0] for family in FAMILIES.values()}
    assert architectures
    for name in architectures:
        file = PACKAGE / "models" / f"{name}.py"
        text = file.read_text("utf-8")
        assert not [other for other in architectures - {name} if f"secondpass.models.{other} " in text]


def test_import_does_not_load_torch() -> None:
    code = "import sys, secondpass; print(sorted({'torch', 'openvino', 'tokenizers', 'rich'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
