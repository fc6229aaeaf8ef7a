"""`/v1/embeddings` of a live server whose model embeds: the vectors are the embedder's own."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secondpass.embedder import Embedder
from secondpass.server.settings import ModelSource
from tests.server.live import serving
from tests.test_embedder import tiny_embedder

TEXTS = ["the old bridge", "a warm night by the sea and the wind"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_embedder(tmp_path_factory.mktemp("embedder"))


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with serving(models=(ModelSource(name="vectors", path=str(folder), kind="embedder"),)) as url:
        yield url


def post(url: str, **body: Any) -> tuple[int, Any]:
    head = {"content-type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/embeddings", json.dumps(body).encode(), head)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_numbers_and_base64_are_the_embedders_vectors(url: str, folder: Path) -> None:
    truth = Embedder(str(folder)).encode(TEXTS)
    status, body = post(url, model="vectors", input=TEXTS)
    assert status == 200
    assert [row["embedding"] for row in body["data"]] == pytest.approx(truth, abs=1e-6)
    _, packed = post(url, input=TEXTS, encoding_format="base64")
    for row, vector in zip(packed["data"], truth, strict=True):
        assert np.frombuffer(base64.b64decode(row["embedding"]), "<f4") == pytest.approx(vector, abs=1e-6)


def test_one_text_and_fewer_dimensions(url: str, folder: Path) -> None:
    vector = Embedder(str(folder)).encode(TEXTS[:1])[0][:4]
    _, body = post(url, input=TEXTS[0], dimensions=4)
    assert body["data"][0]["embedding"] == pytest.approx(vector / np.linalg.norm(vector), abs=1e-6)
    status, refused = post(url, input=TEXTS[0], dimensions=4096)
    assert (status, refused["error"]["param"]) == (400, "dimensions")


def test_an_embedder_does_not_rerank(url: str) -> None:
    request = urllib.request.Request(f"{url}/v1/rerank", json.dumps({"query": "q", "documents": ["a"]}).encode())
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request, timeout=30)
    with raised.value as error:
        assert error.code == 422
        assert "rerank" in json.load(error)["message"]
