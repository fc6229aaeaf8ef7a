"""An index from files to answers: incremental, explained, filtered, weighed, with small models that count words."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from secondpass import ColBERT, Embedder, Reranker
from secondpass.cognitive import Cognitive
from secondpass.engine.late_interaction import LateInteractionEngine
from secondpass.errors import StoreError
from secondpass.retrieval.fusion import Fused
from secondpass.search.index import Index
from secondpass.search.indexing import Indexing
from secondpass.search.pipeline import Pipeline, Question
from secondpass.search.stores.sqlite import SqliteStore
from secondpass.search.stores.store import File
from secondpass.types import Scorer
from tests.goldens import Golden
from tests.search.conftest import WordEncoder, WordReranker
from tests.search.test_store import chunk

NOW = 1_800_000_000.0
YEAR_S = 365 * 86400.0


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    place = tmp_path / "notes"
    place.mkdir()
    (place / "garden.md").write_text("# Garden\n\n## Roses\n\nPrune roses in March.\n\n## Soil\n\nAdd compost.\n")
    (place / "2020-01-05 port.md").write_text("The ssh port of the house server is 2222 now.\n")
    (place / "2026-10-01 port.md").write_text("The ssh port of our small box is 2244 since October.\n")
    (place / "code.py").write_text("def getUserName():\n    return name\n")
    return place


@pytest.fixture
def encoder() -> WordEncoder:
    return WordEncoder()


@pytest.fixture
def index(tmp_path: Path, notes: Path, encoder: WordEncoder) -> Iterator[Index]:
    index = Index("notes", folder=tmp_path / "data", embedder=encoder, reranker=WordReranker(), create=True)
    index.add(notes)
    yield index
    index.close()


def test_an_answer_says_where_it_stands(index: Index, notes: Path) -> None:
    ranking = index.search("when to prune roses", explain=True)
    hit = ranking[0]
    assert hit.document.text == "# Garden\n\n## Roses\n\nPrune roses in March."
    assert hit.document["path"] == str(notes / "garden.md")
    assert hit.document["heading"] == "Garden > Roses"
    assert (hit.document["line"], hit.document["last_line"]) == (1, 5)
    assert hit.parts is not None
    assert hit.parts["bm25_rank"] == hit.parts["dense_rank"] == 1
    assert hit.parts["fused"] == pytest.approx(1.0)
    assert hit.parts["logit"] == hit.score == 0.0
    spans = index.winning_sentences(ranking)
    shown = [each.document.text[start:stop] for each, (start, stop) in zip(ranking, spans, strict=True)]
    assert shown[0] == "Prune roses in March." and len(shown) == len(ranking) > 1
    assert index.winning_sentence("when to prune roses", hit) == spans[0]


@pytest.mark.promise("docs/search.md", "Only what changed is read and embedded again")
def test_only_what_changed_is_read_and_embedded_again(index: Index, notes: Path, encoder: WordEncoder) -> None:
    before = encoder.texts
    assert index.update().unchanged == 4
    os.utime(notes / "code.py")
    assert index.update().unchanged == 4
    assert encoder.texts == before
    (notes / "garden.md").write_text("# Garden\n\n## Roses\n\nPrune roses in March.\n\n## Soil\n\nAdd sand.\n")
    (notes / "code.py").unlink()
    (notes / "new.txt").write_text("a new note")
    report = index.update()
    assert (report.added, report.changed, report.removed, report.unchanged) == (1, 1, 1, 2)
    assert report.embedded == 2 == encoder.texts - before  # the soil and the new note
    assert all("getUserName" not in hit.document.text for hit in index.search("getUserName"))
    assert index.search("sand")[0].document.text == "## Soil\n\nAdd sand."


def test_a_file_that_cannot_be_read_is_said_and_stops_nothing(
    index: Index, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (notes / "bad.txt").write_bytes(b"a\0b")
    (notes / "good.txt").write_text("good text")
    opened = Path.open

    def gone(path: Path, *how: str, **options: str | None) -> object:
        if path.name == "gone.txt" and how == ("rb",):
            path.unlink()
        return opened(path, *how, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", gone)
    (notes / "gone.txt").write_text("it goes while the others are read")
    os.symlink("b.md", notes / "a.md")
    os.symlink("a.md", notes / "b.md")
    report = index.update()
    assert report.added == 1
    assert [(Path(path).name, why.partition(": ")[2].partition(";")[0]) for path, why in report.failed] == [
        ("bad.txt", "is a binary file"),
        ("gone.txt", "No such file or directory"),
    ]


def test_a_removed_folder_is_forgotten(index: Index, notes: Path) -> None:
    assert index.remove(notes) > 0
    assert index.status().files == 0
    assert index.update().added == 0


def test_a_folder_is_forgotten_under_any_of_its_names(index: Index, notes: Path, monkeypatch: Any) -> None:
    (notes.parent / "link").symlink_to(notes)
    monkeypatch.chdir(notes)
    for name in ("../notes", notes.parent / "link", notes):
        assert index.add(name).failed == []
        assert index.roots == [str(notes)]
        assert index.remove("../link") == 5
        assert (index.roots, index.status().files) == ([], 0)


def test_what_was_removed_does_not_come_back_until_it_is_added_again(index: Index, notes: Path) -> None:
    (notes / "old").mkdir()
    (notes / "old" / "boat.txt").write_text("the boat is sold\n")
    index.update()
    assert index.remove(notes / "old", notes / "code.py") == 2
    assert index.update().added == 0
    assert index.add(notes / "old").added == 1
    assert index.search("boat")[0].document.text == "the boat is sold"
    assert index.update().unchanged == 4
    assert index.add(notes).added == 1  # the code


def test_an_empty_name_is_not_the_current_folder(index: Index, notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(notes)
    for ask in (index.add, index.remove):
        with pytest.raises(ValueError, match="a path is empty"):
            ask("")
    assert index.status().files == 4


def test_a_path_of_which_nothing_is_there_cannot_be_removed(index: Index, notes: Path) -> None:
    for path in (notes / "gardn.md", notes.parent / "nope"):
        with pytest.raises(StoreError, match=f"{path}: there is nothing of it in the index 'notes'; added was"):
            index.remove(notes / "garden.md", path)
    assert index.status().files == 4
    (notes / "garden.md").unlink()
    assert index.remove(notes / "garden.md") > 0


def test_a_disk_that_is_unplugged_takes_nothing_with_it(
    index: Index, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hit = index.search("prune roses")[0]
    index.feedback(index.search("prune roses"), hit, "used")
    notes.rename(notes.parent / "unplugged")
    report = index.update()
    assert (report.removed, report.unchanged) == (0, 0)
    assert report.failed[0][1].endswith(f"is kept until: secondpass remove {notes}")
    notes.mkdir()  # where it is mounted
    report = index.update()
    assert (report.removed, report.unchanged) == (0, 0)
    assert report.failed[0][1].endswith(f"it is empty; what was read there is kept until: secondpass remove {notes}")
    notes.rmdir()
    (notes.parent / "unplugged").rename(notes)
    assert index.update().unchanged == 4
    assert index.get(hit.index).accessed != ()
    scandir = os.scandir

    def closed(folder: str | Path) -> Any:
        if Path(folder).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    (notes / "locked").mkdir()
    (notes / "locked" / "diary.txt").write_text("dear diary\n")
    index.update()
    monkeypatch.setattr(os, "scandir", closed)
    (notes / "code.py").unlink()
    report = index.update()
    assert (report.removed, [why.partition(";")[0] for _, why in report.failed]) == (
        1,
        ["cannot be looked into: Permission denied"],
    )
    assert index.search("diary")[0].document.text == "dear diary"


def test_a_file_that_went_is_forgotten_where_it_was_added_alone(index: Index, notes: Path) -> None:
    index.remove(notes)
    index.add(notes / "garden.md")
    (notes / "garden.md").unlink()
    assert index.update().removed == 1


def test_names_and_fields_that_no_database_can_hold_stop_nothing(index: Index, notes: Path) -> None:
    (notes / os.fsdecode(b"latin-\xfc.txt")).write_text("a name in Latin 1\n")
    (notes / "records.jsonl").write_text(
        '{"text": "about cats", "lone": "\\ud800", "mark": NaN, "time": 1e999}\n{"text": "about dogs", "mark":2}\n'
    )
    report = index.update()
    assert report.added == 1
    (failed,) = report.failed
    assert failed[1] == r"its name is not in UTF-8, 'latin-\udcfc.txt'; give it another one"
    (cats,) = index.search("cats", fields={"lone": "\ufffd"})
    assert (cats.document["mark"], cats.document["created"]) == (None, None)
    assert index.search("about", fields={"mark": 2}).texts == ["about dogs"]


def test_another_embedder_makes_all_vectors_anew(index: Index, notes: Path, tmp_path: Path) -> None:
    class Other(WordEncoder):
        pass

    other = Index("notes", folder=tmp_path / "data", embedder=Other(), reranker=None)
    chunks = other.status().chunks
    assert other.update().embedded == chunks == other.status().vectors
    words = Index("notes", folder=tmp_path / "data", embedder="none", reranker=None)
    assert words.search("roses")[0].document["heading"] == "Garden > Roses"
    assert words.status().vectors == chunks
    with pytest.raises(StoreError, match="its vectors are of the embedder 'Other', not of 'WordEncoder'"):
        index.search("roses")
    assert other.search("roses", explain=True)[0].parts["dense_rank"] == 1  # type: ignore[index]
    follows = Index("notes", folder=tmp_path / "data", reranker=None)
    words.update()
    assert words.status().vectors == 0
    assert follows.search("roses")[0].document["heading"] == "Garden > Roses"


def test_an_index_follows_the_embedder_that_another_process_chose(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wider(WordEncoder):
        def encode(self, texts: Iterable[str], *, kind: str = "document") -> NDArray[np.float32]:
            return np.tile(super().encode(texts), 2)

    made = {"WordEncoder": WordEncoder(), "Wider": Wider()}
    monkeypatch.setattr("secondpass.search.index._embedder", lambda name: (name, made[name]))
    server = Index("notes", folder=tmp_path / "data", reranker=None)
    assert server.search("roses")[0].document["heading"] == "Garden > Roses"
    Index("notes", folder=tmp_path / "data", embedder=Wider(), reranker=None).update()
    assert server.search("roses", explain=True)[0].parts["dense_rank"] == 1  # type: ignore[index]


def test_time_orders_what_is_near_in_relevance(index: Index) -> None:
    plain = index.search("the ssh port of the server", 2)
    assert [hit.document.text[-5:-1] for hit in plain] == [" now", "ober"]
    weighed = index.search("the ssh port of the server", 2, cognitive=Cognitive(now=NOW, recency=1.5))
    assert [hit.document.text[-5:-1] for hit in weighed] == ["ober", " now"]
    assert weighed[0].parts is not None
    assert weighed[0].parts["recency"] > 0 > plain_part(weighed[1].parts)
    again = index.search("the ssh port of the server", 2, cognitive=Cognitive(now=NOW, recency=1.5))
    assert [hit.probability for hit in again] == [hit.probability for hit in weighed]


def plain_part(parts: object) -> float:
    assert isinstance(parts, dict)
    return float(parts["recency"])


def test_uses_count_and_what_was_shown_does_not(index: Index) -> None:
    options = Cognitive(now=NOW)
    hit = index.search("ssh port", 2, cognitive=options)[1]
    index.search("ssh port", 2, cognitive=options)
    assert index.get(hit.index).accessed == ()
    index.feedback(index.search("ssh port", 2), hit, "used", now=NOW - 60)
    found = {each.index: each for each in index.search("ssh port", 2, cognitive=options)}[hit.index]
    assert found.parts is not None
    assert float(found.parts["frequency"]) > 0
    assert index.store.judgements()[0]["kind"] == "used"
    with pytest.raises(ValueError, match="kind is 'shown'; give 'opened'"):
        index.feedback(index.search("ssh port", 2), hit, "shown")


def test_filters_and_diversity(index: Index, notes: Path) -> None:
    assert {hit.document["path"] for hit in index.search("ssh port roses", path="*.md", since="2026-01-01")} == {
        str(notes / "2026-10-01 port.md")
    }
    (notes / "log.jsonl").write_text('{"text": "xylophone", "created": "2026-05-04T10:00:00"}\n')
    index.update()
    assert len(index.search("xylophone", 1, path="log", since="2026-05-04", until="2026-05-04")) == 1
    assert not index.search("xylophone", 1, path="log", until="2026-05-04T09:00")
    paths = [hit.document["path"] for hit in index.search("garden roses soil compost", diversity="file")]
    assert len(paths) == len(set(paths))
    assert len(index.search("ssh port", 2, diversity="mmr")) == 2


def test_a_document_without_text_is_reported_once(index: Index, notes: Path) -> None:
    (notes / "empty.eml").write_text("From: a@x\n\n")
    (notes / "empty.md").write_text("\n")
    report = index.update()
    assert report.added == 2
    why = "has no text, as a scan has none; nothing in it will be found"
    assert report.failed == [(str(notes / "empty.eml"), why)]
    assert not index.update().failed


def test_a_chunk_of_a_page_stands_at_its_line_of_the_file(index: Index, notes: Path) -> None:
    page = "<html>\n<head>\n<title>T</title>\n</head>\n<body>\n<h1>Yaks</h1>\n<p>Yaks graze.</p>\n<h1>Emus</h1>\n<p>"
    (notes / "page.html").write_text(f"{page}Emus run\nfast.</p>\n\n\n<p>Emus rest.</p></body></html>")
    (notes / "line.html").write_text("<ul><li>an ibex<li>a lynx<li>an orca</ul><h1>Newts</h1><p>Newts swim.</p>")
    index.update()
    for query, path, lines in (
        ("emus run fast", "page", (9, 13)),
        ("newts swim", "line", (1, 1)),
        ("yaks", "page", (7, 7)),
    ):
        (hit,) = index.search(query, 1, path=f"{path}.html")
        assert (hit.document["line"], hit.document["last_line"]) == lines


@pytest.mark.promise("docs/search.md", "is not shown any more by who has that open either")
def test_what_was_removed_with_its_index_is_not_found_by_who_has_it_open(index: Index, notes: Path) -> None:
    folder = Path(index.store.location).parent
    other = Index(index.name, folder=folder, embedder=WordEncoder(), reranker=WordReranker())
    assert other.search("ssh port")
    index.store.drop()
    gone = "was removed, or made anew, while it was open; open it, or start its server, again"
    with pytest.raises(StoreError, match=gone):
        other.search("ssh port")
    Index(index.name, folder=folder, embedder=WordEncoder(), create=True).add(notes)
    for use in (other.update, other.status, lambda: other.search("ssh port")):
        with pytest.raises(StoreError, match=gone):
            use()


def test_a_path_may_be_one_of_pathlib(index: Index, notes: Path) -> None:
    wanted = index.search("ssh port", path=str(notes))
    assert wanted and index.search("ssh port", path=notes).texts == wanted.texts
    assert not index.search("ssh port", path=notes / "none")


def test_what_can_find_nothing_is_refused(index: Index) -> None:
    assert index.search("ssh port", since="2001-02-03", until="2001-02-03") is not None
    with pytest.raises(ValueError, match="since is later than until"):
        index.search("ssh port", since="2001-02-04", until="2001-02-03")
    with pytest.raises(TypeError, match="cognitive is a str; give True, or settings"):
        index.search("ssh port", cognitive="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize("top_n", [None, 0, "3", 2.5])
def test_what_is_no_number_of_results_is_refused(index: Index, top_n: Any) -> None:
    with pytest.raises(ValueError, match=f"top_n is {top_n!r}; give a whole number, 1 or more"):
        index.search("ssh port", top_n)
    assert len(index.search("ssh port", np.int64(1))) == 1  # type: ignore[arg-type]


def test_a_language_is_told_by_script_and_words_or_by_the_file_itself(index: Index, notes: Path) -> None:
    (notes / "zh.md").write_text("花园里的玫瑰要在三月修剪 roses。")
    (notes / "de.md").write_text("Die Rosen werden im März geschnitten, roses und der Garten ist schön.")
    (notes / "said.md").write_text("---\nlang: la-VA\n---\nroses rosa rosam\n")
    index.update()
    for language, name in (("zh", "zh.md"), ("DE", "de.md"), ("la", "said.md"), ("la_VA", "said.md")):
        assert [Path(hit.document["path"]).name for hit in index.search("roses", language=language)] == [name]
    for name in ("Chinese", "中文"):
        assert len(index.search("roses", language=name)) == 1
    with pytest.raises(ValueError, match="language is 'Romulan'; give its code"):
        index.search("roses", language="Romulan")
    assert "language" not in index.search("getUserName", 1)[0].document.fields


def test_of_copies_the_newest_is_shown_where_time_counts(index: Index, notes: Path) -> None:
    said = "the heater of the hall is set to {} degrees every night of the winter from nine in the evening on"
    same = said.format(17)
    (notes / "2020-01-05 heater.md").write_text(f"{same}\n")
    (notes / "2026-01-05 heater.md").write_text(f"{same}\n")
    index.update()
    (old,), (new,) = (index.search(same, 1, cognitive=each) for each in (None, Cognitive(now=NOW)))
    assert [Path(each.document["path"]).name[:4] for each in (old, new)] == ["2020", "2026"]
    assert [Path(each.document["copies"][0]).name[:4] for each in (old, new)] == ["2026", "2020"]


def test_copies_are_shown_once(index: Index, notes: Path) -> None:
    text = (notes / "2020-01-05 port.md").read_text()
    (notes / "copy.md").write_text(text)
    assert index.update().near_duplicates == 1
    hit = next(hit for hit in index.search("ssh port house server") if "2222" in hit.document.text)
    assert len(hit.document["copies"]) == 1
    assert sum("2222" in hit.document.text for hit in index.search("ssh port house server")) == 1


def test_what_differs_in_a_word_of_the_question_is_no_copy(index: Index, notes: Path) -> None:
    bill = (
        "Dear customer, the electricity of {} for the flat in High Street cost {} pounds: please pay by card, cheque "
        "or bank transfer within fourteen days; what you paid already is not counted here, the meter was read by our "
        "staff, and if you have any question about it our office helps\n"
    )
    bills = {"February": 41, "July": 46, "September": 48}
    for month, pounds in bills.items():
        (notes / f"{pounds}.md").write_text(bill.format(month, pounds))
    assert index.update().near_duplicates == 2
    ids = [index.store.ids(str(notes / f"{pounds}.md"))[0] for pounds in bills.values()]
    for question, found in {"electricity": [2], "electricity of July": [1, 0], "July or February": [0, 0, 0]}.items():
        fused = [Fused(index=id, score=1.0, stages={}) for id in ids]  # first stages may put another month first
        pool = index.pipeline.candidates(Question(text=question), fused, 5)
        assert [len(each.copies) for each in pool] == found


@pytest.mark.parametrize(
    ("name", "opened", "options", "part"),
    [
        (
            "bge-m3",
            lambda folder: Embedder(folder, dtype="float32", weights=(0.4, 0.2, 0.4), max_length=512),
            {"weights_for_different_modes": [0.4, 0.2, 0.4]},
            "colbert+sparse+dense",
        ),
        ("colbertv2", lambda folder: ColBERT(folder, dtype="float32"), {}, None),
    ],
)
def test_what_was_found_is_scored_anew_as_the_reference_does(
    tmp_path: Path, name: str, opened: Callable[[Path], Scorer], options: dict[str, object], part: str | None
) -> None:
    pytest.importorskip("torch")
    golden = Golden(name)
    if not golden.folder.is_dir():
        pytest.skip("no reference figures here")
    run = next(run for run in golden.runs if options.items() <= run["options"].items())
    single = run["single"] if part is None else run["single"][part]
    query = golden.pairs[0][0]
    expected = {text: score for (asked, text), score in zip(golden.pairs, single, strict=True) if asked == query}
    store = SqliteStore(tmp_path / "notes.sqlite")
    memory = Indexing(store=store, encoder=WordEncoder())
    for text in [*expected, "The lighthouse was built of stone when the harbour grew."]:
        memory.add(File(path=text, root="", digest="", size=0, modified_ns=0), [chunk(text)])
    pipeline = Pipeline(
        store=store,
        encoder=WordEncoder(),
        open_reranker=lambda _: (None, ()),
        rescorer=opened(golden.folder),
    )
    ranking = pipeline.search(Question(text=query, is_reranked=False, explain=True))
    found = {hit.document.text: hit for hit in ranking}
    assert set(expected) < set(found)
    for text, score in expected.items():
        assert found[text].score == pytest.approx(score, abs=2e-4)
        assert found[text].parts is not None
        assert found[text].parts["rescored_rank"] == found[text].rank
    assert [hit.score for hit in ranking] == sorted((hit.score for hit in ranking), reverse=True)


def test_without_reranking_the_fused_order_is_kept(index: Index) -> None:
    ranking = index.search("ssh port", rerank=False)
    assert [hit.score for hit in ranking] == sorted((hit.score for hit in ranking), reverse=True)
    assert not ranking[0].is_scored
    assert not index.search("unheard wordless", rerank=False, path="nowhere")


def test_an_index_that_is_not_there_says_how_to_make_one(tmp_path: Path, index: Index) -> None:
    with pytest.raises(StoreError, match=r"no index 'work'; there are notes; make it with: secondpass add FOLDER"):
        Index("work", folder=tmp_path / "data")
    with pytest.raises(ValueError, match="the name of an index is None; give letters"):
        Index(None, folder=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"the name of an index is '\.\./x'"):
        Index("../x")
    with pytest.raises(StoreError, match="there is no such file or folder"):
        index.add(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"top_n": 0}, "top_n is 0"),
        ({"diversity": "all"}, "diversity is 'all'; give 'mmr' or 'file'"),
        ({"fusion": "sum"}, "fusion is 'sum'; give 'convex' or 'rrf'"),
        ({"since": "soon"}, "since is 'soon'"),
    ],
)
def test_bad_questions_are_refused(index: Index, options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        index.search("q", **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="query is None; a str is needed"):
        index.search(None)  # type: ignore[arg-type]


def test_searches_go_on_while_files_are_added(index: Index, notes: Path) -> None:
    for number in range(60):
        (notes / f"more{number}.txt").write_text(f"more text {number} about ssh")
    failures: list[BaseException] = []

    def search() -> None:
        try:
            for _ in range(20):
                assert index.search("prune roses")[0].document["heading"] == "Garden > Roses"
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    index.update()
    for thread in threads:
        thread.join()
    assert failures == []
    assert index.status().files == 64


def test_what_the_first_stages_like_less_loses_up_to_one_logit_of_the_embedded_models(
    tmp_path: Path, notes: Path
) -> None:
    index = Index("notes", folder=tmp_path / "data", embedder=WordEncoder(), reranker="default", create=True)
    index.add(notes)
    question = "when are roses and the ssh port pruned"
    hits = list(index.search(question, 10, explain=True))
    parts = [dict(hit.parts or {}) for hit in hits]
    lost = {hit.index: float(each["first_stages"]) for hit, each in zip(hits, parts, strict=True)}
    fused = {hit.index: float(each["fused"]) for hit, each in zip(hits, parts, strict=True)}
    best, last = max(fused.values()), min(fused.values())
    assert lost == pytest.approx({each: -(best - score) / (best - last) for each, score in fused.items()})
    reranker = Reranker("default")
    for hit in hits:
        own = reranker.probability(hit.score)
        assert hit.probability == pytest.approx(1 / (1 + (1 / own - 1) * np.exp(-lost[hit.index])))
        assert hit.probability <= own + 1e-12
    assert [hit.index for hit in hits] == sorted(lost, key=lambda each: -{h.index: h.probability for h in hits}[each])
    alone = index.search(question, 1, candidates=1, explain=True)[0]
    assert (alone.parts or {})["first_stages"] == 0
    assert alone.probability == pytest.approx(reranker.probability(alone.score))


def test_the_order_of_another_reranker_is_its_own(index: Index, notes: Path) -> None:
    index.add(notes)
    hits = list(index.search("when are roses and the ssh port pruned", 10, explain=True))
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert not any("first_stages" in (hit.parts or {}) for hit in hits)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The texts, as ids, that the embedded reranker reads from now on."""
    seen: list[bytes] = []
    original = LateInteractionEngine._read

    def noting(self: LateInteractionEngine, keys: Sequence[bytes], *rest: Any, **named: Any) -> None:
        seen.extend(keys)
        original(self, keys, *rest, **named)

    monkeypatch.setattr(LateInteractionEngine, "_read", noting)
    return seen


