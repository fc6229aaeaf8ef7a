"""Whole runs on a toy task: they learn, keep the best, stop and go on, and say what is wrong."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from secondpass import Reranker
from secondpass.errors import DataError, TrainingError
from secondpass.training import Data, DevSet, EmbedderSettings, LoraSettings, Trainer, TrainingSettings, dev_queries
from secondpass.training.checkpointing import claimed, read_state, steps_in
from secondpass.training.learner import Learner, Moved
from secondpass.training.reporting import read_log
from tests.checkpoints import tiny_bert
from tests.goldens import SHARED
from tests.training.toy import toy_data, toy_examples

DATA = toy_data(24)
DEV = DevSet(name="toy", queries=dev_queries(toy_examples(6, seed=5)))
ROOT = Path(__file__).parents[2]


def settings(**options: Any) -> TrainingSettings:
    usual = {"batch": 4, "num_negatives": 3, "epochs": 3, "learning_rate": 1e-3, "device": "cpu", "dtype": "float32"}
    return TrainingSettings(**{**usual, **options})


def trainer(folder: Path, name: str, data: Data = DATA, dev: DevSet | None = None, **options: Any) -> Trainer:
    return Trainer(tiny_bert(folder / "base"), data, folder / name, settings=settings(**options), dev=dev)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return tensors


def equal(left: Path, right: Path) -> bool:
    a, b = weights(left), weights(right)
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Ctrl-C as a program has it that was just started, whatever ran before in this process or started it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes while the step is computed."""
    real, done = Learner.step, [0]

    def slow(self: Learner, *arguments: Any, **options: Any) -> Moved:
        done[0] += 1
        if done[0] == step:
            signal.raise_signal(signal.SIGINT)
        return real(self, *arguments, **options)

    monkeypatch.setattr(Learner, "step", slow)


