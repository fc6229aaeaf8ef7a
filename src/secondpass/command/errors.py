"""Errors that only the command line has; cli.py turns them into exit codes."""

from secondpass.errors import SecondpassError


class WrongUse(SecondpassError):
    """The command was called in a way that cannot work: exit code 2."""


class InputError(SecondpassError):
    """What should be ranked cannot be read: exit code 1."""
