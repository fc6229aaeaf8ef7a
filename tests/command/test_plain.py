"""Plain command lines mean what typer makes of them."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import pytest

from secondpass import cli
from secondpass.command import typed
from secondpass.command.plain import plain_arguments

PLAIN = (
    "rank question",
    "rank question a.txt b.md --top 3 --json --split line",
    "rank --passage one --passage two question --budget-ms 20.5 --explain --offline",
    "rank question - --model=owner/name@main --fields title,body --long chunk --max-length 128",
    "search question --name notes --top 2 --no-rerank",
    "search question -n 2 --field a=b --field c=d --cognitive",
    "add folder other --name notes",
    "serve --port 8000",
    "eval data --top 5",
    "mine data",
    "models",
)
OTHER = (
    "rank",
    "rank --help",
    "rank question --top three",
    "rank question --top -1",
    "rank question --tpo 3",
    "rank question --split lines",
    "rank question --json=yes",
    "rank question --top",
    "rank question --model --json",
    "rank question --debug",
    "collections more",
    "search question --no-cognitive",
    "search question -n2",
)


def plain(line: str) -> dict[str, Any] | None:
    name, *words = line.split()
    return plain_arguments(inspect.signature(cli._function(name)).parameters.values(), words)


@pytest.mark.parametrize("line", PLAIN)
def test_a_plain_line_means_what_typer_makes_of_it(line: str) -> None:
    name, *words = line.split()
    command = typed.command(name, cli.COMMANDS[name][1], cli._function(name))
    try:
        expected = command.make_context(name, list(words)).params
        del expected["debug"]
    except Exception as error:  # a flag that this command has not
        assert plain(line) is None, error
        return
    found = plain(line)
    assert found is not None
    assert {key: value or None for key, value in found.items()} == {
        key: value or None for key, value in expected.items()
    }


@pytest.mark.parametrize("line", OTHER)
def test_other_lines_are_left_to_typer(line: str) -> None:
    assert plain(line) is None


def test_a_variable_of_the_environment_is_typers_to_read() -> None:
    parameters = inspect.signature(cli._function("search")).parameters.values()
    assert plain_arguments(parameters, ["question"], ["HOME"]) is not None
    assert plain_arguments(parameters, ["question"], ["SECONDPASS_INDEXES"]) is None


def test_defaults_are_those_of_typer_for_every_command() -> None:
    for name in cli.COMMANDS:
        found = plain(f"{name} one two three")
        found = found or plain(f"{name} one two") or plain(f"{name} one") or plain(name)
        if found is None:
            continue  # has flags that must be given
        for key, parameter in inspect.signature(cli._function(name)).parameters.items():
            if parameter.annotation.__metadata__[0].names is not None:
                assert found[key] == parameter.default


@pytest.mark.slow
def test_a_plain_line_is_read_without_typer() -> None:
    run = "code = cli.run(['rank', 'q', '--passage', 'a'])"
    code = f"import sys; from secondpass import cli; {run}; print(code, 'typer' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "0 False"