@contextmanager
def small_disk(num_bytes: int) -> Iterator[None]:
    """No file can grow beyond so much, which is what a full disk looks like."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
def test_a_run_leaves_a_reranker_with_a_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trainer(tmp_path, "out", dev=DEV, eval_every=6)
    result = run.train()
    assert (result.step, result.num_steps, result.is_finished) == (18, 18, True)
    log = read_log(tmp_path / "out" / "training")
    measured = {line["step"]: line["nDCG@10"] for line in log if "nDCG@10" in line}
    assert list(measured) == [0, 6, 12, 18]
    assert result.start["nDCG@10"] == measured[0]
    assert result.best["nDCG@10"] == max(measured[step] for step in (6, 12, 18)) == measured[result.best_step]
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("step 0/18: nDCG@10 ")
    assert sum("for the 12 steps left" in line and "GB of memory" in line for line in said) == 1
    assert sum("loss" in line for line in said) == 2
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"after step {result.best_step} (kept) | {result.best['nDCG@10']:.4f}" in card
    assert "24 queries with 24 positive and 96 negative passages, from `toy.jsonl`" in card
    assert str(tmp_path) not in card
    assert steps_in(tmp_path / "out" / "training") == []
    with pytest.raises(TrainingError, match="finished run"):
        run.train(resume=True)
    if result.best_step == 18:
        example = DATA.examples[0]
        texts = [*example.positives, *example.negatives]
        expected = run.objective.score(example.query, texts)
        found = Reranker(tmp_path / "out", device="cpu", dtype="float32").score(example.query, texts)
        assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_sentence_transformers_loads_the_result_with_the_same_scores(tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    trainer(tmp_path, "out", max_length=40, epochs=1).train()
    pairs = [(one.query, text) for one in DATA.examples for text in one.positives + one.negatives]
    pairs += [("what is the river", "a long bridge . " * 60), ("where is the king " * 40, "snow " * 90)]
    assert Reranker(tmp_path / "out", device="cpu").info().max_length == 40
    model = sentence_transformers.CrossEncoder(str(tmp_path / "out"), device="cpu")
    expected = model.predict(pairs, activation_fn=torch.nn.Identity())
    found = Reranker(tmp_path / "out", device="cpu", dtype="float32").score_pairs(pairs)
    assert max(found) - min(found) > 0.1
    assert max(abs(a - float(b)) for a, b in zip(found, expected, strict=True)) < 1e-4


@pytest.mark.slow
def test_what_is_trained_from_the_embedded_graph_is_an_ordinary_checkpoint(tmp_path: Path) -> None:
    asked = settings(max_steps=2, learning_rate=1e-5, epochs=1)
    Trainer("default", DATA, tmp_path / "out", settings=asked).train()
    names = set(weights(tmp_path / "out"))
    assert {"bert.encoder.layer.5.attention.self.query.weight", "head.scale", "word_match.scale"} <= names
    example = toy_examples(1)[0]
    texts = [*example.positives, *example.negatives]
    before, after = (Reranker(which).score(example.query, texts) for which in ("default", tmp_path / "out"))
    assert after == pytest.approx(before, abs=0.5)


def test_a_run_goes_on_where_the_folder_of_its_model_is_written_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("base", "other"):
        tiny_bert(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        interrupt_at(1, patch)
        Trainer("base", DATA, "out", settings=settings()).train()
    with pytest.raises(TrainingError, match=r"model was 'base', is 'other/'; give what it was told, or another"):
        Trainer("other/", DATA, "out", settings=settings()).train(resume=True)
    with monkeypatch.context() as patch:
        interrupt_at(1, patch)
        Trainer("base/", DATA, "out", settings=settings()).train(resume=True)
    assert Trainer(tmp_path / "base", DATA, "out", settings=settings()).train(resume=True).is_finished


@pytest.mark.slow
def test_the_best_checkpoint_is_kept_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = iter([0.3, 0.2, 0.9, 0.4])

    def measured(queries: Any, score: Any) -> dict[str, float]:
        return dict.fromkeys(("nDCG@10", "MRR@10"), next(figures) * len(list(queries)))

    monkeypatch.setattr("secondpass.training.trainer.total", measured)
    result = trainer(tmp_path, "best", dev=DEV, eval_every=6).train()
    assert (result.best_step, result.best["MRR@10"], result.start["MRR@10"]) == (12, pytest.approx(0.9), 0.3)
    trainer(tmp_path, "last").train()
    assert not equal(tmp_path / "best", tmp_path / "last")
    assert (tmp_path / "best" / "README.md").read_text().count("reranked after step") == 3


@pytest.mark.promise(
    "docs/training.md", "Ctrl-C (or SIGTERM) finishes the step, saves, and prints the command that goes on"
)
@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)])
def test_an_interrupted_run_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: LoraSettings | None
) -> None:
    trainer(tmp_path, "whole", lora=lora).train()
    with monkeypatch.context() as patch:
        interrupt_at(8, patch)
        result = trainer(tmp_path, "stopped", lora=lora).train()
    assert (result.step, result.is_finished) == (8, False)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not (tmp_path / "stopped" / "model.safetensors").exists()
    with pytest.raises(TrainingError, match="--resume"):
        trainer(tmp_path, "stopped", lora=lora).train()
    result = trainer(tmp_path, "stopped", lora=lora, log_every=1).train(resume=True)
    assert result.is_finished
    assert [line["step"] for line in read_log(tmp_path / "stopped" / "training")] == list(range(9, 19))
    assert equal(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.slow
def test_bounds_of_early_exit_are_those_of_a_run_that_was_not_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = SHARED / "golden" / "minicpm-layerwise"
    if not base.is_dir():
        pytest.skip("no reference figures here")
    bounds = []
    for name in ("whole", "stopped"):
        run = [Trainer(base, toy_data(9), tmp_path / name, settings=settings(epochs=1)) for _ in range(2)]
        with monkeypatch.context() as patch:
            if name == "stopped":
                interrupt_at(2, patch)  # of 3; the last step reads a ninth of the data
                assert not run[1].train().is_finished
        run[0].train(resume=True)
        bounds.append(json.loads((tmp_path / name / "config.json").read_text())["exit_bounds"])
    assert bounds[0] == bounds[1]


@pytest.mark.promise(
    "docs/training.md",
    "A run goes on only with the same model, data, `--eval` set and settings; what differs is named",
)
@pytest.mark.slow
def test_a_run_goes_on_only_as_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(2, patch)
        trainer(tmp_path, "out").train()
    with pytest.raises(TrainingError, match=r"learning_rate was 0\.001, is 0\.01"):
        trainer(tmp_path, "out", learning_rate=0.01).train(resume=True)
    with pytest.raises(TrainingError, match="data was"):
        trainer(tmp_path, "out", data=toy_data(8)).train(resume=True)
    other = DevSet(name="other", queries=dev_queries(toy_examples(3, seed=5)))
    with pytest.raises(TrainingError, match="dev was None"):  # the best would be picked from figures of two sets
        trainer(tmp_path, "out", dev=other).train(resume=True)
    told = tmp_path / "out" / "training" / "run.json"
    kept = told.read_text()
    told.unlink()
    with pytest.raises(TrainingError, match="not of which run"):
        trainer(tmp_path, "out").train()
    told.write_text(kept)
    assert trainer(tmp_path, "out", save_every=7, token_budget=50).train(resume=True).is_finished


@pytest.mark.slow
@pytest.mark.promise("docs/training.md", "where the disk is full, the last good one stays")
def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    run = trainer(tmp_path, "out", save_every=4)
    real, saves = run._save, [0]

    def save(step: int) -> None:
        saves[0] += 1
        if saves[0] < 3:
            return real(step)
        with small_disk(30_000):
            return real(step)

    run._save = save  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match=r"step 12 could not be saved: .*step 8 is whole"):
        run.train()
    folder = tmp_path / "out" / "training"
    assert steps_in(folder) == [4, 8]
    assert not list(folder.glob(".*"))
    assert trainer(tmp_path, "out").train(resume=True).is_finished
    trainer(tmp_path, "whole").train()
    assert equal(tmp_path / "whole", tmp_path / "out")


@pytest.mark.parametrize(
    "facts", ["{", "[]", "{}", '{"step": 6}', '{"step": 6, "history": "x"}', '{"step": 7, "history": []}']
)
def test_a_checkpoint_that_is_damaged_is_named(tmp_path: Path, facts: str) -> None:
    """One whose name is another step's would go on past the end."""
    folder = tmp_path / "step-00000006"
    folder.mkdir()
    save_file({"weights.a": torch.ones(2)}, folder / "state.safetensors")
    (folder / "state.json").write_text('{"step": 6, "history": []}')
    state = read_state(tmp_path)
    assert state is not None and state.step == 6
    (folder / "state.json").write_text(facts)
    with pytest.raises(TrainingError, match=r"step-00000006 cannot be read .*; remove it to go on"):
        read_state(tmp_path)


