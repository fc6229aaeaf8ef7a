"""`secondpass export`: a graph or merged weights, and how they compare with the float32 model on torch."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from secondpass.checkpoint.checkpoint import Checkpoint, open_checkpoint
from secondpass.checkpoint.export.export import Inputs, export
from secondpass.checkpoint.save import write_text
from secondpass.command import show
from secondpass.command.pairs import Pair, read_pairs, sample_pairs
from secondpass.command.parity import Report, compare, num_bytes
from secondpass.engine.openvino import padded
from secondpass.errors import MissingExtra, WrongUse
from secondpass.reranker import Reranker
from secondpass.text.reader import Reader

REPORT = "export.json"
MAX_CALIBRATION = 300  # pairs; more change the ranges of activations little
ALL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True, kw_only=True)
class Options:
    format: str
    dtype: str | None
    calibration: str | None
    check: str | None
    revision: str | None
    overwrite: bool
    local_files_only: bool


def run(model: str, output: str, options: Options, *, is_json: bool) -> None:
    """Export, compare, print the report and keep it in the folder. Raises WrongUse or SecondpassError."""
    if find_spec("torch") is None:
        raise MissingExtra("torch", "export")
    check = sample_pairs() if options.check is None else read_pairs(Path(options.check))
    calibration = [] if options.calibration is None else read_pairs(Path(options.calibration))
    try:
        checkpoint = open_checkpoint(model, revision=options.revision, local_files_only=options.local_files_only)
        with _quiet():
            folder = export(
                checkpoint,
                Path(output).expanduser(),
                format=options.format,
                dtype=options.dtype,
                calibration=_inputs(checkpoint, calibration),
                overwrite=options.overwrite,
            )
    except (ValueError, FileExistsError) as error:
        raise WrongUse(str(error)) from error
    report = _report(checkpoint, folder, check, options)
    write_text(folder / REPORT, json.dumps(asdict(report), indent=2, ensure_ascii=False) + "\n")
    if is_json:
        show.as_json({"folder": str(folder), **asdict(report)})
    else:
        _print(folder, report)


def _inputs(checkpoint: Checkpoint, pairs: Sequence[Pair]) -> list[Inputs]:
    """Pairs, evenly taken where there are many, as a graph reads them, one by one."""
    if not pairs:
        return []
    recipe, tokenizer = checkpoint.recipe, checkpoint.tokenizer
    longest = min(length for length in (recipe.max_length, tokenizer.max_length, 512) if length is not None)
    reader = Reader(recipe=recipe, tokenizer=tokenizer, longest=longest, max_query_length=None, has_windows=False)
    chosen = pairs[:: -(-len(pairs) // MAX_CALIBRATION)]
    readings = reader.read(chosen, reader.limits(longest, recipe.truncation))
    return [padded([reading.row], ALL_INPUTS, pad_id=0) for reading in readings]


def _report(checkpoint: Checkpoint, folder: Path, check: Sequence[Pair], options: Options) -> Report:
    merged = options.format == "safetensors"
    source = str(checkpoint.adapter or checkpoint.folder)
    reference = Reranker(
        "default" if checkpoint.name == "default" else source,
        engine="torch",
        device="cpu",
        dtype="float32",
        local_files_only=options.local_files_only,
    )
    exported = Reranker(
        folder, engine="torch" if merged else "openvino", device="cpu", dtype="float32" if merged else "auto"
    )
    written = [folder / "model.safetensors"] if merged else list((folder / options.format).iterdir())
    return compare(reference, exported, check, sizes=(num_bytes(written), num_bytes(checkpoint.weight_files())))


@contextmanager
def _quiet() -> Iterator[None]:
    """What libraries print goes to standard error where people watch, and nowhere else."""
    logging.getLogger("nncf").setLevel(logging.WARNING)
    with redirect_stdout(sys.stderr if sys.stderr.isatty() else io.StringIO()):
        yield


def _print(folder: Path, report: Report) -> None:
    rows = [
        ("folder", str(folder)),
        ("runs on", f"{report.engine}, {report.dtype}"),
        ("pairs compared", str(report.pairs)),
        ("logit difference", f"at most {report.max_logit_difference:.2g}, mean {report.mean_logit_difference:.2g}"),
        (
            "probability difference",
            f"at most {report.max_probability_difference:.2g}, mean {report.mean_probability_difference:.2g}",
        ),
        ("order changes", f"{report.order_changes} of {report.orders}"),
        ("other best passage", f"{report.top_changes} of {report.queries} queries"),
        ("size", f"{report.bytes / 1e6:.1f} MB, was {report.reference_bytes / 1e6:.1f} MB"),
        ("speed", f"{report.speed_ratio:.1f} times float32 on torch"),
    ]
    if not sys.stdout.isatty():
        show.tab_separated(rows)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    for name, value in rows:
        table.add_row(f"[dim]{name}[/dim]", value)
    Console().print(table)
