"""Documents of callers to texts: checked, and written down where fields are named."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from unicodedata import category, normalize

from secondpass.types import Document, DocumentLike

_UNDRAWN = ("Cc", "Cf")  # Unicode's control and format characters


def as_documents(documents: Iterable[DocumentLike], rank_fields: Sequence[str] | None = None) -> list[Document]:
    """Documents of strings, Documents or mappings. Raises TypeError that names the one at fault.

    A mapping needs a "text" where no rank_fields are given; a Document has one, which may be empty.
    """
    if hasattr(documents, "columns"):  # of tables what is iterated is their columns
        advice = "give a list, as table['text'].tolist() or table.to_dict('records')"
        raise TypeError(f"documents is {_kind(documents)}; {advice}")
    if isinstance(documents, str | bytes | Mapping | Document) or not isinstance(documents, Iterable):
        raise TypeError(f"documents is {_kind(documents)}; give a list of documents, [document] for one")
    return [as_document(document, index, rank_fields) for index, document in enumerate(documents)]


def as_document(document: DocumentLike, index: int, rank_fields: Sequence[str] | None = None) -> Document:
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
    if rank_fields is None and "text" not in document:
        there = ", ".join(map(str, document))
        raise ValueError(f"documents[{index}] has no 'text' (it has {there}); add it or give rank_fields")
    text = document.get("text", "")
    if not isinstance(text, str):
        raise TypeError(f"documents[{index}]['text'] is {_kind(text)}; a str is needed")
    return Document(text, document)


def text_of(document: Document, rank_fields: Sequence[str] | None, index: int) -> str:
    """What is read of a document: its text, or the named fields as `name: value` lines in that order.

    Fields that are None or NaN, as tables have it, are left out; nothing is read where all of these are blank.
    """
    if rank_fields is None:
        return clean(document.text)
    values = {"text": document.text, **document.fields}
    named = {name: values[name] for name in rank_fields if name in values}
    if not named:
        raise ValueError(f"documents[{index}] has none of the rank_fields {list(rank_fields)}")
    named = {name: value for name, value in named.items() if not _is_missing(value)}
    if all(isinstance(value, str) and is_blank(value) for value in named.values()):
        return ""
    return clean("\n".join(f"{name}: {_as_line(value)}" for name, value in named.items()))


def _is_missing(value: Any) -> bool:
    """None, or NaN, which pandas has where a table has nothing."""
    return value is None or (isinstance(value, float) and value != value)


def _as_line(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def clean(text: str) -> str:
    """The text with lone surrogates, which no tokenizer can read, as U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)
    return text


def clean_query(query: str) -> str:
    if not isinstance(query, str):
        raise TypeError(f"query is {_kind(query)}; a str is needed")
    return clean(query)


def is_blank(text: str) -> bool:
    """Whether there is nothing to read: blanks, and what is not drawn, as a byte order mark or a zero-width space.

    Models give such a text any score, often a high one.
    """
    return all(character.isspace() or category(character) in _UNDRAWN for character in text)


def check_pair(pair: tuple[str, DocumentLike], index: int) -> tuple[str, str]:
    """The query and the text of a (query, document) pair. Raises TypeError that names the one at fault."""
    if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
        hint = "; give a list of pairs, [pair] for one" if isinstance(pair, str) else ""
        raise TypeError(f"pairs[{index}] is {_kind(pair)}, not a (query, document) pair{hint}")
    query, document = pair
    return clean_query(query), text_of(as_document(document, index), None, index)


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def folded(text: str) -> str:
    """Without regard to capitals, blanks, and how letters with marks are put together."""
    return " ".join(normalize("NFC", text).casefold().split())