@pytest.mark.promise("docs/training.md", "ends in the same weights, bit by bit on a CPU")
@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "tests.training.killed", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    tiny_bert(tmp_path / "base")
    for run, last in (("killed", "step 13/"), ("killed", "step 14/"), ("killed", None), ("whole", None)):
        command = [*arguments, run]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if last is not None and line.startswith(last):
                    process.kill()
        assert process.returncode == (0 if last is None else -signal.SIGKILL)
        if last is not None:
            assert steps_in(tmp_path / "killed" / "training")
    assert equal(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    tiny_bert(tmp_path / "base")
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "-m"]  # which is gloo on a CPU
    for run, launcher in (("one", []), ("two", launch)):
        arguments = [sys.executable, "-m", *launcher, "tests.training.killed", str(tmp_path), run]
        subprocess.run(arguments, check=True, env=environment, cwd=ROOT, capture_output=True)
    logs = [read_log(tmp_path / run / "training") for run in ("one", "two")]
    losses = [[line["loss"] for line in log if "loss" in line] for log in logs]
    assert len(losses[0]) == 18
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    figures = [[line["nDCG@10"] for line in log if "nDCG@10" in line] for log in logs]
    assert figures[1] == pytest.approx(figures[0], abs=1e-6)
    # Differences of scores, not weights: the last bias has no gradient here, and Adam makes steps of rounding noise.
    query, passages = DATA.examples[0].query, DATA.examples[0].negatives
    differences = []
    for run in ("one", "two"):
        scores = Reranker(tmp_path / run, device="cpu", dtype="float32").score(query, passages)
        differences.append([score - scores[0] for score in scores])
    assert differences[1] == pytest.approx(differences[0], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("losses", [{"cross_entropy": 1.0}, {"binary": 1.0}, {"margin_mse": 1.0}, {"kl": 1.0}])
def test_a_small_model_learns_a_set_by_heart(tmp_path: Path, losses: dict[str, float]) -> None:
    examples = toy_examples(48, has_scores=True)
    dev = DevSet(name="toy", queries=dev_queries(examples))
    base = tiny_bert(tmp_path / "base", width=32)
    chosen = settings(losses=losses, epochs=30, batch=16, learning_rate=3e-3, warmup=0.05, eval_every=45)
    result = Trainer(base, Data(examples=examples), tmp_path / "out", settings=chosen, dev=dev).train()
    log = [line["loss"] for line in read_log(tmp_path / "out" / "training") if "loss" in line]
    assert log[-1] < 0.2 * log[0]
    assert result.start["MRR@10"] < 0.7
    assert result.best["MRR@10"] == 1.0


def test_a_distilling_loss_needs_scores(tmp_path: Path) -> None:
    scored = toy_data(4, has_scores=True)
    half = replace(scored, examples=[*scored.examples, *toy_data(2).examples])
    with pytest.raises(DataError, match=r"no pos_scores and neg_scores.*\(so 2 of 6\)"):
        trainer(tmp_path, "out", data=half, losses={"cross_entropy": 1.0, "kl": 1.0})
    first, *others = scored.examples
    halves = [replace(first, negative_scores=None, source="a:1"), replace(first, positive_scores=None, source="b:2")]
    for lacking, told in zip(halves, ("a:1: has no neg_scores, which", "b:2: has no pos_scores, which"), strict=True):
        with pytest.raises(DataError, match=told):
            trainer(tmp_path, "out", data=Data(examples=[lacking, *others]), losses={"kl": 1.0})
    assert trainer(tmp_path, "out", data=scored, losses={"kl": 1.0}).train().is_finished


def test_there_is_something_to_learn_from_and_to_measure_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to learn from"):
        trainer(tmp_path, "out", data=Data(examples=[]))
    with pytest.raises(DataError, match="or to measure on"):
        trainer(tmp_path, "out", dev=DevSet(name="empty", queries=[]))


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="lower the learning rate"):
        trainer(tmp_path, "out", learning_rate=1e12, warmup=0.0, max_gradient_norm=1e9).train()


