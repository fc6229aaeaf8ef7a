"""The process of one replica: settings and tasks on standard input, answers on standard output, pickled.

It only talks to the process that started it, and ends when that one does.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import IO, Any

from secondpass.engine.replicas import Answer, Task


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes our input
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not be taken for an answer
    tasks: IO[bytes] = sys.stdin.buffer
    try:
        serve(tasks, lambda answer: _write(answers, answer))
    except (EOFError, BrokenPipeError):
        return


def serve(tasks: IO[bytes], say: Callable[[Answer], None]) -> None:
    """Open the engine and run tasks until there are no more."""
    settings: dict[str, Any] = pickle.load(tasks)
    try:
        from secondpass.engine.torch import TorchEngine

        engine = TorchEngine(settings.pop("checkpoint"), **settings)
    except Exception as error:
        say(_failure(0, error))
        return
    facts = {name: getattr(engine, name) for name in ("device", "dtype", "reason", "max_length", "token_budget")}
    say(Answer(facts=facts))
    for task in _read_ahead(tasks):
        try:
            say(Answer(number=task.number, scores=engine.run(task.rows() if task.lengths else [], task.run)))
        except Exception as error:
            say(_failure(task.number, error))


def _read_ahead(tasks: IO[bytes]) -> Iterator[Task]:
    """Tasks as they come; read in a thread, so that who sends them never waits for the engine."""
    waiting: queue.SimpleQueue[Task | None] = queue.SimpleQueue()

    def read() -> None:
        while True:
            try:
                waiting.put(pickle.load(tasks))
            except (EOFError, OSError, ValueError):
                waiting.put(None)
                return

    threading.Thread(target=read, daemon=True).start()
    while (task := waiting.get()) is not None:
        yield task


def _failure(number: int, error: Exception) -> Answer:
    return Answer(
        number=number,
        seen=str(error) or type(error).__name__,
        traceback=traceback.format_exc(),
        is_value_error=isinstance(error, ValueError),
    )


def _write(stream: IO[bytes], answer: Answer) -> None:
    pickle.dump(answer, stream, protocol=pickle.HIGHEST_PROTOCOL)
    stream.flush()


if __name__ == "__main__":
    main()
