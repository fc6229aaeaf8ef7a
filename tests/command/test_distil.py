"""`secondpass distil`: texts without labels in, a student nearer to its teacher out, with an int8 graph."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from secondpass import Reranker, cli
from secondpass.training import Example
from secondpass.training.distilling import (
    MadeQuery,
    QueryRule,
    agreement,
    candidates,
    learnable,
    made_queries,
    parted,
)
from tests.checkpoints import tiny_bert
from tests.command.test_train import embedder
from tests.goldens import SHARED
from tests.training.toy import THINGS

PLACES = ("in the city", "by the old road", "in a new house", "on the long bridge", "under the cold water")
QUICK = (
    "--device",
    "cpu",
    "--dtype",
    "float32",
    "--lr",
    "2e-3",
    "--batch",
    "4",
    "--epochs",
    "6",
    "--min-spread",
    "0",
)


def run(*arguments: object) -> int:
    return cli.run([str(argument) for argument in arguments])


@pytest.fixture
def manual(tmp_path: Path) -> Path:
    parts = []
    for index, thing in enumerate(THINGS):
        where = PLACES[index % len(PLACES)]
        parts.append(
            f"## Where is the {thing}\n\nThe {thing} is {where}. People say the {thing} was old and cold. "
            f"It is a long way to the {thing} in the winter.\n"
        )
    file = tmp_path / "manual.md"
    file.write_text("# A city\n\n" + "\n".join(parts))
    return file


@pytest.mark.slow
def test_a_student_comes_nearer_to_its_teacher(tmp_path: Path, manual: Path) -> None:
    teacher, student = tiny_bert(tmp_path / "teacher", seed=3), tiny_bert(tmp_path / "student", seed=4)
    out = tmp_path / "out"
    arguments = ("distil", manual, "--teacher", teacher, "--student", student, "--output", out, "--json", *QUICK)
    # in a process of its own, since the command line leaves out parts of openvino that an export needs
    asked = [*map(str, arguments), "--depth", "8", "--held-out", "0.3"]
    shown = subprocess.run([sys.executable, "-m", "secondpass", *asked], capture_output=True, text=True, check=True)
    told = json.loads(shown.stdout)
    assert told["teacher"]["ndcg"] == pytest.approx(1.0)
    assert told["student"]["ndcg"] > told["student before"]["ndcg"]
    assert "the teacher will take about" in shown.stderr
    score = Reranker(out, dtype="float32").score("where is the river", ["the river is long", "snow"])
    graph = Reranker(out / "int8", engine="openvino").score("where is the river", ["the river is long", "snow"])
    assert graph == pytest.approx(score, abs=0.1)
    assert (out / "training" / "judged").exists()


@pytest.mark.slow
def test_given_queries_are_asked_and_nothing_else(
    tmp_path: Path, manual: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, queries = tiny_bert(tmp_path / "base"), tmp_path / "log.txt"
    asked = "where is the river\nwhat is the bridge\n\nwhich road is long\nWhat is the  bridge\n"  # as a log repeats
    queries.write_text(asked)
    options = ("--teacher", base, "--student", base, "--output", tmp_path / "out", "--queries", queries)
    assert run("distil", manual, *options, *QUICK, "--epochs", "1") == 0
    assert "3 queries with candidates" in capsys.readouterr().err
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert run("distil", manual, *options, *QUICK, "--epochs", "1", "--resume") == 0  # the report again
    assert "student before: nDCG@10" in capsys.readouterr().err
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights


def test_queries_are_made_of_headings_sentences_and_rare_words() -> None:
    body = "The river is long. People say the river was old and cold in the winter of that year."
    texts = [f"Rivers > Length\n\n{body}", "A bridge of stone is in the city. " * 3, "Snow. Snow. Snow."]
    found = made_queries(texts, ["Rivers > Length", "", ""])
    own = [query for query in found if query.origin == 0]
    assert own[0] == MadeQuery("Length", 0, body)
    assert own[1].text == "The river is long."
    assert own[1].rest == body.partition(". ")[2]
    examples = candidates(found, texts, depth=3)
    assert all(example.query not in example.positives[0] for example in examples if example.query == own[1].text)


def judged(*scores: float) -> Example:
    return Example(
        query="q",
        positives=("p0",),
        negatives=tuple(f"p{n}" for n in range(1, len(scores))),
        positive_scores=scores[:1],
        negative_scores=scores[1:],
    )


def test_what_the_teacher_cannot_tell_apart_is_left_out() -> None:
    examples = [judged(0.0, 0.1), judged(0.0, 3.0, 2.0), judged(0.0, 3.0, 2.0)]
    kept = learnable(examples, [True, True, False], QueryRule(min_spread=1.0, max_origin_rank=1))
    assert len(kept) == 1
    assert (kept[0].positives, kept[0].negatives) == (("p1",), ("p2", "p0"))
    assert (kept[0].positive_scores, kept[0].negative_scores) == ((3.0,), (2.0, 0.0))


def test_agreement_is_one_for_the_teacher_and_less_for_the_reverse() -> None:
    class Fixed:
        def __init__(self, scores: list[float]) -> None:
            self.scores = scores

        def score(self, query: str, documents: object) -> list[float]:
            return self.scores

    example = judged(3.0, 1.0, 0.5, -1.0, -2.0, -2.5, -3.0)
    taught = [3.0, 1.0, 0.5, -1.0, -2.0, -2.5, -3.0]
    same, reverse = agreement([example], Fixed(taught)), agreement([example], Fixed(taught[::-1]))
    assert same.ndcg == pytest.approx(1.0) and same.first_five == 1.0
    assert reverse.ndcg < 0.7 and reverse.first_five == pytest.approx(3 / 5)


def test_too_few_queries_are_said() -> None:
    with pytest.raises(ValueError, match="1 queries are left, 2 are needed"):
        parted([judged(1.0, 0.0)], share=0.1, seed=1)


def test_a_student_whose_scores_are_all_alike_is_not_praised() -> None:
    class Alike:
        def score(self, query: str, documents: Sequence[str]) -> list[float]:
            return [0.5] * len(documents)

    found = agreement([judged(3.0, 2.0, 1.0, -1.0, -2.0, -2.5, -3.0, -4.0, -5.0, -6.0)], Alike())
    assert found.ndcg < 0.7 and found.first_five == 0.0
    assert agreement([judged(1.0, 1.0, 1.0, 1.0, 1.0, 1.0)], Alike()).first_five == 1.0  # as the teacher


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--held-out", "1.5"), "--held-out 1.5: give more than 0 and less than 1"),
        (("--min-spread", "nan"), "--min-spread nan: give 0 or more"),
        (("--temperature", "0"), "temperature is 0.0"),
        (("--max-length", "2"), "leaves no room for any"),
        (("--student", "nothere"), "no such folder"),
    ],
)
def test_what_the_student_cannot_be_is_said_before_the_teacher_begins(
    tmp_path: Path, manual: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, str], sentence: str
) -> None:
    base = tiny_bert(tmp_path / "base")
    fixed = ("--teacher", base, "--student", base, "--output", tmp_path / "out", "--device", "cpu")
    assert run("distil", manual, *fixed, *options) != 0
    said = capsys.readouterr().err
    assert sentence in said and "queries with candidates" not in said


@pytest.mark.slow
def test_a_plain_encoder_is_a_student_and_a_report_is_of_its_own_run(
    tmp_path: Path, manual: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, queries = tiny_bert(tmp_path / "teacher", seed=3), tmp_path / "log.txt"
    queries.write_text("where is the river\nwhat is the bridge\nwhich road is long\nis the sea cold\n")
    plain = embedder(teacher, tmp_path / "plain")
    options = ("--teacher", teacher, "--student", plain, "--output", tmp_path / "out", "--queries", queries)
    assert run("distil", manual, *options, *QUICK, "--epochs", "1") == 0
    said = capsys.readouterr().err
    assert "student: nDCG@10" in said and "student before" not in said
    assert run("distil", manual, *options, *QUICK, "--epochs", "1", "--resume", "--held-out", "0.5") == 1
    assert "a run with another student, texts, queries or draws" in capsys.readouterr().err


@pytest.mark.slow
def test_a_decoder_is_taught_and_told_though_it_has_no_graph(
    tmp_path: Path, manual: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = SHARED / "golden" / "gemma-llm-reranker"
    if not student.is_dir():
        pytest.skip("no reference figures here")
    teacher, queries = tiny_bert(tmp_path / "teacher", seed=3), tmp_path / "log.txt"
    queries.write_text("where is the river\nwhat is the bridge\n")
    options = ("--teacher", teacher, "--student", student, "--queries", queries)
    quick = (*QUICK, "--epochs", "1", "--max-length", "64", "--depth", "4")
    assert run("distil", manual, *options, "--output", tmp_path / "out", *quick) == 0
    shown = capsys.readouterr()
    assert "student: nDCG@10" in shown.err and "not exported: " in shown.err and "is a decoder" in shown.err
    assert shown.out == f"{tmp_path / 'out'}\n"
