"""`secondpass feedback`: what a search was worth, and weights that are learnt from it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from secondpass.command import output
from secondpass.command.flags import Json
from secondpass.command.index import IndexLocation
from secondpass.command.plain import argument, option
from secondpass.command.search import Asking, RerankerName, source_of
from secondpass.errors import WrongUse

if TYPE_CHECKING:
    from secondpass.search.index import Index

Ranks = Annotated[list[int] | None, option(min=1, metavar="RANK", help="As search showed it; repeat it.")]


def feedback(
    query: Annotated[str | None, argument(metavar="QUESTION", help="What was searched for.")] = None,
    *,
    location: IndexLocation,
    asking: Asking,
    opened: Ranks = None,
    kept: Ranks = None,
    used: Ranks = None,
    rejected: Ranks = None,
    fit: Annotated[bool, option("--fit", help="Learn weights from all that was recorded.")] = False,
    json: Json = False,
    model: RerankerName = "auto",
) -> None:
    """Record what was of use among the results of a search, or learn from all that was recorded.

    As in: secondpass feedback "how long do beans cook" --used 2. The same options as of the search are needed, so
    that the ranks are the same. --fit says whether learnt weights help, on later uses than those that they were
    learnt from, and only then has `search --cognitive` take them.
    """
    kinds = {"opened": opened, "kept": kept, "used": used, "rejected": rejected}
    given = [(kind, rank) for kind, ranks in kinds.items() for rank in ranks or []]
    if fit == (query is not None):
        raise WrongUse('give a question and what was of use, as in "..." --used 2, or --fit alone')
    if fit:
        _fit(location.open(), is_json=json)
        return
    if not given:
        raise WrongUse("say what was opened, kept, used or rejected, as in --used 2")
    index = location.open(reranker=model)
    ranking = asking.search(index, query or "", explain=False)
    for kind, rank in given:  # all, before any is recorded
        if rank > len(ranking):
            raise WrongUse(f"--{kind} is {rank}, but {len(ranking)} results were found; nothing is recorded")
    for kind, rank in given:
        index.feedback(ranking, ranking[rank - 1], kind)
        sys.stderr.write(f"{kind}: {source_of(ranking[rank - 1])}\n")


def _fit(index: Index, *, is_json: bool) -> None:
    from secondpass.cognitive import Cognitive
    from secondpass.evaluation.significance import difference
    from secondpass.search.learning import MIN_IMPRESSIONS, impressions, learn

    found = impressions(index.store.judgements())
    if len(found) < MIN_IMPRESSIONS:
        raise WrongUse(f"{index.name} has {len(found)} judged searches; {MIN_IMPRESSIONS} are needed to learn from")
    learnt = learn(found, Cognitive())
    if not len(learnt.learnt):
        missing = f"of the last {len(found) - learnt.num_fitted} judgements none says that something was of use"
        raise WrongUse(f"{index.name}: {missing}, so that nothing can be measured; record --used, --kept or --opened")
    change = difference([learnt.default], [learnt.learnt])
    helps = change.verdict == "helps"
    if helps:
        index.set_weights(learnt.settings.weights)
    if is_json:
        output.as_json({"weights": learnt.settings.weights, "helps": helps, "change": asdict(change)})
        return
    rows = [(name, f"{value:.3f}") for name, value in learnt.settings.weights.items()]
    rows += [
        ("MRR, relevance alone", f"{learnt.plain.mean():.3f}"),
        ("MRR, default weights", f"{change.before:.3f}"),
        ("MRR, learnt weights", f"{change.after:.3f} ({change.low:+.3f} to {change.high:+.3f}): {change.verdict}"),
        ("searches", f"{learnt.num_fitted} to learn from, {len(learnt.learnt)} uses kept out"),
        ("now in use", "the learnt weights" if helps else "the weights of before"),
    ]
    output.named_values(rows)
