"""`secondpass export`: a graph or merged weights, and how they compare with the float32 model on torch."""

from __future__ import annotations

import io
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import combinations
from json import dumps
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

from secondpass.atomic import at_home
from secondpass.command import output
from secondpass.command.flags import Json, Offline, Revision, wrong_use
from secondpass.command.plain import argument, option
from secondpass.errors import MissingExtra, WrongUse

if TYPE_CHECKING:
    from secondpass.checkpoint.checkpoint import Checkpoint
    from secondpass.checkpoint.export.trace import Inputs
    from secondpass.data.pairs import Pair
    from secondpass.reranker import Reranker

MAX_CALIBRATION = 300  # pairs; more change the ranges of activations little
ALL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# Two passages count as ordered by the reference when its logits differ by more than float32 noise.
TIE = 1e-4
NUM_RUNS = 5  # by turns, after one that prepares memory and kernels; the fastest counts


@dataclass(frozen=True, kw_only=True)
class Writing:
    """What is written, and what it is calibrated with."""

    format: Annotated[
        str,
        option(metavar="openvino|onnx|safetensors", help="safetensors: an adapter merged into its base."),
    ] = "openvino"
    dtype: Annotated[
        str | None,
        option(metavar="float32|bfloat16|int8", help="How matrices are stored; else float32."),
    ] = None
    calibration: Annotated[
        str | None, option(metavar="FILE", help="Pairs by which activations become int8 too (openvino).")
    ] = None
    check: Annotated[str | None, option(metavar="FILE", help="Pairs to compare on; else built in.")] = None
    revision: Revision = None
    force: Annotated[bool, option("--force", help="Replace the earlier export in FOLDER.")] = False
    local_files_only: Offline = False


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """Differences are between logits and between probabilities.

    pairs are those compared, orders the pairs of passages of one query that the reference ranks, order_changes those
    of them that the export ranks the other way round; top_changes counts queries with another best passage.
    speed_ratio is the reference's time by the export's.
    """

    model: str
    engine: str
    dtype: str
    pairs: int
    max_logit_difference: float
    mean_logit_difference: float
    max_probability_difference: float
    mean_probability_difference: float
    orders: int
    order_changes: int
    queries: int
    top_changes: int
    bytes: int
    reference_bytes: int
    seconds: float
    reference_seconds: float
    speed_ratio: float


def export(
    model: Annotated[str, argument(metavar="MODEL", help="A reranker: a folder or owner/name; default.")],
    *,
    folder: Annotated[str, option("--output", metavar="FOLDER", help="Where the result goes.")],
    writing: Writing,
    json: Json = False,
) -> None:
    """Write a model as a graph that runs without torch, and compare it with the original.

    FILE has lines such as {"query": "...", "passage": "..."}, FlagEmbedding's {"query", "pos", "neg"}, or
    query<TAB>passage.
    """
    if find_spec("torch") is None:
        raise MissingExtra("torch", "export")
    from secondpass.atomic import write_text
    from secondpass.checkpoint.checkpoint import open_checkpoint
    from secondpass.checkpoint.layout import REPORT
    from secondpass.data.pairs import read_pairs

    check = None if writing.check is None else read_pairs(Path(writing.check))
    calibration = [] if writing.calibration is None else read_pairs(Path(writing.calibration))
    with wrong_use():
        checkpoint = open_checkpoint(model, revision=writing.revision, local_files_only=writing.local_files_only)
    target = _written(checkpoint, at_home(folder), calibration, writing)
    report = _report(checkpoint, target, check, writing)
    write_text(target / REPORT, dumps(asdict(report), indent=2, ensure_ascii=False) + "\n")
    if json:
        output.as_json({"folder": str(target), **asdict(report)})
    else:
        output.named_values([("folder", str(target)), *_told(report)])


def _written(checkpoint: Checkpoint, folder: Path, calibration: Sequence[Pair], writing: Writing) -> Path:
    from secondpass.checkpoint.export.export import export as write

    try:
        with _quiet():
            return write(
                checkpoint,
                folder,
                format=writing.format,
                dtype=writing.dtype,
                calibration=_inputs(checkpoint, calibration),
                overwrite=writing.force,
            )
    except (ValueError, FileExistsError) as error:
        raise WrongUse(str(error)) from error


