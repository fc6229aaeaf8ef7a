from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoints import tiny_bert
from tests.faults.disks import Disk, disk


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Disk]:
    try:
        with disk(tmp_path / "disk") as found:
            yield found
    except OSError as error:
        pytest.skip(f"no disk can be mounted here: {error}")
