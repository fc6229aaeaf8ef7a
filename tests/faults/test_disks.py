"""Everything that is written, on a disk that is full or cannot be written to: one sentence, and nothing is lost."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from secondpass import Document, Reranker
from secondpass.calibration import Calibration
from secondpass.colbert.store import Origin, TokenVectors
from secondpass.engine.cache import ScoreCache
from secondpass.errors import SecondpassError
from secondpass.scale.batch import ScoreBlock, open_job
from secondpass.scoring.open import ModelOptions
from secondpass.search.stores.sqlite import SqliteStore
from secondpass.training.data import Example
from secondpass.training.mining import continued
from tests.faults.disks import Disk
from tests.search.test_store import change, chunk

Write = Callable[[Path, int, Path], None]


def calibration(folder: Path, turn: int, model: Path) -> None:
    Calibration(slope=1.0 + turn, intercept=0.0).save(folder / "calibration.json")


def report(folder: Path, turn: int, model: Path) -> None:
    from secondpass.evaluation.datasets.trec import write_run

    write_run(folder / "x.run", {"q": {"d": float(turn)}}, "tag")


def checkpoint(folder: Path, turn: int, model: Path) -> None:
    from safetensors.torch import load_file

    from secondpass.checkpoint.save import save_model

    tensors = {name: value + turn for name, value in load_file(model / "model.safetensors").items()}
    save_model(folder / "model", config=json.loads((model / "config.json").read_text()), tensors=tensors, base=model)


def vectors(folder: Path, turn: int, model: Path) -> None:
    TokenVectors(
        vectors=np.full((4, 8), turn, np.float32),
        lengths=np.array([4]),
        documents=(Document("a"),),
        origin=Origin(model="a", revision=None, fingerprint="f"),
    ).save(folder / "vectors")


def index(folder: Path, turn: int, model: Path) -> None:
    store = SqliteStore(folder / "notes.sqlite")
    try:
        store.write([change(f"/notes/{turn}", *(chunk(f"{n} apple {turn} " * 50) for n in range(20)))])
        store.finish()
    finally:
        store.close()


def blocks(folder: Path, turn: int, model: Path) -> None:
    rows = folder.with_name("rows.jsonl")
    if not rows.exists():
        rows.write_text("".join(json.dumps({"query": "river", "passage": f"water {i}"}) + "\n" for i in range(6)))
    job = open_job([rows], folder / "scores", ModelOptions(model=str(model)), rows_per_block=3)
    score = ScoreBlock(folder=job.folder, options=job.options)
    score(job.blocks[turn])


def mined(folder: Path, turn: int, model: Path) -> None:
    examples = [Example(query=f"q{n}", positives=("a",), negatives=("b" * 5000,)) for n in range(3 * (turn + 1))]
    continued(folder / "mined.jsonl", "key", len(examples), lambda done: iter(examples[done:]))


WRITERS: tuple[Write, ...] = (calibration, report, checkpoint, vectors, index, blocks, mined)


@pytest.mark.promise("docs/export.md", "whole or not at all")
@pytest.mark.promise("docs/scale.md", "A block is written whole or not at all")
@pytest.mark.promise("docs/search.md", "A file's chunks, words and vectors change in one transaction")
@pytest.mark.promise("docs/search.md", "A database that cannot grow is a clear error")
@pytest.mark.promise("docs/training.md", "Mining that was interrupted goes on when the same command is given again")
@pytest.mark.parametrize("fault", ["full", "read_only"])
@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_what_cannot_be_written_is_said_and_loses_nothing(
    small_disk: Disk, model: Path, write: Write, fault: str
) -> None:
    write(small_disk.folder, 0, model)
    before = small_disk.state()
    assert before
    with small_disk.full() if fault == "full" else small_disk.read_only():
        with pytest.raises(SecondpassError) as said:
            write(small_disk.folder, 1, model)
    assert str(small_disk.folder) in str(said.value) and "\n" not in str(said.value)
    after = small_disk.state()
    for name, content in before.items():  # what examples are appended to may have more of them
        assert after[name] == content or (name == "mined.jsonl" and after[name].startswith(content))
    assert not [name for name in after if "partial" in name]
    write(small_disk.folder, 1, model)
    assert small_disk.state() != before


@pytest.mark.promise("docs/evaluation.md", "A run that was interrupted goes on where it was")
@pytest.mark.parametrize("when", ["opened", "written"])
def test_scores_come_where_none_can_be_kept(
    small_disk: Disk, model: Path, caplog: pytest.LogCaptureFixture, when: str
) -> None:
    texts = [f"the river {n} in winter" for n in range(400)]
    cache = small_disk.folder / "scores"
    wanted = Reranker(model, dtype="float32").score("which river", texts)
    if when == "opened":
        with small_disk.full(), pytest.raises(SecondpassError, match="not usable as a cache of scores"):
            Reranker(model, dtype="float32", score_cache=cache)
        return
    kept = Reranker(model, dtype="float32", score_cache=cache)
    kept.score("which river", texts[:10])
    with small_disk.full(), caplog.at_level(logging.WARNING):
        assert kept.score("which river", texts) == pytest.approx(wanted, abs=1e-5)
    assert "scores are no longer kept" in caplog.text
    assert Reranker(model, dtype="float32", score_cache=cache).score("which river", texts) == pytest.approx(
        wanted, abs=1e-5
    )


@pytest.mark.parametrize("damage", ["cut", "closed"])
def test_scores_come_where_the_kept_ones_cannot_be_read(
    tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    """While the cache is open its file is cut by somebody, or its connection closed."""
    texts = [f"the river {n} in winter" for n in range(600)]
    first = Reranker(model, dtype="float32", score_cache=tmp_path / "scores")
    wanted = first.score("which river", texts)
    first.close()
    again = Reranker(model, dtype="float32", score_cache=tmp_path / "scores")
    file = tmp_path / "scores"
    if damage == "closed":
        next(each for each in gc.get_objects() if isinstance(each, ScoreCache) and each._file == file)._store.close()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
        for beside in ("-wal", "-shm"):
            file.with_name(f"scores{beside}").unlink(missing_ok=True)
    with caplog.at_level(logging.WARNING):
        assert again.score("which river", texts) == pytest.approx(wanted, abs=1e-5)
    assert "kept scores are no longer used" in caplog.text
