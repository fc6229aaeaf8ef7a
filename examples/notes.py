"""A folder of notes, indexed and asked; run it again and only what changed is read."""

import sys

from secondpass import Index

folder, question = (sys.argv[1:] or ["examples", "how does a second pass help"])[:2]
index = Index("example-notes", create=True)
report = index.add(folder)
print(f"{report.added} added, {report.changed} changed, {report.unchanged} unchanged, {report.chunks} chunks")
for hit in index.search(question, top_n=3, explain=True):
    print(f"{hit.probability:.2f}  {hit.document['path']}:{hit.document['line']}  {hit.document['heading']}")
    print(f"      {dict(hit.parts or {})}")
