"""Formats that are containers: PDF, docx, EPUB, e-mail. They are read in a child process that can be ended.

A document of somebody else may be damaged or made to do harm: the child has a limit of time and, where the system
offers one, of memory, and what it says is only text.
"""

from __future__ import annotations

import email
import mailbox
import posixpath
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from email.message import EmailMessage, Message
from email.policy import default
from email.utils import parsedate_to_datetime
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote
from xml.etree.ElementTree import fromstring

from secondpass.cognitive import seconds_of
from secondpass.errors import DataError, MissingExtra
from secondpass.search.encodings import as_declared, guessed
from secondpass.search.pages import MAX_UNZIPPED, Page, decoded, html_page

MAX_SECONDS = 60.0
MAX_MEMORY = 2 << 30  # bytes of address space
MAX_PAGES = 5000
_DIVIDED = re.compile("[\x02\ufffe]")  # PDFium's, in place of a hyphen and the line end behind it
_MISSING = 3  # the child's exit code when a package is not installed
_CHILD = "from secondpass.search.formats import main; main()"


def read(file: Path, *, seconds: float = MAX_SECONDS) -> list[Page]:
    """The pages of a PDF, docx, EPUB or e-mail file. Raises DataError, or MissingExtra without the extra `search`."""
    import json

    command = [sys.executable, "-c", _CHILD, str(file.absolute())]
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{file}: took more than {seconds:.0f} s to read; left out") from error
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    if done.returncode == _MISSING:
        raise MissingExtra(said[-1], "search")
    if done.returncode:
        raise DataError(f"{file}: cannot be read: {said[-1][:200] if said else f'code {done.returncode}'}")
    return [Page(**page) for page in json.loads(done.stdout)]


def main() -> None:
    """In the child: the pages of the file that is named, as JSON on standard output."""
    import json

    _limit_memory()
    file = Path(sys.argv[1])
    try:
        pages = [asdict(page) for page in FORMATS[file.suffix.lower()](file)]
    except ImportError as error:
        sys.stderr.write(str(error.name))
        raise SystemExit(_MISSING) from error
    sys.stdout.write(json.dumps(pages))


def _limit_memory() -> None:
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))


def _pdf(file: Path) -> Iterator[Page]:
    import pypdfium2

    with pypdfium2.PdfDocument(file) as document:
        title = str(document.get_metadata_dict().get("Title") or "")
        for number in range(min(len(document), MAX_PAGES)):
            text = document[number].get_textpage().get_text_bounded()
            text = _DIVIDED.sub("", text.replace("\r\n", "\n"))
            if text.strip():  # else it may be a scan
                yield Page(text=text, title=title or file.stem, fields={"page": number + 1})


def _docx(file: Path) -> Iterator[Page]:
    import mammoth

    with zipfile.ZipFile(file) as container:
        _check_size(container)
    with file.open("rb") as stream:
        page = html_page(mammoth.convert_to_html(stream, convert_image=lambda image: []).value)
    if page.text.strip():
        yield Page(text=page.text, kind=page.kind, title=page.title or file.stem)


def _epub(file: Path) -> Iterator[Page]:
    """The documents of a book's spine (EPUB 2 and 3), each a page."""
    with zipfile.ZipFile(file) as book:
        _check_size(book)
        rootfile = fromstring(book.read("META-INF/container.xml")).find(".//{*}rootfile")
        package = "" if rootfile is None else rootfile.get("full-path", "")
        told = fromstring(book.read(package))
        title = (told.findtext("{*}metadata/{*}title") or "").strip() or file.stem
        places = {item.get("id"): item.get("href", "") for item in told.iterfind("{*}manifest/{*}item")}
        for number, item in enumerate(told.iterfind("{*}spine/{*}itemref"), 1):
            name = posixpath.normpath(posixpath.join(posixpath.dirname(package), unquote(places[item.get("idref")])))
            page = html_page(decoded(book.read(name), name, "utf-8"))
            if page.text.strip():  # else it may be a cover
                yield Page(text=page.text, kind=page.kind, title=title, fields={"part": number})


def _check_size(container: zipfile.ZipFile) -> None:
    size = sum(each.file_size for each in container.infolist())
    if size > MAX_UNZIPPED:
        raise DataError(f"has {size / 1e6:.0f} MB when unpacked; {MAX_UNZIPPED / 1e6:.0f} are read at most")


def _eml(file: Path) -> Iterator[Page]:
    yield _message(email.message_from_binary_file(BytesIO(file.read_bytes()), policy=default))


def _mbox(file: Path) -> Iterator[Page]:
    for message in mailbox.mbox(file, create=False):
        yield _message(email.message_from_bytes(message.as_bytes(), policy=default))


def _message(message: Message) -> Page:
    """A message with its subject as title; of its bodies the plain one, else the HTML one."""
    assert isinstance(message, EmailMessage)
    part = message.get_body(("plain", "html"))
    data = part.get_payload(decode=True) if part is not None else b""
    declared = part.get_content_charset("") if part is not None else ""
    text = decoded(data if isinstance(data, bytes) else b"", "the message", declared)
    if part is not None and part.get_content_type() == "text/html":
        text = html_page(text).text
    heads = {name: _head(message, name, declared) for name in ("from", "to")}
    try:
        created = seconds_of(parsedate_to_datetime(str(message.get("date"))), "date")
    except (TypeError, ValueError):
        created = None
    return Page(text=text, title=_head(message, "subject", declared), created=created, fields=heads)


def _head(message: EmailMessage, name: str, declared: str) -> str:
    """A header; one that is in bytes beyond ASCII, against the rules, in what the body is in."""
    raw = next((str(value) for key, value in message.raw_items() if key.lower() == name), "")
    if not raw.isascii():
        data = raw.encode("utf-8", "surrogateescape")
        return " ".join((as_declared(data, declared) or guessed(data)).split())
    return str(message.get(name) or "")


FORMATS: dict[str, Callable[[Path], Iterator[Page]]] = {
    ".pdf": _pdf,
    ".docx": _docx,
    ".epub": _epub,
    ".eml": _eml,
    ".mbox": _mbox,
}
