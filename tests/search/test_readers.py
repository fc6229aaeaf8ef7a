"""Files of many kinds to pages, and what cannot be read is said and stops nothing."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import unicodedata
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secondpass.data import markdown
from secondpass.data.files import PASSAGE_NAMES
from secondpass.data.passages import ReadOptions, read_passages
from secondpass.errors import DataError
from secondpass.search import formats, readers
from secondpass.search.features import entities_of
from secondpass.search.folder import files_in
from secondpass.search.pages import Page, decoded, html_page
from secondpass.search.readers import front_matter

DAY_S = 86400.0


def read(file: Path) -> list[Page]:
    return list(readers.read(file))


def written(place: Path, name: str, data: str | bytes) -> Path:
    file = place / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data if isinstance(data, bytes) else data.encode())
    return file


def names(place: Path) -> list[str]:
    return [str(file.relative_to(place.resolve())) for file in files_in(place)]


def test_markdown_has_its_front_matter_as_fields_and_keeps_its_lines(tmp_path: Path) -> None:
    front = "---\ntitle: My note\ndate: 1970-01-02\ntags: [a, b]\nlist:\n  - x\n  - y\nimportance: 0.9\n---\n"
    text = front + "# Head\nText\n"
    (page,) = read(written(tmp_path, "n.md", text))
    assert page.title == "My note"
    assert page.created == DAY_S
    assert page.fields["tags"] == ["a", "b"]
    assert page.fields["list"] == ["x", "y"]
    assert page.fields["importance"] == 0.9
    assert len(page.text) == len(text)
    assert page.text[page.text.index("# Head") :] == text[text.index("# Head") :]
    assert page.text.count("\n") == text.count("\n")


def test_a_date_in_the_name_is_when_a_note_was_made(tmp_path: Path) -> None:
    assert read(written(tmp_path, "1970-01-03 walk.md", "went out"))[0].created == 2 * DAY_S
    for name in ("会议1970年1月3日.txt", unicodedata.normalize("NFD", "회의 1970년 1월 3일.txt")):
        assert read(written(tmp_path, name, "went out"))[0].created == 2 * DAY_S
    assert read(written(tmp_path, "part 1234-99-99.txt", "none"))[0].created is None


@pytest.mark.parametrize(
    ("name", "text", "title"),
    [
        ("a.csv", '"Stadt","Einwohner"\nBerlin,3600000\n', 'a.csv > "Stadt","Einwohner"'),
        ("a.csv", "城市;人口\n柏林;3600000\n", "a.csv > 城市;人口"),
        ("a.tsv", "city\tpeople\nBerlin\t3600000\n", "a.tsv > city, people"),
        ("a.csv", "Berlin,3600000\n", ""),
        ("a.csv", "one column\n", ""),
    ],
)
def test_a_table_is_titled_by_the_names_of_its_columns(tmp_path: Path, name: str, text: str, title: str) -> None:
    (page,) = read(written(tmp_path, name, text))
    assert (page.text, page.title) == (text, title)


@pytest.mark.parametrize(
    ("said", "day"),
    [
        ("2024-01-15", 19737),
        ("2024-01-15 10:00:00 +0800", 19737),
        ("2024/1/15", 19737),
        ("20240115", 19737),
        ("2024年1月15日 10:00", 19737),
        ("2024년 1월 15일", 19737),
        ("1705276800", 19737),
        ("1705276800000", 19737),
        ("2024", 19723),
        ("2024-01", 19723),
        ("2024-11", 20028),
        ("2024/11", 20028),
        ("2024年11月", 20028),
        ("15.1.2024", 19737),
        ("2024. 1. 15.", 19737),
        ("2024-13-45", None),
        ("99999999999999999999", None),
        ("1e999", None),
        ("soon", None),
    ],
)
def test_dates_as_people_and_programs_write_them(tmp_path: Path, said: str, day: int | None) -> None:
    (page,) = read(written(tmp_path, "n.md", f"---\ndate: {said}\n---\ntext\n"))
    assert (None if page.created is None else page.created // DAY_S) == day


def test_records_are_pages_with_their_lines(tmp_path: Path) -> None:
    records = [
        {"_id": "1", "title": "T", "text": "one", "timestamp": "1970-01-02"},
        {"text": "two", "metadata": {"k": 1}},
    ]
    lines = "\n".join(json.dumps(record) for record in records)
    for name, data in (("c.jsonl", lines.encode()), ("c.jsonl.gz", gzip.compress(lines.encode()))):
        first, second = read(written(tmp_path, name, data))
        assert (first.title, first.text, first.created, first.first_line) == ("T", "one", DAY_S, 1)
        assert (second.text, second.first_line, second.fields["k"]) == ("two", 2, 1)


@pytest.mark.parametrize("name", PASSAGE_NAMES)
def test_the_text_of_a_record_goes_by_many_names_for_add_and_rank(tmp_path: Path, name: str) -> None:
    file = written(tmp_path, "a.jsonl", json.dumps({"id": 1, name: "emus run"}))
    assert [page.text for page in read(file)] == ["emus run"]
    (ranked,) = read_passages([str(file)], (), ReadOptions()).passages
    assert ranked.document.text == "emus run"


def test_a_record_whose_text_is_none_is_named_with_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'c\.jsonl:2: "text" is null; a string is needed'):
        list(read(written(tmp_path, "c.jsonl", b'{"text": "one"}\n{"text": null}\n')))
    with pytest.raises(DataError, match=r'c\.jsonl:1: has no "text" \(it has title\)'):
        list(read(written(tmp_path, "c.jsonl", b'{"title": "one"}\n')))


def test_a_list_in_json_is_records_and_other_json_of_a_folder_is_left_out(tmp_path: Path) -> None:
    listed = json.dumps([{"text": "奶奶的生日是五月四日", "title": "奶奶"}, {"content": "茶"}], ensure_ascii=False)
    for name, data in (("a.json", b"\xef\xbb\xbf" + listed.encode()), ("b.json.gz", gzip.compress(listed.encode()))):
        pages = list(read(written(tmp_path, name, data)))
        assert [(page.text, page.title) for page in pages] == [("奶奶的生日是五月四日", "奶奶"), ("茶", "")]
    written(tmp_path, "c.json", listed.encode("gb18030"))
    for name, text in {"package.json": '{"text": "x"}', "names.json": '["x"]', "ports.json": '[{"p": 1}]'}.items():
        written(tmp_path, name, text)
    assert [file.name for file in files_in(tmp_path)] == ["a.json", "b.json.gz", "c.json"]
    assert [page.text for page in read(tmp_path / "c.json")] == ["奶奶的生日是五月四日", "茶"]
    with pytest.raises(DataError, match=r"names\.json\[0\]: holds a string; a JSON object is needed"):
        list(read(tmp_path / "names.json"))


def test_a_notebook_is_its_cells_under_its_headings(tmp_path: Path) -> None:
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": ['# Beans "dry"\n', "Cook them for 豆 hours."]},
        {"cell_type": "raw", "source": []},
        {"cell_type": "code", "outputs": [{"text": ["42\n"]}], "source": "\nhours = 1.5\nprint(hours)\n"},
    ]
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    text = json.dumps(notebook, indent=1, ensure_ascii=False)
    (page,) = read(written(tmp_path, "2026-01-02 a.ipynb", text))
    assert (page.title, page.kind) == ('Beans "dry"', "markdown")
    assert page.text == '# Beans "dry"\nCook them for 豆 hours.\n\n````\nhours = 1.5\nprint(hours)\n````'
    rows = text.split("\n")
    assert "Beans" in rows[page.file_lines(1, 2)[0] - 1] and "hours = 1.5" in rows[page.file_lines(5, 6)[0] - 1]
    (page,) = read(written(tmp_path, "b.ipynb", json.dumps(notebook)))
    assert page.file_lines(5, 6) == (1, 1)


@pytest.mark.parametrize("is_ascii", [False, True])
def test_a_cell_stands_where_its_text_begins(tmp_path: Path, is_ascii: bool) -> None:
    cells = [
        {"outputs": [{"text": ["豆\n", "total\n"]}], "source": ["one = 1\n", "total = one\n", "豆"]},
        {"outputs": [{"text": ["total\n"]}], "source": ["total"]},
        {"cell_type": "markdown", "source": "豆"},
    ]
    text = json.dumps({"cells": cells}, indent=1, ensure_ascii=is_ascii)
    (page,) = read(written(tmp_path, "a.ipynb", text))
    rows = text.split("\n")
    begins = [number for number, row in enumerate(rows, 2) if row.strip() == '"source": [']
    assert [line for _, line in page.places[:2]] == begins
    assert rows[page.places[2][1] - 1].strip().startswith('"source": "')


@pytest.mark.parametrize("data", ["{", "[]", '{"worksheets": []}', '{"cells": 3}'])
def test_what_is_no_notebook_is_named(tmp_path: Path, data: str) -> None:
    with pytest.raises(
        DataError, match=r"a\.ipynb: (is no notebook|has no list of \"cells\"; notebooks of nbformat 4)"
    ):
        read(written(tmp_path, "a.ipynb", data))
    assert read(written(tmp_path, "a.ipynb", '{"cells": [3, {"cell_type": "code"}]}')) == []


def test_html_is_text_under_headings() -> None:
    page = html_page(
        "<title>T &amp; U</title><script>x</script><h2>Head</h2><p>One <b>two</b></p><ul><li>a<li>b</ul>"
        "<pre>x\n  y</pre>"
    )
    assert page.title == "T & U"
    assert page.text == "# Head\n\nOne two\n\n- a\n- b\n\nx\n  y"


@given(st.text("<>/ahp1 \"'=&;!-", max_size=80))
def test_any_html_is_read(html: str) -> None:
    html_page(html)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("né".encode(), "né"),
        (b"\xef\xbb\xbfa\r\nb", "a\nb"),
        ("né".encode("utf-16"), "né"),
        ("重排序模型".encode("gb18030"), "重排序模型"),
        ("会议室在三楼，钥匙在抽屉里。".encode("gb18030"), "会议室在三楼，钥匙在抽屉里。"),
        ("會議室在三樓，鑰匙放在抽屜裡。".encode("big5"), "會議室在三樓，鑰匙放在抽屜裡。"),
        ("会議室は三階です。".encode("cp932"), "会議室は三階です。"),
        ("会議室は三階です。".encode("euc_jp"), "会議室は三階です。"),
        ("회의실은 삼층에 있습니다.".encode("cp949"), "회의실은 삼층에 있습니다."),
        ("Ключ лежит в ящике".encode("cp1251"), "Ключ лежит в ящике"),
        ("Ключ лежит в ящике".encode("koi8-r"), "Ключ лежит в ящике"),
        ("café".encode("cp1252"), "café"),
        ("Die Größe für Müller, Äußerung".encode("cp1252"), "Die Größe für Müller, Äußerung"),
        ("L'été à Genève, déjà".encode("cp1252"), "L'été à Genève, déjà"),
        ("né à Besançon ".encode() * 4 + b"\xff", "né à Besançon " * 4 + "\ufffd"),
    ],
)
def test_encodings(data: bytes, text: str) -> None:
    assert decoded(data, "f") == text


def test_a_character_across_the_end_of_the_sample_tells_nothing() -> None:
    text = "あ" + "いう、え。" * 5000
    assert decoded(b"a" + text.encode("cp932"), "f") == "a" + text


@pytest.mark.parametrize(
    ("declared", "data", "text"),
    [
        ("iso-8859-2", "zażółć gęślą".encode("iso-8859-2"), "zażółć gęślą"),
        ("iso-2022-jp", "会議室".encode("iso-2022-jp"), "会議室"),
        ("shift_jis", "①会議室です。".encode("cp932"), "①会議室です。"),  # which Windows calls so
        ("iso-8859-1", "“né”".encode("cp1252"), "“né”"),
        ("iso-8859-1", "né".encode(), "né"),
        ("utf-16", "né".encode(), "né"),
        ("hex", b"6e", "6e"),
        ("no-such", "né".encode(), "né"),
        ("\0", "né".encode(), "né"),
    ],
)
def test_an_encoding_that_is_declared_counts_where_it_can(declared: str, data: bytes, text: str) -> None:
    assert decoded(data, "f", declared) == text


def test_pages_and_mails_declare_their_encoding(tmp_path: Path) -> None:
    html = (
        "<html><head><meta http-equiv=Content-Type content='text/html; charset=windows-1250'></head><p>zażółć gęślą"
    )
    assert read(written(tmp_path, "a.html", html.encode("cp1250")))[0].text == "zażółć gęślą"
    mail = b"Subject: m\r\nContent-Type: text/plain; charset=iso-2022-jp\r\n\r\n" + "会議室".encode("iso-2022-jp")
    assert read(written(tmp_path, "a.eml", mail))[0].text.strip() == "会議室"


def test_heads_of_a_mail_in_bare_bytes_are_in_what_its_body_is_in(tmp_path: Path) -> None:
    heads = "From: 张三 <a@x>\nSubject: Re: 会议\n 通知\nContent-Type: text/plain; charset=gb2312"
    mail = f"{heads}\n\n改到周六".encode("gb2312")
    (page,) = read(written(tmp_path, "a.eml", mail))
    assert (page.title, page.fields["from"], page.text) == ("Re: 会议 通知", "张三 <a@x>", "改到周六")


def test_binaries_and_broken_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a binary file"):
        read(written(tmp_path, "a.txt", b"ab\0c"))
    with pytest.raises(DataError, match="is not a whole gzip file"):
        read(written(tmp_path, "a.txt.gz", gzip.compress(b"abc" * 1000)[:-9]))
    with pytest.raises(DataError, match=r"files that end in \.exe are not read"):
        read(written(tmp_path, "a.exe", b""))


def test_front_matter_that_never_ends_is_text() -> None:
    assert front_matter("---\na: b\n") == ({}, 0)
    assert front_matter("---\na: 'b'\n---\nx") == ({"a": "b"}, len("---\na: 'b'\n---\n"))


@pytest.mark.parametrize(
    "between", ["Text about puffins.", "# Puffins", "- a\n- b", "At 10:30 we met", "https://a.b"]
)
def test_what_stands_between_rules_is_text(tmp_path: Path, between: str) -> None:
    (page,) = read(written(tmp_path, "n.md", f"---\n\n{between}\n\n---\n\nMore\n"))
    assert between in page.text
    assert page.fields == {}
    assert between.lstrip("# ") in " ".join(
        f"{each.heading} {each.text}" for each in markdown.sections(f"---\n\n{between}\n\n---\n\nMore\n")
    )


@pytest.mark.parametrize(
    "said", ["a: b\n# c", "a: b\nand more of it\nc: d", "a:\n- b\n- c", "a: |\n  b\n  c", "a:b", ""]
)
def test_what_has_keys_is_front_matter(tmp_path: Path, said: str) -> None:
    (page,) = read(written(tmp_path, "n.md", f"---\n{said}\n---\n\nMore\n"))
    assert page.text.strip() == "More"
    assert [each.text for each in markdown.sections(f"---\n{said}\n---\n\nMore\n")] == ["More"]


def test_a_folder_without_what_is_ignored_hidden_or_foreign(tmp_path: Path) -> None:
    outside = written(tmp_path, "outside.md", "secret")
    place = tmp_path / "notes"
    for name in ("a.md", "sub/b.txt", ".hidden/c.md", "node_modules/d.md", "log/e.md", "log/keep.md", "id_rsa.txt"):
        written(place, name, "x")
    written(place, "odd\nname.md", "x")
    written(place, "f.png", b"\x89PNG")
    written(place, ".gitignore", "log/*\n!log/keep.md\n")
    written(place, "sub/.secondpassignore", "g*\n")
    written(place, "sub/g.md", "x")
    os.symlink(place, place / "loop")
    os.symlink(outside, place / "escape.md")
    os.symlink(place / "a.md", place / "inside.md")
    os.symlink("x" * 300, place / "nowhere.md")  # no system has such a name, and says so with an error of its own
    assert names(place) == ["a.md", "inside.md", "log/keep.md", "odd\nname.md", "sub/b.txt"]


def test_what_git_could_not_read_in_an_ignore_file_is_passed_over(tmp_path: Path) -> None:
    written(tmp_path, ".gitignore", "!\n[z-a]\na\\\nb.txt\n")
    os.mkfifo(tmp_path / ".secondpassignore")
    for name in ("a.txt", "b.txt"):
        written(tmp_path, name, "text")
    assert names(tmp_path) == ["a.txt"]


def test_of_a_beir_folder_only_the_corpus_is_read(tmp_path: Path) -> None:
    written(tmp_path, "corpus.jsonl", "{}")
    written(tmp_path, "diary.md", "beside it")
    assert [file.name for file in files_in(tmp_path)] == ["corpus.jsonl", "diary.md"]  # any folder's file
    written(tmp_path, "queries.jsonl.gz", gzip.compress(b"{}"))
    assert [file.name for file in files_in(tmp_path)] == ["corpus.jsonl"]


def test_entities_are_names_and_not_the_first_words_of_sentences() -> None:
    text = "Yesterday we met Ada Lovelace, with [[Graph theory|it]] and `read_json`. 《三体》 #maths NATO"
    assert entities_of(text, {"tags": ["Work"]}) == (
        "work",
        "graph theory",
        "read_json",
        "三体",
        "maths",
        "ada lovelace",
        "nato",
    )


def test_entities_stand_beside_characters_of_scripts_without_blanks() -> None:
    text = "调用getUserName的max_depth参数，请@alice看版本3.2.1的SSH端口、参见#标签；größe_max ÄRZTE émile@home a#b"
    found = ("getusername", "max_depth", "alice", "3.2.1", "标签", "grösse_max", "ssh")
    assert entities_of(text, {}) == found


def test_email_with_its_subject_and_date(tmp_path: Path) -> None:
    message = (
        b"From: a@x\r\nTo: b@x\r\nSubject: =?utf-8?q?Caf=C3=A9?=\r\nDate: Fri, 02 Jan 1970 00:00:00 +0000\r\n"
        b"Content-Type: text/html; charset=utf-8\r\n\r\n<p>Bring <b>milk</b></p>"
    )
    (page,) = read(written(tmp_path, "m.eml", message))
    assert (page.title, page.text, page.created, page.fields["from"]) == ("Café", "Bring milk", DAY_S, "a@x")
    pages = read(written(tmp_path, "m.mbox", b"From a\n" + message + b"\n\nFrom b\nSubject: two\n\nbody\n"))
    assert [page.title for page in pages] == ["Café", "two"]


def test_what_has_a_title_alone_is_found_by_it(tmp_path: Path) -> None:
    for name, data in (
        ("m.eml", "Subject: Dinner at eight\nFrom: a@x\n\n"),
        ("r.jsonl", '{"title": "Dinner at eight", "text": ""}\n'),
        ("n.md", "---\ntitle: Dinner at eight\n---\n"),
        ("p.html", "<title>Dinner at eight</title>"),
    ):
        assert [page.text for page in read(written(tmp_path, name, data))] == ["Dinner at eight"]
    assert list(read(written(tmp_path, "m.eml", "From: a@x\n\n"))) == []


def test_a_mail_whose_sender_hides_the_zone_is_dated_in_utc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    (page,) = read(written(tmp_path, "m.eml", b"Date: Fri, 02 Jan 1970 00:00:00 -0000\r\n\r\nmilk"))
    assert page.created == DAY_S


@pytest.mark.slow
def test_a_docx_is_read_and_a_zip_bomb_is_not(tmp_path: Path) -> None:
    pytest.importorskip("mammoth")
    body = '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body><w:p><w:r>'
    parts = {
        "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"/>',
        "word/document.xml": body + "<w:t>Hello docx</w:t></w:r></w:p></w:body></w:document>",
    }
    file = tmp_path / "a.docx"
    with zipfile.ZipFile(file, "w") as container:
        for name, data in parts.items():
            container.writestr(name, data)
    assert [page.text for page in read(file)] == ["Hello docx"]
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as container,
        container.open("word/document.xml", "w") as out,
    ):
        for _ in range(210):
            out.write(b" " * 1_000_000)
    with pytest.raises(DataError, match="has 210 MB when unpacked"):
        read(file)


def test_a_book_is_its_chapters_in_their_order(tmp_path: Path) -> None:
    items = {"a": "Text/%E7%AC%AC%E4%B8%80%E7%AB%A0.xhtml", "cover": "cover.xhtml", "b": "Text/preface.xhtml"}
    listed = "".join(f'<item id="{id}" href="{place}"/>' for id, place in items.items())
    spine = "".join(f'<itemref idref="{id}"/>' for id in ("cover", "b", "a"))
    title = '<metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>三体</dc:title></metadata>'
    root = '<container xmlns="urn:x"><rootfiles><rootfile full-path="O/c.opf"/></rootfiles></container>'
    parts = {
        "META-INF/container.xml": root,
        "O/c.opf": f'<package xmlns="urn:y">{title}<manifest>{listed}</manifest><spine>{spine}</spine></package>',
        "O/cover.xhtml": "<html><body><img/></body></html>",
        "O/Text/preface.xhtml": "<html><body><p>序言。</p></body></html>",
        "O/Text/第一章.xhtml": "<html><body><h1>第一章</h1><p>汪淼觉得奇怪。</p></body></html>",
        "O/notes.txt": "not in the spine",
    }
    with zipfile.ZipFile(tmp_path / "a.epub", "w") as container:
        for name, data in parts.items():
            container.writestr(name, data)
    assert [file.name for file in files_in(tmp_path)] == ["a.epub"]
    pages = list(read(tmp_path / "a.epub"))
    assert [(page.text, page.title, page.fields) for page in pages] == [
        ("序言。", "三体", {"part": 2}),
        ("# 第一章\n\n汪淼觉得奇怪。", "三体", {"part": 3}),
    ]
    assert {page.created for page in pages} == {None}


@pytest.mark.slow
@pytest.mark.parametrize("data", [b"", b"%PDF-1.7\nbroken", b"PK\x03\x04 broken", os.urandom(3000)])
@pytest.mark.parametrize("suffix", [".pdf", ".docx", ".epub"])
def test_damaged_documents_are_refused_by_name(tmp_path: Path, data: bytes, suffix: str) -> None:
    with pytest.raises(DataError, match=f"a{suffix}: cannot be read"):
        read(written(tmp_path, f"a{suffix}", data))


def pdf(*lines: str) -> bytes:
    """A page with these lines."""
    shown = "BT /F1 12 Tf 14 TL 72 720 Td " + " ".join(f"({line}) Tj T*" for line in lines) + " ET"
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
        "/Resources << /Font << /F1 5 0 R >> >> >>",
        f"<< /Length {len(shown)} >>\nstream\n{shown}\nendstream",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    body = "".join(f"{number} 0 obj\n{each}\nendobj\n" for number, each in enumerate(objects, 1))
    return f"%PDF-1.4\n{body}trailer << /Size 6 /Root 1 0 R >>\n%%EOF".encode("latin-1")


@pytest.mark.slow
def test_a_word_that_a_page_divides_is_whole(tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2")
    (page,) = read(
        written(tmp_path, "a.pdf", pdf("Das ist das Kranken-", "haus am Fluss und", "ein well-known Haus."))
    )
    assert page.text == "Das ist das Krankenhaus am Fluss und\nein well-known Haus."
    assert list(read(written(tmp_path, "scan.pdf", pdf()))) == []


def test_a_document_that_takes_too_long_is_left_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"took more than 0 s to read"):
        formats.read(written(tmp_path, "a.eml", b"x"), seconds=0.001)


@pytest.mark.slow
@pytest.mark.promise("docs/search.md", "A file that cannot be read is named and stops nothing")
def test_a_folder_of_hostile_files_is_indexed_within_bounds(tmp_path: Path) -> None:
    pytest.importorskip("mammoth")
    pytest.importorskip("pypdfium2")
    place = tmp_path / "notes"
    written(place, "good.md", "# Roses\n\nPrune roses in March.\n")
    written(place, "odd\nname\t\u202e.md", "A name with a line end.")
    written(place, "line.txt", b"word " * 21_000_000)  # one line of 105 MB
    written(place, "record.jsonl", b'{"text": "' + b"word " * 21_000_000 + b'"}\n')
    written(place, "long.txt", b"x" * 8_000_000)  # one line without a blank
    written(place, "bomb.txt.gz", gzip.compress(b"\0" * 9000 + b"a" * 300_000_000))
    written(place, "broken.pdf", b"%PDF-1.7\nbroken")
    written(place, "half.pdf", b"%PDF-1.7\n" + os.urandom(100_000))
    with (
        zipfile.ZipFile(place / "bomb.docx", "w", zipfile.ZIP_DEFLATED) as container,
        container.open("word/document.xml", "w") as out,
    ):
        for _ in range(300):
            out.write(b" " * 1_000_000)
    os.symlink(place, place / "loop")
    os.symlink("b.md", place / "a.md")
    os.symlink("a.md", place / "b.md")
    os.mkfifo(place / "pipe.txt")
    code = (
        "import json, sys; from pathlib import Path; from secondpass.search.index import Index; "
        "index = Index('notes', folder=sys.argv[1], embedder='none', reranker=None, create=True); "
        "report = index.add(sys.argv[2]); hit = index.search('prune roses')[0]; "
        "peak = int(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0]) // 1024; "
        "print(json.dumps([list(index.store.files()), report.failed, report.seconds, hit.document.text, peak]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "data"), str(place)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    added, failed, seconds, text, megabytes = json.loads(done.stdout)
    assert text == "# Roses\n\nPrune roses in March."
    assert {Path(path).name for path in added} == {"good.md", "odd\nname\t\u202e.md", "long.txt"}
    pdf = "pypdfium2._helpers.misc.PdfiumError: Failed to load document (PDFium: Data format error)."
    assert {Path(path).name: why.partition(": ")[2].partition(";")[0] for path, why in failed} == {
        "line.txt": "has 105 MB",
        "record.jsonl": "the line has more than 50 MB",
        "bomb.txt.gz": "is more than 200 MB when unpacked",
        "bomb.docx": "cannot be read: secondpass.errors.DataError: has 300 MB when unpacked",
        "broken.pdf": f"cannot be read: {pdf}",
        "half.pdf": f"cannot be read: {pdf}",
    }
    assert megabytes < 700
    assert seconds < 250
