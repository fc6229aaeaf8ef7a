"""model="auto": the embedded model, and what it cannot read goes to the multilingual one where that is installed."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from secondpass import RemoteReranker, Reranker
from secondpass.calibration import Calibration
from secondpass.errors import CheckpointError, DataError, EngineError
from secondpass.scale.batch import Job, ScoreBatch, ScoreBlock, open_job
from secondpass.scoring import open as opening
from secondpass.scoring.open import ModelOptions
from secondpass.search.index import Index
from secondpass.server.registry import Registry
from secondpass.server.service import CallContext, Service
from secondpass.server.settings import ModelSource, Settings
from secondpass.types import Ranking
from secondpass.wire.calls import RerankCall, ScoreCall
from tests.checkpoints import tiny_bert
from tests.server.live import serving

LATIN, CHINESE = ("where is the old bridge", "the river is cold"), ("长江有多长", "长江长六千三百公里。")
GERMAN = ("wo ist die alte Brücke", "der Fluss ist nicht kalt")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder for the embedded model, which reads Latin script, and one that holds the other's package."""
    root = tmp_path_factory.mktemp("auto")
    embedded = tiny_bert(root / "embedded")
    config = json.loads((embedded / "config.json").read_text())
    (embedded / "config.json").write_text(json.dumps({**config, "scripts": ["LATIN"], "languages": ["en"]}))
    package = tiny_bert(root / "packages" / "secondpass_multilingual" / "model", seed=3).parent
    (package / "__init__.py").touch()
    return embedded, package.parent


