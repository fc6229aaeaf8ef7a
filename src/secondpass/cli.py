"""The command line: parse, call, print. What a command does is in command/, imported only when it runs.

A command is one function registered on `app`. It raises WrongUse or any SecondpassError; `run` turns those into one
sentence and an exit code.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any

import typer

OK, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(
    name="secondpass",
    help="The second pass of retrieval: reads a query and each passage together and keeps the best.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong use.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@dataclass
class Settings:
    """What holds for the whole run, whatever the command."""

    debug: bool = False
    interrupted: bool = False

    def interrupt(self, signum: int, frame: object) -> None:
        """On Ctrl-C. It is noted, since compiled modules that are just being imported make an ImportError of it."""
        self.interrupted = True
        raise KeyboardInterrupt


class Split(str, Enum):
    auto = "auto"
    line = "line"
    paragraph = "paragraph"
    whole = "whole"


class Long(str, Enum):
    truncate = "truncate"
    chunk = "chunk"


def _set_debug(context: typer.Context, value: bool) -> None:
    if value:
        context.find_root().obj.debug = True


def _show_version(value: bool) -> None:
    from secondpass import __version__

    if value:
        typer.echo(f"secondpass {__version__}")
        raise typer.Exit


Debug = Annotated[bool, typer.Option("--debug", callback=_set_debug, help="Show the traceback of an error.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON with everything.")]
Model = Annotated[str, typer.Option(help="default (embedded), a folder, or owner/name[@revision] of the hub.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a model of the hub.")]
Engine = Annotated[str, typer.Option(help="auto, torch or openvino.")]


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Debug = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(WRONG_USE)


@app.command()
def rank(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What is asked.")],
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="PATH", help="Files, folders, or - for standard input.")
    ] = None,
    passage: Annotated[list[str] | None, typer.Option(help="A passage; repeat it for more.")] = None,
    split: Annotated[
        Split, typer.Option(help="How texts are cut; auto: paragraphs where blank lines part them, else lines.")
    ] = Split.auto,
    fields: Annotated[str, typer.Option(help="Fields of JSON to read, as in title,body; else text.")] = "",
    top: Annotated[int, typer.Option(min=0, help="How many to show; 0: all.")] = 10,
    json: Json = False,
    explain: Annotated[bool, typer.Option("--explain", help="Add tokens, truncation, timing and engine.")] = False,
    budget_ms: Annotated[
        float | None, typer.Option(min=0.001, help="Milliseconds for ranking; passages beyond stay unscored, last.")
    ] = None,
    model: Model = "default",
    revision: Revision = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="Most tokens of a pair; else the model's.")] = None,
    long: Annotated[Long, typer.Option(help="Long passages: cut as the model's makers do, or read in windows.")] = (
        Long.truncate
    ),
    engine: Engine = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    calibration: Annotated[
        str | None, typer.Option(metavar="FILE", help="What `secondpass calibrate` fitted, for the probabilities.")
    ] = None,
    local_files_only: Annotated[
        bool, typer.Option("--local-files-only", "--offline", help="Never use the network.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Rank passages by how well they answer a query.

    Reads .txt, .md, .jsonl and .json, gzipped or not, a folder of them, a BEIR folder, or standard input. Prints a
    table on a terminal, else tab-separated lines: rank (from 1), probability, score (raw logit), source, text.
    """
    from secondpass.command import rank as command
    from secondpass.command.passages import Reading

    named = tuple(name.strip() for name in fields.split(",") if name.strip())
    options = command.Options(
        model=model,
        revision=revision,
        engine=engine,
        device=device,
        dtype=dtype,
        max_length=max_length,
        long_documents=long.value,
        local_files_only=local_files_only,
        calibration=calibration,
    )
    command.rank(
        query,
        paths or [],
        passage or [],
        how=Reading(split=split.value, fields=named),
        options=options,
        output=command.Output(top=top, is_json=json, is_explained=explain, budget_ms=budget_ms),
    )


@app.command()
def models(json: Json = False, debug: Debug = False) -> None:
    """List the known models and what is in the cache."""
    from secondpass.command import models as command

    command.models(is_json=json)


