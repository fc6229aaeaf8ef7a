"""Results on their way from a device to the host, which goes on launching work meanwhile."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


class Arrival:
    """A copy of a tensor on the host; whoever reads it waits for it, and for nothing that was launched later."""

    def __init__(self, values: Tensor) -> None:
        is_cuda = values.device.type == "cuda"
        self._values = values.to("cpu", non_blocking=is_cuda)  # into pinned memory, where it does not block
        self._event = torch.cuda.current_stream(values.device).record_event() if is_cuda else None

    def numpy(self) -> NDArray[Any]:
        if self._event is not None:
            self._event.synchronize()
        found: NDArray[Any] = self._values.numpy()
        return found
