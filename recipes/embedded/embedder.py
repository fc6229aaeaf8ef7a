"""What tells that a folder is an embedder too: its pooling, length, unit vectors and prompts."""

import json
from pathlib import Path

MODULES = {"Transformer": "0_Transformer", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}


def tell(folder: Path, *, width: int, length: int, prompts: dict[str, str] | None = None) -> None:
    """Write the files of sentence-transformers: the mean of `length` tokens at most, to vectors of length 1."""
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (kind, path) in enumerate(MODULES.items())
    ]
    settings = {
        "modules.json": modules,
        "0_Transformer/sentence_bert_config.json": {"max_seq_length": length},
        "1_Pooling/config.json": {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True},
        **({"config_sentence_transformers.json": {"prompts": prompts}} if prompts else {}),
    }
    for name, content in settings.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