@pytest.mark.slow
def test_an_index_that_keeps_states_reads_no_candidate_and_scores_the_same(
    tmp_path: Path, notes: Path, read: list[bytes]
) -> None:
    def opened(name: str, **options: Any) -> Index:
        return Index(name, folder=tmp_path, embedder=WordEncoder(), reranker=Reranker("default"), **options)

    question = "when are roses and the ssh port pruned"
    plain, keeping = opened("plain", create=True), opened("keeping", create=True, keeps_states=True)
    assert (plain.add(notes).states, keeping.add(notes).states) == (0, plain.status().chunks)
    read.clear()
    expected = [(hit.document.text, hit.score) for hit in plain.search(question, 10)]
    assert len(read) == 1 + len(expected)
    again = opened("keeping")
    read.clear()
    assert [(hit.document.text, hit.score) for hit in again.search(question, 10)] == expected
    assert len(read) == 1  # the question
    (notes / "code.py").write_text("def changed(): the ssh port\n")
    assert again.update().states == 1
    assert again.update().states == 0
    read.clear()
    changed = {hit.document.text: hit.score for hit in opened("keeping").search(question, 10)}
    plain.update()
    assert changed == {hit.document.text: hit.score for hit in plain.search(question, 10)}
    size = again.status().bytes
    forgotten = opened("keeping", keeps_states=False)
    assert forgotten.update().states == 0
    assert forgotten.status().bytes < size - 5 * 384 * 10


