"""The command line: parse, call, explain what went wrong.

A command is a function in a file of command/ and a row of COMMANDS. The function's parameters are its arguments and
flags, annotated for typer; one whose type is a dataclass stands for the dataclass's fields, so that a flag is written
once, with its default and help, and reaches the work as it is. Flags that several commands have are in
command/flags.py; --debug is added here. A command's file imports at its head only what is quick, since its flags
alone may be asked for (shell completion, --help); what is heavy is imported inside of functions. A command raises
WrongUse or any SecondpassError, and `run` turns those into one sentence and an exit code; typer.Exit(code) ends it.
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import partial
from importlib import import_module
from types import FrameType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from secondpass.command.plain import plain_arguments
from secondpass.engine.cpu.threads import suit_environment

OK, FAILED, WRONG_USE = 0, 1, 2
ALARM = getattr(signal, "SIGALRM", 0)  # 0 where the system has no timers
IMPORT_WAIT = 0.02  # seconds until it is looked again whether an import is done
SIGNALLED = 128  # and the number of the signal, as shells have it
EXPORTING = frozenset({"export", "distil"})  # commands that convert a model to a graph
# Name: (file of command/ and function in it, line in the list of commands: at most 64 characters).
COMMANDS: dict[str, tuple[str, str]] = {
    "rank": ("rank:rank", "Rank passages by how well they answer a query."),
    "add": ("index:add", "Index files and folders for search."),
    "update": ("index:update", "Bring an index up to its files."),
    "collections": ("index:collections", "List the indexes."),
    "remove": ("index:remove", "Forget files, folders or a whole index."),
    "search": ("search:search", "Find what answers a question in an index, and where it stands."),
    "feedback": ("feedback:feedback", "Record what was of use in a search, and learn from it."),
    "mcp": ("mcp:mcp", "Serve search and memory to agents (MCP)."),
    "models": ("models:models", "List the known models and what is in the cache."),
    "pull": ("models:pull", "Fetch a model, and print its commit and folder."),
    "serve": ("serve:serve", "Serve rerankers over HTTP, in the APIs that clients speak."),
    "eval": ("eval:evaluate", "Measure whether a reranker helps, on your data, at what cost."),
    "calibrate": ("calibrate:calibrate", "Fit probabilities and a threshold to labelled pairs."),
    "mine": ("mine:mine", "Find hard negatives for training."),
    "train": ("train:train", "Train a reranker; the result is a Hugging Face folder."),
    "pretrain": ("pretrain:pretrain", "Pre-train an encoder on plain texts (RetroMAE)."),
    "distil": ("distil:distil", "Teach a small reranker a large one's orders on your texts."),
    "score": ("score:score", "Score files of pairs, also on Ray; it goes on where it stopped."),
    "export": ("export:export", "Write a model as a graph that runs without torch."),
}
_CONTEXT = {"help_option_names": ["-h", "--help"]}
_METAVARS = {int: "N", float: "X", str: "TEXT"}


@dataclass
class Invocation:
    """What holds for the whole run, whatever the command."""

    debug: bool = False
    signal: int = 0  # that ended it

    def interrupt(self, signum: int, frame: FrameType | None) -> None:
        """On Ctrl-C and SIGTERM, and on an alarm that is set until an import is done.

        Compiled modules that are being imported do not bear an exception: torch aborts the process.
        """
        if signum != ALARM:
            self.signal = signum
        if ALARM and _is_importing(frame):
            signal.signal(ALARM, self.interrupt)
            signal.setitimer(signal.ITIMER_REAL, IMPORT_WAIT)
            return
        raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _set_debug(context: typer.Context, value: bool) -> None:
    if value:
        context.find_root().obj.debug = True


def _show_version(value: bool) -> None:
    from secondpass import __version__

    if value:
        typer.echo(f"secondpass {__version__}")
        raise typer.Exit


Debug = Annotated[bool, typer.Option("--debug", callback=_set_debug, help="Show the traceback of an error.")]
Version = Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")]


class _Command(TyperCommand):
    """A command whose help has names for its arguments, and not their Python types."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        for title, kind in (("Arguments", "argument"), ("Options", "option")):
            records = [param.get_help_record(ctx) for param in self.get_params(ctx) if param.param_type_name == kind]
            rows = [
                (record[0].partition(" <")[0] if kind == "argument" else record[0], record[1])
                for record in records
                if record
            ]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


