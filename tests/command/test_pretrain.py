"""`secondpass pretrain`: texts in, an encoder out that `secondpass train` starts from."""

from __future__ import annotations

from pathlib import Path

import pytest

from secondpass import cli
from secondpass.training import save_data
from tests.checkpoints import tiny_bert
from tests.training.toy import toy_examples

QUICK = ("--device", "cpu", "--dtype", "float32", "--lr", "1e-3", "--batch", "4")


def run(*arguments: object) -> int:
    return cli.run([str(argument) for argument in arguments])


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("\n\n".join(example.positives[0] for example in toy_examples(8)))
    (folder / "b.md").write_text("# Rivers\n\nThe river is long.\n\n# Bridges\n\nA bridge of stone.\n")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("method", ["retromae", "dupmae", "mlm"])
def test_an_encoder_is_made_of_texts_and_trained_on(
    tmp_path: Path, texts: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base, out = tiny_bert(tmp_path / "base"), tmp_path / "out"
    assert run("pretrain", base, texts, "--output", out, "--method", method, *QUICK) == 0
    shown = capsys.readouterr()
    assert shown.out.strip() == str(out)
    assert "texts: 10" in shown.err
    data = tmp_path / "toy.jsonl"
    save_data(toy_examples(8), data)
    assert run("train", out, data, "--output", tmp_path / "tuned", "--negatives", "3", *QUICK) == 0
    assert "drawn at random" in capsys.readouterr().err


def test_what_cannot_be_pre_trained_is_said_before_anything_is_written(
    tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny_bert(tmp_path / "base")
    assert run("pretrain", base, texts, "--output", tmp_path / "out", "--method", "simcse") == 2
    assert "give retromae, dupmae, mlm" in capsys.readouterr().err
    assert run("pretrain", base, texts, "--output", tmp_path / "out", "--max-length", "4000", *QUICK) == 2
    assert "reads 3 to 128 tokens" in capsys.readouterr().err
