"""Export: an encoder cross-encoder as an OpenVINO graph, which runs without torch.

The padded form of a batch is traced. Inputs: input_ids, attention_mask, token_type_ids (N, L). Output: logits (N, 1).
"""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from secondpass.checkpoint.adapter import change_of
from secondpass.checkpoint.files import Checkpoint
from secondpass.checkpoint.graph import import_openvino
from secondpass.checkpoint.weights import load_weights
from secondpass.models.cross_encoder import CrossEncoder
from secondpass.packed import Packed

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# What the openvino engine reads beside the graph.
COMPANIONS = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


class Padded(nn.Module):
    """A cross-encoder over padded inputs (N, L)."""

    def __init__(self, model: CrossEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        n, length = input_ids.shape
        places = torch.arange(n)[:, None].expand(n, length)
        batch = Packed(
            ids=input_ids.reshape(-1),
            positions=torch.arange(length)[None].expand(n, length).reshape(-1),
            types=token_type_ids.reshape(-1),
            rows=places.reshape(-1),
            starts=torch.arange(n + 1) * length,
            lengths=(int(length),) * int(n),
            passages=((0, int(length)),) * int(n),
            mask=attention_mask,
        )
        scores: Tensor = self.model(batch)
        return scores.reshape(n, 1)


def export_openvino(checkpoint: Checkpoint, folder: Path) -> Path:
    """Write the float32 graph of `checkpoint` to folder/openvino, with what the engine reads beside it.

    Returns the folder, which appears whole or not at all. Raises FileExistsError where it is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; give a new folder")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "openvino").mkdir(parents=True)
    _write_graph(checkpoint, partial / "openvino" / "openvino_model.xml")
    for name in COMPANIONS:
        if (checkpoint.folder / name).is_file():
            shutil.copy(checkpoint.folder / name, partial / name)
    os.replace(partial, folder)
    return folder


def _write_graph(checkpoint: Checkpoint, file: Path) -> None:
    openvino = import_openvino()
    with torch.device("meta"):
        model = CrossEncoder(checkpoint.config)
    if model.is_causal:
        raise ValueError(f"{checkpoint.name}: only encoders can be exported; run a decoder with the torch engine")
    load_weights(
        model,
        checkpoint.weight_files(),
        renames=model.renames,
        ignored=model.ignored,
        dtype=torch.float32,
        change=change_of(checkpoint),
    )
    example = {name: torch.ones(2, 7, dtype=torch.int64) for name in INPUTS}
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of every size that it reads
        graph = openvino.convert_model(Padded(model.eval()), example_input=example)
    for port, name in zip(graph.inputs, INPUTS, strict=True):  # the converter loses some names, not the order
        port.get_tensor().set_names({name})
    graph.outputs[0].get_tensor().set_names({"logits"})
    openvino.save_model(graph, file, compress_to_fp16=False)
