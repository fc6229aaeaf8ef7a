"""Everything that is written, on a disk that is full or cannot be written to: one sentence, and nothing is lost."""

from __future__ import annotations

import gc
import json
import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Event

import httpx
import numpy as np
import pytest
from safetensors.numpy import save

from secondpass import Document, Reranker
from secondpass.atomic import user_folder
from secondpass.calibration import Calibration
from secondpass.checkpoint.checkpoint import open_checkpoint
from secondpass.colbert.store import Origin, TokenVectors
from secondpass.engine.cache import ScoreCache
from secondpass.engine.compiled import MIN_BYTES
from secondpass.errors import DownloadError, SecondpassError
from secondpass.scale.batch import ScoreBlock, open_job
from secondpass.scoring.open import ModelOptions
from secondpass.search.stores.sqlite import SqliteStore
from secondpass.training.data import Example
from secondpass.training.mining import continued
from secondpass.training.reporting import RunLog, read_log
from tests.faults.disks import Disk, disk
from tests.hub_models import NAME, connected, model_files, value_of
from tests.hub_server import Hub
from tests.search.test_store import change, chunk
from tests.server.test_workers import BODY, children, failed, served

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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.fixture
def hub(small_disk: Disk, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub whose client has its cache on the small disk."""
    with connected(small_disk.folder, monkeypatch) as hub:
        large = save({"w": np.ones((1 << 20,), np.float32)})
        hub.commit(NAME, model_files() | {"model.safetensors": large})
        yield hub


def fill_while_fetching(hub: Hub, small_disk: Disk, trouble: ExitStack) -> Event:
    """The disk is full once half of the model's weights have come; the event is set a little later."""
    is_full = Event()

    def fill() -> None:
        trouble.enter_context(small_disk.full())
        is_full.set()

    hub.faults.then["model.safetensors"] = fill
    return is_full


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("full", "make room"),
        ("fills", r"model.safetensors: the disk is full, 4\.2 MB are needed; make room"),
        ("read_only", "the cache cannot be written to .* set HF_HUB_CACHE to another folder"),
    ],
)
def test_a_model_that_finds_no_room_is_said_and_the_next_try_fetches_it(
    small_disk: Disk, hub: Hub, fault: str, said: str
) -> None:
    with ExitStack() as trouble:
        is_full = fill_while_fetching(hub, small_disk, trouble) if fault == "fills" else None
        if is_full is None:
            trouble.enter_context(small_disk.full() if fault == "full" else small_disk.read_only())
        with pytest.raises(DownloadError, match=said):
            open_checkpoint(NAME)
        assert is_full is None or is_full.wait(60)
        with pytest.raises(DownloadError, match=r"not (whole )?in the cache"):
            open_checkpoint(NAME, local_files_only=True)
    checkpoint = open_checkpoint(NAME)
    assert checkpoint.config["model_type"] == "bert"
    assert len(checkpoint.weight_files()) == 1
    assert not [name for name in small_disk.state() if name.endswith(".incomplete")]


@pytest.mark.promise("README.md", "fetched once, pinned to a commit, then offline")
def test_a_full_disk_in_the_middle_of_a_commit_leaves_the_one_before(small_disk: Disk, hub: Hub) -> None:
    hub.commit(NAME, model_files(2.0))
    old = open_checkpoint(NAME)
    hub.commit(NAME, model_files(3.0) | {"model.safetensors": save({"w": np.full((1 << 20,), 3.0, np.float32)})})
    with ExitStack() as trouble:
        is_full = fill_while_fetching(hub, small_disk, trouble)
        with pytest.raises(DownloadError, match="the disk is full"):
            open_checkpoint(NAME)
        assert is_full.wait(60)
        kept = open_checkpoint(NAME, local_files_only=True)
        assert (kept.revision, value_of(kept)) == (old.revision, 2.0)


