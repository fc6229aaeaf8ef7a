"""`secondpass train` and `secondpass mine`: what they read, say and leave."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from secondpass import Reranker, cli
from secondpass.evaluation import evaluate, load_dataset
from secondpass.evaluation.measures import as_measures
from secondpass.training import dev_set, read_data, save_data
from secondpass.training.dev import total
from tests.checkpoints import tiny_bert
from tests.training.toy import PASSAGES, THINGS, toy_examples

QUICK = ("--batch", "4", "--negatives", "3", "--device", "cpu", "--dtype", "float32", "--lr", "1e-3")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("train") / "base")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "toy.jsonl.gz"
    save_data(toy_examples(12), file)
    return file


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    """A passage of each form for each thing; one query for each thing, whose first passage is the answer."""
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    corpus = [(f"{thing}-{form}", text.format(thing)) for thing in THINGS for form, text in enumerate(PASSAGES)]
    lines = [json.dumps({"_id": name, "title": "", "text": text}) for name, text in corpus]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    queries = [json.dumps({"_id": thing, "text": f"is the {thing} in the city"}) for thing in THINGS]
    (folder / "queries.jsonl").write_text("\n".join(queries))
    for split, things in (("train", THINGS[:12]), ("dev", THINGS[12:])):
        rows = ["query-id\tcorpus-id\tscore", *(f"{thing}\t{thing}-0\t1" for thing in things)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    return folder


def embedder(model: Path, folder: Path) -> Path:
    """The backbone of a reranker, as a model that makes vectors."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertModel"]}))
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def called(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = cli.run([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


@pytest.fixture(autouse=True)
def _streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_set_up_streams", lambda: None)  # pytest's own streams are not to be changed


def test_train_says_what_the_data_is_and_leaves_a_reranker(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code, shown, said = called(capsys, "train", model, data, "--output", out, "--eval", data, *QUICK)
    assert code == 0, said
    assert shown == f"{out}\n"
    lines = said.splitlines()
    assert lines[0] == (
        "data: 12 queries, each with 1.0 positive and 4.0 negative passages (4 to 4); 0 with a teacher's scores"
    )
    assert any(line.startswith("rows: ") for line in lines)
    assert any(line.startswith("run: 3 steps of 4 queries") for line in lines)
    assert lines[-1].startswith("step 3 (kept): nDCG@10 ") or "did not raise" in lines[-1]
    assert len(Reranker(out, device="cpu").score("the river", ["a bridge", "snow"])) == 2


def test_wrong_lines_are_named_before_anything_is_loaded(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"query": "q", "pos": [], "neg": ["b"]}\n{"query": "q", "pos": ["a"], "neg": ["b"]}\n')
    code, _, said = called(capsys, "train", tmp_path / "no model", file, "--output", tmp_path / "out", *QUICK)
    assert code == 1
    assert said == f"secondpass: {file}:1: 'pos' is empty; one passage that answers the query is needed\n"
    code, _, said = called(capsys, "train", model, file, "--output", tmp_path / "out", "--skip-bad", *QUICK)
    assert code == 0
    assert f"left out: 1 lines, the first {file}:1" in said


def test_a_beir_folder_is_mined_and_its_own_split_measured(
    model: Path, beir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ("--output", out, "--eval", beir, "--eval-depth", "5", "--json", *QUICK)
    code, shown, said = called(capsys, "train", model, beir, *options)
    assert code == 0, said
    result = json.loads(shown)
    assert result["first_stage"]["MRR@10"] > 0.9  # the answer has more words of the query than others have
    assert result["num_steps"] == 3
    mined = read_data([out / "training" / "data.jsonl.gz"])
    assert [example.query for example in mined.examples] == [f"is the {thing} in the city" for thing in THINGS[:12]]
    assert all(example.positives[0] not in example.negatives for example in mined.examples)
    assert "8 queries of `beir`, up to 5 candidates each" in (out / "README.md").read_text()
    assert [path.name for path in (out / "training").glob("unfinished*")] == []


def test_a_teacher_scores_the_data_once(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--output", tmp_path / "out", "--teacher", model, "--loss", "ce=0.4,kl=0.6", *QUICK)
    code, _, said = called(capsys, "train", model, data, *options)
    assert code == 0, said
    assert "12 with a teacher's scores" in said
    taught = read_data([tmp_path / "out" / "training" / "data.jsonl.gz"]).examples[3]
    expected = Reranker(model).score(taught.query, [*taught.positives, *taught.negatives])
    assert [*(taught.positive_scores or ()), *(taught.negative_scores or ())] == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--loss", "hinge"), 2, "a loss is 'hinge'"),
        (("--loss", "kl"), 1, "has no pos_scores and neg_scores"),
        (("--teacher", "default"), 2, "no loss learns from one"),
        (("--max-length", "1000"), 2, "reads up to 128 tokens"),
        (("--warmup", "2"), 2, "warmup is 2.0"),
        (("--schedule", "steep"), 2, "schedule is 'steep'"),
        (("--loss", "ce=0.4,ce=0.6"), 2, "loss cross_entropy is named twice"),
        (("--seed", "-1"), 2, "--seed"),
        (("--eval-every", "5"), 2, "do nothing without --eval"),
        (("--eval-split", "dev"), 2, "do nothing without --eval"),
        (("--measure", "MRR@10"), 2, "do nothing without --eval"),
        (("--temperature", "0.1"), 2, "--temperature does nothing without kl or kd in --loss"),
        (("--as", "embedder", "--temperature", "0.1"), 2, "what divides similarities is --score-temperature"),
        (("--adapter",), 2, "--adapter does nothing without --lora"),
        (("--lora", "2", "--lora-alpha", "0"), 2, "alpha is 0.0"),
        (("--compress-always",), 2, "--compress-always does nothing without --compress-layers"),
        (("--dimensions", "8"), 2, "--dimensions does nothing without --as embedder"),
        (("--in-batch", "none"), 2, "--in-batch does nothing without --as embedder or colbert"),
        (("--as", "embedder", "--start-layer", "1"), 2, "--start-layer does nothing without --as reranker"),
        (("--as", "colbert", "--parts", "sparse"), 2, "--parts does nothing without --as embedder"),
        (("--as", "embedder", "--score-temperature", "0"), 2, "temperature is 0.0"),
        (("--as", "embedder", "--dimensions", "8,17"), 2, "has vectors of 16"),
        (("--as", "embedder", "--dimensions", "-5,8"), 2, "a dimension is -5"),
        (("--as", "embedder", "--parts", "dense,dense"), 2, "give each once"),
        (("--as", "embedder", "--max-length", "2"), 2, "reads 3 to 128 tokens"),
        (("--max-length", "2"), 2, "leaves no room for any"),
    ],
)
def test_wrong_use_is_told(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: Any, code: int, message: str
) -> None:
    found, _, said = called(capsys, "train", model, data, "--output", tmp_path / "out", *QUICK, *options)
    assert (found, message in said) == (code, True), said


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_ctrl_c_says_how_to_go_on(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    """A process of its own is interrupted, as by a terminal: what else runs in the tests' own does not matter."""
    arguments = ["train", str(model), str(data), "--output", str(tmp_path / "out"), *QUICK]
    arguments += ["--epochs", "100", "--log-every", "1"]
    log = tmp_path / "out" / "training" / "log.jsonl"
    command = [sys.executable, "-m", "secondpass", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        while run.poll() is None and not (log.is_file() and log.stat().st_size):
            time.sleep(0.02)
        run.send_signal(number)
        shown, said = run.communicate()
    assert (run.returncode, shown) == (128 + number, ""), said
    told = said.splitlines()[-1]
    assert re.match(r"stopped after step \d+ of 300; all is saved. To go on: secondpass train ", told)
    assert told.endswith(" --resume")
    code, shown, said = called(capsys, *arguments, "--resume")
    assert code == 0, said
    assert "step 300/300" in said


@pytest.mark.promise("docs/training.md", "Mining that was interrupted goes on when the same command is given again")
def test_mine_writes_examples_and_goes_on_where_it_was_stopped(
    beir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mined.jsonl"
    code, _, said = called(capsys, "mine", beir, "--output", out, "--negatives", "5", "--split", "train")
    assert code == 0, said
    whole = out.read_text()
    assert len(read_data([out]).examples) == 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beir", "mined.jsonl"]
    code, _, said = called(capsys, "mine", beir, "--output", out)
    assert (code, "is there already" in said) == (2, True)
    out.unlink()
    seen: list[str] = []

    def stopped(self: Any, query: str) -> Any:
        seen.append(query)
        if len(seen) == 6:
            raise KeyboardInterrupt
        return real(self, query)

    from secondpass.retrieval.bm25 import BM25

    real = BM25.scores
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BM25, "scores", stopped)
        code, _, _ = called(capsys, "mine", beir, "--output", out, "--negatives", "5", "--split", "train")
        assert (code, out.exists()) == (130, False)
        code, _, said = called(capsys, "mine", beir, "--output", out, "--negatives", "5", "--split", "train")
    assert code == 0, said
    assert len(seen) == 6 + 12 - 5  # the five that were done are not done again
    assert out.read_text() == whole


def test_mine_takes_examples_and_an_embedder(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "pairs.jsonl"
    lines = [{"query": one.query, "pos": list(one.positives)} for one in toy_examples(9)]
    file.write_text("\n".join(map(json.dumps, lines)))
    out = tmp_path / "mined.jsonl.gz"
    plain = embedder(model, tmp_path / "embedder")
    options = ("--search", f"embedder:{plain}", "--judge", f"embedder:{plain}", "--negatives", "4")
    code, _, said = called(capsys, "mine", file, "--output", out, *options)
    assert code == 0, said
    examples = read_data([out]).examples
    assert all(0 < len(example.negatives) <= 4 and example.has_scores for example in examples)
    code, _, said = called(capsys, "mine", file, "--output", tmp_path / "b.jsonl", "--search", "elastic")
    assert (code, "give bm25" in said) == (2, True)


def test_the_output_is_checked_before_the_data(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    code = cli.run(["train", str(model), "missing.jsonl", "--output", str(tmp_path / "file")])
    assert code == 1
    assert "cannot be written" in capsys.readouterr().err
    for command in (["train", str(model), "x"], ["pretrain", str(model), "x"], ["distil", "x", "--teacher", "y"]):
        assert cli.run([*command, "--output", ""]) == 2  # a shell's variable without a value, not the current folder
        assert "--output is empty" in capsys.readouterr().err


def test_a_broken_dev_split_is_named_not_passed_over_for_the_test_split(
    model: Path, data: Path, beir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(beir / "qrels" / "train.tsv", beir / "qrels" / "test.tsv")
    (beir / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nsea\tsea-0\tyes\n")
    code, _, said = called(capsys, "train", model, data, "--output", tmp_path / "out", "--eval", beir, *QUICK)
    assert code == 1 and "dev.tsv:2: the grade is 'yes'" in said
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "test.jsonl").write_text('{"query": "a", "pos": ["the river"], "neg": ["snow"]}\n')
    code, _, said = called(capsys, "train", model, data, "--output", tmp_path / "lists-out", "--eval", lists, *QUICK)
    assert code == 0 and "(kept)" in said  # the one split that is there


def test_queries_that_find_nothing_count_as_0(
    model: Path, data: Path, beir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dev_set(load_dataset(beir, split="dev"), depth=5).first_stage()["nDCG@10"] > 0.5
    texts = (beir / "queries.jsonl").read_text().splitlines()
    lost = [json.dumps(json.loads(line) | {"text": "zzqq"}) for line in texts]
    (beir / "queries.jsonl").write_text("\n".join([*texts[:-1], lost[-1]]))
    dataset = load_dataset(beir, split="dev")
    measure = as_measures(["nDCG@10"])[0]
    first = evaluate(Reranker(model), dataset, depths=[5], is_timed=False).before(measure, 5)
    assert dev_set(dataset, depth=5).first_stage()["nDCG@10"] == pytest.approx(first.mean())
    assert total(dev_set(dataset, depth=5).queries, Reranker(model).score)["nDCG@10"] < len(dataset.queries)
    (beir / "queries.jsonl").write_text("\n".join(lost))
    code, _, said = called(capsys, "train", model, data, "--output", tmp_path / "out", "--eval", beir, *QUICK)
    assert code == 1 and "BM25 finds nothing for any of its 8 queries" in said
    code, _, said = called(capsys, "eval", beir, "--model", model, "--split", "dev")
    assert code == 1 and "the first stage found nothing for any of its 8 queries" in said


def test_a_wrong_model_is_said_before_mining_and_data_that_changed_is_mined_anew(
    model: Path, beir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--output", tmp_path / "out", "--max-steps", "1", *QUICK)
    code, _, said = called(capsys, "train", "nothere", beir, *options)
    assert code == 1 and "no such folder" in said and "negatives for" not in said
    code, _, said = called(capsys, "train", model, beir, *options, "--max-length", "1000")  # mined, then refused
    assert code == 2 and "negatives for" in said
    queries = beir / "queries.jsonl"
    queries.write_text(queries.read_text().replace("is the", "where was the"))
    code, _, said = called(capsys, "train", model, beir, *options)
    assert code == 0, said
    assert "first query:    where was the" in said


@pytest.mark.parametrize("options", [("--loss", "margin_mse"), ("--batch", "1"), ("--in-batch", "none")])
def test_queries_without_negatives_serve_only_where_others_passages_are_candidates(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, str]
) -> None:
    file = tmp_path / "alone.jsonl"
    alone = [{"query": thing, "pos": [f"the {thing}"], "pos_scores": [1]} for thing in THINGS]
    file.write_text("\n".join(map(json.dumps, alone)))
    fixed = ("train", model, file, "--as", "embedder", *QUICK, "--max-steps", "1", "--output")
    code, _, said = called(capsys, *fixed, tmp_path / "out", *options)
    assert code == 1 and "alone.jsonl:1: has no 'neg'" in said
    assert called(capsys, *fixed, tmp_path / "out")[0] == 0
