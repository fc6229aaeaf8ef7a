"""The embedded model: what a new user sees of it, and that it is all-MiniLM-L6-v2 as an embedder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from secondpass import Embedder, Reranker

# Written by hand, a kind, a query and a passage each; no weight of the model was chosen by them.
EVERYDAY = [line.split("\t") for line in (Path(__file__).parent / "everyday.tsv").read_text("utf-8").splitlines()]
ANSWERS, PARAPHRASES, UNRELATED = (
    [(query, passage) for kind, query, passage in EVERYDAY if kind == wanted]
    for wanted in ("answer", "paraphrase", "unrelated")
)
HANDBOOK = Path(__file__).parent.parent / "examples" / "handbook.md"
TEXTS = (
    "How long do rechargeable batteries keep their charge?",
    "Stored cells lose about a fifth of their energy in a month.",
    "The kettle is on the stove.",
    "git rebase --onto main topic~3 topic",
    "",
    "Photosynthesis turns light, water and carbon dioxide into sugar. " * 40,  # cut at 256 tokens
)
# transformers 4.57.6, float32, means of the token states of sentence-transformers/all-MiniLM-L6-v2
COSINES = (
    (1.0, 0.39478, -0.04563, -0.00465, -0.00999, -0.01201),
    (0.39478, 1.0, 0.04983, 0.02663, -0.026, 0.14887),
    (-0.04563, 0.04983, 1.0, -0.01179, 0.01328, 0.08567),
    (-0.00465, 0.02663, -0.01179, 1.0, 0.03652, 0.0604),
    (-0.00999, -0.026, 0.01328, 0.03652, 1.0, -0.09057),
    (-0.01201, 0.14887, 0.08567, 0.0604, -0.09057, 1.0),
)
FIRST = (0.02608, 0.0525, -0.07047, 0.07156, -0.00425, -0.03314)


GROWTH = """
import random, sys
from pathlib import Path
from secondpass import Reranker
from secondpass.types import Row, Run

def megabytes():
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) / 1024

engine, chance = Reranker("default", engine="openvino", passage_cache_bytes=0)._scoring.engine, random.Random(1)
def run(splits):
    for split in splits:
        engine.run([Row([101, *[2000] * (510)], (split, 511)) for _ in range(2)], Run())
run(range(2, 500, 16))
before = megabytes()
run(chance.sample(range(2, 500), 200))
print(megabytes() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_does_not_grow_with_how_a_row_is_divided() -> None:
    """OpenVINO keeps what it made for each shape, those inside of the graph too: some 0.5 MB for each division."""
    shown = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True)
    assert float(shown.stdout) < 30


@pytest.fixture(scope="module")
def reranker() -> Reranker:
    return Reranker()


def test_answers_are_likely_and_unrelated_texts_are_not(reranker: Reranker) -> None:
    answers, unrelated = (
        [reranker.probability(score) for score in reranker.score_pairs(pairs)] for pairs in (ANSWERS, UNRELATED)
    )
    assert min(answers) > 0.8
    assert max(unrelated) < 0.1


def test_a_paraphrase_without_a_shared_word_is_above_every_unrelated_text(reranker: Reranker) -> None:
    assert min(reranker.score_pairs(PARAPHRASES)) > max(reranker.score_pairs(UNRELATED)) + 1


def test_the_readme_s_question_finds_its_paragraph(reranker: Reranker) -> None:
    paragraphs = [part for part in HANDBOOK.read_text("utf-8").split("\n\n") if not part.startswith("#")]
    first, second = reranker.rank("the tap keeps dripping, what can I do", paragraphs, top_n=2)
    assert first.document.text.startswith("A tap that lets water past")
    assert first.probability > 2 * second.probability


@pytest.mark.parametrize(("dtype", "tolerance"), [("auto", 1e-3), ("bfloat16", 4e-3)])
def test_the_embedder_is_all_minilm_l6_v2(dtype: str, tolerance: float) -> None:
    embedder = Embedder(dtype=dtype)
    vectors = embedder.encode(TEXTS)
    assert embedder.info().engine == "openvino"
    assert np.abs(vectors @ vectors.T - COSINES).max() < tolerance
    assert np.abs(vectors[0, : len(FIRST)] - FIRST).max() < tolerance


def test_torch_reads_the_same_weights(reranker: Reranker) -> None:
    pairs = [*ANSWERS[:3], *UNRELATED[:3]]
    exact = Reranker(engine="torch", dtype="float32", device="cpu").score_pairs(pairs)
    assert reranker.score_pairs(pairs) == pytest.approx(exact, abs=0.1)
    assert Reranker(dtype="float32").score_pairs(pairs) == pytest.approx(exact, abs=1e-3)
