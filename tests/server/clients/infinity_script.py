"""Run by the python of infinity_client's environment: ranks over its clients and prints what they found.

Arguments: the server's address, a key, and the question as JSON: {"query": ..., "documents": [...]}.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from infinity_client import AuthenticatedClient, Client
from infinity_client.api.default import rerank
from infinity_client.models import RerankInput
from langchain_community.document_compressors import InfinityRerank
from langchain_core.documents import Document


def own(client: Any, query: str, documents: list[str], *, raw_scores: bool) -> list[dict[str, Any]]:
    body = RerankInput(query=query, documents=documents, return_documents=True, raw_scores=raw_scores, top_n=3)
    answer = rerank.sync(client=client, body=body)
    return [{"index": hit.index, "score": hit.relevance_score, "text": hit.document} for hit in answer.results]


def langchain(client: Any, query: str, documents: list[str]) -> list[dict[str, Any]]:
    compressor = InfinityRerank(client=client, model="default", top_n=3)
    given = [Document(text, metadata={"place": i}) for i, text in enumerate(documents)]
    kept = compressor.compress_documents(given, query)
    return [
        {"index": hit.metadata["place"], "score": hit.metadata["relevance_score"], "text": hit.page_content}
        for hit in kept
    ]


def refused(client: Any, query: str) -> dict[str, Any]:
    answer = rerank.sync_detailed(client=client, body=RerankInput(query=query, documents=[]))
    return {
        "status": int(answer.status_code),
        "place": answer.parsed.detail[0].loc,
        "words": answer.parsed.detail[0].msg,
    }


def main(url: str, key: str, question: str) -> None:
    asked = json.loads(question)
    named = AuthenticatedClient(base_url=f"{url}/infinity", token=key)
    plain = Client(base_url=url, headers={"Authorization": f"Bearer {key}"})  # the only class that LangChain takes
    found = {
        "own": own(named, **asked, raw_scores=False),
        "own, logits": own(named, **asked, raw_scores=True),
        "own, without the prefix": own(plain, **asked, raw_scores=False),
        "langchain": langchain(plain, **asked),
        "refused": refused(named, asked["query"]),
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
