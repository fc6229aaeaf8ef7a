"""A served index: search, get, update and feedback over HTTP, with the keys and limits of the whole server.

No request names a file to read: search and get answer from what is in the index, and update reads the folders that
`secondpass add` was given, and no others.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from secondpass.errors import IndexGone, NoSuchChunk, SecondpassError, StoreError
from secondpass.search.index import Index
from secondpass.search.pipeline import Question, document_of
from secondpass.server.admin import refusing
from secondpass.server.api import HttpApi, connected
from secondpass.server.body import deadline_of
from secondpass.server.dialects.fields import Above, Flag, RequestBody, Whole, read
from secondpass.server.json_body import parsed
from secondpass.server.service import within
from secondpass.server.settings import Settings
from secondpass.text.documents import clean_query, is_blank
from secondpass.types import Hit
from secondpass.wire.calls import Fault, Refusal

log = logging.getLogger(__name__)

MAX_RESULTS = 100
RETRY_S = 5.0  # to whoever asks an index that cannot be read
THREADS = 4  # searches at a time; what waits for one holds up nothing else


class IndexBody(RequestBody):
    """What is asked of an index; a field that is not known would change what is found."""

    model_config = ConfigDict(extra="forbid")


class QuestionBody(IndexBody):
    """What is looked for, and what may be found: the fields that `Index.search` has by these names."""

    query: str
    path: str | None = None
    since: str | float | None = None
    until: str | float | None = None
    language: str | None = None
    fields: dict[str, Any] | None = None
    cognitive: bool | dict[str, Any] | None = None
    diversity: str | None = None

    def options(self, **more: Any) -> dict[str, Any]:
        given = {name: getattr(self, name) for name in QuestionBody.model_fields if name != "query"} | more
        return {name: value for name, value in given.items() if value is not None}


class SearchBody(QuestionBody):
    """How much is shown of it. sentences: say where the one that answers best stands."""

    top_n: Annotated[Whole, Field(ge=1, le=MAX_RESULTS)] | None = None
    explain: Flag | None = None
    sentences: Flag | None = None
    budget_ms: Above | None = None


class GetBody(IndexBody):
    """A chunk by its id."""

    id: Whole


class UpdateBody(IndexBody):
    """Nothing: no request names what is read."""


class FeedbackBody(QuestionBody):
    """What became of a result of this search."""

    id: Whole
    kind: str


BODIES: Mapping[str, type[IndexBody]] = {
    "search": SearchBody,
    "get": GetBody,
    "update": UpdateBody,
    "feedback": FeedbackBody,
}


class ServedIndex:
    """An index at POST /v1/index/search, get, update and feedback.

    Its threads are its own: what takes long here, or waits, keeps no other calls from theirs. Updates of an index
    come one after the other in any case.
    """

    def __init__(self, name: str, settings: Settings) -> None:
        self.index, self.settings = Index(name, folder=settings.index_folder), settings
        self._reopening = threading.Lock()
        self._threads = ThreadPoolExecutor(THREADS, "index")
        self._updating = ThreadPoolExecutor(1, "index-update")
        self._work: set[Future[Any]] = set()

    @property
    def is_idle(self) -> bool:
        return not self._work

    def routes(self, api: HttpApi) -> list[Route]:
        return [
            self._route(api, "search", self._search),
            self._route(api, "get", self._get),
            self._route(api, "update", self._update),
            self._route(api, "feedback", self._feedback),
        ]

    def start(self) -> None:
        """Open the models and read the vectors beside everything else, where the first question would wait for it."""
        self._begin(self._threads, self._first_search)

    def close(self) -> None:
        """Begin nothing more; what has begun leaves the index whole wherever it ends."""
        for threads in (self._threads, self._updating):
            threads.shutdown(wait=False, cancel_futures=True)

    def _route(self, api: HttpApi, name: str, work: Callable[[Any], Any]) -> Route:
        model = BODIES[name]
        threads = self._updating if model is UpdateBody else self._threads

        async def answered(request: Request) -> Response:
            headers = request.state.headers
            # An update takes as long as there are files to read.
            deadline = None if model is UpdateBody else deadline_of(headers, self.settings.timeout_s)
            async with api.body(request.receive, headers) as raw:
                asked = read(model, await parsed(raw or b"{}", max_depth=self.settings.max_depth))
                self._check_query(getattr(asked, "query", None))
                working = asyncio.wrap_future(self._begin(threads, work, asked))
                try:
                    answer = await connected(within(working, deadline), request.receive)
                except NoSuchChunk:
                    raise
                except StoreError as error:  # gone, damaged, on a full disk: no other request would fare better
                    log.error("the index %s cannot be used: %s", self.index.name, error)
                    raise Refusal(Fault.unavailable, str(error), retry_after=RETRY_S) from error
            return JSONResponse(answer)

        return Route(f"/v1/index/{name}", refusing(answered), methods=["POST"])

    def _begin(self, threads: ThreadPoolExecutor, work: Callable[..., Any], *asked: IndexBody) -> Future[Any]:
        working = threads.submit(self._done, work, *asked)
        self._work.add(working)
        working.add_done_callback(self._work.discard)
        return working

    def _done(self, work: Callable[..., Any], *asked: IndexBody) -> Any:
        """What work returns; once more on an index that was made anew meanwhile."""
        index = self.index
        try:
            return work(*asked)
        except IndexGone:
            with self._reopening:
                if self.index is index:  # the other one goes when the last who asks it is done
                    self.index = Index(index.name, folder=self.settings.index_folder)
            return work(*asked)

    def _first_search(self) -> None:
        try:
            self.index.search("first", 1)
        except (SecondpassError, OSError) as error:  # which each search will say too
            log.warning("the index %s cannot be searched yet: %s", self.index.name, error)

    def _check_query(self, query: str | None) -> None:
        most = self.settings.max_document_characters
        if query is not None and is_blank(query):
            raise Refusal(Fault.invalid, "query is empty; give the words that are looked for", parameter="query")
        if query is not None and len(query) > most:
            message = f"query has {len(query)} characters; this server takes {most}"
            raise Refusal(Fault.too_large, message, parameter="query")

    def _search(self, asked: SearchBody) -> dict[str, Any]:
        options = asked.options(top_n=asked.top_n, explain=asked.explain, budget_ms=asked.budget_ms)
        ranking = self.index.search(clean_query(asked.query), **options)
        results = [_object(hit) for hit in ranking]
        if asked.sentences:
            for result, span in zip(results, self.index.winning_sentences(ranking), strict=True):
                result["sentence"] = span
        usage, warnings = asdict(ranking.usage), list(ranking.warnings)
        return {"query": ranking.query, "usage": usage, "warnings": warnings, "results": results}

    def _get(self, asked: GetBody) -> dict[str, Any]:
        stored = self.index.get(asked.id)
        fields = document_of(stored).fields
        shown = {name: fields[name] for name in ("id", "heading", "line", "last_line")}
        return {**shown, "file": stored.path, "text": stored.chunk.text}

    def _update(self, asked: UpdateBody) -> dict[str, Any]:
        return asdict(self.index.update())

    def _feedback(self, asked: FeedbackBody) -> dict[str, Any]:
        """The search is run again, so that the figures of what was shown are kept with the judgement."""
        for top_n in (Question.candidates, MAX_RESULTS):  # the more for a hit beyond the usual ones
            ranking = self.index.search(clean_query(asked.query), **asked.options(top_n=top_n))
            if (hit := next((hit for hit in ranking if hit.index == asked.id), None)) is not None:
                break
        else:
            raise ValueError(
                f"{asked.id} is not among what is found; give the id of a result, with the fields of its search"
            )
        self.index.feedback(ranking, hit, asked.kind)
        return {"recorded": asked.kind}


def _object(hit: Hit) -> dict[str, Any]:
    fields = dict(hit.document.fields)
    return {
        "id": hit.index,
        "score": hit.score if hit.is_scored else None,
        "probability": hit.probability if hit.is_scored else None,
        "file": fields.pop("path"),
        "heading": fields.pop("heading"),
        "line": fields.pop("line"),
        "last_line": fields.pop("last_line"),
        "text": hit.document.text,
        "fields": fields,
        "parts": None if hit.parts is None else dict(hit.parts),
    }
