"""Ray, for real: two nodes on one machine, actors and nodes that are killed, a driver that is killed and goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from secondpass import Reranker
from secondpass.errors import SecondpassError
from secondpass.scale.batch import open_job
from secondpass.scoring.open import ModelOptions
from tests.scale.test_batch import SECONDPASS, results, rows_of, run_here, write

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # on a busy machine a node takes longer than 30 s
ray = pytest.importorskip("ray")
from secondpass.scale.ray import Actors, score_blocks, score_dataset  # noqa: E402  (ray may not be here)

pytestmark = pytest.mark.clients
MULTILINGUAL = Path(__file__).parents[2] / "packages" / "multilingual" / "src"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head for the driver's own work, and a node that has processors for actors."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    made.add_node(num_cpus=2)
    ray.init(address=made.address, log_to_driver=False, logging_level="error")
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def expected(tmp_path: Path) -> list[dict[str, Any]]:
    job = open_job(
        [write(tmp_path / "in.jsonl", rows_of(400))], tmp_path / "alone", ModelOptions(), rows_per_block=20
    )
    run_here(job)
    return results(job.folder)


def actor_pids() -> list[int]:
    found = subprocess.run(["pgrep", "-f", "ray::.*BlockActor"], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def test_the_same_rows_and_scores_as_in_one_process(
    cluster: Any, tmp_path: Path, expected: list[dict[str, Any]]
) -> None:
    job = open_job([tmp_path / "in.jsonl"], tmp_path / "ray", ModelOptions(), rows_per_block=20)
    seen: list[tuple[int, int]] = []
    score_blocks(job, Actors(max_size=2), lambda done, total: seen.append((done, total)))
    assert results(job.folder) == expected
    assert seen[-1] == (20, 20)
    score_blocks(job, Actors())  # nothing is missing


def test_a_killed_actor_loses_and_doubles_nothing(
    cluster: Any, tmp_path: Path, expected: list[dict[str, Any]]
) -> None:
    job = open_job([tmp_path / "in.jsonl"], tmp_path / "ray", ModelOptions(), rows_per_block=20)
    killed: list[int] = []

    def kill(done: int, total: int) -> None:
        if not killed:
            killed.extend(actor_pids()[:1])
            os.kill(killed[0], signal.SIGKILL)

    score_blocks(job, Actors(max_size=2), kill)
    assert killed and results(job.folder) == expected


def test_a_dataset_gets_columns(cluster: Any) -> None:
    rows = [{"query": row["query"], "document": row["passage"]} for row in rows_of(50)]
    found = score_dataset(
        ray.data.from_items(rows), ModelOptions(), actors=Actors(max_size=1), rows_per_batch=25
    ).take_all()
    assert sorted(row["document"] for row in found) == sorted(row["document"] for row in rows)
    assert all(0 <= row["probability"] <= 1 for row in found)


def test_an_object_store_is_read_and_written(cluster: Any, tmp_path: Path) -> None:
    """A server with S3's protocol, as the docs' example has it: parquet in, scores out, those of one process."""
    moto = pytest.importorskip("moto.server")
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow.fs import S3FileSystem

    server = moto.ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        store = S3FileSystem(
            access_key="a",
            secret_key="b",
            region="us-east-1",
            endpoint_override=f"http://{host}:{port}",
            allow_bucket_creation=True,
        )
        rows = [{"query": row["query"], "document": row["passage"]} for row in rows_of(60)]
        store.create_dir("bucket")
        for part in range(3):
            table = pa.Table.from_pylist(rows[part * 20 : part * 20 + 20])
            pq.write_table(table, f"bucket/pairs/{part}.parquet", filesystem=store)
        pairs = ray.data.read_parquet("s3://bucket/pairs/", filesystem=store).sort("query")
        score_dataset(pairs, actors=Actors(max_size=1)).write_parquet("s3://bucket/scores/", filesystem=store)
        found = pq.read_table("bucket/scores", filesystem=store).to_pylist()
    finally:
        server.stop()
    ours = Reranker()
    expected = {(row["query"], row["document"]): ours.score(row["query"], [row["document"]])[0] for row in rows}
    assert len(found) == len(rows)
    assert {(row["query"], row["document"]): row["score"] for row in found} == pytest.approx(expected, abs=0.05)


def test_a_removed_node_loses_and_doubles_nothing(
    cluster: Any, tmp_path: Path, expected: list[dict[str, Any]]
) -> None:
    job = open_job([tmp_path / "in.jsonl"], tmp_path / "ray", ModelOptions(), rows_per_block=20)
    node = cluster.add_node(num_cpus=2)
    removed: list[Any] = []

    def remove(done: int, total: int) -> None:
        if not removed:
            removed.append(node)
            cluster.remove_node(node, allow_graceful=False)

    score_blocks(job, Actors(min_size=2, max_size=3), remove)
    assert removed and results(job.folder) == expected


@pytest.mark.promise(
    "docs/scale.md", "where nothing is finished for half an hour, it ends with an error that says so"
)
def test_actors_that_find_no_room_end_with_an_error_and_the_job_goes_on(
    cluster: Any, tmp_path: Path, expected: list[dict[str, Any]]
) -> None:
    job = open_job([tmp_path / "in.jsonl"], tmp_path / "ray", ModelOptions(), rows_per_block=20)
    with pytest.raises(SecondpassError, match=r"finished nothing for \d+ s, and [\d.]+ of \d CPUs"):
        score_blocks(job, Actors(cpus=64), stall_s=3)
    score_blocks(job, Actors())
    assert results(job.folder) == expected


def test_rows_that_cannot_be_read_anew_when_a_node_is_lost_end_with_an_error(cluster: Any) -> None:
    """What holds up Ray is that reading finds no room: here that it needs what the lost node alone had."""
    node = cluster.add_node(num_cpus=1, resources={"lost": 1})
    rows = ray.data.from_items([{"query": "q", "document": f"d{i}"} for i in range(40)], override_num_blocks=40)
    read = rows.map_batches(_with_bytes, batch_size=1, resources={"lost": 0.1}, num_cpus=0.1).materialize()
    cluster.remove_node(node, allow_graceful=False)
    scored = score_dataset(read, actors=Actors(max_size=1), rows_per_batch=1, stall_s=5)
    with pytest.raises(SecondpassError, match="finished nothing"):
        scored.take_all()


def _with_bytes(batch: Any) -> Any:
    """Too large to travel with the driver's own notes, so that it is on the node alone."""
    return {**batch, "bytes": [b"x" * 300_000] * len(batch["query"])}


