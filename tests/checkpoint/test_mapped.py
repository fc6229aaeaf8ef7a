"""Mapped tensors are cast a block at a time, and what was cast is not in memory any more."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from secondpass.checkpoint.mapped import MAPS, is_mapped, leave_memory
from secondpass.checkpoint.weights import MAPPED_BLOCK, _cast, read_tensors

pytestmark = pytest.mark.skipif(not MAPS.is_file(), reason="what is mapped is read from Linux's /proc")
SHAPE = (3 * MAPPED_BLOCK // 1024 + 5, 1024)  # three blocks and a bit


def saved(folder: Path, suffix: str) -> tuple[Path, Tensor]:
    """A file with a tensor that does not start at a page, and the tensor."""
    tensors = {"a": torch.ones(7), "words": torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))}
    file = folder / f"weights{suffix}"
    if suffix == ".bin":
        torch.save(tensors, file)
    else:
        save_file(tensors, file)
    return file, tensors["words"]


def resident(file: Path) -> int:
    """Bytes of the file that are mapped and in memory."""
    total, is_ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            is_ours = line.endswith(str(file))
        elif is_ours and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_mapped_tensor_leaves_memory_while_it_is_cast(tmp_path: Path, suffix: str) -> None:
    file, words = saved(tmp_path, suffix)
    tensor = dict(read_tensors([file]))["words"]
    tensor.sum()  # reads every page
    assert resident(file) >= tensor.nbytes
    cast = _cast("backbone.word.weight", tensor, torch.bfloat16)
    assert torch.equal(cast, words.to(torch.bfloat16))
    assert resident(file) < tensor.nbytes / 50
    assert torch.equal(tensor, words)  # it is read again


def test_a_tensor_in_no_file_keeps_its_values() -> None:
    tensor = torch.randn(SHAPE)
    before = tensor.clone()
    assert torch.equal(_cast("backbone.word.weight", tensor, torch.bfloat16), before.to(torch.bfloat16))
    assert torch.equal(tensor, before)
    assert not is_mapped(tensor)


def test_a_view_of_a_mapped_tensor_is_cast_in_its_own_order(tmp_path: Path) -> None:
    file, words = saved(tmp_path, ".safetensors")
    tensor = dict(read_tensors([file]))["words"]
    assert torch.equal(_cast("backbone.word.weight", tensor.T, torch.bfloat16), words.T.to(torch.bfloat16))


def test_leaving_memory_harms_no_neighbour_within_a_page(tmp_path: Path) -> None:
    file, words = saved(tmp_path, ".safetensors")
    tensors = dict(read_tensors([file]))
    assert all(is_mapped(tensor) for tensor in tensors.values())
    for tensor in tensors.values():
        leave_memory(tensor)
    assert torch.equal(tensors["a"], torch.ones(7))
    assert torch.equal(tensors["words"], words)
