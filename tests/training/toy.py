"""A toy task in the words of the tiny checkpoints: a passage answers a query when it names the same thing."""

from __future__ import annotations

import random

from secondpass.training import Data, Example

THINGS = (
    "river bridge water winter light house road tree stone fire night people king queen ship sea wind rain snow bread"
).split()
QUERIES = ("what is the {}", "where is a {}", "how old is the {}", "the {} ?")
PASSAGES = ("the {} is in the city .", "a long {} , a short one .", "people say the {} was new", "{} ! cold and warm")


def toy_examples(count: int, *, num_negatives: int = 4, seed: int = 0, has_scores: bool = False) -> list[Example]:
    """Examples of different lengths; a teacher's scores, where asked for, are 2 for the right thing and about -2."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        thing, *others = draw.sample(THINGS, num_negatives + 1)
        passages = [draw.choice(PASSAGES).format(name) + " ." * draw.randrange(6) for name in (thing, *others)]
        scores = (2.0, *(-2.0 + draw.random() for _ in others)) if has_scores else None
        found.append(
            Example(
                query=draw.choice(QUERIES).format(thing),
                positives=(passages[0],),
                negatives=tuple(passages[1:]),
                positive_scores=None if scores is None else scores[:1],
                negative_scores=None if scores is None else scores[1:],
            )
        )
    return found


def toy_data(count: int, **options: object) -> Data:
    return Data(examples=toy_examples(count, **options), names=("toy.jsonl",))  # type: ignore[arg-type]
