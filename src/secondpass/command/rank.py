"""`secondpass rank`: read, rank, show."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from secondpass.command import show
from secondpass.command.progress import watched
from secondpass.data.passages import Passage, Reading, read_passages
from secondpass.errors import WrongUse

if TYPE_CHECKING:
    from secondpass.reranker import Info, Reranker
    from secondpass.types import Progress, Ranking


@dataclass(frozen=True, kw_only=True)
class Options:
    """The model of a command, as the options name it."""

    model: str
    revision: str | None
    engine: str
    device: str
    dtype: str
    max_length: int | None
    long_documents: str
    local_files_only: bool
    calibration: str | None = None


@dataclass(frozen=True, kw_only=True)
class Output:
    top: int  # 0: all
    is_json: bool
    is_explained: bool
    budget_ms: float | None = None


def rank(
    query: str, paths: Sequence[str], arguments: Sequence[str], *, how: Reading, options: Options, output: Output
) -> None:
    """Rank the passages of all inputs and print the ranking. Raises WrongUse or SecondpassError."""
    if not query.strip():
        raise WrongUse('the query is empty; give one, as in: secondpass rank "how long" notes.txt')
    passages = read_passages(paths, arguments, how)
    try:
        reranker = open_reranker(options)
        ranking = _ranked(reranker, query, passages, how=how, output=output)
    except ValueError as error:
        raise WrongUse(str(error)) from error
    sources = [passage.source for passage in passages]
    info = reranker.info()
    if output.is_json:
        _print_json(ranking, sources, info)
    elif sys.stdout.isatty():
        show.ranking_table(ranking, sources, how.fields)
    else:
        show.tab_separated(show.hit_row(hit, sources[hit.index], how.fields) for hit in ranking)
    sys.stdout.flush()
    _remark(ranking, info, is_explained=output.is_explained, is_chunked=options.long_documents == "chunk")


def open_reranker(options: Options) -> Reranker:
    from secondpass.reranker import Reranker

    return Reranker(
        options.model,
        revision=options.revision,
        engine=options.engine,
        device=options.device,
        dtype=options.dtype,
        max_length=options.max_length,
        long_documents=options.long_documents,
        calibration=options.calibration,
        local_files_only=options.local_files_only,
    )


def _ranked(reranker: Reranker, query: str, passages: Sequence[Passage], *, how: Reading, output: Output) -> Ranking:
    """The ranking, with progress while it is made where people watch."""
    documents = [passage.document for passage in passages]

    def ranked(progress: Progress | None) -> Ranking:
        return reranker.rank(
            query,
            documents,
            top_n=output.top or None,
            rank_fields=how.fields or None,
            explain=output.is_explained,
            budget_ms=output.budget_ms,
            progress=progress,
        )

    if output.budget_ms is not None:
        reranker.warm_up()
    with watched("ranking") as progress:
        return ranked(progress)


def _print_json(ranking: Ranking, sources: Sequence[str], info: Info) -> None:
    from dataclasses import asdict

    results = [show.hit_object(hit, sources[hit.index]) for hit in ranking]
    usage = asdict(ranking.usage)
    show.as_json({"query": ranking.query, "model": asdict(info), "usage": usage, "results": results})


def _remark(ranking: Ranking, info: Info, *, is_explained: bool, is_chunked: bool) -> None:
    """Say on standard error what was cut, where people watch or asked, and what it cost when they asked."""
    usage = ranking.usage
    if usage.truncated and not is_chunked and (is_explained or sys.stderr.isatty()):
        verb = "was" if usage.truncated == 1 else "were"
        cut = f"{usage.truncated} of {usage.rows} passages {verb} cut at {info.max_length} tokens"
        sys.stderr.write(f"{cut}; --long chunk reads them whole\n")
    if usage.unscored:
        sys.stderr.write(f"{usage.unscored} passages were left unscored when the time was over; they are last\n")
    if is_explained:
        sys.stderr.write(show.usage_line(ranking, info) + "\n")
