"""Everything that secondpass raises of its own.

A bad value in a call is a ValueError or a TypeError as everywhere in Python; the classes here are for what
lies outside the call: a checkpoint, a download, a missing package, a machine.
"""


class SecondpassError(Exception):
    """Any failure that is not a bug of the caller."""


class CheckpointError(SecondpassError):
    """A checkpoint folder is incomplete, damaged, or not what its config says."""


class UnknownModel(SecondpassError):
    """No backbone, recipe or head fits the checkpoint."""


class DownloadError(SecondpassError):
    """A model could not be fetched, or not whole; says what to do offline."""


class MissingExtra(SecondpassError):
    """A package that an optional part needs is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f'{package} is not installed; pip install "secondpass[{extra}]"')


class EngineError(SecondpassError):
    """The engine could not score: no memory, NaN weights, an unusable device."""


class RemoteError(SecondpassError):
    """A server could not be reached in time, refused, or gave an answer that is none; status is that of HTTP."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class DataError(SecondpassError):
    """Queries, documents or judgements cannot be used; says in which file and line."""


class NoSuchSplit(DataError):
    """A set has no judgements of the split that was asked for."""


class TrainingError(SecondpassError):
    """A training run cannot start, go on or be saved."""


class WrongUse(SecondpassError):
    """The command was called in a way that cannot work: exit code 2."""


class StoreError(SecondpassError):
    """An index cannot be opened, read or written; says which, and what to do."""


class IndexGone(StoreError):
    """An index was removed, or made anew, while it was open."""


class NoSuchChunk(StoreError):
    """An index has no chunk of this id, or has it no more."""
