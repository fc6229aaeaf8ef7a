"""Sparse weights and token vectors as first stages: scores as the models say, kept, changed and forgotten."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch")  # the machine that tests the stores has none

from secondpass import ColBERT, Embedder, Memory
from secondpass.cli import run
from secondpass.colbert.maxsim import maxsim, unit
from secondpass.errors import CheckpointError, StoreError, UnknownModel
from secondpass.search import retrievers as module
from secondpass.search.index import Index
from secondpass.search.retrievers import LateRetriever, SparseRetriever, open_retriever
from secondpass.search.stores import readings as rows_gathered
from secondpass.search.stores.gathered import Gathered
from secondpass.search.stores.store import Retriever
from tests.colbert.test_colbert import tiny_pylate
from tests.goldens import Golden
from tests.search.conftest import WordEncoder

STAGES = ("sparse", "colbert")
QUESTION = "When was the lighthouse built?"


def folder_of(name: str) -> Path:
    golden = Golden(name)
    if not golden.folder.is_dir():
        pytest.skip("no reference checkpoints here")
    return golden.folder


@pytest.fixture(scope="module")
def m3() -> Embedder:
    return Embedder(folder_of("bge-m3"), dtype="float32")


@pytest.fixture(scope="module")
def colbert() -> ColBERT:
    return ColBERT(folder_of("colbertv2"), dtype="float32")


@pytest.fixture
def passages() -> list[str]:
    folder_of("bge-m3")
    return list(dict.fromkeys(text for _, text in Golden("bge-m3").pairs if text.strip()))


@pytest.fixture
def notes(tmp_path: Path, passages: list[str]) -> Path:
    """A file for each passage; some are longer than a chunk."""
    place = tmp_path / "notes"
    place.mkdir()
    for number, text in enumerate(passages):
        (place / f"{number:02}.txt").write_text(text)
    return place


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Index]]:
    """Opens the index; the reranker, of no interest here, is left out."""
    known: list[Index] = []

    def open_index(**options: object) -> Index:
        options = {"embedder": "none", "reranker": None, **options}
        known.append(Index("notes", folder=tmp_path / "data", create=True, **options))  # type: ignore[arg-type]
        return known[-1]

    yield open_index
    for index in known:
        index.close()


def found(index: Index, query: str, stage: str) -> dict[str, float]:
    """The scores that a stage has given, by passage, in the stage's order."""
    hits = [hit for hit in index.search(query, 50, explain=True) if f"{stage}_rank" in (hit.parts or {})]
    hits.sort(key=lambda hit: (hit.parts or {})[f"{stage}_rank"])
    return {
        f"{hit.document['heading']}\n{hit.document.text}": float((hit.parts or {})[f"{stage}_score"]) for hit in hits
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sparse of bge-m3", "token vectors of bge-m3", "token vectors of colbert"])
def test_a_stage_scores_as_its_model_does(
    kind: str, m3: Embedder, colbert: ColBERT, notes: Path, opened: Callable[..., Index]
) -> None:
    stage = kind.split()[0].replace("token", "colbert")
    model = colbert if kind.endswith("colbert") else m3
    index = opened(retrievers={stage: model})
    assert index.add(notes).readings == index.status().chunks > 10
    for query in dict.fromkeys(query for query, _ in Golden("bge-m3").pairs if query.strip()):
        scores = found(index, query, stage)
        if isinstance(model, Embedder):
            expected = model.score(query, list(scores), mode=stage)
        else:
            expected = model.score(query, list(scores))
        # weights are kept in float16, token vectors in int8
        assert list(scores.values()) == pytest.approx(expected, rel=2e-3 if stage == "sparse" else 1e-2, abs=2e-3)
        assert list(scores.values()) == sorted(scores.values(), reverse=True)
        if stage == "colbert":  # every text has tokens
            assert len(scores) == index.status().chunks
    assert index.status().retrievers == {stage: model.info().model}


def test_readings_follow_the_files_and_are_forgotten_with_them(
    m3: Embedder, colbert: ColBERT, notes: Path, opened: Callable[..., Index], tmp_path: Path
) -> None:
    index = opened(retrievers={"sparse": m3, "colbert": colbert})
    count = index.add(notes).readings
    assert index.update().readings == 0
    (notes / "00.txt").write_text("A wholly new text about zebras.")
    (notes / "99.txt").write_text((notes / "01.txt").read_text())  # another heading, so another text
    assert index.update().readings == 4
    assert "00.txt\nA wholly new text about zebras." in found(index, "zebras", "colbert")
    index.remove(notes / "00.txt")
    assert all("zebras" not in text for text in found(index, "zebras", "colbert"))
    files = {file.name: file for file in (tmp_path / "data").iterdir()}
    with np.load(files["notes.sqlite-colbert"]) as copy, sqlite3.connect(files["notes.sqlite"]) as connection:
        rows = [row[0] for row in connection.execute("select id from readings where stage = 'colbert' order by id")]
        assert copy["ids"].tolist() == rows and len(rows) == count / 2
    connection.close()
    (notes / "01.txt").write_text("")
    report = index.update()
    assert (report.changed, report.chunks) == (1, 0)
    with np.load(files["notes.sqlite-colbert"]) as copy:
        assert len(copy["ids"]) < len(rows)
    index.store.drop()
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.slow
def test_they_are_as_before_until_others_are_asked_for(
    m3: Embedder, notes: Path, opened: Callable[..., Index], tmp_path: Path
) -> None:
    names = {"sparse": str(folder_of("bge-m3")), "colbert": str(folder_of("colbertv2"))}
    opened(retrievers=names).add(notes)
    again = opened()
    assert set(again.status().retrievers) == set(STAGES)
    assert found(again, QUESTION, "sparse") and found(again, QUESTION, "colbert")
    assert again.update().readings == 0
    other = opened(retrievers={"colbert": m3})
    with pytest.raises(StoreError, match=r"of another model for 'colbert'.*secondpass update --colbert MODEL"):
        other.search("lighthouse")
    assert other.update().readings == other.status().chunks
    assert found(other, QUESTION, "colbert")
    without = opened(retrievers={"colbert": None})
    assert without.update().readings == 0
    assert set(without.status().retrievers) == {"sparse"}
    assert not (tmp_path / "data" / "notes.sqlite-colbert").exists()
    assert not found(opened(), QUESTION, "colbert") and found(opened(), QUESTION, "sparse")


@pytest.mark.parametrize("damage", ["gone", "cut short", "not a copy", "encrypted", "compressed"])
def test_a_copy_that_is_lost_is_made_anew(
    damage: str, colbert: ColBERT, notes: Path, opened: Callable[..., Index], tmp_path: Path
) -> None:
    index = opened(retrievers={"colbert": colbert})
    index.add(notes)
    expected = found(index, QUESTION, "colbert")
    copy = tmp_path / "data" / "notes.sqlite-colbert"
    whole = copy.read_bytes()
    damaged = {
        "cut short": whole[: len(whole) // 2],
        "not a copy": b"PK nothing",
        # a flag and the method in each entry of the archive's list
        "encrypted": re.sub(rb"(PK\x01\x02.{4}).", b"\\1\x01", whole, flags=re.DOTALL),
        "compressed": re.sub(rb"(PK\x01\x02.{6}).", b"\\1\x08", whole, flags=re.DOTALL),
    }
    copy.unlink()
    if damage in damaged:
        copy.write_bytes(damaged[damage])
    assert found(opened(retrievers={"colbert": colbert}), QUESTION, "colbert") == expected


def test_a_copy_of_an_index_that_was_moved_away_is_not_taken_for_the_new_ones(
    m3: Embedder, colbert: ColBERT, notes: Path, opened: Callable[..., Index], tmp_path: Path
) -> None:
    old = opened(embedder=WordEncoder(), retrievers={"sparse": m3, "colbert": colbert})
    old.add(notes)
    old.close()
    (tmp_path / "data" / "notes.sqlite").rename(tmp_path / "damaged")  # as its error says
    texts = [file.read_text() for file in sorted(notes.iterdir())]
    for file, text in zip(sorted(notes.iterdir()), reversed(texts), strict=True):
        file.write_text(text)
    new = opened(embedder=WordEncoder(), retrievers={"sparse": m3, "colbert": colbert})
    new.add(notes)
    gathered = {}
    for stage, readings in new.store._readings.items():  # type: ignore[attr-defined]
        gathered[stage] = readings._gathered[1]
        readings.copy.unlink()
    again = opened(retrievers={"sparse": m3, "colbert": colbert}, embedder=WordEncoder())
    again.search(QUESTION)
    for stage, readings in again.store._readings.items():  # type: ignore[attr-defined]
        expected = readings._gathered[1]
        assert [part.tolist() for part in gathered[stage].parts.values()] == [
            part.tolist() for part in expected.parts.values()
        ]


@pytest.mark.promise("docs/search.md", "changes and goes with the text")
def test_on_a_full_disk_nothing_of_what_was_forgotten_stays_in_a_copy(
    m3: Embedder, notes: Path, opened: Callable[..., Index], tmp_path: Path
) -> None:
    resource = pytest.importorskip("resource")
    index = opened(embedder=WordEncoder(), retrievers={"sparse": m3})
    index.add(notes)
    copies = [tmp_path / "data" / f"notes.sqlite-{name}" for name in ("sparse", "vectors")]
    assert all(copy.exists() for copy in copies)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    index.store.set_meta({"more": "x"})  # the log, which is written from its start again, is as long as it has to be
    resource.setrlimit(resource.RLIMIT_FSIZE, (min(copy.stat().st_size for copy in copies) // 2, before[1]))
    try:
        with index.store._database.reading() as connection:  # type: ignore[attr-defined]
            index.store._vectors.forget(connection)  # type: ignore[attr-defined]
            index.store.readings("sparse").trim(connection)  # type: ignore[union-attr]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not any(copy.exists() for copy in copies)
    assert found(index, QUESTION, "sparse")


@pytest.mark.parametrize("stage", STAGES)
def test_what_others_remove_while_it_is_gathered_is_left_out(
    stage: str, m3: Embedder, notes: Path, opened: Callable[..., Index], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, reader = opened(retrievers={stage: m3}), opened(retrievers={stage: m3})
    writer.add(notes)
    writer.store.readings(stage).copy.unlink()  # type: ignore[union-attr]
    kind = SparseRetriever if stage == "sparse" else LateRetriever
    parts, blocks = kind.parts, list[int]()

    def removing(self: Any, values: list[bytes], learnt: Any) -> Any:
        blocks.append(len(values))
        if len(blocks) == 1:
            writer.remove(*sorted(notes.iterdir())[-3:])
        return parts(self, values, learnt)

    monkeypatch.setattr(kind, "parts", removing)
    monkeypatch.setattr(rows_gathered, "READ", 4)
    first = found(reader, QUESTION, stage)
    assert len(blocks) > 1 and first == found(reader, QUESTION, stage) == found(writer, QUESTION, stage)
    gathered = reader.store.readings(stage)._gathered[1]  # type: ignore[union-attr]
    assert len(gathered.ids) == len(gathered.lengths) < sum(blocks) + 3


def test_a_process_that_goes_on_learns_anew_with_many_more(
    colbert: ColBERT, notes: Path, opened: Callable[..., Index], monkeypatch: pytest.MonkeyPatch
) -> None:
    index, watching = opened(retrievers={"colbert": colbert}), opened()
    files = sorted(notes.iterdir())
    index.add(files[0])
    assert found(watching, QUESTION, "colbert")
    few = watching.store.readings("colbert")._gathered[1].learnt_of  # type: ignore[union-attr]
    index.add(notes)
    learnt = list[int]()
    anew = LateRetriever.gathered
    monkeypatch.setattr(LateRetriever, "gathered", lambda self, *rest: (learnt.append(1), anew(self, *rest))[1])
    assert len(found(watching, QUESTION, "colbert")) == index.status().chunks
    many = watching.store.readings("colbert")._gathered[1]  # type: ignore[union-attr]
    assert many.learnt_of > 4 * few and not many.is_outgrown
    assert not learnt  # it has taken what the other one had saved


@pytest.mark.promise("docs/search.md", "Where they ask for different models the later one wins")
def test_of_two_that_take_other_models_at_once_the_later_one_wins(
    m3: Embedder, colbert: ColBERT, notes: Path, opened: Callable[..., Index]
) -> None:
    first = opened(embedder=WordEncoder(), retrievers={"colbert": colbert})
    later = opened(embedder=m3, retrievers={"colbert": m3})

    def take(done: int, total: int) -> None:
        if done == 0 and not taken:
            taken.append(later.update())

    for kind in ("readings", "vectors"):
        taken: list[object] = []
        if kind == "readings":
            later = opened(embedder=WordEncoder(), retrievers={"colbert": m3})
            said = r"another process has taken another model for 'colbert'"
        else:
            first = opened(embedder=WordEncoder(), retrievers={"colbert": m3})
            later = opened(embedder=m3, retrievers={"colbert": m3})
            said = r"another process has taken another embedder, '.*bge-m3', meanwhile"
            (notes / "00.txt").write_text("A wholly new text about zebras.")
        with pytest.raises(StoreError, match=said):
            first.add(notes, progress=take)
        later.update()
        assert found(later, QUESTION, "colbert") and later.status().retrievers == {"colbert": m3.info().model}
        assert later.status().vectors == later.status().chunks
    assert later.search(QUESTION, explain=True)[0].parts["dense_score"] <= 1.0  # type: ignore[index]


def test_a_model_that_cannot_be_opened_changes_nothing(
    m3: Embedder, notes: Path, opened: Callable[..., Index]
) -> None:
    index = opened(embedder=WordEncoder(), retrievers={"sparse": m3})
    index.add(notes)
    before = index.status()
    with pytest.raises(CheckpointError):
        opened(embedder=m3, retrievers={"sparse": m3, "colbert": "/nowhere"}).update()
    assert index.status() == before


def test_a_models_folder_is_found_from_any_folder(
    notes: Path, opened: Callable[..., Index], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m3").symlink_to(folder_of("bge-m3"))
    monkeypatch.chdir(tmp_path)
    opened(embedder="./m3", retrievers={"sparse": "m3", "colbert": Embedder("m3")}).add(notes)
    monkeypatch.chdir(notes)
    index = opened(embedder=None)
    assert index.search(QUESTION) and index.update().readings == 0
    assert {index.status().embedder, *index.status().retrievers.values()} == {str(tmp_path / "m3")}


def test_a_folder_in_the_place_of_a_copy_is_no_trouble(
    m3: Embedder, notes: Path, opened: Callable[..., Index]
) -> None:
    index = opened(retrievers={"sparse": m3})
    index.add(notes)
    copy = index.store.readings("sparse").copy  # type: ignore[union-attr]
    copy.unlink()
    (copy / "inside").mkdir(parents=True)
    assert found(opened(), QUESTION, "sparse")
    assert index.remove(notes / "00.txt") and found(index, QUESTION, "sparse")
    opened(retrievers={"sparse": None}).update()
    assert copy.is_dir()


def test_what_a_killed_process_did_not_read_is_read_by_the_next(
    m3: Embedder, notes: Path, opened: Callable[..., Index], tmp_path: Path
) -> None:
    index = opened(retrievers={"sparse": m3})
    index.add(notes)
    with sqlite3.connect(tmp_path / "data" / "notes.sqlite") as connection:
        connection.execute("delete from readings where id % 3 = 0")
        # and of a text that a release removed which knew of no readings
        connection.execute("insert into readings(stage, digest, value) values('sparse', x'00', x'')")
    connection.close()
    left = found(opened(retrievers={"sparse": m3}), QUESTION, "sparse")
    assert 0 < len(left) < index.status().chunks
    assert index.update().readings == index.status().chunks // 3
    assert len(found(index, QUESTION, "sparse")) > len(left)


def test_filters_hold(m3: Embedder, colbert: ColBERT, notes: Path, opened: Callable[..., Index]) -> None:
    index = opened(retrievers={"sparse": m3, "colbert": colbert})
    index.add(notes)
    for hit in index.search(QUESTION, 50, path="0?.txt", explain=True):
        assert Path(hit.document["path"]).name.startswith("0")
        assert "colbert_rank" in (hit.parts or {})
    assert not list(index.search(QUESTION, path="nowhere"))
    assert not list(index.search(" ", 3))


def test_an_embedder_that_is_a_retriever_too_reads_once(
    m3: Embedder, notes: Path, opened: Callable[..., Index], monkeypatch: pytest.MonkeyPatch
) -> None:
    from secondpass.engine.torch_encoder import TorchEncoder

    read: list[int] = []
    run = TorchEncoder.run

    def counting(self: object, rows: list[object], *rest: object) -> object:
        read.append(len(rows))
        return run(self, rows, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(TorchEncoder, "run", counting)
    index = opened(embedder=m3, retrievers={"sparse": m3, "colbert": m3})
    report = index.add(notes)
    assert sum(read) == report.embedded == report.readings / 2 > 10
    parts = index.search(QUESTION, 1, explain=True)[0].parts
    assert parts is not None
    assert {"bm25_rank", "dense_rank", "sparse_rank", "colbert_rank"} <= set(parts)


def test_what_cannot_be_is_said(m3: Embedder, colbert: ColBERT, opened: Callable[..., Index]) -> None:
    with pytest.raises(ValueError, match="retrievers is for dense; give sparse and colbert"):
        opened(retrievers={"dense": m3})
    with pytest.raises(ValueError, match="a ColBERT has no sparse weights"):
        opened(retrievers={"sparse": colbert}).search("lighthouse")
    with pytest.raises(ValueError, match=r"has no sparse_linear\.pt"):
        opened(retrievers={"sparse": Embedder("default")}).search("lighthouse")
    with pytest.raises(StoreError, match="it keeps no readings for 'sparse'"):
        opened(retrievers={"sparse": m3}).search("lighthouse")


@pytest.mark.slow
def test_the_command_keeps_them_and_measures_them(
    notes: Path, passages: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*arguments: object) -> tuple[int, str]:
        code = run([str(each) for each in arguments])
        return code, capsys.readouterr().out

    m3, colbert, place = folder_of("bge-m3"), folder_of("colbertv2"), ("--folder", tmp_path / "data")
    asked = ("add", notes, *place, "--embedder", "none", "--sparse", m3, "--colbert", colbert, "--json")
    code, out = said(*asked)
    report = json.loads(out)["report"]
    assert code == 0 and report["readings"] == 2 * report["chunks"] > 20
    code, out = said("search", QUESTION, *place, "--no-rerank", "--json")
    assert code == 0 and {"sparse_rank", "colbert_rank"} <= set(json.loads(out)["results"][0]["parts"])
    assert said("update", *place, "--colbert", "none")[0] == 0
    assert json.loads(said("collections", *place, "--json")[1])[0]["retrievers"] == {"sparse": str(m3)}

    beir = tmp_path / "beir"
    (beir / "qrels").mkdir(parents=True)
    lines = [json.dumps({"_id": f"d{at}", "text": text}) for at, text in enumerate(passages)]
    (beir / "corpus.jsonl").write_text("\n".join(lines))
    (beir / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": QUESTION}))
    (beir / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td0\t1\n")
    stages = f"colbert:{colbert},sparse:{m3}"
    code, out = said(
        "eval", beir, "--pipeline", "--first-stage", stages, "--json", "--depth", "5", "--measures", "recall@100"
    )
    assert code == 0
    figures = json.loads(out)["stages"]
    assert {"bm25", "sparse", "colbert", "fused", "reranked"} == set(figures)
    assert figures["colbert"]["recall@100"] == 1.0  # it scores every text
    for wrong in (["eval", str(beir), "--pipeline", "--first-stage", "sparse:default"], ["add", notes, *place]):
        code = run([str(each) for each in (*wrong, *([] if wrong[0] == "eval" else ["--sparse", "default"]))])
        said_wrong = capsys.readouterr().err
        assert code == 2 and "sparse_linear.pt" in said_wrong and "ValueError" not in said_wrong


def test_an_agents_memory_has_them_too(colbert: ColBERT, m3: Embedder, tmp_path: Path) -> None:
    for name, encoder in (("apart", WordEncoder()), ("together", m3)):
        with Memory(name, folder=tmp_path, embedder=encoder, reranker=None) as memory:
            retrievers = {"sparse": str(folder_of("bge-m3")), "colbert": str(folder_of("colbertv2"))}
            with Index(name, folder=tmp_path, embedder=encoder, retrievers=retrievers) as index:
                index.update()
            memory.remember(QUESTION)
            parts = memory.recall(QUESTION, explain=True)[0].parts
            assert parts is not None and {"colbert_rank", "sparse_rank"} <= set(parts)


def test_nobody_waits_while_a_memory_that_replaces_a_statement_opens_its_models(
    colbert: ColBERT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Index("memory", folder=tmp_path, embedder=WordEncoder(), retrievers={"colbert": colbert}, create=True) as it:
        it.update()
    with Memory(folder=tmp_path, embedder=WordEncoder(), reranker=None) as memory:
        old = memory.remember("The port is 22")
    was_open, opening = list[bool](), module.open_retriever
    with Memory(folder=tmp_path, embedder=WordEncoder(), reranker=None) as memory:
        database = memory.index.store._database  # type: ignore[attr-defined]

        def open_retriever(*rest: Any) -> Any:
            was_open.append(database._connection.in_transaction)
            return opening(*rest)

        monkeypatch.setattr(module, "open_retriever", open_retriever)
        memory.supersede(old, "The port is 2222")
        assert was_open == [False]


class Drawn(LateRetriever):
    """Token vectors of texts that are drawn around topics."""

    def __init__(self) -> None:
        self.source, self.name, self.mark = WordEncoder(), "drawn", "drawn"  # type: ignore[assignment]


def _with(gathered: Gathered, values: list[bytes], retriever: Retriever) -> Gathered:
    lengths, parts = retriever.parts(values, gathered.learnt)
    return gathered.with_more(np.arange(len(values)), [lengths], [parts])


def drawn(count: int, generator: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    topics = generator.standard_normal((400, 64))
    lengths = generator.integers(5, 60, count)
    words = np.concatenate([generator.choice(generator.integers(0, 400, 12), length) for length in lengths])
    noise = generator.standard_normal((len(words), 64)) * 0.3
    return unit((topics[words] + noise).astype(np.float32)), lengths


@pytest.mark.slow
def test_what_centroids_leave_out_is_not_among_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(5)
    vectors, lengths = drawn(3000, generator)
    retriever = Drawn()
    values = module._rows(vectors, lengths)
    gathered = retriever.gathered(values[::3], len(values))
    gathered = _with(gathered, values, retriever)
    questions = [
        unit(vectors[generator.integers(0, len(vectors), 12)] + 0.05 * generator.standard_normal((12, 64)))
        for _ in range(20)
    ]
    questions = [asked.astype(np.float32) for asked in questions]
    best = [set(np.argsort(-maxsim(asked, vectors, lengths))[:10].tolist()) for asked in questions]
    # drawn topics lie equally far from each other; of real texts nothing is lost by comparing the near ones alone
    for compared, least in ((1 << 60, 0.98), (1000, 0.85)):
        monkeypatch.setattr(module, "ALL_COMPARED", compared)
        near = [set(retriever.nearest(asked, gathered, 40, None).tolist()) for asked in questions]
        assert np.mean([len(theirs & ours) / 10 for theirs, ours in zip(best, near, strict=True)]) > least
    allowed = np.zeros(len(values), np.bool_)  # few are compared with all their tokens
    allowed[[3, 500, 2999]] = True
    assert set(retriever.nearest(questions[0], gathered, 40, allowed)) == {3, 500, 2999}


def test_texts_without_weights_or_tokens_are_no_trouble() -> None:
    retriever = SparseRetriever.__new__(SparseRetriever)
    values = [b"", np.array([5, 9], np.int32).tobytes() + np.array([0.5, 2], np.float16).tobytes(), b""]
    gathered = retriever.gathered([], 3)
    gathered = _with(gathered, values, retriever)
    assert retriever.nearest({9: 1.0, 70_000: 3.0}, gathered, 1, None).tolist() == [1]
    assert retriever.scores({9: 1.0, 70_000: 3.0}, values) == [0.0, 2.0, 0.0]
    assert retriever.nearest({}, gathered, 1, None).tolist() == []


def test_what_is_said_of_a_late_interaction_model_is_why_it_is_none(tmp_path: Path) -> None:
    folder = tiny_pylate(tmp_path)
    settings = json.loads((folder / "1_Dense" / "config.json").read_text())
    settings["activation_function"] = "torch.nn.Tanh"
    (folder / "1_Dense" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UnknownModel, match=r"has the activation torch\.nn\.Tanh; a layer over tokens is linear"):
        open_retriever("colbert", str(folder))
