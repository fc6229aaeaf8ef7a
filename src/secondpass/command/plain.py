"""Flags, and plain command lines, which are read without typer: its import takes 50 ms of a start, what it makes of
each flag's type twice that.

Plain are known flags, each with a value of its kind. Whatever else there is, --help or a mistake, typer explains
(`secondpass.command.typed`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from inspect import Parameter
from types import UnionType
from typing import Any, Union, get_args, get_origin


@dataclass(frozen=True, kw_only=True)
class Flag:
    """What stands for a parameter on the command line: one of `names`, else its own name; None: its place."""

    names: tuple[str, ...] | None
    help: str
    metavar: str | None = None
    min: float | None = None
    max: float | None = None
    envvar: str | None = None


def option(
    *names: str,
    help: str,
    metavar: str | None = None,
    min: float | None = None,
    max: float | None = None,
    envvar: str | None = None,
) -> Flag:
    return Flag(names=names, help=help, metavar=metavar, min=min, max=max, envvar=envvar)


def argument(*, help: str, metavar: str) -> Flag:
    return Flag(names=None, help=help, metavar=metavar)


_NUMBERS = {int: re.compile(r"-?\d+", re.ASCII), float: re.compile(r"-?\d+(\.\d+)?", re.ASCII)}


class _NotPlainError(Exception):
    """Left to typer."""


def plain_arguments(
    parameters: Iterable[Parameter], words: Sequence[str], environment: Collection[str] = ()
) -> dict[str, Any] | None:
    """The parameters of a command by name, as typer would make them; None for what is not plain.

    parameters are annotated with a kind and a Flag. environment has the names of variables;
    where one of them stands for a flag, the line is not plain.
    """
    try:
        known = {parameter.name: parameter for parameter in parameters}
        flags, places = _flags(known.values()), [name for name, each in known.items() if _is_argument(each)]
        given, rest = _split(flags, words)
        for name in places:
            count = len(rest) if _kind(known[name])[1] else 1
            given |= {name: rest[:count]} if rest else {}
            rest = rest[count:]
        if rest:
            raise _NotPlainError
        variables = [_info(each).envvar for each in known.values()]
        if any(name is not None and name in environment for name in variables):
            raise _NotPlainError
        return {name: _made(each, given.get(name)) for name, each in known.items()}
    except _NotPlainError:
        return None


def _info(parameter: Parameter) -> Flag:
    info: Flag = get_args(parameter.annotation)[1]
    return info


def _is_argument(parameter: Parameter) -> bool:
    return _info(parameter).names is None


def _kind(parameter: Parameter) -> tuple[Any, bool]:
    """What a value is, and whether there may be several."""
    kind = get_args(parameter.annotation)[0]
    if get_origin(kind) in (UnionType, Union):
        (kind,) = (each for each in get_args(kind) if each is not type(None))
    return (get_args(kind)[0], True) if get_origin(kind) is list else (kind, False)


def _flags(parameters: Iterable[Parameter]) -> Mapping[str, tuple[str, bool | None]]:
    """The names of flags: of each the parameter, and what it stands for where it takes no value."""
    found: dict[str, tuple[str, bool | None]] = {}
    for parameter in parameters:
        said = _info(parameter).names
        if said is None:
            continue
        is_switch = _kind(parameter)[0] is bool
        usual = f"--{parameter.name.replace('_', '-')}"
        for names in said or ([f"{usual}/--no-{usual[2:]}"] if is_switch else [usual]):
            on, _, off = names.partition("/")
            found[on] = parameter.name, True if is_switch else None
            found |= {off: (parameter.name, False)} if off else {}
    return found


def _split(
    flags: Mapping[str, tuple[str, bool | None]], words: Sequence[str]
) -> tuple[dict[str, list[Any]], list[str]]:
    """What is given by flags, and the other words in their order."""
    given: dict[str, list[Any]] = {}
    rest: list[str] = []
    left = iter(words)
    for word in left:
        if not word.startswith("-") or word == "-":
            rest.append(word)
            continue
        flag, sign, value = word.partition("=")
        if flag not in flags:
            raise _NotPlainError
        name, meant = flags[flag]
        if meant is None and not sign:
            value = next(left, "-")
            if value.startswith("-"):
                raise _NotPlainError
        if meant is not None and sign:
            raise _NotPlainError
        given.setdefault(name, []).append(value if meant is None else meant)
    return given, rest


def _made(parameter: Parameter, values: list[Any] | None) -> Any:
    """The value of a parameter: the last one that is given, all of a list, or the default."""
    if values is None:
        if parameter.default is Parameter.empty:
            raise _NotPlainError
        return parameter.default
    kind, is_list = _kind(parameter)
    info = _info(parameter)
    read: Callable[[Any, Any], Any] = _READ.get(kind, _chosen)
    made = [read(kind, value) for value in values]
    if any((info.min is not None and x < info.min) or (info.max is not None and x > info.max) for x in made):
        raise _NotPlainError
    return made if is_list else made[-1]


def _number(kind: type[int] | type[float], word: str) -> int | float:
    if not _NUMBERS[kind].fullmatch(word):
        raise _NotPlainError
    value: int | float = kind(word)
    return value


def _chosen(kind: Any, word: str) -> Enum:
    if not issubclass(kind, Enum) or word not in [each.value for each in kind]:
        raise _NotPlainError
    found: Enum = kind(word)
    return found


_READ: Mapping[Any, Callable[[Any, Any], Any]] = {
    str: lambda _, word: word,
    bool: lambda _, value: value,
    int: _number,
    float: _number,
}
