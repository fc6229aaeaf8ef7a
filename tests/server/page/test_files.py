"""The page's files: what is sent, with which headers, and that nothing in them comes from outside."""

from __future__ import annotations

import asyncio
import re
from importlib.resources import files
from typing import Any

import httpx
import pytest

from secondpass.server import page
from secondpass.server.app import create_app
from secondpass.server.service import Service
from secondpass.server.settings import Settings

FOLDER = files(page.__name__)
NAMES = sorted(page.asset_names())


def read(name: str) -> str:
    return (FOLDER / name).read_text("utf-8")


def test_every_file_that_a_file_names_is_there() -> None:
    named = set(re.findall(r'(?:src|href)="page/([^"]+)"', read("index.html")))
    for name in NAMES:
        if name.endswith(".js"):
            named |= set(re.findall(r'from "\./([^"]+)"', read(name)))
    assert named == set(NAMES) - {"index.html"}


@pytest.mark.parametrize("name", NAMES)
def test_nothing_comes_from_outside_or_runs_inline(name: str) -> None:
    text = read(name)
    assert set(re.findall(r"https?://[^\"'`\s]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\burl\(|@import|//cdn|<style|style=\"|\son\w+=\"|<script>", text)


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith(".js")])
def test_texts_are_never_markup(name: str) -> None:
    banned = (
        r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function|srcdoc|createContextualFragment"
    )
    assert not re.search(banned, read(name))


def test_names_outside_the_page_are_none() -> None:
    for name in ("__init__.py", "../app.py", "..", "page", "index.htm", "/etc/passwd", "index.html\0"):
        assert page.asset(name) is None
    index = page.asset()
    assert index is not None and index == page.asset("index.html") and index.media_type.startswith("text/html")


def asked(paths: list[str], *, keys: tuple[str, ...] = (), **settings: Any) -> list[httpx.Response]:
    """The server's answers; no model is loaded for them."""

    async def all_of_them(service: Service) -> list[httpx.Response]:
        transport = httpx.ASGITransport(create_app(service, keys=keys))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8787") as client:
            return [await client.get(path) for path in paths]

    service = Service(Settings(**settings))
    try:
        return asyncio.run(all_of_them(service))
    finally:
        service.close()


def test_the_server_sends_the_page_without_a_key() -> None:
    paths = ["/", *(f"/page/{name}" for name in NAMES)]
    for path, answer in zip(paths, asked(paths, keys=("secret-of-the-test",)), strict=True):
        assert answer.status_code == 200
        assert answer.content == (FOLDER / (path.removeprefix("/page").strip("/") or "index.html")).read_bytes()
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_other_files_and_the_api_are_closed() -> None:
    answers = asked(["/page/secret.txt", "/page/__init__.py", "/api/models"], keys=("secret-of-the-test",))
    assert [answer.status_code for answer in answers] == [401, 401, 401]


def test_an_unchanged_file_is_not_sent_again() -> None:
    async def twice() -> None:
        transport = httpx.ASGITransport(create_app(service, keys=()))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8787") as client:
            tag = (await client.get("/")).headers["etag"]
            again = await client.get("/", headers={"If-None-Match": tag})
            assert (again.status_code, again.content) == (304, b"")

    service = Service(Settings())
    asyncio.run(twice())
    service.close()


def test_the_page_can_be_left_out() -> None:
    answers = asked(["/", "/page/page.js", "/api/models"], page=False)
    assert [answer.status_code for answer in answers] == [404, 404, 200]


def test_below_a_prefix_the_page_has_a_slash_at_its_end() -> None:
    without, with_it, file = asked(
        ["/tools/rank", "/tools/rank/", "/tools/rank/page/page.js"], root_path="/tools/rank"
    )
    assert (without.status_code, without.headers["location"]) == (308, "rank/")
    assert [with_it.status_code, file.status_code] == [200, 200]
