"""The command line: parse, call, print.

The options of a command are in command/options/; what it does is in command/, imported only when it runs. It raises
WrongUse or any SecondpassError, and `run` turns those into one sentence and an exit code.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from secondpass.command.options import Debug, calibrate, eval, export, mine, models, rank, serve, train

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


def _show_version(value: bool) -> None:
    from secondpass import __version__

    if value:
        typer.echo(f"secondpass {__version__}")
        raise typer.Exit


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


app.command("rank")(rank.rank)
app.command("models")(models.models)
app.command("export")(export.export)
app.command("pull")(models.pull)
app.command("serve")(serve.serve)
app.command("train")(train.train)
app.command("mine")(mine.mine)
app.command("eval")(eval.evaluate)
app.command("calibrate")(calibrate.calibrate)


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
    from secondpass.errors import SecondpassError, WrongUse

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
