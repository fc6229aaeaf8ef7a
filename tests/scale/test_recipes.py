"""The recipes of docs/scale.md, each run by the engine that it is for, where that is installed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from secondpass import Reranker
from tests.scale.test_batch import rows_of

pytestmark = pytest.mark.clients
DOCS = Path(__file__).parents[2] / "docs" / "scale.md"
RECIPES = dict(re.findall(r"<!-- recipe: (\w+) -->\n```python\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL))


@pytest.mark.parametrize("engine", RECIPES)
def test_a_recipe_scores_each_row_once(engine: str, tmp_path: Path) -> None:
    pytest.importorskip(engine)
    import pyarrow.parquet as parquet

    rows = [{"query": row["query"], "document": row["passage"]} for row in rows_of(300)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.py").write_text(RECIPES[engine])
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable}
    done = subprocess.run(
        [sys.executable, "recipe.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    files = sorted(file for file in (tmp_path / "scores").rglob("*") if file.suffix in (".parquet", ".json"))
    found = [
        row
        for file in files
        for row in (
            parquet.read_table(file).to_pylist()
            if file.suffix == ".parquet"
            else map(json.loads, file.read_text().splitlines())
        )
    ]
    expected = Reranker().score_pairs([(row["query"], row["document"]) for row in rows])
    texts = [(row["query"], row["document"]) for row in rows]
    scores = {(row["query"], row["document"]): row["score"] for row in found}
    assert len(found) == len(rows), (
        done.stderr
    )  # the exit code is left alone: Daft falls now and then once all is written
    assert [scores[text] for text in texts] == pytest.approx(expected, abs=2e-3)
