"""config.json, with every number that sizes a model checked before anything of that size is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from secondpass.errors import CheckpointError
from secondpass.json_file import read_json
from secondpass.text.families import model_type_by_class

MAX_LAYERS = 1000  # of the deepest models there are some 130
MAX_WIDTH = 1 << 17
MAX_WORDS = 1 << 24
# Of whole numbers the smallest and the largest that is taken. Those in NEEDED may be missing, but not null.
NEEDED = {
    "num_hidden_layers": (1, MAX_LAYERS),
    "n_layer": (1, MAX_LAYERS),
    "hidden_size": (1, MAX_WIDTH),
    "n_embd": (1, MAX_WIDTH),
    "num_attention_heads": (1, MAX_WIDTH),
    "n_head": (1, MAX_WIDTH),
    "n_layers": (1, MAX_LAYERS),
    "dim": (1, MAX_WIDTH),
    "n_heads": (1, MAX_WIDTH),
    "vocab_size": (1, MAX_WORDS),
    "max_position_embeddings": (1, MAX_WORDS),
}
COUNTS = NEEDED | {
    "intermediate_size": (1, 16 * MAX_WIDTH),
    "n_inner": (1, 16 * MAX_WIDTH),
    "hidden_dim": (1, 16 * MAX_WIDTH),
    "num_key_value_heads": (1, MAX_WIDTH),
    "head_dim": (1, MAX_WIDTH),
    "embedding_size": (1, MAX_WIDTH),
    "n_positions": (1, MAX_WORDS),
    "type_vocab_size": (0, MAX_WORDS),
    "pad_token_id": (-1, MAX_WORDS),
    "bos_token_id": (0, MAX_WORDS),
    "num_labels": (0, MAX_WORDS),
    "start_layer": (0, MAX_LAYERS),
    "layer_sep": (1, MAX_LAYERS),
    "global_attn_every_n_layers": (1, MAX_LAYERS),
    "local_attention": (1, MAX_WORDS),
    "sliding_window": (1, MAX_WORDS),
    "sliding_window_pattern": (1, MAX_LAYERS),
    "max_relative_positions": (-1, MAX_WORDS),
    "position_buckets": (-1, MAX_WORDS),
    "pad_vocab_size_multiple": (1, MAX_WORDS),
}
# Numbers above 0, and whether null may stand for none.
NUMBERS = {
    "layer_norm_eps": False,
    "layer_norm_epsilon": False,
    "rms_norm_eps": False,
    "norm_eps": False,
    "rotary_emb_base": False,
    "rotary_emb_fraction": False,
    "scale_emb": False,
    "scale_depth": False,
    "query_pre_attn_scalar": False,
    "rope_theta": True,
    "local_rope_theta": True,
    "rope_local_base_freq": True,
    "global_rope_theta": True,
    "attn_logit_softcapping": True,
    "final_logit_softcapping": True,
}
# Where no width of a head is given, heads share the width of the model.
SHARED = (("hidden_size", "num_attention_heads"), ("n_embd", "n_head"), ("dim", "n_heads"))


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json. Raises CheckpointError that names the file and the key."""
    file = folder / "config.json"
    config = read_json(file)
    for key, value in config.items():
        if (needed := _needed(key)) is not None and not needed[1](value):
            raise CheckpointError(f"{file}: {key} is {_shown(value)}; {needed[0]} is needed")
    for width, heads in SHARED:
        if width in config and config.get("head_dim") is None and config[width] % config.get(heads, 1):
            raise CheckpointError(f"{file}: {width} {config[width]} is no multiple of {heads} {config[heads]}")
    own, shared = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if own is not None and shared is not None and own % shared:
        raise CheckpointError(f"{file}: num_attention_heads {own} is no multiple of num_key_value_heads {shared}")
    if config.get("model_type") is None and (named := model_type_by_class(config.get("architectures") or ())):
        config["model_type"] = named
    return config


def _needed(key: str) -> tuple[str, Callable[[Any], bool]] | None:
    """What a key has to be: in words, and as a test."""
    if key in COUNTS:
        low, high = COUNTS[key]
        return f"a whole number from {low} to {high}", lambda value: _is_count(value, key, low, high)
    if key in NUMBERS:
        return "a number above 0", lambda value: NUMBERS[key] if value is None else _is_positive(value)
    return _OTHERS.get(key)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


_OTHERS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "model_type": ("a text", lambda value: value is None or isinstance(value, str)),
    "id2label": ("an object", lambda value: value is None or isinstance(value, dict)),
    "architectures": ("a list of texts", lambda value: value is None or _are_texts(value)),
    "scripts": ("a list of texts", _are_texts),
    "languages": ("a list of texts", _are_texts),
}


def _is_count(value: Any, key: str, low: int, high: int) -> bool:
    if value is None:
        return key not in NEEDED
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0 and math.isfinite(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
