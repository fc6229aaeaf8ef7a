"""What people see of a ranking, on terminals of any width."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from secondpass.command import output
from secondpass.command.rank import matching_sentences
from secondpass.types import Document, DocumentLike, Hit, Ranking, Usage

CHINESE = "水龙头滴水更换密封垫圈的时候首先要关闭水管的总阀门取下手柄然后用扳手拧松阀芯并取出旧的橡胶垫"
ENGLISH = "The river is cold in winter, and the bridge over it is old."


def ranking(*texts: str, span: tuple[int, int] | None = None) -> Ranking:
    hits = [
        Hit(index=index, document=Document(text), score=1.0, probability=0.7, rank=index + 1, span=span)
        for index, text in enumerate(texts)
    ]
    return Ranking("which river", tuple(hits), Usage(rows=1, tokens=9, truncated=0, seconds=0.1))


def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int, text: str) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    output.ranking_table(ranking(text), ["notes.txt:1"], (), {})
    out = capsys.readouterr().out
    assert all(output_width(line) <= width for line in out.splitlines())
    return out


def output_width(line: str) -> int:
    from rich.cells import cell_len

    return cell_len(line)


@pytest.mark.parametrize("width", [100, 60, 50, 47, 44, 40, 30])
def test_chinese_wraps_without_loss(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    out = shown(capsys, monkeypatch, width, CHINESE)
    seen = "".join(character for character in out if "\u4e00" <= character <= "\u9fff")
    assert CHINESE.startswith(seen) and len(seen) >= 16
    assert seen == CHINESE or "…" in out
    assert seen == CHINESE or width not in (100, 44, 40, 30)


@pytest.mark.parametrize("width", [44, 40, 30, 20])
def test_on_a_narrow_terminal_the_passage_stands_below(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    first, *rest = shown(capsys, monkeypatch, width, ENGLISH).splitlines()
    assert first.startswith("1 ") and "0.700" in first and first.rstrip().endswith(":1")
    assert " ".join(line.strip() for line in rest) == ENGLISH


def test_the_sentence_that_matches_is_shown_and_marked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Words:
        """Scores the words that a text shares with the query."""

        def score(self, query: str, documents: Sequence[DocumentLike]) -> list[float]:
            return [float(len(set(query.split()) & set(re.findall(r"\w+", str(text))))) for text in documents]

    text = "Snow falls. A road is long! Winds blow.\n\nWhere is the river? 3.5 km from here."
    found = ranking(text, span=(12, len(text)))
    matches = matching_sentences(Words(), found)
    assert {index: text[start:stop] for index, (start, stop) in matches.items()} == {0: "Where is the river?"}
    assert matching_sentences(Words(), ranking(text)) == {}
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    output.ranking_table(found, ["notes.txt:1"], (), matches)
    assert "… \x1b[1mWhere is the river?" in capsys.readouterr().out


def test_rows_say_which_window_won() -> None:
    (hit,) = ranking("snow. river", span=(6, 11))
    assert output.hit_row(hit, "a:1", ())[3:] == ["a:1", "snow. river", "6-11"]
    (hit,) = ranking("snow")
    assert output.hit_row(hit, "a:1", ())[3:] == ["a:1", "snow"]