@pytest.mark.promise("docs/scale.md", "A list of devices is a process on each")
def test_a_list_of_devices_is_a_process_on_each_and_auto_reads_there_what_it_reads_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(MULTILINGUAL))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(MULTILINGUAL), os.environ.get("PYTHONPATH", "")]))
    chinese = [{"id": f"c{i}", "query": "长江有多长", "passage": f"长江全长约{i}公里。"} for i in range(100)]
    file = write(tmp_path / "in.jsonl", [*rows_of(300), *chinese])
    here = open_job([file], tmp_path / "alone", ModelOptions(model="auto", device="cpu"), rows_per_block=10)
    run_here(here)
    command = [*SECONDPASS, "score", str(file), "--output", str(tmp_path / "ray"), "--rows", "10", "--model", "auto"]
    process = subprocess.Popen([*command, "--device", "cpu,cpu"], stderr=subprocess.PIPE, text=True)
    seen = 0
    while process.poll() is None:
        seen = max(seen, len(actor_pids()))
        time.sleep(0.1)
    assert process.stderr is not None and process.returncode == 0, process.stderr.read()
    assert seen == 2 and results(tmp_path / "ray") == results(here.folder)


def test_a_killed_driver_goes_on(tmp_path: Path, expected: list[dict[str, Any]]) -> None:
    folder = tmp_path / "ray"
    command = [
        *SECONDPASS,
        "score",
        str(tmp_path / "in.jsonl"),
        "--output",
        str(folder),
        "--rows",
        "20",
        "--on",
        "ray",
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and len(list(folder.glob("part-*"))) < 3:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert results(folder) == expected