def test_states_that_nobody_has_are_refused(tmp_path: Path, notes: Path) -> None:
    for reranker in (WordReranker(), None):
        index = Index("x", folder=tmp_path, embedder="none", reranker=reranker, keeps_states=True, create=True)
        with pytest.raises(ValueError, match="this reranker has no states of passages; the embedded one has"):
            index.add(notes)
        assert index.roots == []


def test_threads_that_ask_first_at_once_open_the_models_once(
    tmp_path: Path, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def slow(made: Callable[[], Any], name: str) -> Callable[..., Any]:
        def opening(*_: object) -> Any:
            opened.append(name)
            threading.Event().wait(0.05)  # so that another thread comes meanwhile
            return made()

        return opening

    monkeypatch.setattr("secondpass.search.index._embedder", slow(lambda: ("default", WordEncoder()), "embedder"))
    monkeypatch.setattr("secondpass.reranker.Reranker", slow(ReadingAll, "reranker"))
    Index("notes", folder=tmp_path, create=True).add(notes)
    index = Index("notes", folder=tmp_path)
    opened.clear()
    started = threading.Barrier(4)

    def ask(_: int) -> list[str]:
        started.wait(5)
        return index.search("prune roses").texts

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(ask, range(4)))
    assert sorted(opened) == ["embedder", "reranker"]
    assert all(texts == found[0] for texts in found)
    monkeypatch.setattr("secondpass.search.index.ThreadPoolExecutor", None)
    assert index.search("prune roses").texts == found[0]  # no thread is started for what is open


