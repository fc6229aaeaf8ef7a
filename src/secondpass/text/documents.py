"""Documents of callers to texts: checked, and written down where fields are named."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from secondpass.types import Document, DocumentLike


def as_documents(documents: Iterable[DocumentLike]) -> list[Document]:
    """Documents of strings, Documents or mappings. Raises TypeError that names the one at fault."""
    if isinstance(documents, str | bytes | Mapping | Document):
        raise TypeError(f"documents is a {type(documents).__name__}; give a list of documents, [document] for one")
    return [as_document(document, index) for index, document in enumerate(documents)]


def as_document(document: DocumentLike, index: int) -> Document:
    if isinstance(document, Document):
        if not isinstance(document.text, str):
            raise TypeError(f"documents[{index}].text is {_kind(document.text)}; a str is needed")
        return document
    if isinstance(document, str):
        return Document(document)
    if not isinstance(document, Mapping):
        raise TypeError(f"documents[{index}] is {_kind(document)}; give a str, a Document or a mapping with 'text'")
    if not document:
        raise ValueError(f"documents[{index}] is an empty mapping; 'text' is needed")
    text = document.get("text", "")
    if not isinstance(text, str):
        raise TypeError(f"documents[{index}]['text'] is {_kind(text)}; a str is needed")
    return Document(text, document)


def text_of(document: Document, rank_fields: Sequence[str] | None, index: int) -> str:
    """What is read of a document: its text, or the named fields as `name: value` lines in that order."""
    if rank_fields is None:
        if document.fields and "text" not in document.fields and not document.text:
            there = ", ".join(map(str, document.fields))
            raise ValueError(f"documents[{index}] has no 'text' (it has {there}); add it or give rank_fields")
        return _clean(document.text)
    values = {"text": document.text, **document.fields}
    lines = [f"{name}: {_as_line(values[name])}" for name in rank_fields if name in values]
    if not lines:
        raise ValueError(f"documents[{index}] has none of the rank_fields {list(rank_fields)}")
    return _clean("\n".join(lines))


def _as_line(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _clean(text: str) -> str:
    """The text with lone surrogates, which no tokenizer can read, as U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)
    return text


def clean_query(query: str) -> str:
    if not isinstance(query, str):
        raise TypeError(f"query is {_kind(query)}; a str is needed")
    return _clean(query)


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
