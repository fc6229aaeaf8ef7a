"""What serving on Ray is made of; with Ray itself in test_ray_serving.py."""

from __future__ import annotations

import asyncio
import os
import pickle
from collections.abc import MutableMapping
from types import SimpleNamespace
from typing import Any

import pytest

from secondpass.errors import MissingExtra, SecondpassError
from secondpass.scale import ray as scale_ray
from secondpass.scale.ray import Actors, over_devices
from secondpass.scale.serving import (
    Answered,
    RefusedInDialect,
    ReplicaService,
    _alone,
    _check_resources,
    deployment_name,
    wanted_replicas,
)
from secondpass.server.registry import find_name
from secondpass.server.service import CallContext
from secondpass.server.settings import ModelSource, Settings
from secondpass.wire.calls import Cost, Fault, ModelCard, Ranked, Refusal, RerankCall, Timing


@pytest.mark.parametrize(
    ("queued_s", "busy", "wanted"),
    [({}, {}, 1), ({"a": 0.4}, {"a": 0.5}, 1), ({"a": 0.9, "b": 0.7}, {"a": 1.0, "b": 1.0}, 4), ({}, {"a": 0.9}, 2)],
)
def test_replicas_follow_the_tokens_that_wait_and_the_time_at_work(
    queued_s: dict[str, float], busy: dict[str, float], wanted: int
) -> None:
    context = SimpleNamespace(aggregated_metrics={"queued_s": queued_s, "busy": busy})
    assert wanted_replicas(context) == (wanted, {})
    assert wanted_replicas(SimpleNamespace(aggregated_metrics=None)) == (1, {})


def test_numbers_of_actors_are_read_from_words() -> None:
    assert Actors.of("3", gpus=1.0) == Actors(min_size=3, max_size=3, gpus=1.0)
    assert Actors.of("2..8") == Actors(min_size=2, max_size=8)
    for words in ("", "two", "2..", "..3", "-1"):
        with pytest.raises(ValueError, match="give one, or two as in"):
            Actors.of(words)
    with pytest.raises(ValueError, match="8 to 2 actors"):
        Actors.of("8..2")


def test_a_list_of_devices_is_an_actor_on_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", {})
    assert over_devices("cpu,cpu,cpu") == ("cpu", Actors(min_size=3, max_size=3))
    assert over_devices("cuda:1, cuda:3") == ("cuda", Actors(min_size=2, max_size=2, gpus=1.0))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1,3"
    over_devices("cuda:1,cuda:0")  # of those that are seen now
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,1"
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES shows 3, 1"):
        over_devices("cuda:0,cuda:2")
    with pytest.raises(ValueError, match="give several of one kind, as in cuda:0,cuda:1"):
        over_devices("cuda:0,cpu")


def test_what_ray_has_no_room_for_is_refused() -> None:
    with pytest.raises(SecondpassError, match="3 replicas of 1 GPU need 3, and Ray has 2; give fewer replicas"):
        _check_resources({"CPU": 8.0, "GPU": 2.0}, Settings(), Actors.of("3..4", gpus=1.0))
    _check_resources({"CPU": 2.0}, Settings(), Actors.of("2..8"))


def test_a_missing_or_old_ray_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale_ray, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"ray is not installed; pip install \"secondpass\[ray\]\""):
        scale_ray.import_ray()
    monkeypatch.setattr(scale_ray, "find_spec", lambda name: name)
    monkeypatch.setitem(__import__("sys").modules, "ray", SimpleNamespace(__version__="2.60.1"))
    scale_ray.import_ray()
    monkeypatch.setitem(__import__("sys").modules, "ray", SimpleNamespace(__version__="2.51.1"))
    with pytest.raises(SecondpassError, match=r"ray 2\.51\.1 is too old; 2\.60 or newer is needed"):
        scale_ray.import_ray()


def test_a_refusal_travels_with_all_that_it_says() -> None:
    refusal = pickle.loads(pickle.dumps(Refusal(Fault.overloaded, "full", parameter="model", retry_after=2.0)))
    assert vars(refusal) == {"fault": Fault.overloaded, "message": "full", "parameter": "model", "retry_after": 2.0}
    assert str(refusal) == "full"


