"""Exported graphs give the scores of the model that they were made from, and appear whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from secondpass import Reranker
from secondpass.checkpoint.checkpoint import open_checkpoint
from secondpass.checkpoint.export import export as module
from secondpass.checkpoint.export.export import export
from secondpass.checkpoint.graph import read_constants
from secondpass.errors import CheckpointError, MissingExtra
from tests.checkpoints import tiny_bert
from tests.goldens import SHARED
from tests.random_checkpoints import CASES, random_checkpoint

QUERY = "which river is long"
TEXTS = ["the river is long", "a bridge", "", *(f"water {'bridge ' * n}" for n in (3, 17, 60))]
# How far a logit of these random models may move when matrices are stored so; float32 is exact.
TOLERANCES = {"float32": 2e-5, "bfloat16": 0.1, "int8": 0.25}


def scores(folder: Path, engine: str) -> list[float]:
    return Reranker(folder, engine=engine, dtype="float32", device="cpu").score(QUERY, TEXTS)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("source"), width=32)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["openvino", "onnx"])
@pytest.mark.parametrize(
    "dtype", [dtype if dtype == "int8" else pytest.param(dtype, marks=pytest.mark.slow) for dtype in TOLERANCES]
)
def test_every_format_and_precision_keeps_the_scores(source: Path, tmp_path: Path, format: str, dtype: str) -> None:
    if format == "onnx":
        pytest.importorskip("onnx")
    folder = export(open_checkpoint(source), tmp_path / "out", format=format, dtype=dtype)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out"]
    got, expected = np.array(scores(folder, "openvino")), np.array(scores(source, "torch"))
    assert np.abs(got - expected).max() < TOLERANCES[dtype]
    assert (np.abs(got - expected).max() > 1e-5) == (dtype != "float32")  # else nothing was rounded


@pytest.mark.slow
def test_modernbert_gives_the_scores_of_torch(tmp_path: Path) -> None:
    made = random_checkpoint(tmp_path / "source", "modernbert-small").folder
    folder = export(open_checkpoint(made), tmp_path / "out")
    assert scores(folder, "openvino") == pytest.approx(scores(made, "torch"), abs=2e-5)


# Graphs of the same operators as those of another case
LIKE_OTHERS = ("camembert-small", "camembert-larger", "electra-larger", "distilbert-larger", "mpnet-small")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("format", ["openvino", "onnx"])
@pytest.mark.parametrize("name", [name for name in CASES if name not in LIKE_OTHERS])
def test_every_family_in_every_precision(tmp_path: Path, name: str, format: str, dtype: str) -> None:
    if format == "onnx":
        pytest.importorskip("onnx")
    made = random_checkpoint(tmp_path / "source", name).folder
    folder = export(open_checkpoint(made), tmp_path / "out", format=format, dtype=dtype)
    assert scores(folder, "openvino") == pytest.approx(scores(made, "torch"), abs=TOLERANCES[dtype])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["gte-new-cross-encoder", "deberta-v2-cross-encoder", "modernbert-cross-encoder-cls"]
)
def test_goldens_keep_their_scores(tmp_path: Path, name: str) -> None:
    golden = SHARED / "golden" / name
    if not golden.is_dir():
        pytest.skip("no reference figures here")
    folder = export(open_checkpoint(golden), tmp_path / "out")
    assert scores(folder, "openvino") == pytest.approx(scores(golden, "torch"), abs=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.slow
def test_torch_reads_the_weights_of_a_graph(source: Path, tmp_path: Path, dtype: str) -> None:
    folder = export(open_checkpoint(source), tmp_path / "out", dtype=dtype)
    assert scores(folder, "torch") == pytest.approx(scores(folder, "openvino"), abs=1e-5)


@pytest.mark.slow
def test_a_graph_says_what_the_checkpoint_called_its_weights(source: Path, tmp_path: Path) -> None:
    folder = export(open_checkpoint(source), tmp_path / "out")
    stored = dict(read_constants(folder / "openvino" / "openvino_model.xml"))
    weights = load_file(source / "model.safetensors")
    assert set(stored) == set(weights)
    assert all(np.allclose(stored[name], tensor, atol=1e-6) for name, tensor in weights.items())


@pytest.mark.slow
def test_int8_rows_are_within_half_a_step(source: Path, tmp_path: Path) -> None:
    folder = export(open_checkpoint(source), tmp_path / "out", dtype="int8")
    exact = dict(read_constants(export(open_checkpoint(source), tmp_path / "exact") / "openvino/openvino_model.xml"))
    for name, values in read_constants(folder / "openvino" / "openvino_model.xml"):
        step = np.abs(exact[name]).max(-1, keepdims=True) / 127
        assert (np.abs(values - exact[name]) <= step / 2 + 1e-7).all(), name


@pytest.mark.slow
def test_calibration_makes_activations_int8(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    rng = np.random.default_rng(0)
    ids = [rng.integers(5, 60, (1, 20)) for _ in range(8)]
    inputs = [{"input_ids": x, "attention_mask": x * 0 + 1, "token_type_ids": x * 0} for x in ids]
    folder = export(open_checkpoint(source), tmp_path / "out", dtype="int8", calibration=inputs)
    assert "FakeQuantize" in (folder / "openvino" / "openvino_model.xml").read_text("utf-8")
    ours = Reranker(folder, engine="openvino", device="cpu")
    assert ours.info().dtype == "int8"
    assert np.abs(np.array(ours.score(QUERY, TEXTS)) - scores(source, "torch")).max() < 1


@pytest.mark.slow
def test_nncf_does_not_report_that_it_is_used(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    code = (
        "import sys, numpy as np\n"
        "from secondpass.checkpoint.checkpoint import open_checkpoint\n"
        "from secondpass.checkpoint.export.export import export\n"
        "x = np.full((1, 20), 7)\n"
        "inputs = [{'input_ids': x, 'attention_mask': x * 0 + 1, 'token_type_ids': x * 0}] * 2\n"
        "from pathlib import Path\n"
        f"source, out = Path({str(source)!r}), Path({str(tmp_path / 'out')!r})\n"
        "export(open_checkpoint(source), out, dtype='int8', calibration=inputs)\n"
        "from nncf.telemetry import wrapper\n"
        "said = [name for name in sys.modules if name.startswith('openvino_telemetry')]\n"
        "print(said, isinstance(wrapper.telemetry, wrapper.NNCFTelemetry))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "[] False"


def test_decoders_are_refused(tmp_path: Path) -> None:
    golden = SHARED / "golden" / "minicpm-layerwise"
    if not golden.is_dir():
        pytest.skip("no reference figures here")
    with pytest.raises(ValueError, match="decoder"):
        export(open_checkpoint(golden), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "tflite"}, "'openvino' or 'onnx' or 'safetensors'"),
        ({"dtype": "int4"}, "'float32' or 'bfloat16' or 'int8'"),
        ({"format": "safetensors"}, "no adapter to merge"),
        ({"format": "safetensors", "dtype": "int8"}, "precision of its base"),
        ({"calibration": [{}]}, "for dtype='int8'"),
        ({"format": "onnx", "dtype": "int8", "calibration": [{}]}, "int8 activations are for format='openvino'"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    source: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        export(open_checkpoint(source), tmp_path / "out", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_folder_is_replaced_only_when_asked(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "mine.txt").write_text("keep me")
    for overwrite in (False, True):  # nobody asked for a folder of something else to go
        with pytest.raises(FileExistsError, match=r"not empty, and holds no export\.json"):
            export(open_checkpoint(source), folder, overwrite=overwrite)
    assert (folder / "mine.txt").read_text() == "keep me"
    (folder / "mine.txt").unlink()
    export(open_checkpoint(source), folder)
    (folder / "openvino" / "openvino_model.bin").unlink()
    with pytest.raises(FileExistsError, match="--force to replace the export there"):
        export(open_checkpoint(source), folder)
    export(open_checkpoint(source), folder, overwrite=True)
    assert (folder / "openvino" / "openvino_model.bin").is_file()


@pytest.mark.parametrize("name", [".", "..", "../.."])
def test_the_current_folder_is_never_replaced(
    source: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    with pytest.raises(FileExistsError, match="is the current folder or holds it"):
        export(open_checkpoint(source), Path(name), overwrite=True)
    assert (tmp_path / "a" / "b").is_dir()


def test_the_model_itself_is_never_replaced(source: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "parent" / "model"))
    for folder in (copy, copy.parent):
        with pytest.raises(FileExistsError, match="holds the model"):
            export(open_checkpoint(copy), folder, overwrite=True)
    assert (copy / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_full_disk_leaves_what_was_there(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = export(open_checkpoint(source), tmp_path / "out")
    before = (folder / "openvino" / "openvino_model.bin").read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(module.WRITERS, "openvino", full)
    with pytest.raises(CheckpointError, match=r"No space left.*untouched"):
        export(open_checkpoint(source), folder, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert (folder / "openvino" / "openvino_model.bin").read_bytes() == before


def test_onnx_says_what_is_missing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secondpass.checkpoint.export.onnx.find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r"onnx is not installed; pip install \"secondpass\[export\]\""):
        export(open_checkpoint(source), tmp_path / "out", format="onnx")


@pytest.mark.slow
def test_a_cut_graph_is_named(source: Path, tmp_path: Path) -> None:
    folder = export(open_checkpoint(source), tmp_path / "out")
    weights = folder / "openvino" / "openvino_model.bin"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="of 1000"):
        Reranker(folder, engine="torch", device="cpu")


@pytest.mark.slow
def test_the_embedded_model_runs_on_torch() -> None:
    texts = ["Whales are mammals.", "Ships are made of steel.", "A whale breathes air, as all mammals do. " * 9]
    by_graph = Reranker("default", engine="openvino", dtype="float32").score("do whales breathe", texts)
    on_torch = Reranker("default", engine="torch", dtype="float32", device="cpu")
    assert on_torch.score("do whales breathe", texts) == pytest.approx(by_graph, abs=1e-4)
    assert on_torch.info().engine == "torch"


FULL = """
import resource, signal, sys
from pathlib import Path
from secondpass.checkpoint.checkpoint import open_checkpoint
from secondpass.checkpoint.export.export import export

checkpoint = open_checkpoint(sys.argv[1])
checkpoint.config, checkpoint.weight_files()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))
export(checkpoint, Path(sys.argv[2]), format=sys.argv[3])
"""


@pytest.mark.skipif(os.name == "nt", reason="a limit on files is POSIX's")
@pytest.mark.parametrize("format", ["openvino", "onnx"])
@pytest.mark.slow
def test_a_graph_that_does_not_fit_is_one_sentence(source: Path, tmp_path: Path, format: str) -> None:
    pytest.importorskip(format)
    command = [sys.executable, "-c", FULL, str(source), str(tmp_path / "out"), format]
    ended = subprocess.run(command, capture_output=True, text=True)
    said = ended.stderr.strip().splitlines()[-1]
    assert said.startswith("secondpass.errors.CheckpointError") and "out: cannot be written" in said, ended.stderr
    assert list(tmp_path.iterdir()) == []
