"""`secondpass export`: what is written, what is printed, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from secondpass import Reranker
from secondpass.cli import run
from secondpass.data.pairs import read_pairs, sample_pairs
from tests.checkpoints import tiny_bert


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("source"))


@pytest.mark.slow
def test_the_report_is_printed_and_kept(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check = tmp_path / "check.jsonl"
    rows = [{"query": "a river", "pos": ["long water"], "neg": ["a king", "old snow"]}, {"query": "b", "text": "c"}]
    check.write_text("\n".join(json.dumps(row) for row in rows))
    out = tmp_path / "out"
    options = ["--dtype", "int8", "--check", str(check), "--json"]
    assert run(["export", str(source), "--output", str(out), *options]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown.pop("folder") == str(out)
    assert shown == json.loads((out / "export.json").read_text("utf-8"))
    assert (shown["pairs"], shown["orders"], shown["queries"]) == (4, 3, 2)
    assert 0 < shown["mean_logit_difference"] <= shown["max_logit_difference"] < 0.5
    pairs = read_pairs(check)
    expected = Reranker(source, engine="torch", dtype="float32", device="cpu").score_pairs(pairs)
    got = Reranker(out, engine="openvino").score_pairs(pairs)
    assert shown["max_logit_difference"] == pytest.approx(
        max(abs(a - b) for a, b in zip(got, expected, strict=True)), abs=1e-3
    )
    assert shown["bytes"] == sum(file.stat().st_size for file in (out / "openvino").iterdir())


@pytest.mark.slow
def test_a_model_is_compared_on_pairs_that_it_can_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert run(["export", "default", "--output", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pairs"] == 12  # those in Chinese are left out
    assert not caplog.records


@pytest.mark.slow
def test_a_model_that_reads_none_of_the_pairs_is_compared_on_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_bert(tmp_path / "model") / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "scripts": ["ARABIC"]}))
    assert run(["export", str(config.parent), "--output", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pairs"] == len(sample_pairs())


@pytest.mark.slow
def test_an_adapter_is_merged(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from transformers import BertForSequenceClassification

    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    settings = peft.LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False)
    peft.get_peft_model(BertForSequenceClassification.from_pretrained(source), settings).save_pretrained(
        tmp_path / "a"
    )
    out = tmp_path / "out"
    arguments = ["export", str(tmp_path / "a"), "--output", str(out), "--format", "safetensors"]
    assert run(arguments) == 0
    assert "0 of" in capsys.readouterr().out
    assert set(load_file(out / "model.safetensors")) == set(load_file(source / "model.safetensors"))
    pairs = sample_pairs()
    merged = Reranker(out, engine="torch", dtype="float32", device="cpu").score_pairs(pairs)
    whole = Reranker(tmp_path / "a", engine="torch", dtype="float32", device="cpu").score_pairs(pairs)
    base = Reranker(source, engine="torch", dtype="float32", device="cpu").score_pairs(pairs)
    assert merged == pytest.approx(whole, abs=1e-5)
    assert merged != pytest.approx(base, abs=1e-3)


def test_wrong_use_is_one_sentence(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {
        ("--format", "tflite"): "format is 'tflite'",
        ("--dtype", "int4"): "dtype is 'int4'",
        ("--format", "safetensors"): "no adapter to merge",
        ("--check", "nowhere.jsonl"): "nowhere.jsonl: there is no such file",
    }
    for options, message in wrong.items():
        assert run(["export", str(source), "--output", str(tmp_path / "out"), *options]) in (1, 2)
        shown = capsys.readouterr().err
        assert message in shown and len(shown.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_kept(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    assert run(["export", str(source), "--output", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