def test_a_model_is_found_by_name_alias_and_kind() -> None:
    kinds, settings = {"a": "reranker", "b": "reranker", "e": "embedder"}, Settings()
    assert find_name(kinds, "", "reranker", settings) == "a"
    assert find_name(kinds, "b", "reranker", settings) == "b"
    assert find_name(kinds, "any", "embedder", settings) == "e"
    with pytest.raises(Refusal, match="the model 'e' is no reranker"):
        find_name(kinds, "e", "reranker", settings)
    with pytest.raises(Refusal, match="no model is named 'c'; there are a, b, e"):
        find_name(kinds, "c", "reranker", settings)


def test_names_of_models_are_names_of_files() -> None:
    assert deployment_name("BAAI/bge-reranker-base") == "model-BAAI%2Fbge-reranker-base"


class Handle:
    """A replica of "auto", with the multilingual model beside it; answers with the model that it was asked for."""

    def __init__(self) -> None:
        cards = dict(revision=None, family="bert", dtype="float32", device="cpu", engine="openvino", max_length=512)
        self._cards = [ModelCard(name=name, **cards) for name in ("default", "multilingual")]  # type: ignore[arg-type]
        self.cards, self.answer = SimpleNamespace(remote=self._say), SimpleNamespace(remote=self._answer)

    async def _say(self) -> list[ModelCard]:
        return self._cards

    async def _answer(self, call: RerankCall, context: CallContext, seconds: float | None) -> Answered:
        ranked = Ranked(id="r", model=str(call.model), items=(), cost=Cost(), timing=Timing(total=0.0))
        loads = {"default": (1, 10, 0), "multilingual": (2, 20, 1)}
        return Answered(answer=ranked, replica="a", loads=loads, batches=())


def test_the_model_beside_auto_is_served_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secondpass.scale.serving._running", lambda: {"model-default": 1})
    monkeypatch.setitem(
        __import__("sys").modules, "ray.exceptions", SimpleNamespace(RayError=OSError, RayTaskError=KeyError)
    )
    errors = SimpleNamespace(BackPressureError=MemoryError, RayServeException=TimeoutError)
    monkeypatch.setitem(__import__("sys").modules, "ray.serve.exceptions", errors)

    async def models() -> list[str]:
        service = ReplicaService(Settings(), {"default": Handle()})
        await service.start()
        while not service.models():
            await asyncio.sleep(0)
        asked = [RerankCall(query="q", documents=(), model=name) for name in (None, "multilingual", "other")]
        answers = [await service.answer(call, CallContext(request_id="r")) for call in asked]
        assert [card.name for card in service.models()] == ["default", "multilingual"]
        assert service.loads() == [("default", 1, 10, 0), ("multilingual", 2, 20, 1)]
        assert service.health().models["multilingual"] == {
            "state": "ready",
            "replicas": 1,
            "waiting_requests": 2,
            "waiting_tokens": 20,
            "restarts": 1,
            "last_error": None,
        }
        service.close()
        return [answer.model for answer in answers]

    assert asyncio.run(models()) == ["default", "multilingual", "default"]


def test_a_replica_has_no_companion_where_its_name_is_anothers() -> None:
    auto, named = ModelSource(name="a", path="auto"), ModelSource(name="multilingual", path="folder")
    assert _alone(Settings(models=(auto, named)), auto).models[0].path == "default"
    assert _alone(Settings(models=(auto,)), auto).models[0].path == "auto"
    same = ModelSource(name="multilingual", path="multilingual")
    assert _alone(Settings(models=(auto, same)), auto).models[0].path == "auto"


def answers_of(ids: int, *, status: int = 200, path: str = "/v1/rerank") -> list[MutableMapping[str, Any]]:
    """What leaves the proxy of an answer with as many ids; 0: of none."""

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        if ids:
            headers = [(b"x-request-id", b"%d" % number) for number in range(ids)]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": b"text"})

    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "POST", "path": path, "headers": []}
    asyncio.run(RefusedInDialect(proxy)(scope, receive, send))
    return sent


def test_an_answer_of_the_front_passes_with_one_id() -> None:
    start, body = answers_of(2, status=429)
    assert start["status"] == 429 and start["headers"] == [(b"x-request-id", b"0")] and body["body"] == b"text"


@pytest.mark.parametrize("ids", [0, 1])
def test_an_answer_of_the_proxy_itself_is_a_refusal_of_the_dialect(ids: int) -> None:
    start, body = answers_of(ids, status=500, path="/v1/ranking")
    assert start["status"] == 503 and b"is being started, stopped or replaced" in body["body"]
    assert b"text" != body["body"] and (b"retry-after", b"1") in start["headers"]
