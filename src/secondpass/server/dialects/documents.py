"""Documents and queries of a body to the texts that are read: strings, objects with fields, lists of parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secondpass.server.dialects.fields import kind
from secondpass.text.documents import clean_query, text_of
from secondpass.types import Document
from secondpass.wire.calls import Fault, Refusal

# What clients call a picture, a sound or a film in place of a text
MEDIA = (
    "image",
    "images",
    "image_url",
    "image_base64",
    "video",
    "video_url",
    "audio",
    "input_audio",
    "audio_url",
    "pdf",
)


def read_documents(
    documents: object, *, name: str = "documents", rank_fields: Sequence[str] | None = None
) -> tuple[str, ...]:
    """The texts of a list of documents. Raises Refusal that names the document at fault."""
    if not isinstance(documents, list):
        raise Refusal(Fault.malformed, f"{name} is {kind(documents)}; a list is needed", parameter=name)
    if not documents:
        raise Refusal(Fault.invalid, f"{name} is empty; one or more are needed", parameter=name)
    fields = None if rank_fields is None or list(rank_fields) in ([], ["text"]) else rank_fields
    return tuple(read_document(document, f"{name}[{i}]", fields) for i, document in enumerate(documents))


def as_list(value: object) -> object:
    """A single text or object as a list of one."""
    return [value] if isinstance(value, str | Mapping) else value


def read_texts(texts: object, name: str) -> tuple[str, ...]:
    """The texts of a list of strings, where a dialect has no other documents."""
    if not isinstance(texts, list):
        raise Refusal(Fault.malformed, f"{name} is {kind(texts)}; a list of strings is needed", parameter=name)
    if not texts:
        raise Refusal(Fault.invalid, f"{name} is empty; one or more are needed", parameter=name)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise _malformed(f"{name}[{i}]", text, "a string")
    return tuple(map(clean_query, texts))


def read_document(document: object, field: str, rank_fields: Sequence[str] | None = None) -> str:
    """The text of one document or query.

    An object is read by its `text`, by the rank_fields as `name: value` lines in their order, or by the text
    parts of its `content`. Other fields stay unread.
    """
    if isinstance(document, str):
        return clean_query(document)
    if not isinstance(document, Mapping):
        raise _malformed(field, document, "a string or an object with text")
    if rank_fields is not None:
        return _by_fields(document, field, rank_fields)
    text = document.get("text")
    if isinstance(text, str):
        return clean_query(text)
    if text is not None:
        raise _malformed(f"{field}.text", text, "a string")
    if isinstance(document.get("content"), list):
        return clean_query(
            "\n".join(_part(part, f"{field}.content[{i}]") for i, part in enumerate(document["content"]))
        )
    refuse_media(document, field)
    raise Refusal(
        Fault.invalid, f"{field} has no text ({_keys(document)}); add it, or give rank_fields", parameter=field
    )


def refuse_media(document: Mapping[str, Any], field: str) -> None:
    """Raises Refusal for a document with a picture or the like, which no model here reads."""
    for name in MEDIA:
        if document.get(name) is not None or document.get("type") == name:
            raise Refusal(Fault.unsupported, f"{field} has {name!r}; the models here read text only", parameter=field)


def _part(part: object, field: str) -> str:
    if isinstance(part, Mapping) and "text" not in part:
        refuse_media(part, field)
    return read_document(part, field)


def _by_fields(document: Mapping[str, Any], field: str, rank_fields: Sequence[str]) -> str:
    try:
        return text_of(Document("", document), [name for name in rank_fields if name in document], 0)
    except ValueError:
        asked = ", ".join(name[:40] for name in rank_fields[:8])
        message = f"{field} has none of the rank_fields {asked} ({_keys(document)})"
        raise Refusal(Fault.invalid, message, parameter=field) from None


def _keys(document: Mapping[str, Any]) -> str:
    if not document:
        return "it is empty"
    more = ", ..." if len(document) > 8 else ""
    return "it has " + ", ".join(str(key)[:40] for key in list(document)[:8]) + more


def _malformed(field: str, value: object, needed: str) -> Refusal:
    return Refusal(Fault.malformed, f"{field} is {kind(value)}; {needed} is needed", parameter=field)
