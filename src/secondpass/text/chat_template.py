"""A checkpoint's own chat template, rendered once: the fixed words around a query and a passage.

sentence-transformers 5.4 and later write a pair as a message of the role "query" and one of the role "document", and
a prompt, where there is one, as a message of the role "system" before them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, NoReturn

from secondpass.errors import MissingExtra, UnknownModel
from secondpass.text.recipe import Prompt

MAX_RENDERED = 1 << 16  # characters
SAFE = (3, 1, 6)  # of jinja2: a template could leave the sandbox of an older one
# What stands for a text while the words around it are found; no template spells them.
_QUERY, _PASSAGE, _INSTRUCTION = "\ue000query\ue001", "\ue000document\ue001", "\ue000system\ue001"


def prompt_of(template: str, *, instruction: str | None, is_flat: bool, options: Mapping[str, Any]) -> Prompt:
    """What a template writes around a pair; `{instruction}` stands where its system message goes, if anywhere.

    instruction is the checkpoint's own, or None. is_flat: contents are texts, not lists of parts. options are what
    the template is rendered with. Raises UnknownModel unless it writes the query once, and once after it the passage.
    """
    plain = _rendered(template, instruction, is_flat, options)
    open_ = _rendered(template, _INSTRUCTION, is_flat, options)
    parts, own = plain, ""
    if open_.count(_INSTRUCTION) == 1:
        before, after = open_.split(_INSTRUCTION)
        if plain.startswith(before) and plain.endswith(after) and len(plain) >= len(before) + len(after):
            own = plain[len(before) : len(plain) - len(after)]
            parts = before + "{instruction}" + after
    system, is_there, rest = parts.partition(_QUERY)
    separator, is_after, answer = rest.partition(_PASSAGE)
    if not is_there or not is_after or _QUERY in rest or _PASSAGE in answer:
        raise UnknownModel(f"writes {_shown(plain)}; the query once, and the passage once after it, are needed")
    return Prompt(system=system, separator=separator, answer=answer, instruction=own)


def _rendered(template: str, instruction: str | None, is_flat: bool, options: Mapping[str, Any]) -> str:
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise MissingExtra("jinja2", "torch") from error
    if tuple(map(int, re.findall("[0-9]+", version("jinja2"))[:3])) < SAFE:
        raise MissingExtra(f"jinja2 {'.'.join(map(str, SAFE))}, whose sandbox is whole,", "torch")
    texts = {"query": _QUERY, "document": _PASSAGE}
    roles = texts if instruction is None else {"system": instruction, **texts}
    messages = [
        {"role": role, "content": text if is_flat else [{"type": "text", "text": text}]}
        for role, text in roles.items()
    ]
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = json.dumps
    environment.globals["raise_exception"] = _refused
    try:
        rendered = environment.from_string(template).render({**options, "messages": messages})
    except (
        TemplateError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise UnknownModel(f"cannot be rendered with a query and a document: {error}") from error
    if len(rendered) > MAX_RENDERED:
        raise UnknownModel(f"writes {len(rendered):,} characters around a pair; at most {MAX_RENDERED:,} are read")
    return rendered


def _refused(message: object) -> NoReturn:
    raise ValueError(message)


def _shown(rendered: str) -> str:
    words = rendered.replace(_QUERY, "(query)").replace(_PASSAGE, "(passage)")
    return repr(words if len(words) <= 200 else words[:200] + "...")
