"""Work that was interrupted is not done again, and what was half written is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from secondpass.training import Example
from secondpass.training.mining import continued
from tests.training.toy import toy_examples

EXAMPLES = toy_examples(5, has_scores=True)


def lines(examples: list[Example]) -> list[str]:
    return [example.as_json() for example in examples]


def test_it_goes_on_after_a_line_that_is_half_written(tmp_path: Path) -> None:
    file = tmp_path / "work"
    starts: list[int] = []

    def make(start: int) -> Iterator[Example]:
        starts.append(start)
        yield from EXAMPLES[start:]

    assert lines(continued(file, "key", 5, make)) == lines(EXAMPLES)
    whole = file.read_bytes()
    file.write_bytes(whole[: whole.rfind(b"\n", 0, -1) + 20])
    told: list[tuple[int, int]] = []
    found = continued(file, "key", 5, make, progress=lambda done, total: told.append((done, total)))
    assert lines(found) == lines(EXAMPLES)
    assert told == [(5, 5)]
    assert file.read_bytes() == whole
    assert lines(continued(file, "another", 5, make)) == lines(EXAMPLES)
    assert starts == [0, 4, 0]
