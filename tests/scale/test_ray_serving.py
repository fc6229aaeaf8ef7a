"""Serving on Ray, for real: two replicas of the embedded model, 16 clients, processes that are killed."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from secondpass import Reranker
from secondpass.server.settings import SettingsError
from tests.scale.served import DOCUMENTS, QUERY, Clients, Served, ask, get, serve

pytest.importorskip("ray")
from secondpass.scale.serving import build

pytestmark = pytest.mark.clients
ROOT = Path(__file__).parents[2]
MULTILINGUAL = ROOT / "packages" / "multilingual" / "src"
COMMAND = [sys.executable, "-m", "secondpass", "serve", "--port", "0"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    models = ["--model", "default=default", "--embedder", "vectors=default"]
    command = [*COMMAND, *models, "--on", "ray", "--replicas", "1..2", "--cpus", "0.25"]
    with serve(command, log=tmp_path_factory.mktemp("served") / "log") as found:
        wait_until_ready(found.url)
        yield found


@pytest.mark.promise("docs/scale.md", "whose engine is stuck for `stall_s`")
def test_a_replica_whose_engine_hangs_is_replaced_and_its_calls_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is "auto", with the multilingual one beside it in each replica."""
    monkeypatch.setenv("STUCK_FILE", str(tmp_path / "stuck"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(MULTILINGUAL), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "tests.scale.stuck", *COMMAND[3:], "--set", "stall_s=2"]
    with serve([*command, "--on", "ray", "--replicas", "2", "--cpus", "0.25"], log=tmp_path / "log") as found:
        wait_until_ready(found.url)
        connection = HTTPConnection(urlsplit(found.url).netloc, timeout=60)
        assert [card["id"] for card in json.loads(get(found.url, "/v1/models"))["data"]] == [
            "default",
            "multilingual",
        ]
        chinese = {"query": "长江有多长", "documents": ["长江全长约6300公里。", "今天下雨。"]}
        chosen, named = ask(connection, **chinese)[1], ask(connection, model="multilingual", **chinese)[1]
        assert chosen["results"] == named["results"] and chosen["results"][0]["index"] == 0
        assert ask(connection, model="multilingual")[1]["results"] != ask(connection)[1]["results"]
        before = found.replicas("model-default")
        with Clients(found.url) as clients:
            clients.wait_for(50)
            (tmp_path / "stuck").touch()
            end = time.monotonic() + 90
            while len(set(before) & set(found.replicas("model-default"))) == 2:
                assert time.monotonic() < end, "nobody noticed"
                time.sleep(0.2)
            gone = set(before) - set(found.replicas("model-default"))
            wait_for_replicas(found, "model-default", [*gone, 0])
            clients.wait_for(100)
    check(clients)
    assert not (tmp_path / "stuck").exists() and all(reply.status == 200 for reply in clients.replies)


def test_the_manifest_for_kubernetes_is_what_ray_reads(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    from ray.serve.schema import ServeDeploySchema

    config, service = yaml.safe_load_all((ROOT / "deploy" / "kuberay.yaml").read_text("utf-8"))
    (tmp_path / "serve.toml").write_text(config["data"]["serve.toml"])
    wanted = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (application,) = wanted.applications
    assert application.import_path == "secondpass.scale.serving:build"
    assert application.args["config"] == "/etc/secondpass/serve.toml"
    build({**application.args, "config": str(tmp_path / "serve.toml")})
    with pytest.raises(SettingsError, match="gpu is no argument; there are config, replicas, cpus, gpus"):
        build({**application.args, "gpu": 1})


def wait_until_ready(url: str, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not json.loads(get(url, "/ready"))["ready"]:
        assert time.monotonic() < end, get(url, "/health")
        time.sleep(0.2)


def wait_for_replicas(served: Served, name: str, others: list[int], seconds: float = 90.0) -> None:
    """Until there are as many as before, and none of `others` is."""
    end = time.monotonic() + seconds
    while set(found := served.replicas(name)) & set(others) or len(found) < len(others):
        assert time.monotonic() < end, (found, others)
        time.sleep(0.2)


def check(clients: Clients) -> None:
    """Every request was answered rightly, or refused in the form of the dialect; none was lost."""
    expected = {hit.index: hit.probability for hit in Reranker().rank(QUERY, DOCUMENTS)}
    for reply in clients.replies:
        if reply.status == 200:
            scores = {each["index"]: each["relevance_score"] for each in reply.body["results"]}
            assert {index: scores[index] for index in expected} == pytest.approx(expected, abs=2e-3)
        else:
            assert reply.status == 503, reply
            assert reply.body["error_type"] == "unavailable" and reply.body["message"], reply


def test_it_is_the_same_server(served: Served) -> None:
    connection = HTTPConnection(urlsplit(served.url).netloc, timeout=60)
    status, body = ask(connection)
    hits = list(Reranker().rank(QUERY, DOCUMENTS))
    assert status == 200 and [each["index"] for each in body["results"]] == [hit.index for hit in hits]
    assert ask(connection, "another")[0] == 401
    status, body = ask(connection, documents=[])
    assert status == 400 and "documents" in body["message"]
    status, body = ask(connection, model="vectors")
    assert status == 422 and "is no reranker" in body["message"]
    metrics = get(served.url, "/metrics").decode()
    assert 'secondpass_requests_total{dialect="cohere",route="/v1/rerank",status="200"} 1.0' in metrics
    assert 'secondpass_batch_tokens_count{model="default"} 1.0' in metrics
    health = json.loads(get(served.url, "/health"))
    assert {name: model["replicas"] for name, model in health["models"].items()} == {"default": 1, "vectors": 1}
    assert b"<!doctype html>" in get(served.url, "/", key="")
    cards = json.loads(get(served.url, "/v1/models"))["data"]
    assert [card["id"] for card in cards] == ["default", "vectors"]


def test_models_are_chosen_by_name(served: Served) -> None:
    connection = HTTPConnection(urlsplit(served.url).netloc, timeout=60)
    headers = {"Authorization": "Bearer k", "Content-Type": "application/json"}
    connection.request("POST", "/v1/embeddings", json.dumps({"input": ["a river"], "model": "vectors"}), headers)
    with connection.getresponse() as response:
        body = json.loads(response.read())
    assert response.status == 200 and body["model"] == "vectors" and len(body["data"][0]["embedding"]) == 384


def test_replicas_follow_the_work_and_a_killed_one_loses_no_request(served: Served) -> None:
    with Clients(served.url, fresh=24) as clients:
        wait_for_replicas(served, "model-default", [0, 0])
        wait_until_ready(served.url)
        before = served.replicas("model-default")
        assert len(before) == 2
        clients.wait_for(100)
        os.kill(before[0], signal.SIGKILL)
        clients.wait_for(100)
        wait_for_replicas(served, "model-default", before[:1])
        clients.wait_for(100)
    check(clients)
    assert sum(reply.status == 200 for reply in clients.replies) > 0.95 * len(clients.replies)


def test_a_killed_front_is_refused_in_the_dialects_form(served: Served) -> None:
    (front,) = served.replicas("front")
    with Clients(served.url) as clients:
        clients.wait_for(100)
        os.kill(front, signal.SIGKILL)
        clients.wait_for(100, seconds=90)
    check(clients)
    assert clients.replies[-1].status == 200


def test_new_keys_are_an_update_that_loses_no_request(served: Served) -> None:
    """SIGHUP deploys the fronts anew."""
    (before,) = served.replicas("front")
    with Clients(served.url) as clients:
        clients.wait_for(100)
        served.process.send_signal(signal.SIGHUP)
        wait_for_replicas(served, "front", [before], seconds=180)
        clients.wait_for(100)
    check(clients)
    assert [reply.body for reply in clients.replies if reply.status != 200] == []


@pytest.mark.promise("docs/scale.md", "SIGTERM of a command that started Ray finishes what was accepted")
def test_sigterm_finishes_what_was_accepted(served: Served) -> None:
    """One request's body is half sent when the signal comes. The last test, since it ends the server."""
    body = json.dumps({"query": QUERY, "documents": DOCUMENTS}).encode()
    slow = HTTPConnection(urlsplit(served.url).netloc, timeout=60)
    slow.putrequest("POST", "/v1/rerank")
    for header, value in {"Authorization": "Bearer k", "Content-Length": str(len(body))}.items():
        slow.putheader(header, value)
    with Clients(served.url) as clients:
        clients.wait_for(100)
        slow.endheaders(body[:100])
        time.sleep(0.5)
        told = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        time.sleep(1.5)
        slow.send(body[100:])
        assert slow.getresponse().status == 200
        assert served.process.wait(60) == 0
    accepted = [reply for reply in clients.replies if reply.at < told]
    assert len(accepted) > 100 and not [reply for reply in accepted if reply.status != 200]
    later = [reply for reply in clients.replies if reply.at >= told]
    assert not [reply for reply in later if reply.status not in (200, 503, None)]  # None: nobody listens any more
