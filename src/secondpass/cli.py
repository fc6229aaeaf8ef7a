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
