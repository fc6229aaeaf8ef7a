"""infinity's client and LangChain's around it, in an environment of their own: it pins an older httpx."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.server.clients.conftest import Live
from tests.server.clients.question import KEY, PASSAGES, QUERY, Truth

PYTHON = "SECONDPASS_INFINITY_PYTHON"
pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(PYTHON not in os.environ, reason=f"{PYTHON} names no python that has infinity_client"),
]


@pytest.fixture
def found(live: Live, record: None) -> dict[str, Any]:
    """What the clients found."""
    question = json.dumps({"query": QUERY, "documents": list(PASSAGES)})
    command = [os.environ[PYTHON], str(Path(__file__).parent / "infinity_script.py"), live.url, KEY, question]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.dialect("infinity_client", "infinity")
def test_infinity_client(found: dict[str, Any], right: Truth) -> None:
    for name in ("own", "own, without the prefix", "langchain"):
        hits = found[name]
        right.check([hit["index"] for hit in hits], [hit["score"] for hit in hits], top_n=3)
        assert [hit["text"] for hit in hits] == [PASSAGES[hit["index"]] for hit in hits]
    hits = found["own, logits"]
    right.check_logits([hit["index"] for hit in hits], [hit["score"] for hit in hits], top_n=3)
    assert found["refused"]["status"] == 422
    assert found["refused"]["place"] == ["body", "documents"]
    assert "documents is empty" in found["refused"]["words"]
