"""A served model with a calibration: what every dialect then says, over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from secondpass import RemoteReranker, Reranker
from secondpass.calibration import Calibration
from secondpass.server.settings import ModelSource
from tests.checkpoints import tiny_bert
from tests.server.live import serving

QUERY = "where is the bridge"
DOCUMENTS = ["a river", "the old bridge in the city", "snow and wind"]
PLAIN: dict[str, Any] = {"query": QUERY, "documents": DOCUMENTS}
TEXTS: dict[str, Any] = {"query": QUERY, "texts": DOCUMENTS}
PAIRS: dict[str, Any] = {"text_1": QUERY, "text_2": DOCUMENTS}
NIM: dict[str, Any] = {"query": {"text": QUERY}, "passages": [{"text": text} for text in DOCUMENTS]}
CALIBRATION = Calibration(slope=0.4, intercept=-2.5)


@dataclass(frozen=True)
class Place:
    url: str
    model: Path
    file: Path
    logits: list[float]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("calibrated")
    model = tiny_bert(folder / "model")
    file = CALIBRATION.save(folder / "calibration.json")
    with serving(model, calibration=(str(file),)) as url:
        yield Place(url, model, file, Reranker(model).score(QUERY, DOCUMENTS))


def results(body: Any, name: str) -> list[float]:
    """The numbers of a list of objects, in input order."""
    return [item[name] for item in sorted(body, key=lambda item: item["index"])]


@pytest.mark.parametrize(
    ("path", "body", "read"),
    [
        ("/api/rank", PLAIN, lambda body: results(body["results"], "probability")),
        ("/v1/rerank", PLAIN, lambda body: results(body["results"], "relevance_score")),
        ("/v2/rerank", PLAIN, lambda body: results(body["results"], "relevance_score")),
        ("/jina/rerank", PLAIN, lambda body: results(body["results"], "relevance_score")),
        ("/voyage/rerank", PLAIN, lambda body: results(body["data"], "relevance_score")),
        ("/vllm/rerank", PLAIN, lambda body: results(body["results"], "relevance_score")),
        ("/vllm/v1/score", PAIRS, lambda body: results(body["data"], "score")),
        ("/tei/rerank", TEXTS, lambda body: results(body, "score")),
        ("/infinity/rerank", PLAIN, lambda body: results(body["results"], "relevance_score")),
        ("/v1/inference/any", {"queries": [QUERY], "documents": DOCUMENTS}, lambda body: body["scores"]),
    ],
)
def test_probabilities_are_the_calibrations(
    place: Place, path: str, body: dict[str, Any], read: Callable[[Any], list[float]]
) -> None:
    answer = httpx.post(place.url + path, json=body)
    assert answer.status_code == 200, answer.text
    expected = [CALIBRATION.probability(logit) for logit in place.logits]
    assert read(answer.json()) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("path", "body", "read"),
    [
        ("/api/rank", PLAIN, lambda body: results(body["results"], "score")),
        ("/logits/v2/rerank", PLAIN, lambda body: results(body["results"], "relevance_score")),
        (
            "/vllm/rerank",
            {**PLAIN, "use_activation": False},
            lambda body: results(body["results"], "relevance_score"),
        ),
        ("/tei/rerank", {**TEXTS, "raw_scores": True}, lambda body: results(body, "score")),
        ("/v1/ranking", NIM, lambda body: results(body["rankings"], "logit")),
    ],
)
def test_logits_stay_the_models(
    place: Place, path: str, body: dict[str, Any], read: Callable[[Any], list[float]]
) -> None:
    assert read(httpx.post(place.url + path, json=body).json()) == pytest.approx(place.logits, abs=1e-5)


def test_the_client_gets_both(place: Place) -> None:
    with RemoteReranker(place.url) as remote:
        found = {hit.index: (hit.score, hit.probability) for hit in remote.rank(QUERY, DOCUMENTS)}
    for index, logit in enumerate(place.logits):
        assert found[index] == pytest.approx((logit, CALIBRATION.probability(logit)), abs=1e-5)


def test_each_model_has_its_own(place: Place) -> None:
    """One by its options, one by name, one none."""
    other = Calibration(slope=2.0, intercept=1.0).save(place.file.with_name("other.json"))
    path = str(place.model)
    models = (
        ModelSource(name="plain", path=path),
        ModelSource(name="named", path=path),
        ModelSource(name="own", path=path, calibration=str(other)),
    )
    with serving(models=models, calibration=(f"named={place.file}",)) as url:
        for name, calibration in (
            ("plain", Calibration(slope=1.0, intercept=0.0)),
            ("named", CALIBRATION),
            ("own", Calibration.load(other)),
        ):
            answer = httpx.post(f"{url}/v2/rerank", json={**PLAIN, "model": name}).json()
            expected = [calibration.probability(logit) for logit in place.logits]
            assert results(answer["results"], "relevance_score") == pytest.approx(expected, abs=1e-5), name
