"""What clients send as documents, and what is read of it."""

from __future__ import annotations

from typing import Any

import pytest

from secondpass.server.dialects.documents import read_document, read_documents, read_texts, refuse_media
from secondpass.wire.calls import Fault, Refusal

YAML = "Title: How to fix a dishwasher\nAuthor: John Smith\nParts:\n- pump\n- seal\n"


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ("plain", "plain"),
        ("", ""),
        (YAML, YAML),
        ({"text": "of an object"}, "of an object"),
        ({"title": "unread", "text": "read", "image": "https://example.org/a.png"}, "read"),
        ({"text": ""}, ""),
        ({"type": "text", "text": "a part"}, "a part"),
        ({"content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}, "one\ntwo"),
        ({"content": ["one", {"text": "two"}]}, "one\ntwo"),
        ("half a pair \ud800 of surrogates", "half a pair \ufffd of surrogates"),
    ],
)
def test_text_of_a_document(document: Any, text: str) -> None:
    assert read_documents([document]) == (text,)


def test_rank_fields_are_read_in_their_order() -> None:
    document = {"text": "body", "title": "head", "year": 1999, "tags": ["a", "é"], "more": {"deep": [1, None]}}
    assert read_documents([document], rank_fields=["title", "text"]) == ("title: head\ntext: body",)
    assert read_documents([document], rank_fields=["text", "title"]) == ("text: body\ntitle: head",)
    assert read_documents([document], rank_fields=["year", "missing", "tags"]) == ('year: 1999\ntags: ["a", "é"]',)
    assert read_documents([document], rank_fields=["more"]) == ('more: {"deep": [1, null]}',)


@pytest.mark.parametrize("rank_fields", [["text"], []])
def test_the_default_rank_field_is_the_text_itself(rank_fields: list[str]) -> None:
    assert read_documents([{"text": "body", "title": "head"}], rank_fields=rank_fields) == ("body",)


def test_strings_are_read_whole_whatever_the_rank_fields() -> None:
    assert read_documents(["title: x"], rank_fields=["title", "text"]) == ("title: x",)


@pytest.mark.parametrize(
    ("documents", "fault", "parameter", "words"),
    [
        ("text", Fault.malformed, "documents", "documents is a string; a list is needed"),
        (None, Fault.malformed, "documents", "documents is null; a list"),
        ({"text": "a"}, Fault.malformed, "documents", "documents is an object; a list"),
        ([], Fault.invalid, "documents", "documents is empty"),
        (["a", None], Fault.malformed, "documents[1]", r"documents\[1\] is null"),
        (["a", 7], Fault.malformed, "documents[1]", r"documents\[1\] is a number"),
        ([["a"]], Fault.malformed, "documents[0]", r"documents\[0\] is a list"),
        ([{"text": 3}], Fault.malformed, "documents[0].text", r"documents\[0\].text is a number; a string"),
        ([{"title": "x", "body": "y"}], Fault.invalid, "documents[0]", "no text .it has title, body.; add it"),
        ([{}], Fault.invalid, "documents[0]", "it is empty"),
        ([{"content": [3]}], Fault.malformed, "documents[0].content[0]", "is a number"),
        ([{"image": "https://example.org/a.png"}], Fault.unsupported, "documents[0]", "has 'image'; .* text only"),
        (
            [{"content": [{"type": "image_url", "image_url": {"url": "data:"}}]}],
            Fault.unsupported,
            "documents[0].content[0]",
            "has 'image_url'",
        ),
        ([{"content": [{"type": "video_url"}]}], Fault.unsupported, "documents[0].content[0]", "has 'video_url'"),
    ],
)
def test_what_cannot_be_read_is_named(documents: Any, fault: Fault, parameter: str, words: str) -> None:
    with pytest.raises(Refusal, match=words) as refused:
        read_documents(documents)
    assert (refused.value.fault, refused.value.parameter) == (fault, parameter)


def test_missing_rank_fields_are_named_with_what_is_there() -> None:
    words = r"documents\[1\] has none of the rank_fields title, body \(it has text\)"
    with pytest.raises(Refusal, match=words) as refused:
        read_documents([{"title": "a"}, {"text": "b"}], rank_fields=["title", "body"])
    assert refused.value.fault is Fault.invalid


def test_a_refusal_never_quotes_a_text() -> None:
    secret = "the secret text"
    for document in ({"title": secret}, {"image": secret}, {"text": [secret]}, [secret]):
        with pytest.raises(Refusal) as refused:
            read_document(document, "documents[0]")
        assert secret not in refused.value.message


def test_many_and_long_keys_are_quoted_in_part() -> None:
    with pytest.raises(Refusal) as refused:
        read_document({"k" * 1000 + str(i): i for i in range(100)}, "documents[0]")
    assert len(refused.value.message) < 600


def test_a_passage_with_a_picture_beside_its_text_can_be_refused() -> None:
    refuse_media({"text": "a", "image": None}, "passages[0]")
    with pytest.raises(Refusal, match="has 'image'"):
        refuse_media({"text": "a", "image": "data:image/png;base64,"}, "passages[0]")


def test_texts_are_strings_only() -> None:
    assert read_texts(["a", ""], "texts") == ("a", "")
    with pytest.raises(Refusal, match=r"texts\[1\] is an object; a string is needed"):
        read_texts(["a", {"text": "b"}], "texts")
    with pytest.raises(Refusal, match="texts is empty"):
        read_texts([], "texts")
    with pytest.raises(Refusal, match="texts is a string; a list of strings"):
        read_texts("a", "texts")
