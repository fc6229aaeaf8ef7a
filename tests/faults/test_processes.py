"""Several processes: two that write one file, workers that die, programs that hand a model to others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from secondpass import Reranker
from secondpass.calibration import Calibration
from secondpass.server.metrics import Metrics
from secondpass.server.settings import Settings
from secondpass.server.workers import Workers, _Worker, open_socket

WRITE = """
import sys
from secondpass.calibration import Calibration
for number in range(100):
    Calibration(slope=float(sys.argv[2]), intercept=0.0, model={"name": sys.argv[2] * 5000}).save(sys.argv[1])
"""


@pytest.mark.slow
def test_two_processes_write_one_file_and_it_is_whole_at_any_moment(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    writers = [subprocess.Popen([sys.executable, "-c", WRITE, str(file), slope]) for slope in "12"]
    num_read = 0
    while any(writer.poll() is None for writer in writers):
        if file.exists():
            found = Calibration.load(file)
            assert found.model["name"] == f"{found.slope:.0f}" * 5000
            num_read += 1
    assert [writer.returncode for writer in writers] == [0, 0]
    assert num_read > 10
    assert os.listdir(tmp_path) == ["calibration.json"]


SCORES = """
import sys
from secondpass import Reranker
reranker = Reranker(sys.argv[1], dtype="float32", score_cache=sys.argv[2])
print(reranker.score("which river", [f"the river {n}" for n in range(300)]))
"""


@pytest.mark.slow
@pytest.mark.promise(
    "docs/evaluation.md", "What makes a score (model, revision, precision, prompt, truncation, texts)"
)
def test_processes_share_a_cache_of_scores(model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCORES, str(model), str(tmp_path / "scores")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    running[0].kill()
    found = [json.loads(each.communicate()[0]) for each in running[1:]]
    wanted = Reranker(model, dtype="float32").score("which river", [f"the river {n}" for n in range(300)])
    for scores in found:
        assert scores == pytest.approx(wanted, abs=1e-5)
    running[0].communicate()


class Ended:
    """A worker that is gone."""

    def __init__(self, pid: int) -> None:
        self.pid, self.exitcode, self.sentinel = pid, -9, 0


COUNT = """
from secondpass.server.metrics import Metrics
metrics = Metrics()
metrics.state([("default", 7, 700, 2)])
metrics.requests.labels("cohere", "/v1/rerank", "200").inc()
"""


@pytest.mark.slow
def test_what_a_dead_worker_last_said_of_its_queue_holds_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    dead = subprocess.Popen([sys.executable, "-c", COUNT])
    assert dead.wait(60) == 0
    metrics = Metrics()
    assert b'secondpass_queue_requests{model="default"} 7.0' in metrics.page()
    with open_socket(Settings(port=0)) as listening:
        workers = Workers(Settings(workers=2), (), listening)
        workers._forget(_Worker(Ended(dead.pid), None))  # type: ignore[arg-type]
    page = metrics.page().decode()
    assert "secondpass_queue_requests{" not in page and "secondpass_engine_restarts{" not in page
    assert 'secondpass_requests_total{dialect="cohere",route="/v1/rerank",status="200"} 1.0' in page


JOBS = """
import sys
from joblib import Parallel, delayed
from secondpass import Reranker

reranker = Reranker(sys.argv[1])
texts = [["a river", f"the bridge {n}"] for n in range(4)]
here = [reranker.score("which river", each) for each in texts]
there = Parallel(n_jobs=2)(delayed(reranker.score)("which river", each) for each in texts)
print(max(abs(a - b) for one, other in zip(here, there) for a, b in zip(one, other)) < 1e-5)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "default"])
def test_joblib_hands_a_model_to_its_processes(model: Path, name: str) -> None:
    pytest.importorskip("joblib")
    command = [sys.executable, "-W", "error", "-c", JOBS, str(model) if name == "tiny" else name]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (shown.returncode, shown.stdout) == (0, "True\n"), shown.stderr
