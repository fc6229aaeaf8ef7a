"""Command lines that typer reads: those that are not plain, help, completion and mistakes."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperCommand, TyperGroup

from secondpass.command.plain import Flag

_CONTEXT = {"help_option_names": ["-h", "--help"]}
_METAVARS = {int: "N", float: "X", str: "TEXT"}
Function = Callable[..., None]


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
    """Commands by name, each imported when it is asked for."""

    lines: Mapping[str, str]  # of each command, for the list of them
    function: Callable[[str], Function]

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.lines)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """One of them. Asked for an unknown one it loads all, so that typer finds a name to suggest."""
        for name in [cmd_name] if cmd_name in self.lines else self.lines:
            if name not in self.commands:
                self.commands[name] = command(name, self.lines[name], self.function(name))
        return self.commands.get(cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(self.lines.items()))


def run_typed(
    arguments: Sequence[str], lines: Mapping[str, str], function: Callable[[str], Function], invocation: object
) -> int:
    """Run one command line, of the commands in `lines`, with a line of help for each; its exit code.

    Raises typer's own errors for wrong use, and what the command raises.
    """
    command = _application(lines, function)
    if "_SECONDPASS_COMPLETE" in os.environ:
        command.main(list(arguments), prog_name="secondpass")  # a shell asks what could come next
    try:
        with command.make_context("secondpass", list(arguments), obj=invocation) as context:
            command.invoke(context)
    except typer.Exit as stop:
        return int(stop.exit_code)
    return 0


def _application(lines: Mapping[str, str], function: Callable[[str], Function]) -> Any:
    app = typer.Typer(
        name="secondpass",
        cls=_Group,
        help="The second pass of retrieval: reads a query and each passage together and keeps the best.",
        epilog="Exit codes: 0 done, 1 failed, 2 wrong use.",
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings=_CONTEXT,
    )
    app.callback(invoke_without_command=True)(_root)
    group: Any = typer.main.get_command(app)
    group.lines, group.function = lines, function
    return group


def _root(context: typer.Context, *, version: Version = False, debug: Debug = False) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


def command(name: str, line: str, function: Function) -> Any:
    """One of them, with --debug."""
    single = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    single.command(name, cls=_Command, short_help=line, context_settings=_CONTEXT)(_described(function))
    return typer.main.get_command(single)


def _described(function: Function) -> Function:
    """The function as typer reads one."""

    def call(*, debug: bool, **given: Any) -> None:
        function(**given)

    parameters = [_described_flag(each) for each in inspect.signature(function).parameters.values()]
    debug = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug)
    call.__doc__, call.__name__ = function.__doc__, function.__name__
    call.__signature__ = inspect.Signature([*parameters, debug])  # type: ignore[attr-defined]
    return call


def _described_flag(parameter: inspect.Parameter) -> inspect.Parameter:
    """With typer's words for a Flag, and N, X or TEXT for what it takes, where nothing better is said."""
    kind, flag = get_args(parameter.annotation)
    assert isinstance(flag, Flag)
    parts = [part for each in (kind, *get_args(kind)) for part in (each, *get_args(each))]
    usual = next((_METAVARS[part] for part in parts if part in _METAVARS), None)
    metavar = usual if flag.metavar is None else flag.metavar
    if flag.names is None:
        info: Any = typer.Argument(metavar=metavar, help=flag.help)
    else:
        settings: dict[str, Any] = {"min": flag.min, "max": flag.max, "envvar": flag.envvar}
        info = typer.Option(*flag.names, metavar=metavar, help=flag.help, **settings)
    return parameter.replace(annotation=Annotated[kind, info])
