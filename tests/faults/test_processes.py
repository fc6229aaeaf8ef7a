"""Several processes: two that write one file, workers that die, programs that hand a model to others."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from secondpass import Reranker
from secondpass.calibration import Calibration
from secondpass.server.metrics import FILES, Metrics
from secondpass.server.settings import Settings, open_socket
from secondpass.server.workers import Workers, _Worker
from tests.server.test_workers import BODY, children, served, until

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

    def is_alive(self) -> bool:
        return False


def ended(pid: int, *, was_ready: bool) -> _Worker:
    ready = threading.Event()
    if was_ready:
        ready.set()
    return _Worker(Ended(pid), ready)  # type: ignore[arg-type]


COUNT = """
from secondpass.server.metrics import FILES, Metrics
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
    with open_socket("127.0.0.1", 0) as listening:
        workers = Workers(Settings(workers=2), (), listening)
        workers._forget(ended(dead.pid, was_ready=True))
    page = metrics.page().decode()
    assert "secondpass_queue_requests{" not in page and "secondpass_engine_restarts{" not in page
    assert 'secondpass_requests_total{dialect="cohere",route="/v1/rerank",status="200"} 1.0' in page


@pytest.mark.promise("docs/serving.md", "one that cannot start is tried again, after pauses that grow to 30 s")
def test_a_worker_that_cannot_start_is_tried_again_later_and_later_and_fills_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the models' folder is gone, or the memory for one more process: those that are left serve on."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    now = 1000.0
    monkeypatch.setattr("secondpass.server.workers.time.monotonic", lambda: now)
    monkeypatch.setattr("secondpass.server.pacing.time.monotonic", lambda: now)
    serves, unstarted = ended(1, was_ready=True), ended(2, was_ready=False)
    for name in FILES:
        (tmp_path / f"{name}_1.db").touch()
        (tmp_path / f"{name}_2.db").touch()
    outcomes: list[_Worker | OSError] = [OSError(12, "Cannot allocate memory"), ended(3, was_ready=False)]

    def start(self: Workers, **options: bool) -> _Worker:
        found = outcomes.pop(0)
        if isinstance(found, OSError):
            raise found
        return found

    monkeypatch.setattr(Workers, "_start", start)
    with open_socket("127.0.0.1", 0) as listening:
        workers = Workers(Settings(workers=2), (), listening, running=[serves, unstarted])
    waited = []
    while outcomes:
        before = workers.running[1].due
        workers._replace(workers.running[1], is_replacement=True)
        if workers.running[1].due not in (None, before):
            waited.append(workers.running[1].due - now)  # type: ignore[operator]
        now += 0.5
    assert waited == [0.5, 1.0]
    assert (workers.running[0], workers.running[1].process.pid) == (serves, 3)
    assert sorted(os.listdir(tmp_path)) == sorted(f"{name}_1.db" for name in FILES)


@pytest.mark.slow
def test_a_worker_whose_model_is_gone_is_replaced_once_it_is_back(model: Path, tmp_path: Path) -> None:
    folder, rooms = shutil.copytree(model, tmp_path / "model"), tmp_path / "temporary"
    rooms.mkdir()
    with served(str(folder), "--workers", "2", TMPDIR=str(rooms)) as (url, found):
        folder.rename(tmp_path / "away")
        first, last = children(found.pid)
        os.kill(last, signal.SIGKILL)
        until(lambda: found.logged().count("cannot start") == 2)
        assert httpx.post(f"{url}/v2/rerank", json=BODY, timeout=60).status_code == 200
        until(lambda: found.logged().count("a worker ended") == 3)
        assert len(list(rooms.glob("secondpass-metrics-*/counter_*.db"))) <= 3  # of two, and of one that starts
        (tmp_path / "away").rename(folder)
        os.kill(first, signal.SIGKILL)  # so that what answers has begun with the model that is back
        assert httpx.post(f"{url}/v2/rerank", json=BODY, timeout=60).status_code == 200
        assert found.stopped()[0] == 0


@pytest.mark.slow
def test_metrics_whose_folder_was_cleared_away_are_counted_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As what clears temporary files does: no worker could be started any more."""
    folder = tmp_path / "cleared"
    folder.mkdir()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(folder))
    metrics = Metrics()
    shutil.rmtree(folder)
    assert metrics.page() == b""
    shutil.rmtree(folder)
    assert subprocess.Popen([sys.executable, "-c", COUNT]).wait(60) == 0
    assert b"secondpass_requests_total{" in metrics.page()


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


SHORT_OF_MEMORY = """
import resource, sys
from pathlib import Path
from secondpass import Reranker, SecondpassError

engine, model, count, room = sys.argv[1:]
if engine == "torch":  # a batch that is too large, which no list makes by itself
    from secondpass.engine.cpu import parallel
    parallel.MAX_TOKENS = 1_000_000
lengths = [n * 7 % 120 if engine == "openvino" else 90 for n in range(int(count))]
texts = [f"the river {n} " + "water " * length for n, length in enumerate(lengths)]
reranker = Reranker(model, engine=engine, token_budget=1_000_000, max_length=128)
wanted = reranker.score("which river", texts[:20])
taken = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (taken + (int(room) << 20), resource.RLIM_INFINITY))
try:
    reranker.score("which river", texts)
