"""The MCP server: an index, a memory and a reranker as tools for agents, over standard input and output or HTTP.

Tools answer with typed results; an error says what to do, since a model reads it. Nothing here reads a file that was
named by a client: `get` gives what is in the index. Needs the extra `mcp`, so it is imported where it is served.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Annotated, Any, TypeVar

import anyio
import anyio.from_thread
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from mcp_types import ToolAnnotations
from pydantic import BaseModel, BeforeValidator, Field
from starlette.applications import Starlette
from starlette.routing import Route

from secondpass.errors import IndexGone, SecondpassError
from secondpass.public import opened_once
from secondpass.reranker import Reranker
from secondpass.search.index import Index
from secondpass.search.memory import Memory
from secondpass.search.stores.open import index_names
from secondpass.types import Hit, Ranking

INSTRUCTIONS = (
    "Local search and memory. `search` finds passages in the user's own files; `get` shows one with what stands "
    "around it; `rerank` orders passages of any source by how well they answer a question; `remember` and `recall` "
    "keep and find facts across conversations. Ask in whole questions. The best comes first; a right answer may have "
    "a low probability, below 0.1 where it shares few words with the question or is not in English: read it first."
)
MAX_DOCUMENTS = 200
_READING = ToolAnnotations(read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False)
_WRITING = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False)
_DELETING = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False)
Result = TypeVar("Result")
Asked = Annotated[str, Field(min_length=1, pattern=r"\S")]
# Many language models write "" into each field that they leave open.
Open = Annotated[str | None, BeforeValidator(lambda value: None if value == "" else value)]
Warned = Annotated[list[str], Field(description="What to know first, as that the model cannot read the question.")]


class FoundPassage(BaseModel):
    """What was found: text, where it stands, and how likely it answers (0 to 1)."""

    id: int
    probability: float
    file: str
    line: int
    last_line: int
    heading: str
    text: str


class Found(BaseModel):
    passages: list[FoundPassage]
    warnings: Warned = []


class Shown(BaseModel):
    """A passage of the index, and the text of its file around it."""

    id: int
    file: str
    heading: str
    first_line: int
    last_line: int
    text: str


class RankedPassage(BaseModel):
    """A passage by its place in the list that was given; without a score where it has nothing to read."""

    index: int
    probability: float
    score: float | None
    text: str


class Reranked(BaseModel):
    passages: list[RankedPassage]
    warnings: Warned = []


class Fact(BaseModel):
    id: int
    probability: float
    text: str
    since: Annotated[str | None, Field(description="When it began to hold, in UTC.")]


class Facts(BaseModel):
    facts: list[Fact]
    warnings: Warned = []


class Remembered(BaseModel):
    id: int


class Forgotten(BaseModel):
    id: int


class IndexState(BaseModel):
    index: str
    indexes: list[str]
    files: int
    chunks: int
    embedder: str
    facts: int


@dataclass(frozen=True)
class StoppableReranker:
    """A StateReader and ScriptReader that stops between batches once the call that waits for it was cancelled."""

    reranker: Reranker

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        budget_ms: float | None = None,
        first_scores: Sequence[float] | None = None,
    ) -> Ranking:
        return self.reranker.rank(
            query,
            documents,
            top_n=top_n,
            budget_ms=budget_ms,
            first_scores=first_scores,
            progress=lambda done, total: anyio.from_thread.check_cancelled(),
        )

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        return self.reranker.score_pairs(pairs)

    def unread(self, query: str) -> str | None:
        return self.reranker.unread(query)

    @property
    def states_mark(self) -> str | None:
        return self.reranker.states_mark

    def states(self, passages: Sequence[str]) -> list[bytes]:
        return self.reranker.states(passages)

    def keep_states(self, states: Iterable[bytes]) -> None:
        self.reranker.keep_states(states)


@dataclass(kw_only=True)
class Tools:
    """What the tools work on, opened when it is first needed."""

    index_name: str = "default"
    folder: str | None = None
    namespace: str = "default"
    reranker_name: str = "auto"
    reranker: Reranker | None = None
    lock: anyio.Lock = field(default_factory=anyio.Lock)

    @opened_once
    def index(self) -> Index:
        """The index; it may be made while the server runs, since a failure is not kept."""
        return Index(self.index_name, folder=self.folder, reranker=self.open_reranker())

    @opened_once
    def memory(self) -> Memory:
        return Memory(namespace=self.namespace, folder=self.folder, reranker=self.open_reranker())

    def forget_opened(self) -> None:
        """Open index and memory anew when they are next needed."""
        for name in ("index", "memory"):
            if name in vars(self):
                vars(self).pop(name).close()

    def open_reranker(self) -> StoppableReranker:
        if self.reranker is None:
            self.reranker = Reranker(self.reranker_name)
        return StoppableReranker(self.reranker)

    async def call(self, work: Callable[[], Result]) -> Result:
        """Do the work in a thread, one at a time; what goes wrong is told to the model in a sentence.

        The next one begins once a cancelled one has stopped.
        """
        async with self.lock:
            try:
                try:
                    return await anyio.to_thread.run_sync(work)
                except IndexGone:  # and may be there again
                    self.forget_opened()
                    return await anyio.to_thread.run_sync(work)
            except (SecondpassError, ValueError) as error:
                raise ToolError(str(error)) from error


class _ToolServer(MCPServer[Any]):
    """Refuses arguments that a tool does not have: without them it would do something else than was asked."""

    async def call_tool(self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None = None) -> Any:
        known = next(
            (list(each.input_schema["properties"]) for each in await self.list_tools() if each.name == name), None
        )
        unknown = [] if known is None else [each for each in arguments if each not in known]
        if unknown:
            there = ", ".join(known or ()) or "none"
            raise ToolError(f"{name} has no argument {', '.join(map(repr, unknown))}; its arguments: {there}")
        return await super().call_tool(name, arguments, context)


def make_server(tools: Tools) -> MCPServer[Any]:
    """The server with its tools; it speaks every revision of the protocol that the SDK knows."""
    from secondpass import __version__

    server = _ToolServer(
        "secondpass", title="secondpass", version=__version__, instructions=INSTRUCTIONS, log_level="WARNING"
    )
    _add_search(server, tools)
    _add_rerank(server, tools)
    _add_memory(server, tools)
    return server


def http_app(server: MCPServer[Any], **options: Any) -> Starlette:
    """The server at /mcp, without sessions. options: host, by which the SDK knows whose requests to check, and so on.

    POST alone: there are no sessions to end, and nothing ever comes on a stream that a client opens with GET, which
    would hold up the end of the process.
    """
    app = server.streamable_http_app(stateless_http=True, json_response=True, **options)
    for route in app.routes:
        assert isinstance(route, Route)
        route.methods = {"POST"}
    return app


def http_routes(server: MCPServer[Any]) -> list[Route]:
    """The route /mcp for an application that checks hosts, origins and keys itself.

    It has to be entered as `async with server.session_manager.run()` in the application's lifespan.
    """
    unchecked = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    return [route for route in http_app(server, transport_security=unchecked).routes if isinstance(route, Route)]


def _add_search(server: MCPServer[Any], tools: Tools) -> None:
    @server.tool(annotations=_READING)
    async def search(
        query: Annotated[Asked, Field(description="A whole question, in the user's language.")],
        top_n: Annotated[int, Field(ge=1, le=50)] = 5,
        path: Annotated[Open, Field(description="Only files with this in their path, or a glob.")] = None,
        since: Annotated[Open, Field(description="Only what is dated so or later, as 2026-11-28.")] = None,
        until: Annotated[Open, Field(description="Only what is dated so or earlier.")] = None,
        language: Annotated[Open, Field(description="Only what is written in it, as zh or Chinese.")] = None,
        ctx: Context[Any, Any] | None = None,
    ) -> Found:
        """Find passages in the user's indexed files that answer a question; best first."""
        if ctx is not None:
            await ctx.report_progress(0, 1)
        ranking = await tools.call(
            lambda: tools.index.search(query, top_n, path=path, since=since, until=until, language=language)
        )
        if ctx is not None:
            await ctx.report_progress(1, 1)
        return Found(passages=[_passage(hit) for hit in ranking], warnings=list(ranking.warnings))

    @server.tool(annotations=_READING)
    async def get(
        id: Annotated[int, Field(description="Of a passage that search found.")],
        around: Annotated[int, Field(ge=0, le=10, description="How many passages before and after it.")] = 1,
    ) -> Shown:
        """Show a passage with what stands around it in its file."""
        return await tools.call(lambda: _around(tools.index, id, around))

    @server.tool(annotations=_READING)
    async def status() -> IndexState:
        """What is indexed and remembered."""
        return await tools.call(lambda: _state(tools))