def test_another_folder_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="holds a model"):
        Trainer(tiny_bert(tmp_path), DATA, tmp_path, settings=settings()).train()


def test_a_result_goes_into_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    done = Trainer(tiny_bert(tmp_path / "base"), DATA, "~/run", settings=settings(max_steps=1)).train()
    assert done.folder == tmp_path / "run" and (tmp_path / "run" / "model.safetensors").is_file()


def test_a_readme_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "README.md").write_text("of a project")
    with pytest.raises(TrainingError, match=r"holds README.md, which the result would replace"):
        trainer(tmp_path, "run").train()
    assert (tmp_path / "run" / "README.md").read_text() == "of a project"


@pytest.mark.parametrize("step", [0, 2])
def test_ctrl_c_ends_a_measurement_which_is_made_when_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    options: dict[str, Any] = {"dev": DEV, "eval_every": 2, "max_steps": 4}
    trainer(tmp_path, "whole", **options).train()
    stopped = trainer(tmp_path, "stopped", **options)
    last = (len(DEV.queries) if step else 0) + 2  # the second query of a measurement
    asked: list[str] = []
    real = stopped.objective.score

    def score(query: str, documents: Sequence[str]) -> list[float]:
        asked.append(query)
        if len(asked) == last:
            signal.raise_signal(signal.SIGINT)
        return real(query, documents)

    monkeypatch.setattr(stopped.objective, "score", score)
    result = stopped.train()
    assert (result.step, result.is_finished, len(asked)) == (step, False, last)
    trainer(tmp_path, "stopped", **options).train(resume=True)
    assert equal(tmp_path / "whole", tmp_path / "stopped")
    measured = [
        [line["step"] for line in read_log(tmp_path / name / "training") if "MRR@10" in line]
        for name in ("whole", "stopped")
    ]
    assert measured == [[0, 2, 4]] * 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_length": 129},
        {"max_length": 3},
        {"truncation": "none"},
        {"losses": {}},
        {"losses": {"cross_entropy": math.inf}},
        {"schedule": "steep"},
        {"batch": 0},
        {"learning_rate": math.inf},
        {"weight_decay": math.nan},
        {"seed": -1},
        {"seed": 1 << 63},
        {"max_query_length": 0},
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"128 tokens|give|0 or more|no room for any"):
        trainer(tmp_path, "out", **wrong)


@pytest.mark.parametrize(
    ("wrong", "needed"),
    [
        ({"batch": "8"}, "batch is '8'; a whole number"),
        ({"batch": 2.5}, r"batch is 2\.5; a whole number"),
        ({"num_negatives": True}, "num_negatives is True; a whole number"),
        ({"learning_rate": "2e-5"}, "learning_rate is '2e-5'; a number"),
        ({"warmup": None}, "warmup is None; a number"),
        ({"losses": ["cross_entropy"]}, "losses is .*; give weights by name"),
    ],
)
def test_settings_of_another_type_are_named(wrong: dict[str, Any], needed: str) -> None:
    with pytest.raises(TypeError, match=needed):
        settings(**wrong)


