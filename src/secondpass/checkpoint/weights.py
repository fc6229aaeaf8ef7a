"""Weights from safetensors files into a module: renamed, joined, checked, and none forgotten."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from secondpass.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

MAX_NAMES_SHOWN = 8
# These of our names stay float32 in every precision: they are small, and rounding them moves scores most.
FULL_PRECISION = re.compile(r"head\..*|.*norm\.(weight|bias)")
Renames = Sequence[tuple[str, str]]


def rename(name: str, renames: Renames) -> str:
    """Our name of a Hugging Face tensor: every pattern that matches the whole name is applied, in order."""
    for pattern, target in renames:
        if match := re.fullmatch(pattern, name):
            name = match.expand(target)
    return name


def load_weights(
    module: nn.Module,
    files: Sequence[Path],
    *,
    renames: Renames,
    ignored: Sequence[str] = (),
    dtype: torch.dtype | None = None,
) -> None:
    """Fill `module`, built on the meta device, with the tensors of `files`.

    A target that ends in "@i" is the i-th block of rows of a joined matrix. Tensors are mapped from disk and only
    copied where they are joined or cast. Raises CheckpointError that names every missing, unexpected or wrongly
    shaped tensor, and every one that holds NaN or infinity.
    """
    expected = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    found: dict[str, Tensor] = {}
    blocks: dict[str, dict[int, Tensor]] = {}
    problems: list[str] = []
    unexpected: list[str] = []
    for name, tensor in read_tensors(files):
        if any(re.fullmatch(pattern, name) for pattern in ignored):
            continue
        target, _, block = rename(name, renames).partition("@")
        if target not in expected:
            unexpected.append(name)
        elif block:
            blocks.setdefault(target, {})[int(block)] = _cast(target, tensor, dtype)
        else:
            found[target] = _cast(target, tensor, dtype)
    found |= {target: _join(parts) for target, parts in blocks.items()}
    problems += [_shape_problem(n, found[n], expected[n]) for n in found if _differs(found[n], expected[n])]
    problems += _list_problem("missing", sorted(set(expected) - set(found)))
    problems += _list_problem("unexpected", sorted(unexpected))
    problems += _list_problem("NaN or infinite values in", _not_finite(found))
    if problems:
        where = files[0].parent if files else "the checkpoint"
        raise CheckpointError(f"{where}: " + "; ".join(problems))
    module.load_state_dict(found, assign=True)
    module.requires_grad_(False)


def read_tensors(files: Sequence[Path]) -> Iterator[tuple[str, Tensor]]:
    """Every (name, tensor) of safetensors or, through torch's weights-only loader, .bin files."""
    for file in files:
        yield from (_read_bin(file) if file.suffix in (".bin", ".pt") else _read_safetensors(file)).items()


def _read_safetensors(file: Path) -> Mapping[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file}: not a whole safetensors file ({error}); fetch it again with `secondpass pull`"
        ) from error


def _read_bin(file: Path) -> Mapping[str, Tensor]:
    import pickle

    import torch

    try:
        tensors: Mapping[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise CheckpointError(
            f"{file}: cannot be read as plain weights; code in checkpoints is never run, convert it to safetensors"
        ) from error
    return tensors


def _cast(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is None or not tensor.is_floating_point():
        return tensor
    return tensor.float() if FULL_PRECISION.fullmatch(name) else tensor.to(dtype)


def _join(parts: Mapping[int, Tensor]) -> Tensor:
    import torch

    return torch.cat([parts[index] for index in sorted(parts)])


def _differs(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    return tuple(tensor.shape) != shape


def _shape_problem(name: str, tensor: Tensor, shape: tuple[int, ...]) -> str:
    return f"{name} is {tuple(tensor.shape)}, config.json asks for {shape}"


def _list_problem(what: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = len(names) - MAX_NAMES_SHOWN
    return [f"{what} " + ", ".join(names[:MAX_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")]


def _not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    import torch

    # A sum is not finite when any term is not, and costs one pass without a copy.
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    return sorted(name for name, x in floats.items() if not bool(x.sum(dtype=torch.float32).isfinite()))