def _add_rerank(server: MCPServer[Any], tools: Tools) -> None:
    @server.tool(annotations=_READING)
    async def rerank(
        query: Asked,
        documents: Annotated[list[str], Field(min_length=1, max_length=MAX_DOCUMENTS)],
        top_n: Annotated[int, Field(ge=1)] = 5,
    ) -> Reranked:
        """Order passages by how well each answers the question; best first."""
        if not any(document.strip() for document in documents):
            raise ToolError("every document is empty; pass at least one with text")
        ranking = await tools.call(lambda: tools.open_reranker().rank(query, documents, top_n=top_n))
        found = [
            RankedPassage(
                index=hit.index,
                probability=hit.probability if hit.is_scored else 0.0,
                score=hit.score if hit.is_scored else None,
                text=hit.document.text,
            )
            for hit in ranking
        ]
        return Reranked(passages=found, warnings=list(ranking.warnings))


def _add_memory(server: MCPServer[Any], tools: Tools) -> None:
    @server.tool(annotations=_WRITING)
    async def remember(
        text: Annotated[str, Field(min_length=1, description="One fact, in a sentence that stands alone.")],
        subject: Annotated[Open, Field(description="What it is about; the newest of a subject counts.")] = None,
        replaces: Annotated[int | None, Field(description="The id of a fact that is no longer true.")] = None,
    ) -> Remembered:
        """Keep a fact for later conversations."""

        def told() -> int:
            if replaces is None:
                return tools.memory.remember(text, subject=subject, source="agent")
            return tools.memory.supersede(replaces, text, subject=subject, source="agent")

        return Remembered(id=await tools.call(told))

    @server.tool(annotations=_READING)
    async def recall(
        query: Asked,
        top_n: Annotated[int, Field(ge=1, le=50)] = 5,
        as_of: Annotated[Open, Field(description="What held then, as 2026-11-28; else now.")] = None,
    ) -> Facts:
        """Find remembered facts that bear on a question; best first."""
        return _facts(await tools.call(lambda: tools.memory.recall(query, top_n, as_of=as_of)))

    @server.tool(annotations=_DELETING)
    async def forget(id: Annotated[int, Field(description="Of a fact that recall found.")]) -> Forgotten:
        """Delete a remembered fact for good."""
        await tools.call(lambda: tools.memory.forget(id))
        return Forgotten(id=id)


