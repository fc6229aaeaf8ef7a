"""Ranks the paragraphs of the handbook for each question: python examples/rerank.py"""

from pathlib import Path

from secondpass import Reranker

here = Path(__file__).parent
passages = [text for text in (here / "handbook.md").read_text("utf-8").split("\n\n") if not text.startswith("#")]
reranker = Reranker()  # the embedded English model; any hub name or folder works too

for question in (here / "questions.txt").read_text("utf-8").splitlines():
    print(question)
    for hit in reranker.rank(question, passages, top_n=2):
        print(f"  {hit.probability:.2f}  {hit.document.text[:100]}")
