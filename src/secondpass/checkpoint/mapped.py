"""Memory that a file is mapped into: pages that were read once can go, since the file still has them."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MAPS = Path("/proc/self/maps")
DONT_NEED = getattr(mmap, "MADV_DONTNEED", None)  # Windows has none


def is_mapped(tensor: Tensor) -> bool:
    """Whether the values lie in a mapped file; False where the system does not say."""
    if DONT_NEED is None or not sys.platform.startswith("linux"):
        return False
    address = tensor.data_ptr()
    for line in MAPS.read_text("utf-8", "surrogateescape").splitlines():
        addresses, _, _, _, inode, *_ = line.split(maxsplit=5)
        start, end = (int(address, 16) for address in addresses.split("-"))
        if start <= address < end:
            return inode != "0"
    return False


def leave_memory(tensor: Tensor) -> None:
    """Drop the pages of a contiguous tensor for which `is_mapped` holds; they are read again when they are used.

    Of any other memory this would erase the values.
    """
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    size = tensor.data_ptr() + tensor.nbytes - start
    if size > 0:  # a page that another tensor shares only in part is not counted in
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), DONT_NEED)