except SecondpassError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
again = reranker.score("which river", texts)[:20]
print(max(abs(a - b) for a, b in zip(wanted, again)) < 0.04)
"""


@pytest.mark.slow
@pytest.mark.promise("docs/serving.md", "An engine that fails is opened anew with growing pauses")
@pytest.mark.parametrize(
    ("engine", "count", "room"), [("openvino", 600, 30), ("openvino", 600, 15), ("torch", 2400, 50)]
)
def test_an_engine_without_memory_says_so_and_scores_when_there_is_some(
    model: Path, engine: str, count: int, room: int
) -> None:
    """A real engine whose process may take no more: fewer tokens at once, or a sentence; then the right scores."""
    opened = str(model) if engine == "torch" else "default"
    command = [sys.executable, "-c", SHORT_OF_MEMORY, engine, opened, str(count), str(room)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert shown.returncode == 0, shown.stderr
    *said, is_right = shown.stdout.splitlines()
    assert is_right == "True"
    assert any("out of memory" in line for line in [*said, *shown.stderr.splitlines()])


def load(url: str, stop: threading.Event) -> list[int]:
    """Statuses of calls that are made one after the other; 0: the connection was cut."""
    found = []
    while not stop.is_set():
        try:
            found.append(httpx.post(f"{url}/v2/rerank", json=BODY, timeout=60).status_code)
        except httpx.TransportError:
            found.append(0)
    return found


@pytest.mark.slow
@pytest.mark.promise("docs/serving.md", "`--workers N` starts N processes that each load the models")
def test_a_worker_that_is_killed_under_load_fails_its_own_calls_alone(model: Path) -> None:
    """As the kernel kills it where memory is out."""
    with served(f"tiny={model}", "--workers", "2") as (url, found), ThreadPoolExecutor(4) as pool:
        stop = threading.Event()
        calls = [pool.submit(load, url, stop) for _ in range(4)]
        victim = children(found.pid)[-1]
        os.kill(victim, signal.SIGKILL)
        until(lambda: victim not in children(found.pid) and len(children(found.pid)) == 2)
        until(lambda: httpx.get(f"{url}/ready", timeout=60).status_code == 200)
        stop.set()
        statuses = [status for call in calls for status in call.result()]
        assert set(statuses) <= {0, 200, 503} and statuses.count(0) <= 4 and statuses.count(200) >= 4
        code, log = found.stopped()
    assert code == 0 and "Traceback" not in log


WITHOUT_FILES = """
import resource, sys
from secondpass import Reranker, SecondpassError

files = [open("/dev/null") for _ in range(3)]
reranker = Reranker(sys.argv[1], dtype="float32")
wanted = reranker.score("which river", ["the river", "a bridge"])
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
try:
    while True:
        files.append(open("/dev/null"))
except OSError:
    pass
for write in (lambda: Reranker(sys.argv[1], score_cache=sys.argv[2]), lambda: Reranker(sys.argv[1]).info()):
    try:
        write()
    except SecondpassError as error:
        print(type(error).__name__)
print(reranker.score("which river", ["the river", "a bridge"]) == wanted)
files.clear()
again = Reranker(sys.argv[1], dtype="float32", score_cache=sys.argv[2])
print(again.score("which river", ["a bridge"])[0] == wanted[1])
"""


@pytest.mark.slow
def test_without_a_descriptor_left_it_is_said_and_what_is_open_goes_on(model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_FILES, str(model), str(tmp_path / "scores")]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert shown.returncode == 0, shown.stderr
    *said, goes_on, opens_again = shown.stdout.splitlines()
    assert (goes_on, opens_again) == ("True", "True")
    assert len(said) == 2


WITHOUT_THREADS = """
import resource, sys, threading
from pathlib import Path
import torch
from secondpass import Reranker, SecondpassError
from secondpass.engine.cpu import parallel

parallel.MIN_TOKENS = 16
torch.set_num_threads(2)
reranker = Reranker(sys.argv[1], engine="torch", dtype="float32")
texts = [f"the river {n}" for n in range(1000)]
torch.set_num_threads(1)
wanted = reranker.score("which river", texts)
torch.set_num_threads(2)
threading.stack_size(256 << 20)  # so that all but a thread has room
taken = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (taken + (int(sys.argv[2]) << 20), resource.RLIM_INFINITY))
try:
    reranker.score("which river", texts)
except SecondpassError as error:
    print(type(error).__name__, error)
print(torch.get_num_threads())
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
again = reranker.score("which river", texts)
print(max(abs(a - b) for a, b in zip(wanted, again)) < 1e-5)
"""


@pytest.mark.slow
@pytest.mark.parametrize("room", ["128", "384", "640"], ids=["for none", "for the reader", "for one stream"])
def test_where_no_thread_can_be_started_it_is_said_and_it_scores_when_one_can(model: Path, room: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_THREADS, str(model), room]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0, shown.stderr
    said, num_threads, is_right = shown.stdout.splitlines()
    assert said.startswith("EngineError no 2 threads can be started (can't start new thread): ")
    assert (num_threads, is_right) == ("2", "True")
