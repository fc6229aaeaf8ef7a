from __future__ import annotations

import asyncio
import copy
import inspect
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from secondpass import Cascade, ColBERT, Embedder, RemoteReranker, Reranker
from secondpass.errors import EngineError
from secondpass.public import in_thread
from tests.checkpoints import tiny_bert


class Slow:
    def work(self, number: int, *, times: int = 1) -> tuple[int, int]:
        return number * times, threading.get_ident()

    awork = in_thread(work)


class Other(Slow):
    def work(self, number: int, *, times: int = 1) -> tuple[int, int]:
        return -number * times, threading.get_ident()


def test_the_method_is_computed_in_a_thread_of_its_own() -> None:
    number, thread = asyncio.run(Slow().awork(3, times=2))
    assert number == 6
    assert thread != threading.get_ident()
    assert asyncio.run(Other().awork(3))[0] == -3


def test_a_wrong_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="time"):
        asyncio.run(Slow().awork(3, time=2))  # type: ignore[call-arg]


FAMILY = (Reranker, Cascade, ColBERT, Embedder, RemoteReranker)
QUERY, TEXTS = "which river is long", ["the river is long", "a bridge", "winter light"]


@pytest.mark.parametrize("kind", FAMILY)
def test_arank_has_the_options_of_rank(kind: type[Any]) -> None:
    assert inspect.iscoroutinefunction(inspect.unwrap(kind.arank)) or inspect.iscoroutinefunction(kind.arank)
    assert inspect.signature(kind.arank) == inspect.signature(kind.rank)


@pytest.mark.parametrize("kind", FAMILY[1:])
def test_the_family_has_one_signature_of_rank(kind: type[Any]) -> None:
    def options(own: type[Any]) -> list[tuple[str, Any]]:
        return [(each.name, each.default) for each in inspect.signature(own.rank).parameters.values()]

    assert options(kind) == options(Reranker)
    assert callable(kind.rank_many)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint without a head."""
    folder = tiny_bert(tmp_path_factory.mktemp("bare"))
    file = folder / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if "classifier" not in name}, file)
    return folder


@pytest.fixture(scope="module")
def models(folder: Path, bare: Path) -> dict[str, Any]:
    reranker = Reranker(folder, dtype="float32", device="cpu")
    return {
        "reranker": reranker,
        "cascade": Cascade(reranker, reranker, keep=2),
        "embedder": Embedder(bare, dtype="float32", device="cpu", pooling="mean"),
    }


@pytest.mark.parametrize("name", ["reranker", "cascade", "embedder"])
def test_the_family_ranks_alike(models: dict[str, Any], name: str) -> None:
    model = models[name]
    seen: list[tuple[int, int]] = []
    documents = [{"title": text, "text": ""} for text in ["", *TEXTS]]
    ranking = model.rank(
        QUERY, documents, rank_fields=["title"], top_n=3, progress=lambda *at: seen.append(at), cognitive=True
    )
    assert [hit.rank for hit in ranking] == [1, 2, 3]
    assert ranking[0].text.startswith("title: ")
    assert seen[-1][0] == seen[-1][1] > 0
    plain = model.rank(QUERY, TEXTS)
    assert [[hit.index for hit in each] for each in model.rank_many([QUERY] * 2, [TEXTS, TEXTS])] == [
        [hit.index for hit in plain]
    ] * 2
    assert [hit.index for hit in asyncio.run(model.arank(QUERY, TEXTS))] == [hit.index for hit in plain]
    assert model.rank(QUERY, ["", "a bridge"])[1].is_scored is False


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cascade", {"early_exit": 1.0}, "early_exit is given, but a cascade"),
        ("embedder", {"budget_ms": 5}, "budget_ms is given, but an embedder"),
        ("embedder", {"explain": True}, "explain is given, but an embedder"),
    ],
)
def test_what_one_cannot_do_it_refuses_by_name(
    models: dict[str, Any], name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        models[name].rank(QUERY, TEXTS, **options)


def test_a_remote_reranker_refuses_by_name() -> None:
    with RemoteReranker("http://127.0.0.1:9") as remote, pytest.raises(ValueError, match="budget_ms is given, but a"):
        remote.rank(QUERY, TEXTS, budget_ms=5)


def test_pickles_and_copies_open_the_model_anew(models: dict[str, Any]) -> None:
    for model in models.values():
        scores = model.score(QUERY, TEXTS)
        assert pickle.loads(pickle.dumps(model)).score(QUERY, TEXTS) == pytest.approx(scores, abs=1e-6)
    assert copy.deepcopy(models["reranker"]).score(QUERY, TEXTS) == models["reranker"].score(QUERY, TEXTS)
    remote = pickle.loads(pickle.dumps(RemoteReranker("http://127.0.0.1:9", dialect="tei")))
    assert repr(remote) == "RemoteReranker('http://127.0.0.1:9/rerank', dialect='tei', model=None)"


def test_a_closed_model_says_so(folder: Path) -> None:
    with Reranker(folder, dtype="float32", device="cpu") as reranker:
        reranker.score(QUERY, TEXTS)
    assert reranker.info().engine == "torch"
    with pytest.raises(EngineError, match="was closed; open it again"):
        reranker.score(QUERY, TEXTS)


FORKED = """
import os, sys, threading
from secondpass import Reranker
model, engine, has_run = sys.argv[1], sys.argv[2], sys.argv[3]
reranker = Reranker(model, engine=engine, device="cpu", dtype="float32")
if has_run == "closed":
    reranker = Reranker(model, engine=engine, device="cpu", dtype="float32")
wanted = reranker.score("q", ["a river"]) if has_run != "loaded" else None
child = os.fork()
if child == 0:
    try:
        scores = reranker.score("q", ["a river"])
        print("same" if wanted in (None, scores) else scores)
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
    sys.exit()  # which takes everything down that is open
assert os.waitpid(child, 0)[1] == 0
print(*(reranker.score("q", ["a river"]) == (wanted or reranker.score("q", ["a river"])),))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
@pytest.mark.parametrize(
    ("engine", "has_run"),
    [
        ("openvino", "run"),
        pytest.param("openvino", "closed", marks=pytest.mark.slow),
        pytest.param("openvino", "loaded", marks=pytest.mark.slow),
        pytest.param("torch", "run", marks=pytest.mark.slow),
        pytest.param("torch", "loaded", marks=pytest.mark.slow),
    ],
)
def test_a_forked_child_scores_or_says_what_to_do(folder: Path, engine: str, has_run: str) -> None:
    model = "default" if engine == "openvino" else str(folder)
    shown = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED, model, engine, has_run],
        capture_output=True,
        text=True,
        timeout=120,
    )
    child, parent = shown.stdout.splitlines()
    assert parent == "True"
    if has_run == "closed":
        assert child.startswith("EngineError: a model was closed in the process that this one was forked from")
    elif engine == "openvino":
        assert child == "same"
    else:
        assert child.startswith("EngineError: torch was used in the process that this one was forked from")


def in_a_spawned_process(reranker: Reranker) -> list[float]:
    return reranker.score(QUERY, TEXTS)


@pytest.mark.slow
def test_a_spawned_process_gets_a_model_of_its_own(models: dict[str, Any]) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(in_a_spawned_process, (models["reranker"],))
    assert found == pytest.approx(models["reranker"].score(QUERY, TEXTS), abs=1e-5)
