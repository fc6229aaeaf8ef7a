from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from secondpass.server.security import Guard, check_exposure, read_keys
from secondpass.server.settings import Settings, SettingsError
from secondpass.wire.calls import Fault, Refusal


def place(guard: Guard, peer: str = "127.0.0.1", scheme: str = "http", **headers: str) -> Fault | None:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        guard.check_origin({"host": "localhost:8787", **named}, scheme, peer)
    except Refusal as refusal:
        return refusal.fault
    return None


def key(guard: Guard, **headers: str) -> Fault | None:
    try:
        guard.check_key({name.replace("_", "-"): value for name, value in headers.items()})
    except Refusal as refusal:
        return refusal.fault
    return None


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8787", "[::1]:8787", "127.0.0.9", "LOCALHOST:1"])
def test_loopback_is_reached_by_its_names(host: str) -> None:
    assert place(Guard(Settings()), host=host) is None


@pytest.mark.promise("docs/security.md", "`Host` must be one of this server's names")
@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:8787", "127.0.0.1.nip.io", "", "[::2]"])
def test_other_names_of_loopback_are_refused(host: str) -> None:
    """A page whose name was changed to 127.0.0.1 sends its own name as Host."""
    assert place(Guard(Settings()), host=host) is Fault.forbidden


def test_hosts_may_be_named() -> None:
    guard = Guard(Settings(allowed_hosts=("Rank.Example",)))
    assert place(guard, host="rank.example:443") is None
    assert place(guard, host="evil.example") is Fault.forbidden


@pytest.mark.parametrize("name", ["rank.example:8443", "[2001:DB8::1]:8443", "2001:db8::1"])
def test_a_name_may_be_given_as_the_host_header_has_it(name: str) -> None:
    """As the refusal quotes it: a header's port, and the brackets around an address."""
    guard = Guard(Settings(host="0.0.0.0", allowed_hosts=(name,)))
    sent = "rank.example:8443" if name.startswith("rank") else "[2001:db8::1]:8443"
    assert place(guard, host=sent) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_where_hosts_are_named_the_machine_itself_still_asks(host: str) -> None:
    """The container's health check does, and so does the line that the server prints."""
    guard = Guard(Settings(host=host, allowed_hosts=("rank.example",)))
    assert place(guard, host="127.0.0.1:8787") is None
    assert place(guard, host="localhost") is None
    assert place(guard, host="evil.example") is Fault.forbidden


def test_beyond_loopback_any_host_is_served() -> None:
    assert place(Guard(Settings(host="0.0.0.0")), host="rank.example") is None


@pytest.mark.promise("docs/security.md", "`Origin` must be the server's own or `cors_origins`")
@pytest.mark.parametrize(
    ("origin", "fault"),
    [
        ("http://localhost:8787", None),
        ("http://localhost:9999", Fault.forbidden),
        ("https://localhost:8787", Fault.forbidden),
        ("http://evil.example", Fault.forbidden),
        ("null", Fault.forbidden),
        ("http://[", Fault.forbidden),
        ("http://localhost:99999", Fault.forbidden),
    ],
)
def test_pages_of_other_origins_may_not_call(origin: str, fault: Fault | None) -> None:
    assert place(Guard(Settings()), origin=origin) is fault


@pytest.mark.parametrize(
    "said", [{"x_forwarded_proto": "https"}, {"forwarded": 'for=192.0.2.9;proto="https", for=x'}]
)
@pytest.mark.parametrize(
    ("origin", "host", "fault"),
    [
        ("https://rank.example", "rank.example", None),
        ("https://rank.example", "Rank.Example:443", None),
        ("https://rank.example:8443", "rank.example:8443", None),
        ("https://rank.example", "rank.example:8443", Fault.forbidden),
        ("http://rank.example", "rank.example", Fault.forbidden),  # such a page may be anyone's on the way
        ("https://evil.example", "rank.example", Fault.forbidden),
    ],
)
def test_a_proxy_that_ends_tls_says_so(said: dict[str, str], origin: str, host: str, fault: Fault | None) -> None:
    guard = Guard(Settings(host="0.0.0.0"))
    assert place(guard, origin=origin, host=host, **said) is fault


@pytest.mark.promise("docs/serving.md", "Only proxies on this machine are believed")
@pytest.mark.parametrize(
    ("trusted", "peer", "fault"),
    [
        (None, "127.0.0.1", None),
        (None, "::1", None),
        (None, "::ffff:127.0.0.1", None),
        (None, "10.1.2.3", Fault.forbidden),
        (None, "", Fault.forbidden),
        (("10.0.0.0/8",), "10.1.2.3", None),
        (("10.1.2.3",), "10.1.2.3", None),
        (("10.0.0.0/8",), "127.0.0.1", Fault.forbidden),
        (("*",), "2001:db8::7", None),
        ((), "127.0.0.1", Fault.forbidden),
    ],
)
def test_only_a_trusted_proxy_is_believed(trusted: tuple[str, ...] | None, peer: str, fault: Fault | None) -> None:
    guard = Guard(Settings(host="0.0.0.0") if trusted is None else Settings(host="0.0.0.0", trusted_proxies=trusted))
    said = {"x_forwarded_proto": "https", "host": "rank.example"}
    assert place(guard, peer, origin="https://rank.example", **said) is fault


