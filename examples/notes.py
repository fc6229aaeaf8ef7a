"""A folder of notes, indexed and asked; again, and only what changed is read: python notes.py [FOLDER QUESTION]"""

import sys
from pathlib import Path

from secondpass import Index

here = Path(__file__).parent
folder, question = sys.argv[1:] or [here / "notes", "which ssh port does the server use"]
index = Index("example-notes", create=True)
report = index.add(folder)
print(f"{report.added} added, {report.changed} changed, {report.unchanged} unchanged, {report.chunks} chunks")

for title, options in {"By relevance": {}, "With what is newer first": {"cognitive": True}}.items():
    print(f"\n{title}: {question}?")
    for hit in index.search(question, top_n=2, explain=True, **options):
        start, stop = index.winning_sentence(question, hit)
        parts = hit.parts or {}
        file = Path(hit.document["path"]).name
        print(f"{hit.probability:.2f}  {file}:{hit.document['line']}  {hit.document['heading']}")
        print(f"      {hit.document.text[start:stop]}")
        print(f"      words {parts.get('bm25_rank', '-')}, vectors {parts.get('dense_rank', '-')}, ", end="")
        print(f"logit {parts['logit']:+.2f}, evidence {parts.get('evidence', 0.0):+.2f}")
index.close()