def _inputs(checkpoint: Checkpoint, pairs: Sequence[Pair]) -> list[Inputs]:
    """Pairs, evenly taken where there are many, as a graph reads them, one by one."""
    if not pairs:
        return []
    from secondpass.engine.openvino import padded
    from secondpass.text.reader import Reader

    recipe, tokenizer = checkpoint.recipe, checkpoint.tokenizer
    longest = min(length for length in (recipe.max_length, tokenizer.max_length, 512) if length is not None)
    reader = Reader(recipe=recipe, tokenizer=tokenizer, longest=longest, max_query_length=None, has_windows=False)
    chosen = pairs[:: -(-len(pairs) // MAX_CALIBRATION)]
    readings = reader.read(chosen, reader.limits(longest, recipe.truncation))
    return [padded([reading.row], ALL_INPUTS, pad_id=0, longest=longest) for reading in readings]


def _report(checkpoint: Checkpoint, folder: Path, check: Sequence[Pair] | None, writing: Writing) -> ParityReport:
    """How far the export is from the model, on `check`, or on the built-in pairs: those that it can read."""
    from secondpass.data.pairs import sample_pairs
    from secondpass.reranker import Reranker

    merged = writing.format == "safetensors"
    source = str(checkpoint.adapter or checkpoint.folder)
    reference = Reranker(
        "default" if checkpoint.name == "default" else source,
        engine="torch",
        device="cpu",
        dtype="float32",
        local_files_only=writing.local_files_only,
    )
    exported = Reranker(
        folder, engine="torch" if merged else "openvino", device="cpu", dtype="float32" if merged else "auto"
    )
    if check is None:
        check = [pair for pair in sample_pairs() if reference.unread(pair[0]) is None] or sample_pairs()
    written = [folder / "model.safetensors"] if merged else list((folder / writing.format).iterdir())
    return compare(reference, exported, check, sizes=(num_bytes(written), num_bytes(checkpoint.weight_files())))


@contextmanager
def _quiet() -> Iterator[None]:
    """What libraries print goes to standard error where people watch, and nowhere else."""
    logging.getLogger("nncf").setLevel(logging.WARNING)
    with redirect_stdout(sys.stderr if sys.stderr.isatty() else io.StringIO()):
        yield


def _told(report: ParityReport) -> list[tuple[str, str]]:
    """What people want to know of it, line by line."""
    logit = f"at most {report.max_logit_difference:.2g}, mean {report.mean_logit_difference:.2g}"
    probability = f"at most {report.max_probability_difference:.2g}, mean {report.mean_probability_difference:.2g}"
    return [
        ("runs on", f"{report.engine}, {report.dtype}"),
        ("pairs compared", str(report.pairs)),
        ("logit difference", logit),
        ("probability difference", probability),
        ("order changes", f"{report.order_changes} of {report.orders}"),
        ("other best passage", f"{report.top_changes} of {report.queries} queries"),
        ("size", f"{report.bytes / 1e6:.1f} MB, was {report.reference_bytes / 1e6:.1f} MB"),
        ("speed", f"{report.speed_ratio:.1f} times float32 on torch"),
    ]


def compare(
    reference: Reranker, exported: Reranker, pairs: Sequence[Pair], *, sizes: tuple[int, int]
) -> ParityReport:
    """sizes: bytes of the export's and of the reference's weights."""
    expected, got = reference.score_pairs(pairs), exported.score_pairs(pairs)
    runs = [(_seconds(reference, pairs), _seconds(exported, pairs)) for _ in range(NUM_RUNS)]
    reference_seconds, seconds = (min(column) for column in zip(*runs, strict=True))
    info = exported.info()
    return ParityReport(
        model=reference.info().model,
        engine=info.engine,
        dtype=info.dtype,
        pairs=len(pairs),
        **_differences("logit", expected, got),
        **_differences("probability", *(list(map(reference.probability, scores)) for scores in (expected, got))),
        **_orders([query for query, _ in pairs], expected, got),
        bytes=sizes[0],
        reference_bytes=sizes[1],
        seconds=seconds,
        reference_seconds=reference_seconds,
        speed_ratio=reference_seconds / seconds,
    )


def _differences(what: str, expected: Sequence[float], got: Sequence[float]) -> dict[str, Any]:
    values = [abs(a - b) for a, b in zip(got, expected, strict=True)]
    return {f"max_{what}_difference": max(values), f"mean_{what}_difference": fmean(values)}


def _orders(queries: Sequence[str], expected: Sequence[float], got: Sequence[float]) -> dict[str, Any]:
    indexes: dict[str, list[int]] = {}
    for index, query in enumerate(queries):
        indexes.setdefault(query, []).append(index)
    every = [two for group in indexes.values() for two in combinations(group, 2)]
    ordered = [(i, j) for i, j in every if abs(expected[i] - expected[j]) > TIE]
    best = [[max(group, key=scores.__getitem__) for group in indexes.values()] for scores in (expected, got)]
    return {
        "orders": len(ordered),
        "order_changes": sum((expected[i] > expected[j]) != (got[i] > got[j]) for i, j in ordered),
        "queries": len(indexes),
        "top_changes": sum(a != b for a, b in zip(*best, strict=True)),
    }


def _seconds(reranker: Reranker, pairs: Sequence[Pair]) -> float:
    start = time.perf_counter()
    reranker.score_pairs(pairs)
    return time.perf_counter() - start


def num_bytes(files: Sequence[Path]) -> int:
    """Of weights; those of an OpenVINO graph lie beside it."""
    graphs = {file.with_suffix(".bin") for file in files if file.suffix == ".xml"}
    return sum(file.stat().st_size for file in {*files, *graphs})
