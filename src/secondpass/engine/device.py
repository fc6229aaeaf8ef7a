"""Which device and which precision: the fastest that gives sound scores."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from secondpass.engine.cpu.threads import Processor, this_processor

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16", "float16")
INT8 = "int8"
_DEVICES = "'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'"


@dataclass(frozen=True, kw_only=True)
class Precision:
    """dtype is what values between the layers have; the weights of linear layers are bytes where is_int8."""

    dtype: torch.dtype
    is_int8: bool
    reason: str

    @property
    def name(self) -> str:
        return INT8 if self.is_int8 else str(self.dtype).removeprefix("torch.")


def pick_device(device: str) -> torch.device:
    """ "auto" is CUDA, then Apple's MPS, then the CPU."""
    import torch

    if not isinstance(device, str):
        raise TypeError(f"device is {device!r}; give {_DEVICES}, as text")
    if "," in device or device.endswith(":all"):
        raise ValueError(
            f"device is {device!r}; an engine runs on one. Several are for `secondpass score --device {device}` and "
            f"`secondpass serve --device {device}`, which start a process on each; they need Ray: "
            'pip install "secondpass[ray]"'
        )
    if device != "auto":
        try:
            picked = torch.device(device)
        except RuntimeError as error:
            raise ValueError(f"device is {device!r}; give {_DEVICES}") from error
        missing = (picked.type == "cuda" and not torch.cuda.is_available()) or (
            picked.type == "mps" and not torch.backends.mps.is_available()
        )
        if missing:
            kind = picked.type.upper()
            raise ValueError(f"device is {device!r}, but torch finds no {kind} device; give 'cpu' or 'auto'")
        return picked
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def pick_precision(dtype: str, device: torch.device) -> Precision:
    """As `pick_dtype`, and "int8", which changes scores a little and is therefore never chosen by itself."""
    if dtype != INT8:
        picked, reason = pick_dtype(dtype, device)
        return Precision(dtype=picked, is_int8=False, reason=reason)
    if device.type != "cpu":
        raise ValueError(f"dtype is 'int8' and device {str(device)!r}; 8 bits run on the CPU, give dtype='auto'")
    picked, _ = pick_dtype("auto", device)
    return Precision(dtype=picked, is_int8=True, reason=f"as asked, {_int8_in_words(this_processor())}")


def _int8_in_words(processor: Processor) -> str:
    """What the processor has for bytes; a warning where they gain nothing."""
    if processor.int8 is None:
        logger.warning("dtype 'int8' is slower than 'auto' here: the processor multiplies bytes slowly")
        return "the processor multiplies bytes slowly"
    if processor.has_amx:  # products twice as fast, but a layer's other passes take longer than that saves
        logger.warning("dtype 'int8' saves memory alone on a processor with AMX, where 'auto' (bfloat16) is as fast")
        return f"the processor has {processor.int8}, on which bfloat16 is as fast"
    return f"the processor has {processor.int8}"


def pick_dtype(dtype: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The precision, and the reason in words."""
    import torch

    if dtype != "auto":
        names = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
        name = names.get(dtype, dtype)
        if name not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}; give 'auto', {', '.join(map(repr, DTYPES))}")
        return getattr(torch, name), "as asked"
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return torch.bfloat16, "the GPU multiplies bfloat16 natively"
        return torch.float16, "the GPU multiplies float16 but not bfloat16 natively"
    if device.type == "cpu":
        has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        return cpu_dtype(this_processor(), has_onednn=has_onednn)
    return torch.float32, "bfloat16 would be emulated on this device"


def cpu_dtype(processor: Processor, *, has_onednn: bool) -> tuple[torch.dtype, str]:
    """The precision for a processor, and the reason; torch's own kernels, without oneDNN, emulate bfloat16."""
    import torch

    if processor.bf16 is None and processor.hides_amx:
        return torch.float32, "bfloat16 is slower where a virtual machine hides the processor's AMX"
    if processor.bf16 is None:
        return torch.float32, "bfloat16 would be emulated on this processor"
    if not has_onednn:
        return torch.float32, f"the processor has {processor.bf16}, but this torch has no oneDNN to use it"
    return torch.bfloat16, f"the processor has {processor.bf16}"
