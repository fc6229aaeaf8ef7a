"""Training data: what is read, and what is refused by file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from secondpass.errors import DataError
from secondpass.training import Example, read_data, save_data
from secondpass.training.data import told

GOOD: dict[str, Any] = {"query": "what is snow", "pos": ["snow is cold"], "neg": ["a bridge", "a river"]}


def write(file: Path, *lines: Any) -> Path:
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), "utf-8")
    return file


def test_files_and_folders_plain_and_gzipped(tmp_path: Path) -> None:
    scores = {"pos_scores": [1], "neg_scores": [0.5, -1]}
    write(tmp_path / "a.jsonl", GOOD, "", GOOD | scores | {"prompt": "p", "type": "t"})
    (tmp_path / "folder").mkdir()
    with gzip.open(tmp_path / "folder" / "b.jsonl.gz", "wt") as stream:
        stream.write(json.dumps(GOOD | {"query": "second"}) + "\n")
    data = read_data([tmp_path / "a.jsonl", tmp_path / "folder"])
    assert [example.query for example in data.examples] == ["what is snow", "what is snow", "second"]
    assert read_data(str(tmp_path / "a.jsonl")).examples == data.examples[:2]  # one path, not a list of letters
    assert data.examples[1].positive_scores == (1.0,)
    assert data.examples[1].negative_scores == (0.5, -1.0)
    assert [example.has_scores for example in data.examples] == [False, True, False]
    assert data.examples[1].source == f"{tmp_path / 'a.jsonl'}:3"
    assert data.unread == {"type": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "holds a list"),
        ({"anchor": "q", "positive": "a"}, r"has no 'query' \(it has anchor, positive\)"),
        ({}, r"has no 'query' \(it has nothing\)"),
        ({"query": "q", "pos": ["a"], "negative": ["b"]}, r"has no 'neg' \(it has query, pos, negative\); find"),
        (GOOD | {"query": 3}, "'query' is a int, not a string"),
        (GOOD | {"query": " "}, "'query' is empty"),
        ({"query": "q", "neg": ["b"]}, "has no 'pos'"),
        (GOOD | {"pos": []}, "'pos' is empty"),
        (GOOD | {"pos": "snow"}, "'pos' is a str, not a list"),
        (GOOD | {"pos": [""]}, r"pos\[0\] is empty"),
        (GOOD | {"neg": ["a", None]}, r"neg\[1\] is a NoneType, not a string"),
        (GOOD | {"neg": []}, "has no 'neg'"),
        (GOOD | {"neg": ["a", "Snow  is COLD"]}, r"neg\[1\] is the same text as pos\[0\]"),
        (GOOD | {"pos_scores": [1, 2]}, "'pos_scores' has 2 values, 1 numbers are needed"),
        (GOOD | {"neg_scores": 1}, "'neg_scores' has a int, 2 numbers"),
        (GOOD | {"neg_scores": [1, "2"]}, r"neg_scores\[1\] is '2', a finite number"),
        (json.dumps(GOOD | {"neg_scores": [1, float("nan")]}), r"neg_scores\[1\] is nan"),
        (GOOD | {"pos_scores": [10**400]}, r"pos_scores\[0\] is 10+, a finite number"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: Any, message: str) -> None:
    file = write(tmp_path / "a.jsonl", GOOD, line)
    with pytest.raises(DataError, match=rf"a\.jsonl:2: .*{message}"):
        read_data([file])
    data = read_data([file], is_skipping=True)
    assert len(data.examples) == 1
    assert len(data.problems) == 1


def test_all_wrong_lines_are_named_at_once(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", *[{"query": "q"}] * 12)
    with pytest.raises(DataError, match=r"a\.jsonl:1: .*a\.jsonl:10: .*; and 2 more"):
        read_data([file])
    with pytest.raises(DataError, match="no examples"):
        read_data([file], is_skipping=True)
    assert told(["a", "b"]) == "a; b"


@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_file_may_be_one_list(tmp_path: Path, indent: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secondpass.data.files.MAX_LINE", 100)  # which a list in one line may pass
    file = tmp_path / "a.json"
    file.write_text("\n" + json.dumps([GOOD, GOOD | {"query": "second"}], indent=indent))
    examples = read_data([file]).examples
    assert [example.query for example in examples] == ["what is snow", "second"]
    assert examples[1].source == f"{file}[1]"
    file.write_text(json.dumps([GOOD, 3, {"query": "q"}], indent=indent))
    with pytest.raises(DataError, match=r"a\.json\[1\]: holds a int.*a\.json\[2\]: has no 'pos'"):
        read_data([file])
    assert len(read_data([file], is_skipping=True).examples) == 1
    file.write_text("[" + json.dumps(GOOD))
    with pytest.raises(DataError, match=r"a\.json: is not JSON"):
        read_data([file], is_skipping=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(GOOD).encode("utf-16"), "is UTF-16"),
        (json.dumps(GOOD).encode() + b'\n{"query": "caf\xe9"}\n', r":2: byte 15 \(0xe9\) is not UTF-8"),
        (gzip.compress(json.dumps(GOOD).encode() * 99, mtime=0)[:60], "not a whole gzip file"),
    ],
)
def test_another_encoding_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    for is_skipping in (False, True):  # the rest of the file cannot be read, so skipping does not help
        with pytest.raises(DataError, match=message):
            read_data([tmp_path / "a.jsonl"], is_skipping=is_skipping)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        read_data([tmp_path / "none.jsonl"])
    with pytest.raises(DataError, match=r"holds no \.jsonl"):
        read_data([tmp_path])


def test_saved_examples_are_read_back(tmp_path: Path) -> None:
    examples = [
        Example(query="q 中", positives=("a",), negatives=("b",), positive_scores=(0.1,), negative_scores=(1 / 3,)),
        Example(query="é", positives=("a", "b"), negatives=("c",)),
    ]
    for name in ("x.jsonl", "x.jsonl.gz"):
        save_data(examples, tmp_path / name)
        data = read_data([tmp_path / name])
        assert [example.as_json() for example in data.examples] == [example.as_json() for example in examples]
        assert [path.name for path in tmp_path.glob(".*")] == []


def test_lone_surrogates_are_read_as_the_replacement_character(tmp_path: Path) -> None:
    file = tmp_path / "odd.jsonl"
    file.write_text('{"query": "q\\ud800", "pos": ["\\udfff"], "neg": ["c"]}\n')
    example = read_data([file]).examples[0]
    assert (example.query, example.positives) == ("q\ufffd", ("\ufffd",))


def test_the_folder_of_a_model_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match="holds a model"):
        read_data([tmp_path])
