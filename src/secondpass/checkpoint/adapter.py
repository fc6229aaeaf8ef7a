"""LoRA adapters: a folder in PEFT's layout, merged into the weights of its base while these are read.

Hu et al. 2021; the scale of rsLoRA is Kalajdzievski 2023's. A merged model costs what its base costs.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secondpass.atomic import whole_folder, write_text
from secondpass.checkpoint.checkpoint import Checkpoint
from secondpass.checkpoint.config import read_config
from secondpass.checkpoint.layout import ADAPTER, ADAPTER_WEIGHTS, INDEX, LENGTH, MODULES, tokenizer_files
from secondpass.checkpoint.save import write_tensors
from secondpass.checkpoint.scoring_modules import head_of
from secondpass.checkpoint.weights import Change, read_tensors
from secondpass.errors import CheckpointError
from secondpass.json_file import read_json

if TYPE_CHECKING:
    from torch import Tensor

_PREFIX = "base_model.model."
# lora_A and lora_B of a linear layer or an embedding; PEFT may put the adapter's name before "weight".
_LOW_RANK = re.compile(r"(.*)\.lora_(embedding_)?([AB])(?:\.default)?(?:\.weight)?")
# Options of adapter_config.json that change the arithmetic in a way that is not known here.
UNKNOWN = (
    "use_dora",
    "use_qalora",
    "fan_in_fan_out",
    "lora_bias",
    "trainable_token_indices",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
)
# Values of init_lora_weights with which PEFT changes the base's own weights, too
CHANGING = ("pissa", "olora", "corda", "loftq")
_WORDS = "embed_tokens.weight"


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """Changes of a base's tensors, by the base's names: low-rank ones, and whole tensors that replace or join it."""

    folder: Path
    low_rank: Mapping[str, Mapping[str, Tensor]]  # name -> A (r, in) and B (out, r), or A (r, V) and B (C, r)
    whole: Mapping[str, Tensor]
    settings: Mapping[str, Any]

    def applied(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Every (name, tensor) of the base with the adapter in it; a changed one is float32.

        Raises CheckpointError where the base lacks what the adapter changes.
        """
        seen: set[str] = set()
        for name, tensor in tensors:
            seen.add(name)
            # PEFT saves an embedding whole, as it was before, beside its low-rank change
            tensor = self.whole.get(name, tensor)
            yield name, self._merged(name, tensor) if name in self.low_rank else tensor
        if lacking := sorted(set(self.low_rank) - seen):
            raise CheckpointError(f"{self.folder}: changes {', '.join(lacking[:8])}, which the base does not have")
        yield from ((name, tensor) for name, tensor in self.whole.items() if name not in seen)

    def _merged(self, name: str, tensor: Tensor) -> Tensor:
        parts = self.low_rank[name]
        if set(parts) not in ({"A", "B"}, {"embedding_A", "embedding_B"}):
            raise CheckpointError(f"{self.folder}: {name} has only {' and '.join(sorted(parts))} of its two factors")
        a, b = (parts[key].float() for key in sorted(parts))
        delta = b @ a if "A" in parts else (b @ a).T
        if delta.shape != tensor.shape:
            shapes = f"as {tuple(delta.shape)}, it is {tuple(tensor.shape)}"
            raise CheckpointError(f"{self.folder}: changes {name} {shapes}")
        return tensor.float() + delta * self._scale(name.removesuffix(".weight"), a.shape[0])

    def _scale(self, module: str, rank: int) -> float:
        patterns: Mapping[str, float] = self.settings.get("alpha_pattern") or {}
        try:
            own = (alpha for key, alpha in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
            alpha = float(next(own, self.settings.get("lora_alpha", 8)))
        except (AttributeError, TypeError, ValueError, re.error) as error:
            raise CheckpointError(f"{self.folder / ADAPTER}: lora_alpha or alpha_pattern: {error}") from error
        return alpha / (rank**0.5 if self.settings.get("use_rslora") else rank)


def check_words(checkpoint: Checkpoint) -> None:
    """Raises CheckpointError where an adapter changes the words of a base that reads them as its lm_head as well.

    PEFT changes the one and leaves the other, so that the merged model would have to hold both.
    """
    if checkpoint.adapter is None or checkpoint.recipe.head != "token":
        return
    adapter = open_adapter(checkpoint.adapter)
    changed = [name for name in (*adapter.low_rank, *adapter.whole) if name.endswith(_WORDS)]
    if not changed or "lm_head.weight" in adapter.whole or adapter.settings.get("ensure_weight_tying"):
        return
    names = {name for name, _ in read_tensors(checkpoint.weight_files())}
    if checkpoint.config.get("tie_word_embeddings") or "lm_head.weight" not in names:
        raise CheckpointError(
            f"{checkpoint.adapter}: changes {changed[0]}, which the base reads as its lm_head too and PEFT does not "
            "change there; merge with PEFT, untie the two, and save the model"
        )


def change_of(checkpoint: Checkpoint) -> Change | None:
    """What `load_weights` does to the tensors of this checkpoint; None where it takes them as they are."""
    head = head_of(checkpoint.folder, checkpoint.config)
    if checkpoint.adapter is None:
        return head
    adapted = open_adapter(checkpoint.adapter).applied
    return adapted if head is None else lambda tensors: adapted(head(tensors))


def open_adapter(folder: Path) -> Adapter:
    """Raises CheckpointError for another kind of adapter than LoRA, or one with options that are not known."""
    settings = read_json(folder / ADAPTER)
    if settings.get("peft_type") != "LORA":
        raise CheckpointError(f"{folder}: peft_type is {settings.get('peft_type')!r}; only 'LORA' can be merged")
    if strange := [name for name in UNKNOWN if settings.get(name)]:
        raise CheckpointError(f"{folder}: {', '.join(strange)} cannot be merged; merge with PEFT and save the model")
    start = str(settings.get("init_lora_weights")).lower()
    if start.startswith(CHANGING):
        raise CheckpointError(
            f"{folder}: init_lora_weights is {start!r}, which changes the base's own weights too; convert the "
            "adapter with PEFT (path_initial_model_for_weight_conversion), or merge with PEFT and save the model"
        )
    files = [folder / name for name in ADAPTER_WEIGHTS if (folder / name).is_file()][:1]
    if not files:
        raise CheckpointError(f"{folder}: no adapter_model.safetensors")
    low_rank: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for name, tensor in read_tensors(files):
        name = name.removeprefix(_PREFIX).replace(".modules_to_save.default", "").replace(".base_layer", "")
        if match := _LOW_RANK.fullmatch(name):
            low_rank.setdefault(f"{match[1]}.weight", {})[(match[2] or "") + match[3]] = tensor
        else:
            whole[name] = tensor
    return Adapter(folder=folder, low_rank=low_rank, whole=whole, settings=settings)


def save_merged(checkpoint: Checkpoint, folder: Path) -> Path:
    """Write an adapter's checkpoint as a whole model in Hugging Face layout, in the base's precision.

    Returns the folder, which appears whole or not at all. Raises FileExistsError where it is not empty and
    ValueError for a checkpoint without an adapter.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; give a new folder")
    with whole_folder(folder) as partial:
        write_merged(checkpoint, partial)
    return folder


def write_merged(checkpoint: Checkpoint, folder: Path) -> None:
    """As `save_merged`, into a folder that is there."""
    if checkpoint.adapter is None:
        raise ValueError(f"{checkpoint.name} has no adapter to merge")
    check_words(checkpoint)
    own = checkpoint.adapter / LENGTH  # what an adapter says of its length holds for the whole
    settings = {file for file in checkpoint.folder.glob("*.json") if not file.name.endswith(INDEX)}
    for file in (*settings.union(tokenizer_files(checkpoint.folder)), *([own] if own.is_file() else [])):
        shutil.copyfile(file, folder / file.name)
    if checkpoint.config != read_config(checkpoint.folder):  # what modules told of the score is now said there
        write_text(folder / "config.json", json.dumps(checkpoint.config, indent=2, ensure_ascii=False) + "\n")
        (folder / MODULES).unlink(missing_ok=True)
    files, head = checkpoint.weight_files(), head_of(checkpoint.folder, checkpoint.config)
    base = read_tensors if head is None else lambda files: head(read_tensors(files))
    precision = {name: tensor.dtype for name, tensor in base(files)}
    merged = open_adapter(checkpoint.adapter).applied(base(files))
    tensors = {name: tensor.to(precision.get(name, tensor.dtype)) for name, tensor in merged}
    write_tensors(folder / "model.safetensors", tensors)