@pytest.mark.slow
@pytest.mark.promise("docs/performance.md", "cannot be written to costs the time of compiling, nothing else")
@pytest.mark.parametrize("fault", ["full", "read_only", "small"])
def test_a_graph_that_cannot_be_kept_costs_time_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The embedded model, with the home of its user on a disk without room."""
    texts = ["the river is long", "a bridge"]
    with ExitStack() as mounted:
        try:
            size = "8m" if fault == "small" else "100m"
            home = mounted.enter_context(disk(tmp_path / "home", size))
        except OSError as error:
            pytest.skip(f"no disk can be mounted here: {error}")
        monkeypatch.setenv("HOME", str(home.folder))
        with ExitStack() as trouble:
            if fault != "small":
                trouble.enter_context(home.full() if fault == "full" else home.read_only())
            wanted = Reranker(engine="openvino").score("which river", texts)
        assert home.state() == {}
        if fault != "small":
            assert Reranker(engine="openvino").score("which river", texts) == wanted
            (kept,) = user_folder("cache").iterdir()
            assert kept.stat().st_size > MIN_BYTES
            with home.full():
                assert Reranker(engine="openvino").score("which river", texts) == wanted


def test_figures_of_a_run_are_whole_lines_also_after_a_full_disk(
    small_disk: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    log = RunLog(small_disk.folder / "training", num_steps=4)
    figures = {f"a figure with a long name {n}": 0.5 for n in range(300)}  # more than a page, of which a part fits
    log.figures(1, figures, is_said=False)
    with small_disk.full():
        log.figures(2, figures, is_said=False)
    with small_disk.read_only():
        log.figures(3, figures, is_said=False)
    log.figures(4, figures, is_said=False)
    said = capsys.readouterr().err.splitlines()
    assert [line["step"] for line in read_log(small_disk.folder / "training")] == [1, 4]
    assert len(said) == 2 and all("log.jsonl: not all figures are kept" in line for line in said)


def test_a_run_goes_on_where_nobody_can_be_told(
    small_disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (small_disk.folder / "words").open("w") as words, small_disk.full():
        monkeypatch.setattr("sys.stderr", words)
        log = RunLog(tmp_path / "training", num_steps=4)
        for step in range(40):
            log.figures(step, {"loss " * 100: 0.5})
        monkeypatch.undo()
    assert len(read_log(tmp_path / "training")) == 40


@pytest.mark.slow
@pytest.mark.promise("docs/serving.md", "Logs go to standard error, one line a request")
def test_a_log_on_a_full_disk_stops_nobody(small_disk: Disk, model: Path) -> None:
    file = small_disk.folder / "log"
    command = [sys.executable, "-m", "secondpass", "serve", "--port", "0", f"tiny={model}"]
    with file.open("w") as log:
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert running.stdout is not None
        url = running.stdout.readline().split()[-1]

        def call(times: int) -> None:
            assert {httpx.post(f"{url}/v2/rerank", json=BODY).status_code for _ in range(times)} == {200}

        call(1)
        with small_disk.full():
            call(100)
        call(50)
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=60) == 0
    finally:
        running.kill()
        running.communicate()
    lines = file.read_text().splitlines()
    assert 50 <= len(lines) < 151
    whole = [line for line in lines if line.count("{") == 1 and json.loads(line)["event"] == "request"]
    assert len(lines) - len(whole) <= 1  # the one in whose middle the disk was full


@pytest.mark.slow
@pytest.mark.promise("docs/serving.md", "`--workers N` starts N processes that each load the models")
def test_workers_count_on_a_full_disk(small_disk: Disk, model: Path) -> None:
    """What they count together is in files that are mapped, and a page that finds no room would be their death."""
    with served(f"tiny={model}", "--workers", "2", TMPDIR=str(small_disk.folder)) as (url, found):
        begun = children(found.pid)
        with small_disk.full():
            for path in (
                "/v1/rerank",
                "/v2/rerank",
                "/rerank",
                "/v1/score",
                "/infinity/rerank",
                "/v1/ranking",
                "/nowhere",
            ):
                for body in (BODY, {"query": "q", "texts": ["a"]}, {"query": 5}, {}):
                    for _ in range(4):
                        assert (
                            httpx.post(f"{url}{path}", json=body, headers={"connection": "close"}).status_code < 500
                        )
        assert children(found.pid) == begun
        assert 'status="200"' in httpx.get(f"{url}/metrics").text
        code, log = found.stopped()
    assert code == 0 and "a worker ended" not in log
    with small_disk.full():
        code, log = failed(f"tiny={model}", "--workers", "2", PROMETHEUS_MULTIPROC_DIR=str(small_disk.folder))
    assert code == 1 and "Traceback" not in log
    assert "metrics of several processes are kept there: No space left on device" in log
