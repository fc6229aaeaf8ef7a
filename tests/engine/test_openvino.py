"""The openvino engine: an exported graph gives the scores of the torch engine, without torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from secondpass import Reranker
from secondpass.atomic import user_folder
from secondpass.checkpoint.checkpoint import open_checkpoint
from secondpass.checkpoint.export.export import export
from secondpass.engine import openvino as compiled
from secondpass.engine.compiled import MAX_FILES
from secondpass.engine.cpu.threads import Processor
from secondpass.errors import CheckpointError
from secondpass.types import Row, Run
from tests.checkpoints import tiny_bert
from tests.goldens import SHARED

QUERY = "which river is long"
TEXTS = ["the river is long", "a bridge", "", *(f"water {'bridge ' * n}" for n in range(40))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    source = tiny_bert(tmp_path_factory.mktemp("source"))
    return source, export(open_checkpoint(source), tmp_path_factory.mktemp("export") / "graph")


@pytest.mark.slow
def test_the_graph_gives_the_scores_of_torch(folders: tuple[Path, Path]) -> None:
    torch_scores = Reranker(folders[0], dtype="float32", device="cpu").score(QUERY, TEXTS)
    ours = Reranker(folders[1], dtype="float32")
    assert ours.info().engine == "openvino"
    assert ours.score(QUERY, TEXTS) == pytest.approx(torch_scores, abs=1e-4)


@pytest.mark.slow
def test_a_score_does_not_depend_on_the_batch(folders: tuple[Path, Path]) -> None:
    ours = Reranker(folders[1], dtype="float32", token_budget=200)
    alone = [ours.score(QUERY, [text])[0] for text in TEXTS]
    assert ours.score(QUERY, TEXTS) == pytest.approx(alone, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["xlm-roberta-cross-encoder", "bert-cross-encoder"])
def test_goldens_exported_give_the_scores_of_torch(name: str, tmp_path: Path) -> None:
    source = SHARED / "golden" / name
    if not source.is_dir():
        pytest.skip("no reference figures here")
    folder = export(open_checkpoint(source), tmp_path / "graph")
    texts = ["灯塔建于1841年", "The lighthouse <pad> was built in 1841.", "", "x" * 500]
    expected = Reranker(source, dtype="float32", device="cpu").score("lighthouse", texts)
    assert Reranker(folder, dtype="float32").score("lighthouse", texts) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["xlm-roberta-cross-encoder", "bert-cross-encoder"])
@pytest.mark.slow
def test_no_position_is_read_that_is_not_there(name: str, tmp_path: Path) -> None:
    """Where the tokenizer says no length, that of the table of positions counts; RoBERTa's first ones are unused."""
    source = SHARED / "golden" / name
    if not source.is_dir():
        pytest.skip("no reference figures here")
    unlimited = shutil.copytree(source, tmp_path / "unlimited", copy_function=shutil.copyfile)
    unlimited.chmod(0o755)
    file = unlimited / "tokenizer_config.json"
    settings = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps({key: value for key, value in settings.items() if key != "model_max_length"}))
    torch_engine = Reranker(unlimited, dtype="float32", device="cpu")
    graph = Reranker(export(open_checkpoint(unlimited), tmp_path / "graph"), dtype="float32")
    assert graph.info().max_length == torch_engine.info().max_length
    texts = ["lighthouse " * 2000, "lighthouse " * 150]
    assert graph.score("lighthouse", texts) == pytest.approx(torch_engine.score("lighthouse", texts), abs=1e-4)


@pytest.mark.slow
def test_the_graph_runs_without_torch(folders: tuple[Path, Path]) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from secondpass import Reranker\n"
        f"print(len(Reranker({str(folders[1])!r}).rank('river', ['a river', 'a bridge'])))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "2"