@app.command()
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A reranker: a folder or owner/name; default.")],
    output: Annotated[str, typer.Option(metavar="FOLDER", help="Where the result goes.")],
    format: Annotated[
        str, typer.Option(help="openvino, onnx, or safetensors: an adapter merged into its base.")
    ] = "openvino",
    dtype: Annotated[
        str | None, typer.Option(help="How matrices are stored: float32, bfloat16 or int8; else float32.")
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(metavar="FILE", help="Pairs by which activations become int8 too (openvino).")
    ] = None,
    check: Annotated[str | None, typer.Option(metavar="FILE", help="Pairs to compare on; else built in.")] = None,
    revision: Revision = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FOLDER.")] = False,
    json: Json = False,
    local_files_only: Annotated[
        bool, typer.Option("--local-files-only", "--offline", help="Never use the network.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Write a model as a graph that runs without torch, and compare it with the original.

    FILE has lines such as {"query": "...", "passage": "..."}, FlagEmbedding's {"query", "pos", "neg"}, or
    query<TAB>passage.
    """
    from secondpass.command import export as command

    options = command.Options(
        format=format,
        dtype=dtype,
        calibration=calibration,
        check=check,
        revision=revision,
        overwrite=force,
        local_files_only=local_files_only,
    )
    command.run(model, output, options, is_json=json)


@app.command()
def pull(
    model: Annotated[str, typer.Argument(metavar="NAME[@REVISION]", help="A model of the hub.")],
    revision: Revision = None,
    engine: Annotated[
        str, typer.Option(help="openvino fetches the exported graph in place of the weights.")
    ] = "auto",
    debug: Debug = False,
) -> None:
    """Fetch a model, and print its commit and folder."""
    from secondpass.command import models as command

    command.pull(model, revision=revision, engine=engine)


@app.command()
def serve(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="A folder, owner/name, or name=path.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; else 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; else 8787. 0: any free one.")] = None,
    api_key_file: Annotated[str | None, typer.Option(help="File with keys, one a line.")] = None,
    models: Annotated[
        list[str] | None, typer.Option("--model", metavar="NAME=PATH", help="One more reranker; repeat it for more.")
    ] = None,
    embedders: Annotated[
        list[str] | None, typer.Option("--embedder", metavar="NAME=PATH", help="An embedder, for /v1/embeddings.")
    ] = None,
    config: Annotated[str | None, typer.Option(help="Settings in TOML.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes, each with the models; else 1.")] = None,
    allowed_host: Annotated[list[str] | None, typer.Option(help="A name under which clients reach it.")] = None,
    cors_origin: Annotated[list[str] | None, typer.Option(help="An origin whose pages may call.")] = None,
    tls_certificate: Annotated[str | None, typer.Option(help="Certificate chain in PEM; with --tls-key.")] = None,
    tls_key: Annotated[str | None, typer.Option(help="Private key in PEM.")] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="Listen beyond this machine without a key.")
    ] = None,
    allow_model_changes: Annotated[
        bool | None, typer.Option("--allow-model-changes", help="Load and unload over /admin/models.")
    ] = None,
    local_files_only: Annotated[
        bool | None, typer.Option("--local-files-only", "--offline", help="Never use the network.")
    ] = None,
    log_texts: Annotated[bool | None, typer.Option("--log-texts", help="Log queries and documents.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any setting of docs/serving.md.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Serve rerankers over HTTP, in the APIs that rerank clients already speak.

    Starts on this machine alone, with the embedded model unless another is named. Settings come from the command
    line, SECONDPASS_* in the environment, and --config, in this order.
    """
    from secondpass.command import serve as command

    given = {
        "host": host,
        "port": port,
        "api_key_file": api_key_file,
        "workers": workers,
        "allowed_hosts": tuple(allowed_host) if allowed_host else None,
        "cors_origins": tuple(cors_origin) if cors_origin else None,
        "tls_certificate": tls_certificate,
        "tls_key": tls_key,
        "insecure": insecure,
        "allow_model_changes": allow_model_changes,
        "local_files_only": local_files_only,
        "log_texts": log_texts,
    }
    sources = command.Sources(model=model, models=models or [], embedders=embedders or [])
    raise typer.Exit(command.serve(sources, config=config, given=given, more=set_ or []))


@app.command()
def train(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A reranker or a plain encoder.")],
    data: Annotated[
        list[str], typer.Argument(metavar="DATA", help="FlagEmbedding's JSONL, in files or folders; BEIR folders.")
    ],
    output: Annotated[str, typer.Option(help="Folder of the result.")],
    loss: Annotated[
        str, typer.Option(help="ce, binary, margin_mse, kl, or a sum such as ce+kl or ce=0.4,kl=0.6.")
    ] = "ce",
    temperature: Annotated[float, typer.Option(help="Of kl.")] = 1.0,
    teacher: Annotated[
        str | None, typer.Option(help="Scores for kl and margin_mse: a reranker, or embedder:NAME; else the data's.")
    ] = None,
    negatives: Annotated[int, typer.Option(min=1, help="Negatives beside each positive.")] = 7,
    epochs: Annotated[int, typer.Option(min=1, help="Times that every query is seen.")] = 1,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Stop after so many steps.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Queries per step, over all processes.")] = 16,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 2e-5,
    schedule: Annotated[str, typer.Option(help="linear, cosine or constant.")] = "linear",
    warmup: Annotated[float, typer.Option(help="Share of the steps in which the rate rises.")] = 0.1,
    weight_decay: float = 0.01,
    clip: Annotated[float, typer.Option(help="Highest norm of the gradient.")] = 1.0,
    max_length: Annotated[int | None, typer.Option(min=1, help="Most tokens of a pair; else 512.")] = None,
    lora: Annotated[int | None, typer.Option(metavar="RANK", min=1, help="Train low-rank updates only.")] = None,
    lora_alpha: Annotated[float | None, typer.Option(help="Else twice the rank.")] = None,
    lora_targets: Annotated[str, typer.Option(help="attention or all.")] = "all",
    adapter: Annotated[bool, typer.Option("--adapter", help="Save the updates in PEFT's layout too.")] = False,
    freeze_words: Annotated[bool, typer.Option("--freeze-words", help="Leave the word embeddings.")] = False,
    checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, a third more time.")
    ] = False,
    token_budget: Annotated[int | None, typer.Option(min=1, help="Tokens in one forward pass.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16, with float32 weights.")] = "auto",
    seed: int = 1,
    eval_: Annotated[str | None, typer.Option("--eval", metavar="DATA", help="A set to measure on.")] = None,
    eval_split: Annotated[str | None, typer.Option(help="Its split; else dev, if there is one.")] = None,
    eval_depth: Annotated[int, typer.Option(min=1, help="BM25 candidates to rerank.")] = 30,
    eval_queries: Annotated[int | None, typer.Option(min=1, help="Only so many queries, drawn once.")] = None,
    eval_every: Annotated[int | None, typer.Option(min=1, help="Steps; else at the end of an epoch.")] = None,
    measure: Annotated[str, typer.Option(help="nDCG@10 or MRR@10: by which the best is kept.")] = "nDCG@10",
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 200,
    log_every: Annotated[int, typer.Option(min=1, help="Steps between lines.")] = 10,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write events into OUTPUT/training.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a run in OUTPUT was stopped.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out lines that are wrong.")] = False,
    search: Annotated[str, typer.Option(help="For negatives of BEIR folders: bm25 or embedder:NAME.")] = "bm25",
    split: Annotated[str | None, typer.Option(help="Judgements of BEIR folders; else train.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a reranker: data is checked first, the result is an ordinary Hugging Face folder.

    Ctrl-C saves, and --resume goes on. Several processes: accelerate launch -m secondpass train ...
    """
    from secondpass.command import mine as mining
    from secondpass.command import train as command
    from secondpass.command.errors import WrongUse
    from secondpass.training.mining import MiningSettings
    from secondpass.training.settings import LoraSettings, TrainingSettings, parse_losses

    try:
        updates = None
        if lora is not None:
            alpha = lora_alpha or 2.0 * lora
            updates = LoraSettings(rank=lora, alpha=alpha, targets=lora_targets, saves_adapter=adapter)
        settings = TrainingSettings(
            losses=parse_losses(loss),
            temperature=temperature,
            num_negatives=negatives,
            batch=batch,
            epochs=epochs,
            max_steps=max_steps,
            learning_rate=lr,
            schedule=schedule,
            warmup=warmup,
            weight_decay=weight_decay,
            max_gradient_norm=clip,
            max_length=max_length,
            token_budget=token_budget,
            device=device,
            dtype=dtype,
            has_gradient_checkpointing=checkpointing,
            has_frozen_words=freeze_words,
            lora=updates,
            seed=seed,
            measure=measure,
            eval_every=eval_every,
            save_every=save_every,
            log_every=log_every,
            has_tensorboard=tensorboard,
        )
    except ValueError as error:
        raise WrongUse(str(error)) from error
    sources = command.Sources(
        teacher=teacher,
        mining=mining.Source(search=search, split=split),
        mining_settings=MiningSettings(num_negatives=max(15, negatives)),
        is_skipping=skip_bad,
        dev=eval_,
        dev_split=eval_split,
        dev_depth=eval_depth,
        dev_queries=eval_queries,
    )
    command.train(model, data, output, settings=settings, sources=sources, is_resumed=resume, is_json=json)


@app.command()
def mine(
    data: Annotated[
        list[str], typer.Argument(metavar="DATA", help="BEIR folders, or JSONL files with queries and positives.")
    ],
    output: Annotated[str, typer.Option(help="File to write, .jsonl or .jsonl.gz.")],
    search: Annotated[str, typer.Option(help="bm25, or embedder:NAME.")] = "bm25",
    judge: Annotated[
        str | None, typer.Option(help="A reranker (or embedder:NAME) whose scores filter and are kept.")
    ] = None,
    negatives: Annotated[int, typer.Option(min=1, help="Per query.")] = 15,
    first: Annotated[int, typer.Option(min=0, help="Ranks to leave out at the top.")] = 0,
    depth: Annotated[int, typer.Option(min=1, help="Ranks to look at.")] = 100,
    margin: Annotated[
        float | None, typer.Option(help="A negative scores so much below the lowest positive, at least.")
    ] = None,
    ratio: Annotated[
        float | None, typer.Option(help="A negative scores this share of the lowest positive, at most.")
    ] = None,
    spread: Annotated[bool, typer.Option("--spread", help="Evenly from all ranks, not the first ones.")] = False,
    split: Annotated[str | None, typer.Option(help="Judgements of BEIR folders; else train.")] = None,
    debug: Debug = False,
) -> None:
    """Find hard negatives for training. Interrupted, it goes on where it stopped when it is called again."""
    from secondpass.command import mine as command
    from secondpass.command.errors import WrongUse
    from secondpass.training.mining import MiningSettings

    try:
        settings = MiningSettings(
            num_negatives=negatives, first=first, depth=depth, margin=margin, ratio=ratio, is_spread=spread
        )
    except ValueError as error:
        raise WrongUse(str(error)) from error
    command.mine(data, output, source=command.Source(search=search, judge=judge, split=split), settings=settings)


@app.command("eval")
def evaluate(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA", help="BEIR, MIRACL or MS MARCO folders, reranking sets, ir-datasets:NAME, mteb:NAME."
        ),
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(help="default, a folder, owner/name, embedder:NAME or colbert:NAME; repeat it to compare."),
    ] = None,
    first_stage: Annotated[str, typer.Option(help="bm25, run:FILE (a path, or in the set), embedder:NAME.")] = "bm25",
    depth: Annotated[str, typer.Option(help="How many candidates to rerank, as in 20,50,100.")] = "100",
    measures: Annotated[
        str, typer.Option(help="nDCG@k, MRR@k, recall@k, MAP, precision@k, hit_rate@k; the first decides.")
    ] = "nDCG@10,MRR@10,recall@10,MAP,hit_rate@1",
    queries: Annotated[int | None, typer.Option(min=1, help="Only so many queries of each set, drawn once.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Else the first there is of test, dev, validation, train.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of draws.")] = 0,
    examples: Annotated[int, typer.Option(min=0, help="Queries to show that a model hurts most.")] = 3,
    json: Json = False,
    markdown: Annotated[str | None, typer.Option(metavar="FILE", help="Write the tables there too.")] = None,
    html: Annotated[str | None, typer.Option(metavar="FILE", help="Write a report with plots.")] = None,
    cache: Annotated[
        str | None, typer.Option(metavar="FILE", help="Keep scores there, to go on or run again.")
    ] = None,
    latency: Annotated[bool, typer.Option("--latency/--no-latency", help="Measure time per query.")] = True,
    engine: Engine = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    max_length: Annotated[int | None, typer.Option(min=1, help="Most tokens of a pair; else the model's.")] = None,
    local_files_only: Annotated[
        bool, typer.Option("--local-files-only", "--offline", help="Never use the network.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Measure whether a reranker helps: with and without it, on your data, and at what cost.

    Prints verdicts and tables in Markdown. Interrupted, a run with --cache goes on where it was.
    """
    from secondpass.command import eval as command
    from secondpass.command.sets import Loading, Sets

    loading = Loading(
        engine=engine,
        device=device,
        dtype=dtype,
        max_length=max_length,
        local_files_only=local_files_only,
        cache=cache,
    )
    sets = Sets(sources=data, first_stage=first_stage, split=split, num_queries=queries, seed=seed, loading=loading)
    settings = command.Settings(models=model or ["default"], depths=depth, measures=measures, is_timed=latency)
    command.evaluate(sets, settings, command.Output(is_json=json, markdown=markdown, html=html, examples=examples))


@app.command()
def calibrate(
    data: Annotated[
        list[str], typer.Argument(metavar="DATA", help='Sets as for eval, or lines with "query", "text", "label".')
    ],
    model: Model = "default",
    output: Annotated[
        str | None, typer.Option(metavar="FILE", help="Else calibration.json in the model's folder.")
    ] = None,
    precision: Annotated[float | None, typer.Option(help="Find the threshold for it, as 0.9.")] = None,
    first_stage: Annotated[str, typer.Option(help="bm25, run:FILE (a path, or in the set), embedder:NAME.")] = "bm25",
    depth: Annotated[int, typer.Option(min=1, help="Candidates of each query.")] = 30,
    queries: Annotated[int | None, typer.Option(min=1, help="Only so many queries of each set, drawn once.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Else the first there is of test, dev, validation, train.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of draws.")] = 0,
    cache: Annotated[
        str | None, typer.Option(metavar="FILE", help="Keep scores there, to go on or run again.")
    ] = None,
    revision: Revision = None,
    engine: Engine = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    max_length: Annotated[int | None, typer.Option(min=1, help="Most tokens of a pair; else the model's.")] = None,
    local_files_only: Annotated[
        bool, typer.Option("--local-files-only", "--offline", help="Never use the network.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Fit probabilities to labelled pairs, and a threshold for a wanted precision.

    Says how far they hold on pairs that were held out. Reranker(..., calibration=FILE) uses them.
    """
    from secondpass.command import calibrate as command
    from secondpass.command.sets import Loading, Sets

    loading = Loading(
        revision=revision,
        engine=engine,
        device=device,
        dtype=dtype,
        max_length=max_length,
        local_files_only=local_files_only,
        cache=cache,
    )
    sets = Sets(sources=data, first_stage=first_stage, split=split, num_queries=queries, seed=seed, loading=loading)
    settings = command.Settings(model=model, depth=depth, precision=precision, output=output, is_json=json)
    command.calibrate(sets, settings)


def main() -> None:
    """The command `secondpass`."""
    settings = Settings()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as under nohup
        signal.signal(signal.SIGINT, settings.interrupt)
    sys.exit(run(sys.argv[1:], settings))


def run(arguments: Sequence[str], settings: Settings) -> int:
    """Run one command line, and its exit code; an error is one sentence on standard error."""
    try:
        _set_up_streams()
        command: Any = typer.main.get_command(app)
        with command.make_context("secondpass", list(arguments), obj=settings) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as stop:
        return int(stop.exit_code)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has what it wanted; Python must not fail on what is still to be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        if settings.interrupted:
            return INTERRUPTED
        if settings.debug:
            raise
        return _explain(error)
    return OK


def _set_up_streams() -> None:
    """UTF-8 where programs read; what has no encoding is escaped; no progress bars where nobody looks."""
    for stream in (sys.stdout, sys.stderr):
        encoding = stream.encoding if stream.isatty() else "utf-8"
        stream.reconfigure(encoding=encoding, errors="backslashreplace")  # type: ignore[union-attr]
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _explain(error: Exception) -> int:
    """Print the error as one sentence. Returns the exit code."""
    from secondpass.command.errors import WrongUse
    from secondpass.errors import SecondpassError

    parsing: Any = getattr(error, "format_message", None)  # of typer's own errors, wherever its release defines them
    if parsing is not None:
        path = getattr(getattr(error, "ctx", None), "command_path", "secondpass")
        message, code = f"{str(parsing()).rstrip('.')}; see {path} --help", WRONG_USE
    elif isinstance(error, SecondpassError):
        message, code = str(error), WRONG_USE if isinstance(error, WrongUse) else FAILED
    else:
        message, code = f"{type(error).__name__}: {error}; --debug shows where", FAILED
    sys.stderr.write(f"secondpass: {' '.join(message.split())}\n")
    return code
