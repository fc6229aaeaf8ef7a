"""`secondpass rank`: read, rank, show."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from enum import Enum
from typing import TYPE_CHECKING, Annotated

from secondpass.command import output
from secondpass.command.flags import Json, Model, Opening, Revision, uncollected, wrong_use
from secondpass.command.plain import argument, option
from secondpass.errors import WrongUse

if TYPE_CHECKING:
    from secondpass.data.passages import Passage
    from secondpass.reranker import Reranker
    from secondpass.types import Info, Ranking, Scorer


class Split(str, Enum):
    auto = "auto"
    line = "line"
    paragraph = "paragraph"
    whole = "whole"


class Long(str, Enum):
    truncate = "truncate"
    chunk = "chunk"


@dataclass(frozen=True, kw_only=True)
class Showing:
    """What is ranked of a document, how many are shown, and what is said of them."""

    fields: Annotated[str, option(help="Fields to read, as in title,body; else text.")] = ""
    top: Annotated[int, option(min=0, help="How many to show; 0: all.")] = 10
    json: Json = False
    explain: Annotated[bool, option("--explain", help="Add tokens, truncation, timing and engine.")] = False
    budget_ms: Annotated[
        float | None, option(min=0.001, help="Milliseconds for ranking; passages beyond stay unscored, last.")
    ] = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.fields.split(",") if name.strip())


def rank(
    query: Annotated[str, argument(metavar="QUERY", help="What is asked.")],
    paths: Annotated[
        list[str] | None, argument(metavar="PATH", help="Files, folders, or - for standard input.")
    ] = None,
    *,
    passage: Annotated[list[str] | None, option(help="A passage; repeat it for more.")] = None,
    split: Annotated[
        Split, option(help="How texts are cut; auto: paragraphs where blank lines part them, else lines.")
    ] = Split.auto,
    showing: Showing,
    model: Model = "auto",
    revision: Revision = None,
    long: Annotated[
        Long, option(help="Long passages: cut as the model's makers do, or read in windows.")
    ] = Long.truncate,
    opening: Opening,
    calibration: Annotated[
        str | None, option(metavar="FILE", help="What `secondpass calibrate` fitted, for the probabilities.")
    ] = None,
) -> None:
    """Rank passages by how well they answer a query.

    Reads text, Markdown, HTML, CSV and TSV (their first row names the columns), JSON, JSON Lines and parquet, gzipped
    or not, folders of them, BEIR folders, or standard input. A file among several that cannot be read is named and
    left out; the exit code is then 1. Prints a table on a terminal, else tab-separated lines: rank (from 1),
    probability, score (raw logit), source, text, and with --long chunk the characters that won.
    """
    if not query.strip():
        raise WrongUse('the query is empty; give one, as in: secondpass rank "how long" notes.txt')
    with uncollected(), ThreadPoolExecutor(1) as pool:  # most of opening is done without Python's lock
        opening.imported(model)
        coming = pool.submit(
            opening.reranker, model, revision=revision, long_documents=long.value, calibration=calibration
        )
        from secondpass.data.passages import ReadOptions, read_passages

        inputs = read_passages(paths or [], passage or [], ReadOptions(split=split.value, fields=showing.names))
        sys.stderr.writelines(f"secondpass: {told}\n" for told in (*inputs.left_out, *inputs.problems))
        reranker = coming.result()
    passages = inputs.passages
    with wrong_use():
        ranking = _ranked(reranker, query, passages, showing)
    sources = [passage.source for passage in passages]
    info = ranking.info or reranker.info()
    if showing.json:
        _print_json(ranking, sources, info)
    elif sys.stdout.isatty():
        is_marked = showing.budget_ms is None and not showing.names
        matches = matching_sentences(reranker, ranking) if is_marked else {}
        output.ranking_table(ranking, sources, showing.names, matches)
    else:
        output.tab_separated(output.hit_row(hit, sources[hit.index], showing.names) for hit in ranking)
    sys.stdout.flush()
    _remark(ranking, info, showing, is_chunked=long is Long.chunk)
    if inputs.problems:
        raise SystemExit(1)


def _ranked(reranker: Reranker, query: str, passages: Sequence[Passage], showing: Showing) -> Ranking:
    """The ranking, with progress while it is made where people watch."""
    if showing.budget_ms is not None:
        reranker.warm_up()
    with output.watched("ranking") as progress:
        return reranker.rank(
            query,
            [passage.document for passage in passages],
            top_n=showing.top or None,
            rank_fields=showing.names or None,
            explain=showing.explain,
            budget_ms=showing.budget_ms,
            progress=progress,
        )


def matching_sentences(scorer: Scorer, ranking: Ranking) -> dict[int, tuple[int, int]]:
    """Of each window that won, by the hit's index, the sentence that answers the query best."""
    from secondpass.data.sections import sentences

    ranges = [(hit, each) for hit in ranking if hit.span for each in sentences(hit.document.text, *hit.span)]
    scores = scorer.score(ranking.query, [hit.document.text[start:stop] for hit, (start, stop) in ranges])
    found: dict[int, tuple[float, tuple[int, int]]] = {}
    for (hit, each), score in zip(ranges, scores, strict=True):
        if hit.index not in found or score > found[hit.index][0]:
            found[hit.index] = score, each
    return {index: each for index, (_, each) in found.items()}


def _print_json(ranking: Ranking, sources: Sequence[str], info: Info) -> None:
    results = [output.hit_object(hit, sources[hit.index]) for hit in ranking]
    usage = asdict(ranking.usage)
    warnings = {"warnings": list(ranking.warnings)} if ranking.warnings else {}
    output.as_json({"query": ranking.query, "model": asdict(info), "usage": usage, **warnings, "results": results})


def _remark(ranking: Ranking, info: Info, showing: Showing, *, is_chunked: bool) -> None:
    """Say on standard error what was cut, where people watch or asked, and what it cost when they asked."""
    usage = ranking.usage
    if usage.truncated and not is_chunked and (showing.explain or sys.stderr.isatty()):
        verb = "was" if usage.truncated == 1 else "were"
        cut = f"{usage.truncated} of {usage.rows} passages {verb} cut at {info.max_length} tokens"
        sys.stderr.write(f"{cut}; --long chunk reads them whole\n")
    if usage.unscored:
        why = "there is nothing to read"
        if showing.budget_ms is not None:
            why = f"the time was over, or {why}"
        sys.stderr.write(f"unscored, and so last: {usage.unscored} of the passages; {why}\n")
    if showing.explain:
        sys.stderr.write(output.usage_line(ranking, info) + "\n")
