"""Weights from safetensors files into a module: renamed, joined, checked, and none forgotten."""

from __future__ import annotations

import math
import re
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from secondpass.checkpoint.graph import read_constants
from secondpass.checkpoint.layout import read_header
from secondpass.checkpoint.mapped import is_mapped, leave_memory
from secondpass.errors import CheckpointError
from secondpass.json_file import check_fetched

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

MAX_NAMES_SHOWN = 8
SUMMED = 1 << 22  # values that are looked through at once
MAPPED_BYTES = 1 << 20  # a smaller tensor is mapped together with others
MAPPED_BLOCK = 1 << 20  # values of a mapped tensor that are read at once
# These of our names stay float32 in every precision: they are small, and rounding them moves scores most.
FULL_PRECISION = re.compile(r"(head|word_match)\..*|.*norm\.(weight|bias)")
Renames = Sequence[tuple[str, str]]
Shape = tuple[int, ...]
# Our name of a tensor -> the renamed tensor that it is a part of, and which rows: a head that reads two words of
# 250,000 need not keep the others.
Rows = Mapping[str, tuple[str, Sequence[int]]]
Change = Callable[[Iterable[tuple[str, "Tensor"]]], Iterator[tuple[str, "Tensor"]]]


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
    rows: Rows | None = None,
    change: Change | None = None,
) -> None:
    """Fill `module`, built on the meta device, with the tensors of `files`.

    A target that ends in "@i" is the i-th block of rows of a joined matrix; `rows` says which targets are some
    rows of another tensor; `change` is what an adapter makes of the tensors that were read. Tensors are mapped from
    disk and only copied where they are joined or cast. Raises CheckpointError that names every missing, unexpected,
    repeated or wrongly shaped tensor, and every one that holds NaN or infinity.
    """
    tensors = read_tensors(files) if change is None else change(read_tensors(files))
    expected = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    renamed = _renamed(tensors, renames, ignored, rows or {}, set(expected))
    found, problems = _joined(renamed, expected, renames, dtype)
    problems += _list_problem("NaN or infinite values in", _not_finite(found))
    if problems:
        where = files[0].parent if files else "the checkpoint"
        raise CheckpointError(f"{where}: " + "; ".join(problems))
    module.load_state_dict(found, assign=True)
    module.requires_grad_(False)


def _joined(
    tensors: Iterable[tuple[str, str, Tensor]],
    expected: Mapping[str, Shape],
    renames: Renames,
    dtype: torch.dtype | None,
) -> tuple[dict[str, Tensor], list[str]]:
    """Our tensors, cast and joined, and what is wrong with them in words; none where anything is."""
    parts: dict[str, dict[int, Tensor]] = {}
    unexpected: list[str] = []
    repeated: list[str] = []
    for name, renamed, tensor in tensors:
        target, _, block = renamed.partition("@")
        if target not in expected or not hasattr(tensor, "shape"):
            unexpected.append(name)
        elif int(block or 0) in parts.setdefault(target, {}):
            repeated.append(name)
        else:
            is_too_large = tensor.numel() > math.prod(expected[target])  # which is said below, and not copied first
            parts[target][int(block or 0)] = tensor if is_too_large else _cast(target, tensor, dtype)
    problems = _list_problem("missing", _missing(expected, parts, renames))
    problems += _list_problem("unexpected", sorted(unexpected))
    problems += _list_problem("in more than one file:", sorted(repeated))
    problems += _shape_problems(expected, parts)
    if problems:
        return {}, problems
    return {target: _join(parts.pop(target)) for target in list(parts)}, problems  # a joined part leaves memory


def _renamed(
    tensors: Iterable[tuple[str, Tensor]],
    renames: Renames,
    ignored: Sequence[str],
    rows: Rows,
    expected: Collection[str],
) -> Iterator[tuple[str, str, Tensor]]:
    """Every tensor that is not ignored: its name, ours, and itself; one that has been taken from may be unwanted."""
    for name, tensor in tensors:
        if any(re.fullmatch(pattern, name) for pattern in ignored):
            continue
        target = rename(name, renames)
        takers = [taker for taker, (source, _) in rows.items() if source == target]
        for taker in takers:
            yield name, taker, tensor[list(rows[taker][1])]
        if target in expected or not takers:
            yield name, target, tensor


def read_tensors(files: Sequence[Path]) -> Iterator[tuple[str, Tensor]]:
    """Every (name, tensor) of safetensors, OpenVINO graphs or, through torch's weights-only loader, .bin files."""
    for file in files:
        check_fetched(file)
        reader = READERS.get(file.suffix)
        yield from _read_safetensors(file) if reader is None else reader(file).items()


def _read_safetensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """The largest tensor first, large ones mapped by themselves: what has been cast leaves memory before the next.

    The small ones are mapped together, so that a file of very many is not opened as often.
    """
    from safetensors import SafetensorError, safe_open

    try:
        offsets = {name: entry["data_offsets"] for name, entry in read_header(file).items()}
        sizes = {name: end - start for name, (start, end) in offsets.items()}
        names = sorted(sizes, key=lambda name: -sizes[name])
        large = sum(size >= MAPPED_BYTES for size in sizes.values())
        for group in (*([name] for name in names[:large]), names[large:]):
            with safe_open(file, framework="pt") as tensors:
                for name in group:
                    yield name, tensors.get_tensor(name)
    except (SafetensorError, CheckpointError, OSError) as error:
        raise CheckpointError(
            f"{file}: not a whole safetensors file ({error}); fetch it again with `secondpass pull`"
        ) from error