@pytest.fixture
def alone(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is not installed."""
    monkeypatch.setattr("secondpass.checkpoint.checkpoint.EMBEDDED", places[0])
    monkeypatch.setattr("secondpass.checkpoint.checkpoint.find_spec", lambda name: None)


@pytest.fixture
def both(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("secondpass.checkpoint.checkpoint.EMBEDDED", places[0])
    monkeypatch.syspath_prepend(str(places[1]))
    yield


def read_by(ranking: Ranking) -> str:
    assert ranking.info is not None
    return ranking.info.model


@pytest.mark.usefixtures("alone")
def test_without_the_package_it_warns_once_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    reranker = Reranker()
    for _ in range(2):
        ranking = reranker.rank(CHINESE[0], [CHINESE[1]])
    assert read_by(ranking) == reranker.info().model == "default"
    (warning,) = ranking.warnings
    assert "Chinese" in warning and "pip install secondpass-multilingual" in warning
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [warning]
    assert ranking.to_dict()["warnings"] == [warning] and ranking.to_dict()["model"] == "default"
    assert reranker.rank(*LATIN[:1], [LATIN[1]]).warnings == ()


@pytest.mark.usefixtures("alone")
def test_scores_of_pairs_warn_too(caplog: pytest.LogCaptureFixture) -> None:
    Reranker().score_pairs([LATIN, CHINESE])
    assert "Chinese" in caplog.text


@pytest.mark.usefixtures("both")
def test_one_model_reads_all_passages_of_a_query() -> None:
    auto, english, other = Reranker(), Reranker("default"), Reranker("multilingual")
    assert "'multilingual' reads texts in other scripts and languages" in auto.info().reason
    for query, passages, model in (
        (LATIN[0], [LATIN[1]], english),
        (CHINESE[0], [LATIN[1]], other),
        (LATIN[0], [LATIN[1], CHINESE[1]], other),
        (LATIN[0], ["", " "], english),
        (GERMAN[0], [LATIN[1]], other),
        (LATIN[0], [GERMAN[1], GERMAN[1], LATIN[1]], other),
        (LATIN[0], [GERMAN[1], LATIN[1]], english),
        ("bridge", [GERMAN[1]], other),
        ("bridge", ["river"], english),
    ):
        ranking = auto.rank(query, passages)
        assert read_by(ranking) == model.info().model and ranking.warnings == ()
        expected = model.rank(query, passages)
        assert [str(hit.score) for hit in ranking] == [str(hit.score) for hit in expected]  # NaN equals NaN
    assert english.rank(*CHINESE[:1], [CHINESE[1]]).warnings  # who names a model gets it


@pytest.mark.usefixtures("both")
def test_calls_of_many_queries_are_split_by_query() -> None:
    auto, english, other = Reranker(), Reranker("default"), Reranker("multilingual")
    seen: list[tuple[int, int]] = []
    pairs = [CHINESE, LATIN, (LATIN[0], "cold water"), CHINESE]
    scores = auto.score_pairs(pairs, progress=lambda done, total: seen.append((done, total)))
    assert scores[0] == scores[3] == other.score_pairs([CHINESE])[0]
    assert scores[1:3] == english.score_pairs(pairs[1:3])
    assert seen[-1] == (3, 3) and {total for _, total in seen} == {3}
    seen.clear()
    rankings = auto.rank_many(
        [CHINESE[0], LATIN[0]], [[CHINESE[1]], [LATIN[1]]], progress=lambda done, total: seen.append((done, total))
    )
    assert [read_by(ranking) for ranking in rankings] == ["multilingual", "default"] and seen[-1] == (2, 2)


@pytest.mark.usefixtures("both")
def test_the_other_model_is_opened_when_it_is_needed_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    opens = opening.open_checkpoint

    def counted(model: str, **settings: object) -> object:
        opened.append(model)
        return opens(model, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(opening, "open_checkpoint", counted)
    reranker = Reranker()
    reranker.rank(LATIN[0], [LATIN[1]])
    assert opened == ["default"]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: read_by(reranker.rank(CHINESE[0], [CHINESE[1]])), range(8)))
    assert opened == ["default", "multilingual"] and set(found) == {"multilingual"}
    Reranker().warm_up()
    assert opened[2:] == ["default", "multilingual"]


@pytest.mark.usefixtures("both")
def test_a_budget_a_pickle_and_an_end() -> None:
    reranker = pickle.loads(pickle.dumps(Reranker()))
    ranking = reranker.rank(CHINESE[0], [CHINESE[1]] * 3, budget_ms=60_000)
    assert read_by(ranking) == "multilingual" and ranking.usage.unscored == 0
    reranker.close()
    for query in (LATIN[0], CHINESE[0]):
        with pytest.raises(EngineError, match="closed"):
            reranker.rank(query, ["text"])


@pytest.mark.usefixtures("both")
def test_scores_are_kept_for_each_model(tmp_path: Path) -> None:
    pair = (LATIN[0], LATIN[1])
    kept = Reranker(score_cache=tmp_path / "scores")
    alone = kept.score_pairs([pair])[0]
    together = kept.score(LATIN[0], [LATIN[1], CHINESE[1]])[0]  # the same pair, by the other model
    assert alone == Reranker("default").score_pairs([pair])[0]
    assert together == pytest.approx(Reranker("multilingual").score_pairs([pair])[0], abs=0.04)  # int8, in company
    assert abs(together - alone) > 0.1
    assert Reranker(score_cache=tmp_path / "scores").score(LATIN[0], [LATIN[1], CHINESE[1]])[0] == together


@pytest.mark.usefixtures("both")
def test_a_calibration_is_of_the_embedded_model_alone() -> None:
    ranking = Reranker(calibration=Calibration(slope=1.0, intercept=0.0)).rank(CHINESE[0], [CHINESE[1]])
    assert read_by(ranking) == "default" and ranking.warnings


@pytest.mark.usefixtures("both")
def test_a_server_serves_the_other_model_beside_it() -> None:
    service = Service(Settings())
    context = CallContext(request_id="r1")

    async def calls() -> list[str]:
        await service.start()
        read = [await service.rerank(RerankCall(query=q, documents=(p,)), context) for q, p in (LATIN, CHINESE)]
        read += [await service.score(ScoreCall(pairs=(LATIN, CHINESE)), context)]
        read += [await service.rerank(RerankCall(query=LATIN[0], documents=("a",), model="any"), context)]
        return [one.model for one in read]

    assert asyncio.run(calls()) == ["default", "multilingual", "multilingual", "default"]
    assert [card.name for card in service.models()] == ["default", "multilingual"]
    asyncio.run(service.unload("multilingual"))
    late = asyncio.run(service.rerank(RerankCall(query=CHINESE[0], documents=(CHINESE[1],)), context))
    assert late.model == "default" and "Chinese" in late.warnings[0]
    service.close()


@pytest.mark.usefixtures("alone")
def test_a_question_that_the_reranker_cannot_read_keeps_the_fused_order(tmp_path: Path) -> None:
    with indexed(tmp_path) as index:
        ranking = index.search(CHINESE[0])
        assert "Chinese" in ranking.warnings[0] and not ranking[0].is_scored
        assert [hit.index for hit in ranking] == [hit.index for hit in index.search(CHINESE[0], rerank=False)]
        assert index.winning_sentences(ranking) == [(0, len(hit.document.text)) for hit in ranking]
        asked = index.search(LATIN[0])
        assert asked.warnings == () and asked[0].is_scored


@pytest.mark.usefixtures("both")
def test_an_index_takes_the_model_that_fits_its_question(tmp_path: Path) -> None:
    with indexed(tmp_path) as index:
        found = index.search(CHINESE[0])
        assert read_by(found) == "multilingual" and found.warnings == () and found[0].is_scored


@pytest.mark.slow
@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("dialect", ["secondpass", "cohere", "jina"])
def test_warnings_reach_clients(dialect: str) -> None:
    with serving(Service(Settings())) as url:
        ranking = RemoteReranker(url, dialect=dialect).rank(CHINESE[0], [CHINESE[1]])
        body = {"query": CHINESE[0], "documents": [CHINESE[1]]}
        answer = httpx.post(f"{url}/v1/rerank", json=body)
    assert dialect == "jina" or "Chinese" in ranking.warnings[0]
    assert "Chinese" in json.loads(answer.headers["x-warnings"])[0]


@contextmanager
def indexed(folder: Path) -> Iterator[Index]:
    (folder / "notes").mkdir()
    (folder / "notes" / "river.md").write_text(f"{CHINESE[1]} {LATIN[1]}. {LATIN[0]}.\n", encoding="utf-8")
    (folder / "notes" / "other.md").write_text("长江 bridge\n", encoding="utf-8")
    index = Index(folder=folder / "data", embedder="none", create=True)
    index.add(folder / "notes")
    yield index
    index.close()


def job_of(folder: Path) -> Job:
    file = folder / "pairs.jsonl"
    if not file.exists():
        rows = [{"query": query, "passage": passage} for query, passage in (LATIN, CHINESE)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_job([file], folder / "scores", ModelOptions(model="auto"))


def scores_of(job: Job) -> list[float]:
    ScoreBlock(folder=job.folder, options=job.options)(job.blocks[0])
    return [json.loads(line)["score"] for line in job.part(0).read_text("utf-8").splitlines()]


@pytest.mark.usefixtures("both")
def test_a_job_of_files_is_read_by_both_and_no_worker_without_the_package_takes_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(tmp_path)
    assert scores_of(job) == pytest.approx(Reranker().score_pairs([LATIN, CHINESE]))
    batch = pickle.dumps(ScoreBatch("auto"))
    monkeypatch.setattr("secondpass.checkpoint.checkpoint.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="pip install secondpass-multilingual"):
        scores_of(job)
    with pytest.raises(CheckpointError, match="pip install secondpass-multilingual"):
        pickle.loads(batch)({"query": [LATIN[0]], "document": [LATIN[1]]})
    with pytest.raises(DataError, match="holds scores of another job"):
        job_of(tmp_path)


@pytest.mark.usefixtures("alone")
def test_without_the_package_a_job_is_that_of_the_embedded_model_wherever_it_runs(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    assert job.options.model == "default"
    assert scores_of(job) == pytest.approx(Reranker("default").score_pairs([LATIN, CHINESE]))


def test_an_embedder_of_the_other_models_name_reads_no_pairs() -> None:
    sources = (
        ModelSource(name="m", path="auto"),
        ModelSource(name="multilingual", path="multilingual", kind="embedder"),
    )
    hosted: dict[str, Any] = {source.name: SimpleNamespace(source=source) for source in sources}
    registry = Registry(Settings(models=sources), lambda model, batch: None, hosted)
    assert registry.fitting(hosted["m"], CHINESE[0], CHINESE[1:]) is hosted["m"]