class _Group(TyperGroup):
    """The commands of COMMANDS, each imported when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """One of them. Asked for an unknown one it loads all, so that typer finds a name to suggest."""
        for name in [cmd_name] if cmd_name in COMMANDS else COMMANDS:
            if name not in self.commands:
                self.commands[name] = _command(name)
        return self.commands.get(cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


app = typer.Typer(
    name="secondpass",
    cls=_Group,
    help="The second pass of retrieval: reads a query and each passage together and keeps the best.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong use.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=_CONTEXT,
)


@app.callback(invoke_without_command=True)
def root(context: typer.Context, *, version: Version = False, debug: Debug = False) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(WRONG_USE)


def _command(name: str) -> Any:
    line = COMMANDS[name][1]
    single = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    single.command(name, cls=_Command, short_help=line, context_settings=_CONTEXT)(_function(name))
    return typer.main.get_command(single)


def _plain(arguments: Sequence[str]) -> Callable[[], None] | None:
    """A command with its arguments, where they can be read without typer."""
    name = arguments[0] if arguments else ""
    if name not in COMMANDS or "_SECONDPASS_COMPLETE" in os.environ:
        return None
    called = _function(name)
    given = plain_arguments(inspect.signature(called).parameters.values(), arguments[1:], os.environ)
    return None if given is None else partial(called, **given)


def _function(name: str) -> Callable[..., None]:
    module, _, function = COMMANDS[name][0].partition(":")
    return expanded(getattr(import_module(f"secondpass.command.{module}"), function))


def expanded(function: Callable[..., None]) -> Callable[..., None]:
    """The function with the fields of its dataclasses as parameters of their own, and with --debug."""
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name in groups:
            parameters += _fields(groups[name])
        else:
            parameters.append(_flag(name, hints[name], parameter.default))
    parameters.append(_flag("debug", Debug, False))

    def call(**given: Any) -> None:
        del given["debug"]
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        function(**given)

    call.__doc__, call.__name__ = function.__doc__, function.__name__
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return call


def _fields(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    defaults = {field.name: field.default for field in fields(group)}
    return [
        _flag(name, hints[name], inspect.Parameter.empty if default is MISSING else default)
        for name, default in defaults.items()
    ]


def _flag(name: str, hint: Any, default: object) -> inspect.Parameter:
    """A parameter as typer reads it, with N, X or TEXT for what it takes, where nothing better is said."""
    # Python 3.10 makes Optional of it where the default is None
    annotation, info = next(get_args(each) for each in (hint, *get_args(hint)) if get_origin(each) is Annotated)
    info = copy(info)
    if info.metavar is None:
        parts = [part for kind in (annotation, *get_args(annotation)) for part in (kind, *get_args(kind))]
        info.metavar = next((_METAVARS[part] for part in parts if part in _METAVARS), None)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, info]
    )


def main(is_interruptible: bool = True) -> None:
    """Run the command line of this process, and end it. is_interruptible: Ctrl-C is not ignored, as under nohup.

    SIGTERM ends it as Ctrl-C does, so that nothing half written is left.
    """
    invocation = Invocation()
    if is_interruptible:
        signal.signal(signal.SIGINT, invocation.interrupt)
    signal.signal(signal.SIGTERM, invocation.interrupt)
    if not EXPORTING.intersection(sys.argv):
        # openvino goes on without its converter of other formats, half of its import
        sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]
    code = run(sys.argv[1:], invocation)
    for number in filter(None, (signal.SIGINT, signal.SIGTERM, ALARM)):
        signal.signal(number, signal.SIG_IGN)  # it is done, whatever comes while Python ends
    sys.exit(code)


def run(arguments: Sequence[str], invocation: Invocation | None = None) -> int:
    """Run one command line, and its exit code; an error is one sentence on standard error."""
    invocation = invocation or Invocation()
    try:
        _set_up_streams()
        suit_environment()  # before a command imports torch
        if (plain := _plain(arguments)) is not None:
            plain()
            sys.stdout.flush()
            return OK
        command: Any = typer.main.get_command(app)
        if "_SECONDPASS_COMPLETE" in os.environ:
            command.main(list(arguments), prog_name="secondpass")  # a shell asks what could come next
        with command.make_context("secondpass", list(arguments), obj=invocation) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as stop:
        return int(stop.exit_code)
    except KeyboardInterrupt as stop:  # with the signal that a command had noted itself
        return SIGNALLED + (invocation.signal or (stop.args or (0,))[0] or signal.SIGINT)
    except BrokenPipeError:
        # The reader has what it wanted; Python must not fail on what is still to be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        if invocation.signal:
            return SIGNALLED + invocation.signal
        if invocation.debug:
            raise
        return _explain(error)
    return OK


def _set_up_streams() -> None:
    """UTF-8 where programs read; what has no encoding is escaped; no progress bars where nobody looks."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as by >&-; else the next file would get its number
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        stream = getattr(sys, name)
        stream.reconfigure(encoding=stream.encoding if stream.isatty() else "utf-8", errors="backslashreplace")
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
