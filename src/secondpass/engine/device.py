"""Which device and which precision: the fastest that gives sound scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")


def pick_device(device: str) -> torch.device:
    """ "auto" is CUDA, then Apple's MPS, then the CPU."""
    import torch

    if device != "auto":
        try:
            picked = torch.device(device)
        except RuntimeError as error:
            raise ValueError(f"device is {device!r}; give 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'") from error
        if picked.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device is {device!r}, but torch finds no CUDA device; give 'cpu' or 'auto'")
        return picked
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


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
    if device.type == "cpu" and (instructions := _bf16_instructions()):
        return torch.bfloat16, f"the processor has {instructions}"
    return torch.float32, "bfloat16 would be emulated on this device"


def _bf16_instructions() -> str | None:
    """The instructions that make bfloat16 matrix products faster than float32, where the processor has them."""
    import torch

    checks = {"AMX": "_is_amx_tile_supported", "AVX512-BF16": "_is_avx512_bf16_supported"}
    for name, check in checks.items():
        supported = getattr(torch.cpu, check, None)  # private in torch: absent means no
        if supported is not None and supported():
            return name
    return None