@pytest.mark.slow
def test_openvino_does_not_report_that_it_is_used(folders: tuple[Path, Path]) -> None:
    code = (
        "import sys\n"
        "from secondpass import Reranker\n"
        f"Reranker({str(folders[1])!r}).rank('river', ['a river'])\n"
        "print('openvino.tools.ovc' in sys.modules)\n"
        "from openvino import convert_model\n"
        "from openvino.tools.ovc import telemetry_utils\n"
        "print([name for name in sys.modules if name.startswith('openvino_telemetry')], telemetry_utils.tm.__name__)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split("\n")[:2] == ["False", "[] openvino.tools.ovc.telemetry_stub"]


def test_threads_that_import_it_at_once_get_all_of_it() -> None:
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from threading import Barrier\n"
        "from secondpass.checkpoint.graph import import_openvino\n"
        "barrier = Barrier(4)\n"
        "def version(_):\n"
        "    barrier.wait()\n"
        "    return import_openvino().Core().get_versions('CPU')['CPU'].build_number\n"
        "with ThreadPoolExecutor(4) as threads:\n"
        "    print(len(set(threads.map(version, range(4)))))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (shown.stdout, shown.stderr) == ("1\n", "")


@pytest.mark.slow
def test_a_damaged_graph_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    broken = export(open_checkpoint(folders[0]), tmp_path / "graph")
    (broken / "openvino" / "openvino_model.xml").write_text("<net")
    with pytest.raises(CheckpointError, match="not a graph"):
        Reranker(broken)


@pytest.fixture(scope="module")
def int8(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(open_checkpoint(folders[0]), tmp_path_factory.mktemp("export") / "int8", dtype="int8")


@pytest.mark.slow
def test_unpacked_matrices_give_the_scores_of_int8_ones(int8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked = Reranker(int8, dtype="float32")
    assert "unpacked once" in unpacked.info().reason
    monkeypatch.setattr(compiled, "MAX_UNPACKED_BYTES", 0)
    packed = Reranker(int8, dtype="float32")
    assert "unpacked" not in packed.info().reason
    assert packed.score(QUERY, TEXTS) == pytest.approx(unpacked.score(QUERY, TEXTS), abs=1e-5)


@pytest.mark.slow
def test_int8_products_stay_near(int8: Path, folders: tuple[Path, Path]) -> None:
    ours = Reranker(int8, dtype="int8")
    assert ours.info().dtype == "int8"
    assert ours.score(QUERY, TEXTS) == pytest.approx(Reranker(int8, dtype="float32").score(QUERY, TEXTS), abs=0.1)
    with pytest.raises(ValueError, match="float weights"):
        Reranker(folders[1], dtype="int8")


@pytest.mark.parametrize("num_threads", [1, 6])
@pytest.mark.slow
def test_streams_do_not_change_scores(
    folders: tuple[Path, Path], int8: Path, monkeypatch: pytest.MonkeyPatch, num_threads: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(compiled, "num_cores", lambda: num_threads)
    for folder, dtype in ((folders[1], "float32"), (int8, "float32"), (int8, "bfloat16")):
        ours = Reranker(folder, dtype=dtype)
        expected = Reranker(folder, engine="torch", dtype="float32", device="cpu").score(QUERY, TEXTS)
        assert ours.score(QUERY, TEXTS) == pytest.approx(expected, abs=1e-4 if dtype == "float32" else 0.1)


@pytest.mark.slow
def test_a_chosen_number_of_threads_counts(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """With AMX and in bfloat16 each has a stream of its own, else two share one."""
    monkeypatch.setattr(compiled, "num_cores", lambda: 2)
    for feature, streams_of_two in (("amx_bf16", {"float32": 1, "bfloat16": 2}), ("avx512_bf16", {"bfloat16": 1})):
        processor = Processor(architecture="x86_64", features=frozenset({feature}))
        monkeypatch.setattr(compiled, "processor_of_kernel", lambda processor=processor: processor)
        for dtype, streams in streams_of_two.items():
            for chosen, threads in (("1", 1), ("64", 2), ("two", 2)):
                monkeypatch.setenv("OMP_NUM_THREADS", chosen)
                expected = f"{min(streams, threads)} at a time on {threads} threads"
                assert expected in Reranker(folders[1], dtype=dtype).info().reason


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_processes_with_a_share_of_the_cores_do_not_meet_on_one(folders: tuple[Path, Path]) -> None:
    """Where threads compute while they do, since OpenVINO binds them only for that time."""
    program = f"""
        import os, threading
        from contextlib import suppress
        from secondpass import Reranker
        ours, bound = Reranker({str(folders[1])!r}), []
        texts = ["the river is long " * 30] * 64
        work = threading.Thread(target=lambda: [ours.score("river", texts) for _ in range(20)])
        work.start()
        while work.is_alive():
            for thread in os.listdir("/proc/self/task"):
                with suppress(OSError):  # it has ended
                    bound.append(len(os.sched_getaffinity(int(thread))))
        print(min(bound))
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    found = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert int(found.stdout) > 1, found.stderr


@pytest.mark.slow
def test_threads_get_their_own_scores(folders: tuple[Path, Path]) -> None:
    ours = Reranker(folders[1], dtype="float32", token_budget=100)
    queries = [f"{word} is long" for word in ("river", "bridge", "water", "winter", "road", "tree")]
    alone = [ours.score(query, TEXTS) for query in queries]
    with ThreadPoolExecutor(len(queries)) as pool:
        for _ in range(3):
            together = list(pool.map(lambda query: ours.score(query, TEXTS), queries))
            assert together == [pytest.approx(scores, abs=1e-5) for scores in alone]


def test_an_error_while_rows_are_on_their_way_leaves_the_engine_usable(folders: tuple[Path, Path]) -> None:
    ours = Reranker(folders[1], dtype="float32", token_budget=50)
    expected = ours.score(QUERY, TEXTS)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ours.rank(QUERY, TEXTS, progress=stop)
    assert ours.score(QUERY, TEXTS) == pytest.approx(expected, abs=1e-6)


class Interrupted:
    """A request beside which Ctrl-C comes just as it has been started, and again while it is waited for."""

    def __init__(self, request: Any) -> None:
        self.request = request

    def start_async(self, inputs: Any) -> None:
        self.request.start_async(inputs)
        raise KeyboardInterrupt

    def wait(self) -> None:
        self.request.wait()
        raise KeyboardInterrupt


def test_no_request_is_left_running_by_ctrl_c(folders: tuple[Path, Path]) -> None:
    engine = compiled.OpenVinoEngine(open_checkpoint(folders[1]), dtype="float32")
    inner = engine._requests._requests[0]
    inner.set_callback(lambda _: time.sleep(0.2), None)  # it takes a while
    engine._requests._requests[:] = [Interrupted(inner)]
    with pytest.raises(KeyboardInterrupt):
        engine.run([Row(ids=[2, 5, 3], passage=(2, 3))], Run())
    assert inner.wait_for(0), "taken down while it runs, it takes the process with it"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder of compiled graphs, in which graphs of any size are kept."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr("secondpass.engine.compiled.MIN_BYTES", 0)
    return user_folder("cache")


def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The graphs that are compiled from now on."""
    seen: list[Path] = []
    kept = compiled.kept_or_compiled

    def spied(core: Any, graph: Path, asked: Any, compiles: Any) -> Any:
        return kept(core, graph, asked, lambda: (seen.append(graph), compiles())[1])

    monkeypatch.setattr(compiled, "kept_or_compiled", spied)
    return seen


@pytest.mark.slow
def test_a_compiled_graph_is_kept_and_gives_the_same_scores(
    folders: tuple[Path, Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = export(open_checkpoint(folders[0]), cache.parent / "int8", dtype="int8")
    seen = compilations(monkeypatch)
    expected = Reranker(small).score(QUERY, TEXTS)
    assert len(list(cache.iterdir())) == len(seen) == 1
    assert cache.stat().st_mode & 0o077 == 0
    assert Reranker(small).score(QUERY, TEXTS) == expected
    assert len(seen) == 1
    for file in small.rglob("openvino_model.*"):
        file.touch()  # as an update does: compiled anew, in the place of the old one
    assert Reranker(small).score(QUERY, TEXTS) == expected
    assert len(list(cache.iterdir())) == 1
    assert len(seen) == 2
    monkeypatch.setattr("secondpass.engine.compiled.__version__", "another")  # which may run a graph otherwise
    assert Reranker(small).score(QUERY, TEXTS) == expected
    assert len(list(cache.iterdir())) == 1
    assert len(seen) == 3


def test_a_model_outlives_the_file_that_it_was_opened_from(folders: tuple[Path, Path], cache: Path) -> None:
    """Its weights lie in the file itself, which another process may replace and anybody may delete."""
    expected = Reranker(folders[1]).score(QUERY, TEXTS)
    replaced, deleted = Reranker(folders[1]), Reranker(folders[1])
    (file,) = cache.iterdir()
    other = file.with_name("other")
    other.write_bytes(b"\0" * file.stat().st_size)
    other.replace(file)
    assert replaced.score(QUERY, TEXTS) == expected
    file.unlink()
    assert deleted.score(QUERY, TEXTS) == expected
    replaced.close()
    assert deleted.score(QUERY, TEXTS) == expected


@pytest.mark.slow
@pytest.mark.parametrize("kept", [b"", b"no model", None], ids=["empty", "other", "half"])
def test_what_is_no_compiled_graph_is_compiled_anew(
    folders: tuple[Path, Path], cache: Path, kept: bytes | None
) -> None:
    expected = Reranker(folders[1]).score(QUERY, TEXTS)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if kept is None else kept)
    assert Reranker(folders[1]).score(QUERY, TEXTS) == expected
    assert file.stat().st_size == len(whole)


def test_a_cache_that_cannot_be_written_costs_time_alone(folders: tuple[Path, Path], cache: Path) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_text("no folder")
    assert len(Reranker(folders[1]).score(QUERY, TEXTS)) == len(TEXTS)


@pytest.mark.slow
def test_few_compiled_graphs_are_kept(folders: tuple[Path, Path], cache: Path) -> None:
    for index in range(MAX_FILES + 2):
        folder = shutil.copytree(folders[1], cache.parent / f"copy{index}")
        Reranker(folder)
    assert len(list(cache.iterdir())) == MAX_FILES