@pytest.mark.slow
def test_tensorboard_gets_the_figures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer(tmp_path, "out", dev=DEV, has_tensorboard=True, log_every=6).train()
    events = EventAccumulator(str(tmp_path / "out" / "training" / "tensorboard"))
    events.Reload()
    log = {line["step"]: line["loss"] for line in read_log(tmp_path / "out" / "training") if "loss" in line}
    assert {event.step: pytest.approx(event.value) for event in events.Scalars("loss")} == log
    assert [event.step for event in events.Scalars("nDCG@10")] == [0, 6, 12, 18]


def test_run_json_says_what_the_run_was_told(tmp_path: Path) -> None:
    trainer(tmp_path, "out", epochs=1).train()
    run = json.loads((tmp_path / "out" / "training" / "run.json").read_text())
    assert run["is_finished"]
    assert run["settings"]["learning_rate"] == 1e-3
    assert run["data"] == DATA.fingerprint


@pytest.mark.slow
def test_what_is_trained_is_what_is_saved(tmp_path: Path) -> None:
    example = toy_examples(1)[0]
    passages = [*example.positives, *example.negatives]
    run = Trainer("default", DATA, tmp_path / "out", settings=settings(max_steps=1, learning_rate=1e-9))
    before = run.objective.score(example.query, passages)
    embedded = Reranker("default", engine="torch", dtype="float32", max_length=512)
    assert before == pytest.approx(embedded.score(example.query, passages), abs=1e-4)
    run.train()
    after = run.objective.score(example.query, passages)
    saved = Reranker(tmp_path / "out", engine="torch", dtype="float32")
    assert after == pytest.approx(saved.score(example.query, passages), abs=1e-4)
    assert after == pytest.approx(before, abs=1e-3)


def test_a_folder_with_a_graph_alone_is_no_place_for_a_result(tmp_path: Path) -> None:
    (tmp_path / "out" / "openvino").mkdir(parents=True)
    with pytest.raises(TrainingError, match="holds a model"):
        trainer(tmp_path, "out").train()
    assert not (tmp_path / "out" / "training").exists()


@pytest.mark.slow
def test_two_processes_do_not_write_one_folder(tmp_path: Path) -> None:
    held = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "out")], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    assert held.stdout is not None and held.stdin is not None
    try:
        assert held.stdout.readline() == b"held\n"
        with pytest.raises(TrainingError, match="another process is writing"):
            trainer(tmp_path, "out").train()
    finally:
        held.kill()  # a lock does not outlive its process, however that ends
        held.wait()
        held.stdout.close()
        held.stdin.close()
    assert trainer(tmp_path, "out", max_steps=1).train().is_finished


def test_an_output_that_cannot_be_written_is_said_as_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot be written"), claimed(tmp_path / "file"):
        raise AssertionError


def test_a_start_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    for name in ("own", "new"):
        with pytest.raises(KeyError), claimed(tmp_path / name), claimed(tmp_path / name):
            raise KeyError
    assert list(tmp_path.iterdir()) == [tmp_path / "own"] and not list((tmp_path / "own").iterdir())
    with pytest.raises(KeyError), claimed(tmp_path / "new"):
        (tmp_path / "new" / "training" / "data.json").write_text("{}")
        raise KeyError
    assert (tmp_path / "new" / "training" / "data.json").is_file()


def test_a_run_whose_folder_was_removed_says_why_it_ended(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyError), claimed(tmp_path / "new"):
            shutil.rmtree(tmp_path / "new")
            raise KeyError


HOLD = """
import sys
from pathlib import Path
from secondpass.training.checkpointing import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_group_may_be_one_passage_where_others_are_candidates(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_negatives is 0, and no loss compares with passages of other queries"):
        settings(num_negatives=0)
    for embedder in (EmbedderSettings(in_batch="none"), EmbedderSettings()):
        with pytest.raises(ValueError, match="num_negatives is 0"):
            settings(num_negatives=0, embedder=embedder, batch=4 if embedder.in_batch == "none" else 1)
    with pytest.raises(ValueError, match="num_negatives is -1; give 0 or more"):
        settings(num_negatives=-1)
    run = trainer(tmp_path, "out", num_negatives=0, embedder=EmbedderSettings(), max_steps=2)
    assert all(len(run.objective.rows(item)) == 2 for item in run._sampler.items(0))  # query and positive
    assert run.train().is_finished
