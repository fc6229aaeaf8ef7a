"""OpenAI's own client: which models there are, and a plain word where the loaded one does not embed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.clients.conftest import Live
from tests.server.clients.question import KEY

pytestmark = pytest.mark.clients


@pytest.fixture
def openai(live: Live) -> Any:
    from openai import OpenAI

    return OpenAI(api_key=KEY, base_url=f"{live.url}/v1", max_retries=0)


def test_models(openai: Any) -> None:
    models = list(openai.models.list())
    assert [model.id for model in models] == ["default"]
    assert models[0].owned_by == "secondpass"


def test_a_reranker_does_not_embed(openai: Any) -> None:
    from openai import BadRequestError

    with pytest.raises(BadRequestError) as raised:
        openai.embeddings.create(model="default", input=["a"])
    assert "embed" in raised.value.body["message"]
