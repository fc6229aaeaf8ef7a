"""Recipes: how one family writes a (query, passage) pair as tokens, cuts it, and what its score means.

Everything here is exact: the same ids as the family's reference code, or the scores are not the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from secondpass.text.tokenizer import Tokenizer
from secondpass.types import Row


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long the parts of a row may be, in tokens. max_length counts the special tokens of a pair."""

    max_length: int
    max_query_length: int | None = None
    truncation: str = "longest_first"


Truncation = Callable[[int, int, int, Limits], tuple[int, int]]


def longest_first(query: int, passage: int, num_special: int, limits: Limits) -> tuple[int, int]:
    """Lengths kept of (query, passage): the rule of the `tokenizers` library.

    The longer side is cut first, and both to halves when the shorter is too long by itself. Where both are
    equally long, the query counts as the shorter.
    """
    if limits.max_query_length is not None:
        query = min(query, limits.max_query_length)
    room = max(limits.max_length - num_special, 0)
    if query + passage <= room:
        return query, passage
    short, long = sorted((query, passage))
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short = room // 2
        long = short + room % 2
    return (short, long) if query <= passage else (long, short)


def only_second(query: int, passage: int, num_special: int, limits: Limits) -> tuple[int, int]:
    """Lengths kept of (query, passage): FlagEmbedding's rule.

    The query keeps at most max_query_length tokens, three quarters of max_length by default, and is never cut
    for the passage's sake.
    """
    cap = limits.max_query_length
    query = min(query, limits.max_length * 3 // 4 if cap is None else cap)
    room = max(limits.max_length - num_special - query, 0)
    return query, min(passage, room)


TRUNCATIONS: dict[str, Truncation] = {"longest_first": longest_first, "only_second": only_second}

# Tokens that a window of a long document may gain where it meets the words before it.
SEAM = 2


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """The fixed words of a decoder's input; each part is tokenised alone unless a template says otherwise.

    `{instruction}` in `query_lead` or `task` is replaced by the instruction, which a user may change.
    """

    system: str = ""
    query: str = ""
    query_lead: str = ""  # before the query, where there is an instruction
    separator: str = "\n"
    passage: str = ""
    task: str = ""
    answer: str = ""
    instruction: str = ""
    bos_id: int | None = None  # the checkpoint's, where the tokenizer's settings name none
    max_positions: int | None = None  # the checkpoint's; fixed words are not counted by max_length, but fit in here

    def filled(self, words: str) -> str:
        return words.replace("{instruction}", self.instruction)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The ids around the passages of one query.

    lead is text that is tokenised together with each passage; lead_ids are its tokens where they do not count as
    the passage's. limits.max_length bounds the query, the passage and num_special more tokens. keeps_end: what is too
    long loses its beginning.
    """

    limits: Limits
    before: Sequence[int]
    query: Sequence[int]
    between: Sequence[int]
    after: Sequence[int]
    num_special: int
    lead: str = ""
    lead_ids: Sequence[int] = field(default=())
    max_passage: int | None = None
    keeps_end: bool = False
    is_typed: bool = True

    def kept(self, length: int) -> tuple[int, int]:
        """Tokens kept of the query and of `length` tokens of a passage."""
        length = length if self.max_passage is None else min(length, self.max_passage)
        return TRUNCATIONS[self.limits.truncation](len(self.query), length, self.num_special, self.limits)

    def rows(self, tokenizer: Tokenizer, passages: Sequence[str]) -> list[Row]:
        return [self._row(ids) for ids in tokenizer.encode_batch([self.lead + passage for passage in passages])]

    def room(self, tokenizer: Tokenizer) -> int:
        """Tokens that a passage may have before it is cut."""
        lead = len(tokenizer.encode(self.lead)) + SEAM if self.lead else 0
        longest = self.kept(10**9)[1]
        while longest and self.kept(longest)[1] < longest:
            longest -= 1  # of an odd room for two halves, the longer goes to the longer text
        return max(longest - lead, 0)

    def _row(self, ids: list[int]) -> Row:
        kept = self.kept(len(ids))
        lead = _num_shared(self.lead_ids, ids)
        head = [*self.before, *part(self.query, kept[0], self.keeps_end), *self.between]
        lead_kept = max(lead - len(ids) + kept[1], 0) if self.keeps_end else min(lead, kept[1])
        return Row(
            ids=[*head, *part(ids, kept[1], self.keeps_end), *self.after],
            passage=(len(head) + lead_kept, len(head) + kept[1]),
            cut=(len(self.query) - kept[0] + lead - lead_kept, len(ids) - kept[1] - lead + lead_kept),
            is_typed=self.is_typed,
        )


def part(ids: Sequence[int], count: int, is_end: bool) -> Sequence[int]:
    """The first `count` ids, or the last."""
    return ids[len(ids) - count :] if is_end and count < len(ids) else ids[:count]


def _num_shared(left: Sequence[int], right: Sequence[int]) -> int:
    """How many first tokens are the same."""
    pairs = zip(left, right, strict=False)
    return next((position for position, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


def pair(prompt: Prompt, tokenizer: Tokenizer, query: str, limits: Limits) -> Frame:
    """`[CLS] query [SEP] passage [SEP]` and its kin; an empty passage is still a pair."""
    special = tokenizer.pair_template
    return Frame(
        limits=limits,
        before=special.before,
        query=tokenizer.encode(prompt.query + query),
        between=special.between,
        after=special.after,
        num_special=special.num_special,
        keeps_end=tokenizer.keeps_end,
        is_typed=special.is_typed,
    )


def lettered(prompt: Prompt, tokenizer: Tokenizer, query: str, limits: Limits) -> Frame:
    """`A: query`, `B: passage` and a task after them: FlagEmbedding's LLM rerankers.

    The reference adds the length of the last separator and the task to max_length, cuts, and only then appends
    them: an input can be twice their length longer than max_length.
    """
    between = tokenizer.encode(prompt.separator)
    after = between + tokenizer.encode(prompt.filled(prompt.task))
    bos_id = tokenizer.bos_id(prompt.bos_id)
    before = [] if bos_id is None else [bos_id]
    return Frame(
        limits=_with_parts(limits, limits.max_length, len(after)),
        before=before,
        query=tokenizer.encode(prompt.query + query),
        between=between,
        after=after,
        num_special=len(before) + len(between),
        lead=prompt.passage,
        max_passage=limits.max_length,
        keeps_end=tokenizer.keeps_end,
    )


def chat(prompt: Prompt, tokenizer: Tokenizer, query: str, limits: Limits) -> Frame:
    """A chat of one turn with parts tokenised alone: mxbai-rerank-v2.

    max_length counts query, separator and document; it is lowered where the fixed words would not fit beside it.
    """
    before = tokenizer.encode_prompt(prompt.system)
    between = tokenizer.encode(prompt.separator)
    after = between + tokenizer.encode(prompt.filled(prompt.task)) + tokenizer.encode_prompt(prompt.answer)
    lead = prompt.filled(prompt.query_lead) if prompt.instruction else ""
    longest = limits.max_length
    if prompt.max_positions is not None:
        longest = max(min(longest, prompt.max_positions - len(before) - len(after)), 1)
    return Frame(
        limits=_with_parts(limits, longest, 0),
        before=before,
        query=tokenizer.encode(lead + prompt.query + query),
        between=between,
        after=after,
        num_special=len(between),
        lead=prompt.passage,
        max_passage=longest,
        keeps_end=tokenizer.keeps_end,
    )


def one_text(
    prompt: Prompt, tokenizer: Tokenizer, query: str, limits: Limits, *, before: Sequence[int] | None = None
) -> Frame:
    """A chat whose instruction, query and document are one text, cut on the right: Qwen3-Reranker.

    A long query pushes the document out. max_length counts everything, in either truncation.
    """
    before = tokenizer.encode_prompt(prompt.system) if before is None else before
    after = tokenizer.encode_prompt(prompt.answer)
    if limits.max_query_length is not None:
        offsets = tokenizer.encode_with_offsets(query)[1][: limits.max_query_length]
        query = query[: offsets[-1][1]] if offsets else ""
    head = prompt.filled(prompt.query_lead) + prompt.query + query + prompt.separator + prompt.passage
    return Frame(
        limits=replace(limits, truncation="only_second", max_query_length=0),
        before=before,
        query=[],
        between=[],
        after=after,
        num_special=len(before) + len(after),
        lead=head,
        lead_ids=tokenizer.encode(head.rstrip(" ")),  # the space belongs to the document's first word
        keeps_end=tokenizer.keeps_end,
    )


def turns(prompt: Prompt, tokenizer: Tokenizer, query: str, limits: Limits) -> Frame:
    """What a chat template of the checkpoint's own writes around a pair, tokenised as one text and cut on the right.

    Special tokens end a text for a tokenizer, so what stands between them can be read apart. max_length counts
    everything, in either truncation, and a long query pushes the passage out.
    """
    before, opening = tokenizer.encode_head(prompt.filled(prompt.system))
    if not tokenizer.names_special(prompt.separator):  # query and passage are one text
        return one_text(
            replace(prompt, query=opening, passage="", system=""), tokenizer, query, limits, before=before
        )
    between, lead = tokenizer.encode_head(prompt.separator)
    after = tokenizer.encode_prompt(prompt.answer)
    num_special = len(before) + len(between) + len(after)
    cap = limits.max_query_length
    room = max(limits.max_length - num_special, 0)
    return Frame(
        limits=replace(limits, truncation="only_second", max_query_length=room if cap is None else min(cap, room)),
        before=before,
        query=tokenizer.encode(opening + query),
        between=between,
        after=after,
        num_special=num_special,
        lead=lead,
        lead_ids=tokenizer.encode(lead.rstrip(" ")),
        keeps_end=tokenizer.keeps_end,
    )


def _with_parts(limits: Limits, max_length: int, extra: int) -> Limits:
    """Limits for query and passage alone; the query's share is counted without the `extra` tokens."""
    cap = limits.max_query_length
    longest_query = max_length * 3 // 4 if cap is None else cap
    return replace(limits, max_length=max_length + extra, max_query_length=longest_query)


FrameOf = Callable[[Prompt, Tokenizer, str, Limits], Frame]
TEMPLATES: dict[str, FrameOf] = {
    "pair": pair,
    "lettered": lettered,
    "chat": chat,
    "one_text": one_text,
    "turns": turns,
}

__all__ = ["TRUNCATIONS", "Limits", "Prompt", "Recipe"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One family's way with a pair. probability = sigmoid((score - midpoint) / temperature).

    head names the head that reads the score (models/heads.py); answers are the tokens whose logits make it, each an
    id or a text whose first token it is: the first, less the second where there are two.
    """

    family: str
    truncation: str = "longest_first"
    template: str = "pair"
    prompt: Prompt = field(default_factory=Prompt)
    head: str = "classifier"
    answers: tuple[str | int, ...] = ()
    midpoint: float = 0.0
    temperature: float = 1.0
    max_length: int | None = None  # None: as long as the checkpoint allows
    default_length: int | None = None  # what the reference takes where nobody asks; None: the longest

    def rows(self, tokenizer: Tokenizer, query: str, passages: Sequence[str], limits: Limits) -> list[Row]:
        """One row per passage; the query is tokenised once."""
        return self.frame(tokenizer, query, limits).rows(tokenizer, passages)

    def frame(self, tokenizer: Tokenizer, query: str, limits: Limits) -> Frame:
        """What stands around every passage of a query."""
        return TEMPLATES[self.template](self.prompt, tokenizer, query, limits)

    def answer_ids(self, tokenizer: Tokenizer) -> list[int]:
        """The token of each answer."""
        return [answer if isinstance(answer, int) else tokenizer.encode(answer)[0] for answer in self.answers]

    def instructed(self, instruction: str | None) -> Recipe:
        """The recipe with another instruction; None leaves the family's own. Raises ValueError for an encoder."""
        if instruction is None:
            return self
        if self.template == "pair":
            raise ValueError(f"instruction is given, but a {self.family} model reads only query and passage")
        if self.template == "turns" and "{instruction}" not in self.prompt.system:
            raise ValueError("instruction is given, but the checkpoint's chat template has no place for one")
        return replace(self, prompt=replace(self.prompt, instruction=instruction))
