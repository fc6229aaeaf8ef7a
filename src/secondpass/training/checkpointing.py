"""Checkpoints of a run: weights, optimiser and place, so that it goes on as if it had not been stopped.

A checkpoint is a folder that gets its name when all of it is on disk; until then the one before it stays.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secondpass.checkpoint.save import sync_folder, write_tensors, write_text
from secondpass.checkpoint.weights import read_tensors
from secondpass.errors import CheckpointError, TrainingError

_NAME = re.compile(r"step-(\d+)")
TENSORS, FACTS = "state.safetensors", "state.json"
NUM_KEPT = 2


@dataclass(frozen=True, kw_only=True)
class State:
    """A read checkpoint: steps done, weights by our names, the optimiser's tensors, and other facts."""

    step: int
    weights: Mapping[str, Tensor]
    optimiser: Mapping[str, Tensor]
    facts: Mapping[str, Any]


def save_state(
    folder: Path,
    step: int,
    parameters: Mapping[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    facts: Mapping[str, Any],
) -> Path:
    """Write folder/step-N and remove all but the last checkpoints. Raises TrainingError where that fails."""
    final = folder / f"step-{step:08d}"
    partial = folder / f".partial-{os.getpid()}"
    tensors = {f"weights.{name}": parameter.detach() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        for key, value in optimiser.state[parameter].items():
            tensors[f"optimiser.{key}.{name}"] = value
    try:
        for stale in folder.glob(".partial-*"):  # of a process that was killed
            shutil.rmtree(stale, ignore_errors=True)
        partial.mkdir(parents=True)
        write_tensors(partial / TENSORS, tensors)
        write_text(partial / FACTS, json.dumps({"step": step, **facts}) + "\n")
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        sync_folder(folder)
    except (OSError, CheckpointError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        good = steps_in(folder)
        kept = f"the checkpoint of step {good[-1]} is whole" if good else "there is none before it"
        raise TrainingError(f"the checkpoint of step {step} could not be saved: {error}; {kept}") from error
    for old in steps_in(folder)[:-NUM_KEPT]:
        shutil.rmtree(folder / f"step-{old:08d}", ignore_errors=True)
    return final


def steps_in(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, in order."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))


def read_state(folder: Path) -> State | None:
    """The last checkpoint; None where there is none. Raises TrainingError for one that cannot be read."""
    steps = steps_in(folder)
    if not steps:
        return None
    place = folder / f"step-{steps[-1]:08d}"
    try:
        facts = json.loads((place / FACTS).read_text("utf-8"))
        tensors = dict(read_tensors([place / TENSORS]))
    except (OSError, ValueError, CheckpointError) as error:
        raise TrainingError(f"{place} cannot be read ({error}); remove it to go on from the one before") from error
    return State(
        step=steps[-1], weights=_part(tensors, "weights."), optimiser=_part(tensors, "optimiser."), facts=facts
    )


def restore(state: State, parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer) -> None:
    """Weights and the optimiser's moments as they were. Raises TrainingError where they are of another model."""
    if set(state.weights) != set(parameters):
        raise TrainingError("the checkpoint is of another model; give another --output, or leave out --resume")
    keys = {name.partition(".")[0] for name in state.optimiser}
    names = {id(parameter): name for name, parameter in parameters.items()}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state.weights[name])
    order = [names[id(parameter)] for group in optimiser.param_groups for parameter in group["params"]]
    moments = {
        place: {key: state.optimiser[f"{key}.{name}"] for key in keys}
        for place, name in enumerate(order)
        if any(f"{key}.{name}" in state.optimiser for key in keys)  # not where a weight never had a gradient
    }
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
