"""Recipes: how one family writes a (query, passage) pair as tokens, cuts it, and what its score means.

Everything here is exact: the same ids as the family's reference code, or the scores are not the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from secondpass.text.templates import TEMPLATES, Frame, Prompt
from secondpass.text.tokenizer import Tokenizer
from secondpass.text.truncation import TRUNCATIONS, Limits
from secondpass.types import Row

__all__ = ["TRUNCATIONS", "Limits", "Prompt", "Recipe"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One family's way with a pair. probability = sigmoid(score - midpoint).

    head names the head that reads the score (models/heads.py); answers are the texts whose first tokens' logits
    make it: the first, less the second where there are two.
    """

    family: str
    truncation: str = "longest_first"
    template: str = "pair"
    prompt: Prompt = field(default_factory=Prompt)
    head: str = "classifier"
    answers: tuple[str, ...] = ()
    midpoint: float = 0.0
    max_length: int | None = None  # None: as long as the checkpoint allows
    default_length: int | None = None  # what the reference takes where nobody asks; None: the longest

    def rows(self, tokenizer: Tokenizer, query: str, passages: Sequence[str], limits: Limits) -> list[Row]:
        """One row per passage; the query is tokenised once."""
        return self.frame(tokenizer, query, limits).rows(tokenizer, passages)

    def frame(self, tokenizer: Tokenizer, query: str, limits: Limits) -> Frame:
        """What stands around every passage of a query."""
        return TEMPLATES[self.template](self.prompt, tokenizer, query, limits)

    def answer_ids(self, tokenizer: Tokenizer) -> list[int]:
        """The first token of each answer."""
        return [tokenizer.encode(answer)[0] for answer in self.answers]

    def instructed(self, instruction: str | None) -> Recipe:
        """The recipe with another instruction; None leaves the family's own. Raises ValueError for an encoder."""
        if instruction is None:
            return self
        if self.template == "pair":
            raise ValueError(f"instruction is given, but a {self.family} model reads only query and passage")
        return replace(self, prompt=replace(self.prompt, instruction=instruction))
