"""Inputs read: every kind of file, and what is said of those that cannot be."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from secondpass.data.passages import Passage, ReadOptions, read_passages
from secondpass.errors import DataError, WrongUse
from secondpass.training.data import data_files


def read(*paths: Path | str, arguments: tuple[str, ...] = (), how: ReadOptions | None = None) -> list[Passage]:
    return read_passages([str(path) for path in paths], arguments, how or ReadOptions()).passages


def found(*paths: Path | str, how: ReadOptions | None = None) -> list[tuple[str, str]]:
    """(text, name and place) of each passage."""
    return [(p.document.text, Path(p.source).name) for p in read(*paths, how=how)]


def give_stdin(monkeypatch: pytest.MonkeyPatch, data: bytes, *, is_terminal: bool = False) -> None:
    fake = SimpleNamespace(buffer=io.BytesIO(data), isatty=lambda: is_terminal)
    monkeypatch.setattr(sys, "stdin", fake)


def test_several_files_keep_their_order(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("one\ntwo\n")
    (tmp_path / "a.md").write_text("## H\nthree\n")
    assert found(tmp_path / "b.txt", tmp_path / "a.md") == [
        ("one", "b.txt:1"),
        ("two", "b.txt:2"),
        ("H\nthree", "a.md:2"),
    ]


@pytest.mark.parametrize(("split", "count"), [("line", 3), ("paragraph", 2), ("whole", 1), ("auto", 2)])
def test_split_decides_how_text_is_cut(tmp_path: Path, split: str, count: int) -> None:
    for name in ("a.txt", "a.md"):
        (tmp_path / name).write_text("one\ntwo\n\nthree\n")
        assert len(read(tmp_path / name, how=ReadOptions(split=split))) == count


def test_windows_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert found(tmp_path / "a.txt") == [("one", "a.txt:1"), ("two", "a.txt:2")]


def test_json_lines_of_objects_and_strings(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one\\u2028x", "id": 7}\n\n"two"\n')
    assert found(file) == [("one\u2028x", "a.jsonl:1"), ("two", "a.jsonl:3")]
    assert read(file)[0].document.fields["id"] == 7


def test_a_json_list(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('["one",\n {"text": "two"}]')
    assert found(tmp_path / "a.json") == [("one", "a.json[0]"), ("two", "a.json[1]")]


def test_fields_need_no_text(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"title": "t", "body": "b"}\n')
    (passage,) = read(file, how=ReadOptions(fields=("title", "body")))
    assert dict(passage.document.fields) == {"title": "t", "body": "b"}


def test_gzip_is_seen_by_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "one"}\n'))
    (tmp_path / "b.txt").write_bytes(gzip.compress(b"two"))
    assert found(tmp_path / "a.jsonl.gz", tmp_path / "b.txt") == [("one", "a.jsonl.gz:1"), ("two", "b.txt:1")]


def test_a_beir_folder_joins_title_and_text(tmp_path: Path) -> None:
    rows = [{"_id": "d1", "title": "Taps", "text": "drip"}, {"_id": "d2", "title": "", "text": "plain"}]
    (tmp_path / "corpus.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    (tmp_path / "queries.jsonl").write_text('{"_id": "q1", "text": "not a passage"}')
    passages = read(tmp_path)
    assert [p.document.text for p in passages] == ["Taps drip", "plain"]
    assert passages[0].document.fields["_id"] == "d1"


def test_any_other_folder_is_read_in_order_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b.txt", "sub/a.md", "c.py", ".hidden/d.txt", "a.jsonl", ".b.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f'"{name}"')
    os.symlink("x" * 300, tmp_path / "nowhere.txt")  # no system has such a name, and says so with an error of its own
    assert [source for _, source in found(tmp_path)] == ["a.jsonl:1", "b.txt:1", "a.md:1"]
    os.symlink("x" * 300, tmp_path / "nowhere.jsonl")
    assert data_files(tmp_path) == [tmp_path / "a.jsonl"]  # of training, too


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"one\ntwo\n", ["one", "two"]),
        (b'{"text": "one"}\n{"text": "two"}\n', ["one", "two"]),
        (b'["one", "two"]', ["one", "two"]),
        (b"{braces} begin\n[1] this text\n", ["{braces} begin", "[1] this text"]),
    ],
)
def test_stdin_is_told_by_its_beginning(monkeypatch: pytest.MonkeyPatch, data: bytes, expected: list[str]) -> None:
    give_stdin(monkeypatch, data)
    assert [passage.document.text for passage in read()] == expected


def test_arguments_come_first_and_leave_stdin_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    give_stdin(monkeypatch, b"unread")
    (tmp_path / "a.txt").write_text("two")
    passages = read(tmp_path / "a.txt", arguments=("one",))
    assert [(p.document.text, Path(p.source).name) for p in passages] == [("one", "argument:1"), ("two", "a.txt:1")]
    assert [p.document.text for p in read(arguments=("one",))] == ["one"]
    assert [p.document.text for p in read("-", arguments=("one",))] == ["one", "unread"]


def test_a_terminal_as_stdin_is_wrong_use(monkeypatch: pytest.MonkeyPatch) -> None:
    give_stdin(monkeypatch, b"", is_terminal=True)
    with pytest.raises(WrongUse, match="secondpass rank"):
        read()


def test_a_wrong_name_suggests_near_ones(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(WrongUse, match=r"did you mean .*notes\.txt\?"):
        read(tmp_path / "note.txt")
    with pytest.raises(WrongUse, match="nor a folder"):
        read(tmp_path / "none" / "notes.txt")
    (tmp_path / "link.txt").symlink_to("gone.txt")
    with pytest.raises(
        WrongUse, match=r"link\.txt: there is no such file, but a link to gone\.txt, which is not there$"
    ):
        read(tmp_path / "link.txt")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"a\.jsonl:2: is not JSON: .* at column"),
        ("a.jsonl", b'{"words": "x"}', r'a\.jsonl:1: has no "text" \(it has words\)'),
        ("a.jsonl", b"7", r"a\.jsonl:1: holds a number"),
        ("a.jsonl", b'{"text": null}', r'a\.jsonl:1: "text" is null; a string is needed'),
        ("a.csv", b"a,b\n1,2,3\n", r"a\.csv:2: has 3 columns; the first row names 2"),
        ("a.txt", b"BZh91AY&SYxx", "is bzip2"),
        ("a.json", b'["x",\n', r"a\.json: is not JSON: .* at line 2, column"),
        ("a.txt", b"ab\ncaf\xe9 noir", r"a\.txt:2: byte 4 \(0xe9\) is not UTF-8; .* gb18030"),
        ("a.txt", b"\xef\xbb\xbfcaf\xe9", r"a\.txt:1: byte 7 \(0xe9\)"),
        ("a.txt", b"ab\0c", "is a binary file"),
        ("a.pdf", b"%PDF-1.7", "is a PDF"),
        ("a.txt", "ab".encode("utf-16"), "is UTF-16"),
        ("a.gz", b"\x1f\x8bxx", "not a whole gzip file"),
        ("a.txt", b" \n\n", "nothing to read in"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


def test_missing_fields_and_empty_folders_say_so(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "x"}')
    with pytest.raises(DataError, match=re.escape("none of the fields title (it has body)")):
        read(tmp_path / "a.jsonl", how=ReadOptions(fields=("title",)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no corpus\.jsonl"):
        read(tmp_path / "empty")


def test_json_is_a_list_an_object_or_lines(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{\n "text": "one"\n}')
    (tmp_path / "b.json").write_text('{"text": "two"}\n{"text": "three"}')
    (tmp_path / "c.ndjson").write_text('{"text": "four"}')
    assert found(tmp_path) == [
        ("one", "a.json"),
        ("two", "b.json:1"),
        ("three", "b.json:2"),
        ("four", "c.ndjson:1"),
    ]


def test_a_table_has_the_names_of_its_first_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id;title;body\n7;Taps;"drip;\nand stop"\n\n8;Pipes;\n')
    one, two = read(tmp_path / "a.csv")
    assert (one.document.text, one.source[-5:]) == ("id: 7\ntitle: Taps\nbody: drip;\nand stop", "csv:2")
    assert (two.document["title"], two.source[-5:]) == ("Pipes", "csv:5")
    (tmp_path / "b.csv").write_text("id,text\n7,only this\n")
    assert found(tmp_path / "b.csv") == [("only this", "b.csv:2")]
    assert read(tmp_path / "b.csv", how=ReadOptions(fields=("id",)))[0].document["id"] == "7"


def test_a_tab_separated_table_is_read_by_its_names(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("name, given\tprice\nTaps, old\t7\n\nPipes\t8\n")
    one, two = read(tmp_path / "a.tsv")
    assert (one.document.text, one.source[-5:]) == ("name, given: Taps, old\nprice: 7", "tsv:2")
    assert (two.document["price"], two.source[-5:]) == ("8", "tsv:4")
    (tmp_path / "b.tsv").write_text("编号\ttext\n7\tonly this\n")
    assert found(tmp_path / "b.tsv") == [("only this", "b.tsv:2")]
    assert [name for _, name in found(tmp_path)] == ["a.tsv:2", "a.tsv:4", "b.tsv:2"]


@pytest.mark.parametrize(
    "first",
    ["7\tThe tap drips", "q1\twhich tap", "faq\tDoes it drip?", "a\ta", "one column", "a\t", "a\t" + "b" * 40],
)
def test_a_tab_separated_table_without_names_is_lines(tmp_path: Path, first: str) -> None:
    (tmp_path / "a.tsv").write_text(f"{first}\n8\tPipes\n")
    assert [text for text, _ in found(tmp_path / "a.tsv")] == [first.strip(), "8\tPipes"]


def test_a_table_may_hold_long_texts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"id,text\n7,{'taps ' * 40_000}\n")
    assert len(read(tmp_path / "a.csv")[0].document.text) == 200_000


def test_html_is_read_without_its_markup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = "<html><h1>Taps</h1><p>drip</p><script>no()</script><p>and stop</p></html>"
    (tmp_path / "a.html").write_text(page)
    assert [text for text, _ in found(tmp_path)] == ["Taps\ndrip", "Taps\nand stop"]
    whole = ReadOptions(split="whole")
    assert [text for text, _ in found(tmp_path, how=whole)] == ["Taps\ndrip\n\nTaps\nand stop"]
    give_stdin(monkeypatch, page.encode())
    assert [passage.document.text for passage in read()] == ["Taps\ndrip", "Taps\nand stop"]


def test_one_bad_file_among_many_is_named_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    (tmp_path / "c.pdf").write_bytes(b"%PDF-1.7")
    inputs = read_passages([str(tmp_path / name) for name in ("a.txt", "b.txt", "c.pdf")], (), ReadOptions())
    assert [passage.document.text for passage in inputs.passages] == ["one"]
    assert [problem.partition(": ")[2][:7] for problem in inputs.problems] == ["byte 4 ", "is a PD"]
    inputs = read_passages([str(tmp_path)], (), ReadOptions())
    assert len(inputs.problems) == 1 and inputs.left_out == [f"{tmp_path}: left out .pdf (1)"]
    with pytest.raises(DataError, match=r"nothing to read in .*b\.txt:1: byte 4 .*c\.pdf: is a PDF"):
        read(tmp_path / "b.txt", tmp_path / "c.pdf")


def test_a_folder_that_cannot_be_looked_into_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def closed(folder: str) -> object:
        if folder.endswith("locked"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    (tmp_path / "locked").mkdir()
    (tmp_path / "a.txt").write_text("one")
    monkeypatch.setattr(os, "scandir", closed)
    inputs = read_passages([str(tmp_path)], (), ReadOptions())
    assert [passage.document.text for passage in inputs.passages] == ["one"]
    assert inputs.problems == [f"{tmp_path / 'locked'}: cannot be looked into: Permission denied"]
    with pytest.raises(DataError, match=r"holds no corpus\.jsonl .*locked: cannot be looked into: Permission denied"):
        read(tmp_path / "locked")
