"""What the public classes have in common: methods for asyncio and for many queries, hints, what is opened once."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import wraps
from numbers import Integral
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from secondpass.types import DocumentLike, Ranking

S = TypeVar("S")
P = ParamSpec("P")
R = TypeVar("R")

# What other libraries call an option -> what it is here.
OTHER_NAMES = {
    "top_k": "top_n",
    "k": "top_n",
    "docs": "documents",
    "passages": "documents",
    "return_documents": "nothing, since hit.document always is there",
    "normalize": "hit.probability, or probability(score)",
    "activation_fn": "hit.probability, or probability(score)",
    "use_fp16": "dtype='float16' or 'bfloat16', or nothing for the fastest here",
    "use_bf16": "dtype='bfloat16', or nothing for the fastest here",
    "devices": "device",
    "batch_size": "token_budget when the model is opened",
    "cache_dir": "the environment variable HF_HOME",
    "model_name": "model",
    "model_name_or_path": "model",
    "trust_remote_code": "nothing: code of checkpoints is never run",
}


def in_thread(call: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """The same method with the same options, to be awaited: computed in a thread, so that the loop goes on."""

    @wraps(call)
    async def awaited(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        import asyncio  # half of what `import secondpass.reranker` would take

        own: Callable[P, R] = getattr(self, call.__name__)  # a subclass may have its own
        return await asyncio.to_thread(own, *args, **kwargs)

    awaited.__doc__ = f"`{call.__name__}` for asyncio: computed in a thread, so that the loop goes on."
    return awaited


def for_each_query(
    call: Callable[Concatenate[S, str, Iterable[DocumentLike], P], Ranking],
) -> Callable[Concatenate[S, Sequence[str], Sequence[Iterable[DocumentLike]], P], list[Ranking]]:
    """`rank` for several queries with documents each, one after the other."""

    def each(
        self: S,
        queries: Sequence[str],
        documents: Sequence[Iterable[DocumentLike]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> list[Ranking]:
        check_lists(queries, documents)
        return [call(self, query, own, *args, **kwargs) for query, own in zip(queries, documents, strict=True)]

    each.__doc__ = "A ranking for each of several queries and its list of documents; the options are those of `rank`."
    return each


def check_lists(queries: Sequence[str], documents: Sequence[Iterable[DocumentLike]]) -> None:
    """Raises TypeError or ValueError where there is not one list of documents for each query."""
    if isinstance(queries, str) or any(isinstance(own, str | Mapping) for own in documents):
        raise TypeError("rank_many takes a list of queries, and for each of them a list of documents")
    if len(queries) != len(documents):
        raise ValueError(f"{len(queries)} queries and {len(documents)} lists of documents; give one list for each")


def check_kind(name: str, value: object, kind: type, needed: str) -> None:
    """Raises TypeError for an option that is given and of another kind; True and False are no numbers."""
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        raise TypeError(f"{name} is a {type(value).__name__}; give {needed}")


def check_whole(name: str, value: int | None, least: int) -> None:
    """Raises TypeError for an option that is no whole number, and ValueError for one below the least."""
    check_kind(name, value, Integral, "a whole number, or None for the usual")
    if value is not None and value < least:
        raise ValueError(f"{name} is {value}; give {least} or more, or None for the usual")


def hinted(call: Callable[P, R]) -> Callable[P, R]:
    """The same function; an option that other libraries have by another name is a TypeError that says ours."""

    @wraps(call)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs.keys() & OTHER_NAMES.keys():
            raise TypeError(f"{call.__qualname__} has no {name!r}; here it is {OTHER_NAMES[name]}")
        return call(*args, **kwargs)

    return checked


class Closing(ABC):
    """What `with` closes at its end."""

    @abstractmethod
    def close(self) -> None:
        """Give back what is held."""

    def __enter__(self: S) -> S:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Opened(Closing):
    """What holds a model. A pickle or a copy opens it anew, from what it was opened with."""

    _arguments: Mapping[str, Any]

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened_again, (type(self), self._opened_with())

    def _opened_with(self) -> Mapping[str, Any]:
        """The arguments of the class that open it again."""
        return self._arguments


def _opened_again(kind: Callable[..., R], arguments: Mapping[str, Any]) -> R:
    return kind(**arguments)


class opened_once(Generic[R]):
    """A property that is made at its first use, once, whichever threads ask; the others wait. A failure is not kept.

    functools.cached_property has no lock from Python 3.12 on.
    """

    def __init__(self, opens: Callable[[Any], R]) -> None:
        self._opens = opens
        self.__doc__ = opens.__doc__

    def __get__(self, instance: Any, owner: type | None = None) -> R:
        known, name = vars(instance), self._opens.__name__
        with known.setdefault(f"_{name}_lock", threading.RLock()):
            if name not in known:
                known[name] = self._opens(instance)
            found: R = known[name]  # from now on it is found there before this is asked
            return found


def one_at_a_time(call: Callable[P, R]) -> Callable[P, R]:
    """The same function, for one thread at a time: around functools.lru_cache it computes nothing twice."""
    lock = threading.Lock()

    @wraps(call)
    def waited(*args: P.args, **kwargs: P.kwargs) -> R:
        with lock:
            return call(*args, **kwargs)

    return waited
