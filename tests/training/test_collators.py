"""Groups: each example once an epoch, the same for the same seed, whatever was drawn before."""

from __future__ import annotations

from secondpass.training.collators import Group, Sampler, group_sampler
from secondpass.training.settings import factor
from tests.training.toy import toy_examples

EXAMPLES = toy_examples(10, num_negatives=6, has_scores=True)


def sampler(seed: int = 1) -> Sampler[Group]:
    return group_sampler(EXAMPLES, batch=4, num_negatives=3, seed=seed)


def test_every_example_is_seen_once_an_epoch() -> None:
    drawn = sampler()
    assert drawn.steps_per_epoch == 3
    for epoch in (0, 1):
        groups = [group for step in range(3) for group in drawn.items(3 * epoch + step)]
        assert sorted(group.passages[0] for group in groups) == sorted(one.positives[0] for one in EXAMPLES)
        assert all(len(set(group.passages)) == len(group.passages) == 4 for group in groups)


def test_a_step_does_not_depend_on_the_steps_before() -> None:
    drawn = sampler()
    forward = [drawn.items(step) for step in range(6)]
    assert [sampler().items(step) for step in (5, 0, 3)] == [forward[step] for step in (5, 0, 3)]
    assert forward[:3] != forward[3:]
    assert sampler(2).items(0) != forward[0]


def test_scores_go_with_their_passages() -> None:
    by_passage = {
        (one.query, text): score
        for one in EXAMPLES
        for text, score in zip(
            one.positives + one.negatives,
            (*one.positive_scores, *one.negative_scores),
            strict=True,  # type: ignore[misc]
        )
    }
    for group in sampler().items(0):
        assert group.teacher == tuple(by_passage[group.query, text] for text in group.passages)


def test_the_rate_rises_and_falls() -> None:
    linear = [factor(step, 10, schedule="linear", warmup=0.2) for step in range(10)]
    assert linear[:3] == [0.5, 1.0, 1.0]
    assert linear[2:] == sorted(linear[2:], reverse=True)
    assert 0 < linear[-1] < 0.2
    cosine = [factor(step, 11, schedule="cosine", warmup=0) for step in range(12)]
    assert cosine[0] == 1.0
    assert abs(cosine[11]) < 1e-9
    assert {factor(step, 10, schedule="constant", warmup=0) for step in range(10)} == {1.0}