def _read_bin(file: Path) -> Mapping[str, Tensor]:
    import torch

    try:
        is_archive = zipfile.is_zipfile(file)  # files of torch before 1.6 are none, and cannot be mapped
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of other versions, which are tried all the same
            tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=is_archive)
    except Exception as error:  # what the operations of a damaged pickle raise: an IndexError, a KeyError, ...
        raise CheckpointError(
            f"{file}: cannot be read as plain weights; code in checkpoints is never run, convert it to safetensors"
        ) from error
    if not isinstance(tensors, Mapping):
        raise CheckpointError(f"{file}: holds a {type(tensors).__name__}, a mapping of names to tensors is needed")
    if wrong := [name for name, tensor in tensors.items() if not isinstance(name, str) or not _is_plain(tensor)]:
        raise CheckpointError(
            f"{file}: {str(wrong[0])[:80]!r} is no plain tensor with a name; convert it to safetensors"
        )
    return tensors


def _is_plain(tensor: object) -> bool:
    """Whether a value is dense and all its numbers are in the file; what is no tensor at all is named later."""
    import torch

    if not isinstance(tensor, torch.Tensor):
        return True
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _read_graph(file: Path) -> Mapping[str, Tensor]:
    import torch

    return {name: torch.from_numpy(values) for name, values in read_constants(file)}


READERS: dict[str, Callable[[Path], Mapping[str, Tensor]]] = {
    ".bin": _read_bin,
    ".pt": _read_bin,
    ".xml": _read_graph,
}


def _cast(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """In blocks of rows: what has been cast of a mapped tensor leaves memory before the next block is read."""
    import torch

    if dtype is None or not tensor.is_floating_point():
        return tensor
    wanted = torch.float32 if FULL_PRECISION.fullmatch(name) else dtype
    if tensor.dtype == wanted:
        return tensor
    if tensor.numel() < MAPPED_BLOCK or not (tensor.is_contiguous() and is_mapped(tensor)):
        return tensor.to(wanted)
    cast = torch.empty(tensor.shape, dtype=wanted)
    for block, target in zip(*(torch.split(x.view(-1), MAPPED_BLOCK) for x in (tensor, cast)), strict=True):
        target.copy_(block)
        leave_memory(block)
    return cast


def _join(blocks: Mapping[int, Tensor]) -> Tensor:
    import torch

    return blocks[0] if len(blocks) == 1 else torch.cat([blocks[index] for index in sorted(blocks)])


def _missing(expected: Mapping[str, Shape], parts: Mapping[str, Mapping[int, Tensor]], renames: Renames) -> list[str]:
    """Targets without a tensor, and blocks that a joined matrix lacks."""
    names = [name for name in expected if name not in parts]
    for target, blocks in parts.items():
        if tuple(blocks.get(0, next(iter(blocks.values()))).shape) == expected[target]:
            continue  # saved joined, where another version of the same family saves the parts
        lacking = set(range(_num_blocks(target, renames))) - set(blocks)
        names += [f"{target} (part {block})" for block in lacking]
    return sorted(names)


def _num_blocks(target: str, renames: Renames) -> int:
    """How many tensors of a checkpoint are joined in `target`."""
    joined = [template.partition("@")[0] for _, template in renames if "@" in template]
    patterns = [re.sub(r"\\\\\d", ".*", re.escape(template)) for template in joined]
    return max(sum(re.fullmatch(pattern, target) is not None for pattern in patterns), 1)


def _shape_problems(expected: Mapping[str, Shape], parts: Mapping[str, Mapping[int, Tensor]]) -> list[str]:
    problems = []
    for target, blocks in parts.items():
        shapes = [tuple(blocks[index].shape) for index in sorted(blocks)]
        whole = (sum(shape[0] for shape in shapes), *shapes[0][1:]) if shapes[0] else shapes[0]
        if whole != expected[target] or len({shape[1:] for shape in shapes}) > 1:
            seen = " and ".join(map(str, dict.fromkeys(shapes))) if len(shapes) > 1 else str(shapes[0])
            problems.append(f"{target} is {seen}, config.json asks for {expected[target]}")
    return problems


def _list_problem(what: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = len(names) - MAX_NAMES_SHOWN
    return [f"{what} " + ", ".join(names[:MAX_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")]


def _not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    return sorted(name for name, x in tensors.items() if x.is_floating_point() and not _is_finite(x))


def _is_finite(x: Tensor) -> bool:
    import torch

    # A sum is not finite when any term is not, and costs one pass; in parts, since torch sums a float32 copy.
    return all(bool(part.sum(dtype=torch.float32).isfinite()) for part in torch.split(x.flatten(), SUMMED))
