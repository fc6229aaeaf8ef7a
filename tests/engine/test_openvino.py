"""The openvino engine: an exported graph gives the scores of the torch engine, without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from secondpass import Reranker
from secondpass.checkpoint.export import export_openvino
from secondpass.checkpoint.files import open_checkpoint
from secondpass.errors import CheckpointError
from tests.checkpoints import tiny_bert
from tests.goldens import SHARED

QUERY = "which river is long"
TEXTS = ["the river is long", "a bridge", "", *(f"water {'bridge ' * n}" for n in range(40))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    source = tiny_bert(tmp_path_factory.mktemp("source"))
    return source, export_openvino(open_checkpoint(source), tmp_path_factory.mktemp("export") / "graph")


def test_the_graph_gives_the_scores_of_torch(folders: tuple[Path, Path]) -> None:
    torch_scores = Reranker(folders[0], dtype="float32", device="cpu").score(QUERY, TEXTS)
    ours = Reranker(folders[1], dtype="float32")
    assert ours.info().engine == "openvino"
    assert ours.score(QUERY, TEXTS) == pytest.approx(torch_scores, abs=1e-4)


def test_a_score_does_not_depend_on_the_batch(folders: tuple[Path, Path]) -> None:
    ours = Reranker(folders[1], dtype="float32", token_budget=200)
    alone = [ours.score(QUERY, [text])[0] for text in TEXTS]
    assert ours.score(QUERY, TEXTS) == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("name", ["xlm-roberta-cross-encoder", "bert-cross-encoder"])
def test_goldens_exported_give_the_scores_of_torch(name: str, tmp_path: Path) -> None:
    source = SHARED / "golden" / name
    if not source.is_dir():
        pytest.skip("no reference figures here")
    folder = export_openvino(open_checkpoint(source), tmp_path / "graph")
    texts = ["灯塔建于1841年", "The lighthouse <pad> was built in 1841.", "", "x" * 500]
    expected = Reranker(source, dtype="float32", device="cpu").score("lighthouse", texts)
    assert Reranker(folder, dtype="float32").score("lighthouse", texts) == pytest.approx(expected, abs=1e-4)


def test_the_graph_runs_without_torch(folders: tuple[Path, Path]) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from secondpass import Reranker\n"
        f"print(len(Reranker({str(folders[1])!r}).rank('river', ['a river', 'a bridge'])))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "2"


def test_openvino_does_not_report_that_it_is_used(folders: tuple[Path, Path]) -> None:
    code = (
        "import sys\n"
        "from secondpass import Reranker\n"
        f"Reranker({str(folders[1])!r}).rank('river', ['a river'])\n"
        "from openvino.tools.ovc import telemetry_utils\n"
        "print([name for name in sys.modules if name.startswith('openvino_telemetry')], telemetry_utils.tm.__name__)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[] openvino.tools.ovc.telemetry_stub"


def test_a_damaged_graph_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    broken = export_openvino(open_checkpoint(folders[0]), tmp_path / "graph")
    (broken / "openvino" / "openvino_model.xml").write_text("<net")
    with pytest.raises(CheckpointError, match="not a graph"):
        Reranker(broken)


def test_an_export_does_not_overwrite(folders: tuple[Path, Path]) -> None:
    with pytest.raises(FileExistsError, match="not empty"):
        export_openvino(open_checkpoint(folders[0]), folders[1])
