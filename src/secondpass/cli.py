"""The command line: parse, call, explain what went wrong.

A command is a function in a file of command/ and a row of COMMANDS. The function's parameters are its arguments and
flags, annotated with what they are on the command line; one whose type is a dataclass stands for the dataclass's
fields, so that a flag is written once, with its default and help, and reaches the work as it is. Flags that several
commands have are in command/flags.py; command/typed.py adds --debug. A command's file imports at its head only what
is quick, since its flags alone may be asked for (shell completion, --help); what is heavy is imported inside of
functions. A command raises WrongUse or any SecondpassError, and `run` turns those into one sentence and an exit code;
SystemExit(code) ends it.
"""

from __future__ import annotations

import atexit
import inspect
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import partial
from importlib import import_module
from types import FrameType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from secondpass.command.plain import plain_arguments
from secondpass.engine.cpu.threads import suit_environment

OK, FAILED, WRONG_USE = 0, 1, 2
ALARM = getattr(signal, "SIGALRM", 0)  # 0 where the system has no timers
IMPORT_WAIT = 0.02  # seconds until it is looked again whether an import is done
SIGNALLED = 128  # and the number of the signal, as shells have it
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


@dataclass
class Invocation:
    """What holds for the whole run, whatever the command."""

    debug: bool = False
    signal: int = 0  # that ended it
    is_waiting: bool = False  # for the end of an import

    def interrupt(self, signum: int, frame: FrameType | None) -> None:
        """On Ctrl-C and SIGTERM, and on alarms that come until an import is done.

        Compiled modules that are being imported do not bear an exception: torch aborts the process. One alarm would
        not do: where it comes as this thread is about to read, and waits for Python's lock, it is heard after that.
        """
        if signum != ALARM:
            self.signal = signum
        elif not self.is_waiting:  # the last one, as the timer was stopped
            return
        self.is_waiting = bool(ALARM) and _is_importing(frame)
        if self.is_waiting:
            signal.signal(ALARM, self.interrupt)
            signal.setitimer(signal.ITIMER_REAL, IMPORT_WAIT, IMPORT_WAIT)
            return
        if ALARM:
            signal.setitimer(signal.ITIMER_REAL, 0)
        raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


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
    """The function with the fields of its dataclasses as parameters of their own."""
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name in groups:
            parameters += _fields(groups[name])
        else:
            parameters.append(_flag(name, hints[name], parameter.default))

    def call(**given: Any) -> None:
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
    # Python 3.10 makes Optional of it where the default is None
    flag = next(each for each in (hint, *get_args(hint)) if get_origin(each) is Annotated)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=flag)


def main(is_interruptible: bool = True) -> None:
    """Run the command line of this process, and end it. is_interruptible: Ctrl-C is not ignored, as under nohup.

    SIGTERM ends it as Ctrl-C does, so that nothing half written is left.
    """
    invocation = Invocation()
    if is_interruptible:
        signal.signal(signal.SIGINT, invocation.interrupt)
    signal.signal(signal.SIGTERM, invocation.interrupt)
    code = run(sys.argv[1:], invocation)
    for number in filter(None, (signal.SIGINT, signal.SIGTERM, ALARM)):
        signal.signal(number, signal.SIG_IGN)  # it is done, whatever comes while Python ends
    if threading.active_count() == 1:  # else Python waits for the others
        atexit._run_exitfuncs()
        with suppress(OSError, ValueError):  # which Python then says
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # taking everything down, a model above all, would take 60 ms
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
        from secondpass.command.typed import run_typed

        code = run_typed(arguments, {name: line for name, (_, line) in COMMANDS.items()}, _function, invocation)
        sys.stdout.flush()
        return code
    except SystemExit as stop:
        if isinstance(stop.code, str):  # of a library, to be printed
            raise
        return stop.code or OK
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
