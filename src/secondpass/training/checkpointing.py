"""A run's folder: who writes it, and checkpoints from which it goes on as if it had not been stopped.

A checkpoint is a folder that gets its name when all of it is on disk; until then the one before it stays.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from secondpass.atomic import lasting, whole_folder, write_text
from secondpass.checkpoint.save import write_tensors
from secondpass.checkpoint.weights import read_tensors
from secondpass.errors import CheckpointError, TrainingError
from secondpass.json_file import read_json
from secondpass.training.processes import Processes

_NAME = re.compile(r"step-(\d+)")
TENSORS, FACTS = "state.safetensors", "state.json"
SHARD = "shard-{:05d}.safetensors"  # of the processes after the first, whose share is in TENSORS
NUM_KEPT = 2
RUN, LOCK = "run.json", "lock"
# What no folder holds that a run may begin in: weights, graphs, adapters and the runs of other programs.
_OCCUPIED = ("config.json", "model.safetensors", "adapter_config.json", "openvino", "onnx")
_REPLACED = ("README.md", "tokenizer.json", "tokenizer_config.json")  # somebody's own, with --output . for instance


@contextmanager
def claimed(output: Path) -> Iterator[None]:
    """While it is entered, no other process writes a run into `output`; the same process may claim it again.

    Where nothing was written, nothing is left. Raises TrainingError where the folder cannot be written to or another
    process holds it.
    """
    _check_unoccupied(output)
    file, is_new = output / "training" / LOCK, not output.exists()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file, timeout=0, is_singleton=True)
        lock.acquire()
    except Timeout as error:
        raise TrainingError(f"another process is writing {output}; wait for it, or give another folder") from error
    except OSError as error:
        raise TrainingError(f"{output}: cannot be written ({error}); give another folder") from error
    try:
        yield
    finally:
        if lock.lock_counter == 1:
            _remove_unused(file, output if is_new else None)
        lock.release()


def _remove_unused(lock: Path, output: Path | None) -> None:
    """Remove a lock beside which nothing stands, its folder and `output`, so that other commands may write there."""
    with suppress(OSError):  # on Windows an open file stays; and somebody may have removed it all
        if any(path != lock for path in lock.parent.iterdir()):
            return
        lock.unlink()
        lock.parent.rmdir()
        if output is not None:
            output.rmdir()


def check_output(output: Path, *, is_resumed: bool) -> dict[str, Any] | None:
    """What the run in `output` that was stopped was told; None where there is none.

    Raises TrainingError where the folder holds a model or a result, or a run and is_resumed is False.
    """
    file = output / "training" / RUN
    before = read_json(file) if file.is_file() else None
    _check_unoccupied(output)
    if is_finished(output):
        raise TrainingError(f"{output} holds the result of a finished run; give another folder")
    if before is not None and not is_resumed:
        raise TrainingError(f"{output} holds a run that was stopped; go on with --resume, or remove it")
    return before


def is_finished(output: Path) -> bool:
    """Whether a run in `output` has left its result there."""
    file = output / "training" / RUN
    return file.is_file() and bool(read_json(file).get("is_finished"))


def is_same_model(before: str, now: str) -> bool:
    """Whether two names mean one model: a folder may be named from here, from the root, or with a slash behind it."""
    return lasting(before) == lasting(now)


def _check_unoccupied(output: Path) -> None:
    has_run = (output / "training" / RUN).is_file()
    if not has_run and any((output / name).exists() for name in _OCCUPIED):
        raise TrainingError(f"{output} holds a model; give another folder for the result")
    kept = [] if has_run else [name for name in _REPLACED if (output / name).exists()]
    if kept:
        raise TrainingError(f"{output} holds {kept[0]}, which the result would replace; give another folder")


@dataclass(frozen=True, kw_only=True)
class SavedState:
    """A read checkpoint: steps done, weights by our names, the optimiser's tensors, and other facts."""

    step: int
    weights: Mapping[str, Tensor]
    optimiser: Mapping[str, Tensor]
    facts: Mapping[str, Any]