@pytest.mark.parametrize("said", ["", "ws", "https http", "javascript"])
def test_a_scheme_that_is_none_is_left_alone(said: str) -> None:
    assert place(Guard(Settings()), x_forwarded_proto=said, origin="http://localhost:8787") is None
    assert place(Guard(Settings()), x_forwarded_proto=said, origin="https://localhost:8787") is Fault.forbidden


@pytest.mark.promise("docs/serving.md", "`X-Forwarded-Host` is not read, since any web page could send it")
def test_a_proxy_never_says_which_host_was_meant() -> None:
    """A page whose name was changed to 127.0.0.1 is of its own origin to the browser, and may send any header."""
    guard = Guard(Settings())
    said = {"x_forwarded_host": "localhost:8787", "forwarded": "host=localhost:8787;proto=http"}
    assert place(guard, host="evil.example:8787", origin="http://evil.example:8787", **said) is Fault.forbidden


def test_origins_may_be_allowed() -> None:
    guard = Guard(Settings(cors_origins=("https://app.example",)))
    assert place(guard, origin="https://app.example") is None
    assert (
        guard.cors_headers({"origin": "https://app.example"})["access-control-allow-origin"] == "https://app.example"
    )
    assert guard.cors_headers({"origin": "https://evil.example"}) == {}
    spelled = Guard(
        Settings(cors_origins=("HTTPS://app.example:443/", "chrome-extension://abc", "http://dev.example:81"))
    )
    for origin in ("https://app.example", "chrome-extension://abc", "http://dev.example:81"):
        assert spelled.allows_origin(origin)
    for origin in ("http://app.example", "https://app.example:444", "http://dev.example", "null"):
        assert not spelled.allows_origin(origin)
    assert Guard(Settings()).cors_headers({"origin": "http://localhost:8787"}) == {}


@pytest.mark.parametrize(
    ("headers", "fault"),
    [
        ({"authorization": "Bearer one"}, None),
        ({"authorization": "bearer  two "}, None),
        ({"x_api_key": "two"}, None),
        ({"api_key": "one"}, None),
        ({"authorization": "Bearer one2"}, Fault.unauthorized),
        ({"authorization": "Basic one"}, Fault.unauthorized),
        ({"authorization": "one"}, Fault.unauthorized),
        ({"x_api_key": ""}, Fault.unauthorized),
        ({"authorization": "Bearer \xe9"}, Fault.unauthorized),
        ({}, Fault.unauthorized),
    ],
)
def test_one_of_the_keys_is_needed(headers: dict[str, str], fault: Fault | None) -> None:
    assert key(Guard(Settings(), ("one", "two")), **headers) is fault


def test_without_keys_anyone_may_call() -> None:
    assert key(Guard(Settings())) is None


def test_keys_come_from_a_file_and_a_list(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# of the team\n one \n\ntwo\n")
    assert read_keys(Settings(api_key_file=str(file)), "three, one") == ("three", "one", "two")
    file.write_bytes("\ufeff# of the team\r\none\r\n".encode())  # as Windows' editors write it
    assert read_keys(Settings(api_key_file=str(file)), None) == ("one",)
    file.write_text("# none\n")
    with pytest.raises(SettingsError, match="no key in it"):
        read_keys(Settings(api_key_file=str(file)), None)
    with pytest.raises(SettingsError, match="cannot be read"):
        read_keys(Settings(api_key_file=str(tmp_path / "absent")), None)


@pytest.mark.promise("docs/security.md", "beyond loopback it starts only with a key")
@pytest.mark.parametrize(
    ("settings", "keys", "words"),
    [
        ({}, (), None),
        ({"host": "::1"}, (), None),
        ({"host": "0.0.0.0"}, (), "--insecure"),
        ({"host": "rank.example"}, (), "--insecure"),
        ({"host": "0.0.0.0"}, ("one",), None),
        ({"host": "0.0.0.0", "insecure": True}, (), None),
        ({"allow_model_changes": True}, (), "needs a key"),
        ({"allow_model_changes": True}, ("one",), None),
    ],
)
def test_a_server_for_others_has_a_key(settings: dict[str, Any], keys: tuple[str, ...], words: str | None) -> None:
    if words is None:
        check_exposure(Settings(**settings), keys)
    else:
        with pytest.raises(SettingsError, match=words):
            check_exposure(Settings(**settings), keys)
