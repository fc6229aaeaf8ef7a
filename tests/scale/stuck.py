"""`secondpass serve`, where the engine of one replica hangs once the file STUCK_FILE is there."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from secondpass.__main__ import main
from secondpass.scale import serving
from secondpass.server.settings import Settings

FILE = Path(os.environ["STUCK_FILE"])


class Hanging:
    """An engine that is at one batch for ever."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, rows: Sequence[Any], *options: Any) -> Any:
        if FILE.exists():
            FILE.unlink()
            threading.Event().wait()
        return self._engine.run(rows, *options)


class HangingReplica(serving.Replica):
    """Travels to Ray's processes as it is, since it is of the module that was started."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]
        await super().__init__(settings)  # type: ignore[misc]
        for hosted in self._service.registry.all():
            hosted.batches._engine = Hanging(hosted.batches._engine)


if __name__ == "__main__":
    serving.Replica = HangingReplica  # type: ignore[misc]
    main()