def state_tensors(
    parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer, processes: Processes
) -> dict[str, Tensor]:
    """What this process has to save of weights and moments: of a sharded model its share."""
    tensors: dict[str, Tensor] = {f"weights.{name}": parameter.detach() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        for key, value in optimiser.state[parameter].items():
            tensors[f"optimiser.{key}.{name}"] = value
    owned = {name: processes.own(tensor) for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in owned.items() if tensor is not None}


def save_state(
    folder: Path, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], processes: Processes
) -> None:
    """Write folder/step-N and remove all but the last checkpoints. Raises TrainingError where that fails.

    Of a sharded model all processes call it: each writes a file, which the first moves into the checkpoint.
    """
    final = folder / f"step-{step:08d}"
    try:
        if not processes.is_first:
            write_tensors(folder / SHARD.format(processes.rank), tensors)
        if processes.has_shards:
            processes.wait()
        if not processes.is_first:
            return
        for stale in folder.glob(".step-*"):  # of a process that was killed
            shutil.rmtree(stale, ignore_errors=True)
        with whole_folder(final) as partial:
            write_tensors(partial / TENSORS, tensors)
            for rank in range(1, processes.count if processes.has_shards else 1):
                (folder / SHARD.format(rank)).rename(partial / SHARD.format(rank))
            write_text(partial / FACTS, json.dumps({"step": step, **facts}) + "\n")
    except CheckpointError as error:
        good = steps_in(folder)
        kept = f"the checkpoint of step {good[-1]} is whole" if good else "there is none before it"
        raise TrainingError(f"the checkpoint of step {step} could not be saved: {error}; {kept}") from error
    for old in steps_in(folder)[:-NUM_KEPT]:
        shutil.rmtree(folder / f"step-{old:08d}", ignore_errors=True)


def steps_in(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, in order."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))


def read_state(folder: Path) -> SavedState | None:
    """The last checkpoint; None where there is none. Raises TrainingError for one that cannot be read."""
    steps = steps_in(folder)
    if not steps:
        return None
    newest = folder / f"step-{steps[-1]:08d}"
    try:
        facts = json.loads((newest / FACTS).read_text("utf-8"))
        if (
            not isinstance(facts, dict)
            or facts.get("step") != steps[-1]
            or not isinstance(facts.get("history"), list)
        ):
            raise ValueError(f"{FACTS} does not tell of step {steps[-1]}")
        tensors: dict[str, Tensor] = {}
        for file in [newest / TENSORS, *sorted(newest.glob(SHARD.replace("{:05d}", "*")))]:
            for name, tensor in read_tensors([file]):
                tensors[name] = torch.cat([tensors[name], tensor]) if name in tensors else tensor
    except (OSError, ValueError, CheckpointError) as error:
        raise TrainingError(f"{newest} cannot be read ({error}); remove it to go on from the one before") from error
    return SavedState(
        step=steps[-1], weights=_part(tensors, "weights."), optimiser=_part(tensors, "optimiser."), facts=facts
    )


def restore(
    state: SavedState,
    parameters: Mapping[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    processes: Processes,
) -> None:
    """Weights and the optimiser's moments as they were. Raises TrainingError where they are of another model."""
    if set(state.weights) != set(parameters):
        raise TrainingError("the checkpoint is of another model; give another --output, or leave out --resume")
    keys = {name.partition(".")[0] for name in state.optimiser}
    names = {id(parameter): name for name, parameter in parameters.items()}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(processes.shared_as(state.weights[name], parameter))
    order = [names[id(parameter)] for group in optimiser.param_groups for parameter in group["params"]]
    moments = {
        position: {key: processes.shared_as(state.optimiser[f"{key}.{name}"], parameters[name]) for key in keys}
        for position, name in enumerate(order)
        if any(f"{key}.{name}" in state.optimiser for key in keys)  # not where a weight never had a gradient
    }
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