def _passage(hit: Hit) -> FoundPassage:
    fields = hit.document.fields
    return FoundPassage(
        id=hit.index,
        probability=hit.probability if hit.is_scored else 0.0,
        file=fields["path"],
        line=fields["line"],
        last_line=fields["last_line"],
        heading=fields["heading"],
        text=hit.document.text,
    )


def _around(index: Index, id: int, around: int) -> Shown:
    stored = index.get(id)
    ids = index.store.ids(stored.path)
    at = ids.index(id)
    near = index.store.fetch(ids[max(0, at - around) : at + around + 1])
    return Shown(
        id=id,
        file=stored.path,
        heading=stored.chunk.heading,
        first_line=near[0].chunk.lines[0],
        last_line=near[-1].chunk.lines[1],
        text="\n\n".join(each.chunk.text for each in near),
    )


def _facts(ranking: Ranking) -> Facts:
    return Facts(
        facts=[
            Fact(
                id=hit.index,
                probability=hit.probability if hit.is_scored else 0.0,
                text=hit.document.text,
                since=_moment(hit.document["created"]),
            )
            for hit in ranking
        ],
        warnings=list(ranking.warnings),
    )


def _moment(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


def _state(tools: Tools) -> IndexState:
    names = [name for name in index_names(tools.folder) if name != tools.memory.index.name]
    facts = tools.memory.index.status().chunks
    if tools.index_name not in names:
        return IndexState(index=tools.index_name, indexes=names, files=0, chunks=0, embedder="", facts=facts)
    found = tools.index.status()
    return IndexState(
        index=found.name,
        indexes=names,
        files=found.files,
        chunks=found.chunks,
        embedder=found.embedder,
        facts=facts,
    )