class ReadingAll(WordReranker):
    def unread(self, query: str) -> str | None:
        return None


@pytest.mark.parametrize("rerank", [True, False])
def test_as_many_as_are_asked_for_are_found_beyond_the_usual_candidates(tmp_path: Path, rerank: bool) -> None:
    lines = [json.dumps({"text": "roses pruned " + " ".join(f"{x}{at}" for x in "abcdefgh")}) for at in range(40)]
    (tmp_path / "beds.jsonl").write_text("\n".join(lines))
    with Index("beds", folder=tmp_path / "data", embedder="none", reranker=WordReranker(), create=True) as index:
        index.add(tmp_path / "beds.jsonl")
        assert len(index.search("roses pruned", 35, rerank=rerank)) == 35
        assert index.search("roses pruned", 3, candidates=5).usage.rows == 5
        assert index.search("roses pruned", 3, candidates=1).usage.rows == 3


@pytest.mark.parametrize("budget_ms", [0, -1.0, float("nan"), "9", True])
def test_a_budget_that_is_no_time_is_refused(index: Index, budget_ms: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"budget_ms is .*; give (the )?milliseconds"):
        index.search("roses", budget_ms=budget_ms)


class ReadingNothing(WordReranker):
    def unread(self, query: str) -> str | None:
        return f"{query!r} cannot be read"


def test_an_opened_reranker_that_cannot_read_the_question_is_not_asked(notes: Path, tmp_path: Path) -> None:
    index = Index("notes", folder=tmp_path, embedder="none", reranker=ReadingNothing(), create=True)
    index.add(notes)
    found = index.search("prune roses")
    assert found.warnings == ("'prune roses' cannot be read; the order is that of the first stages",)
    assert found.texts == index.search("prune roses", rerank=False).texts
    assert not any(hit.is_scored for hit in found)
