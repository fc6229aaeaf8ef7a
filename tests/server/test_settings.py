from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from secondpass.server.settings import (
    ModelSource,
    Settings,
    SettingsError,
    load_settings,
    model_source,
    parse_settings,
)

FILE = """
port = 1111
timeout_s = 5
cors_origins = ["https://app.example"]
local_files_only = true

[models]
small = "path/to/small"
pinned = "owner/name@v2"

[models.large]
path = "path/to/large"
dtype = "bfloat16"
max_length = 1024
calibration = "large.json"

[aliases]
"rerank-v3.5" = "large"
"""


def test_the_command_line_comes_before_the_environment_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(FILE)
    found = load_settings({"host": "::1", "port": None}, {"SECONDPASS_PORT": "2222", "SECONDPASS_HOST": "x"}, file)
    assert (found.host, found.port, found.timeout_s, found.keep_alive_s) == (
        "::1",
        2222,
        5.0,
        Settings().keep_alive_s,
    )
    assert found.cors_origins == ("https://app.example",)
    assert found.models == (
        ModelSource(name="small", path="path/to/small"),
        ModelSource(name="pinned", path="owner/name", revision="v2"),
        ModelSource(name="large", path="path/to/large", dtype="bfloat16", max_length=1024, calibration="large.json"),
    )
    assert found.aliases == {"rerank-v3.5": "large"}


def test_where_indexes_are_is_said_by_the_variable_of_the_index_commands(tmp_path: Path) -> None:
    (tmp_path / "serve.toml").write_text("index_folder = 'a'")
    file, variable = tmp_path / "serve.toml", {"SECONDPASS_INDEXES": "b"}
    assert load_settings({}, variable, file).index_folder == "b"
    assert load_settings({}, {**variable, "SECONDPASS_INDEX_FOLDER": "c"}, file).index_folder == "c"
    assert load_settings({"index_folder": "d"}, variable, file).index_folder == "d"
    assert load_settings({}, {"SECONDPASS_INDEXES": ""}, file).index_folder == "a"


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text("port = 1111", "utf-8-sig")
    assert load_settings({}, {}, file).port == 1111


def test_the_environment_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "serve.toml").write_text("port = 1111")
    assert load_settings({}, {"SECONDPASS_CONFIG": str(tmp_path / "serve.toml"), "HOME": "/"}).port == 1111


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot = 1", "prot is not a setting; there are host, port"),
        ("port = '1'", "port is '1', which is not a whole number"),
        ("port = true", "not a whole number"),
        ("insecure = 1", "not true or false"),
        ("allowed_hosts = 'x'", "not a list of texts"),
        ("aliases = {a = 1}", "not a table of texts"),
        ("port = ", "cannot be read as TOML"),
        ("models = []", "models is a table"),
        ("[models.a]\nfile = 'x'", "models.a needs a path"),
        ("[models.a]\npath = 'x'\nlength = 3", "models.a.length is not a setting of a model"),
        ("[models.a]\npath = 'x'\nmax_length = 'x'", "models.a.max_length is 'x', which is not a whole number"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "serve.toml").write_text(text)
    with pytest.raises(SettingsError, match=words):
        load_settings({}, {}, tmp_path / "serve.toml")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("PORT", "0", 0),
        ("TIMEOUT_S", "1.5", 1.5),
        ("INSECURE", "yes", True),
        ("PAGE", "0", False),
        ("ALLOWED_HOSTS", "a, b,", ("a", "b")),
        ("BATCH_TOKENS", "100", 100),
        ("API_KEY_FILE", "keys", "keys"),
        ("ALIASES", "a=default", {"a": "default"}),
        ("CALIBRATION", "default=a.json", ("default=a.json",)),
        ("TRUSTED_PROXIES", "10.0.0.0/8, ::1", ("10.0.0.0/8", "::1")),
        ("TRUSTED_PROXIES", "", ()),
        ("CORS_ORIGINS", "https://a.example/,app://notes.md,null", ("https://a.example/", "app://notes.md", "null")),
        ("ALLOWED_HOSTS", "*,[::1]:8787", ("*", "[::1]:8787")),
        ("MODELS", "a=x,y", (ModelSource(name="a", path="x"), ModelSource(name="y", path="y"))),
    ],
)
def test_the_environment_is_read_by_the_type_of_the_setting(name: str, text: str, value: Any) -> None:
    assert getattr(load_settings({}, {f"SECONDPASS_{name}": text}), name.lower()) == value
    assert parse_settings([f"{name.lower()}={text}"]) == {name.lower(): value}


@pytest.mark.parametrize("service", ["SECONDPASS", "SECONDPASS_SERVE_SVC"])
def test_links_of_a_kubernetes_service_are_no_settings(service: str) -> None:
    """As its kubelet sets them for a Service with two ports, one of them named; KubeRay names one of its own so."""
    links = {
        f"{service}_SERVICE_HOST": "10.0.0.11",
        f"{service}_SERVICE_PORT": "8787",
        f"{service}_SERVICE_PORT_HTTP": "8787",
        f"{service}_PORT": "tcp://10.0.0.11:8787",
        f"{service}_PORT_8787_TCP": "tcp://10.0.0.11:8787",
        f"{service}_PORT_8787_TCP_PROTO": "tcp",
        f"{service}_PORT_8787_TCP_PORT": "8787",
        f"{service}_PORT_8787_TCP_ADDR": "10.0.0.11",
    }
    assert load_settings({}, links) == load_settings({}, {})
    assert load_settings({"port": 1}, links).port == 1


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"SECONDPASS_PROT": "1"}, "SECONDPASS_PROT is not a setting; there are host, port"),
        ({"SECONDPASS_SERVICE": "1"}, "SECONDPASS_SERVICE is not a setting"),
        ({"SECONDPASS_LARGE_PORT": "8788"}, "SECONDPASS_LARGE_PORT is not a setting"),
        ({"SECONDPASS_PORT": "x"}, "SECONDPASS_PORT is 'x', which is not a whole number"),
        ({"SECONDPASS_INSECURE": "maybe"}, "not true or false"),
        ({"SECONDPASS_PORT": "70000"}, "port is 70000"),
        ({"SECONDPASS_WORKERS": "0"}, "workers is 0; give more than 0"),
        ({"SECONDPASS_GRACE_S": "inf"}, "grace_s is inf; give more than 0, and an end"),
        ({"SECONDPASS_ROOT_PATH": "rerank"}, "root_path is 'rerank'; begin it with a slash"),
        ({"SECONDPASS_TIMEOUT_S": "nan"}, "timeout_s is nan"),
        ({"SECONDPASS_ALLOWED_HOSTS": "https://x.example"}, "allowed_hosts is 'https://x.example'; give a name"),
        ({"SECONDPASS_ALLOWED_HOSTS": "*.example"}, r"allowed_hosts is '\*.example'"),
        ({"SECONDPASS_CORS_ORIGINS": "app.example"}, "cors_origins is 'app.example'; give what browsers send"),
        ({"SECONDPASS_CORS_ORIGINS": "*"}, r"cors_origins is '\*'"),
        ({"SECONDPASS_CORS_ORIGINS": "https://app.example/page"}, "cors_origins is 'https://app.example/page'"),
        ({"SECONDPASS_LOG_FORMAT": "xml"}, "log_format is 'xml'; give auto, json, text"),
        ({"SECONDPASS_TLS_KEY": "key.pem"}, "together"),
        ({"SECONDPASS_MODELS": "a=x,a=y"}, "a name twice"),
        ({"SECONDPASS_MODELS": ""}, "models is empty; name one"),
        ({"SECONDPASS_ALIASES": "a=b"}, "aliases.a is 'b'; there are default"),
        ({"SECONDPASS_CALIBRATION": "a=b"}, "calibration is 'a=b'; give NAME=FILE, with NAME of default"),
        ({"SECONDPASS_CALIBRATION": "default="}, "calibration is 'default='"),
        ({"SECONDPASS_MODELS": "a=x,b=y", "SECONDPASS_CALIBRATION": "c.json"}, "give NAME=FILE, with NAME of a, b"),
        ({"SECONDPASS_TRUSTED_PROXIES": "proxy.example"}, "trusted_proxies: 'proxy.example' does not appear to be"),
    ],
)
def test_a_wrong_environment_is_refused(environment: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        load_settings({}, environment)


def test_a_calibration_is_of_the_model_that_it_names() -> None:
    small, large = ModelSource(name="small", path="s"), ModelSource(name="large", path="l", calibration="own.json")
    vectors = ModelSource(name="vectors", path="v", kind="embedder")

    def found(*calibration: str, models: tuple[ModelSource, ...] = (small, large, vectors)) -> list[str | None]:
        settings = Settings(models=models, calibration=calibration)
        return [settings.calibration_of(model) for model in models]

    assert found() == [None, "own.json", None]
    assert found("small=a=b.json") == ["a=b.json", "own.json", None]
    assert found("large=a.json") == [None, "a.json", None]
    assert found("a.json", models=(small, vectors)) == ["a.json", None]
    with pytest.raises(SettingsError, match=r"calibration is 'vectors=a.json'; give NAME=FILE, with NAME of small"):
        found("vectors=a.json")


@pytest.mark.parametrize(
    "option",
    [
        {"engine": "openvino"},
        {"long_documents": "chunk"},
        {"instruction": "find"},
        {"cutoff_layer": 8},
        {"score_cache": "s.db"},
        {"calibration": "a.json"},
    ],
    ids=str,
)
def test_what_has_no_effect_on_an_embedder_is_refused(option: dict[str, Any]) -> None:
    """It was taken without a word, a wrong value too."""
    (name,) = option
    with pytest.raises(SettingsError, match=f"models.vectors is an embedder; only a reranker takes {name}"):
        ModelSource(name="vectors", path="v", kind="embedder", **option)


def test_an_alias_that_a_model_of_its_name_hides_is_refused() -> None:
    models = (ModelSource(name="small", path="s"), ModelSource(name="large", path="l"))
    with pytest.raises(SettingsError, match="small is the name of a model too"):
        Settings(models=models, aliases={"small": "large"})


@pytest.mark.parametrize("pair", ["port", "prot=1", "=1"])
def test_a_wrong_pair_is_refused(pair: str) -> None:
    with pytest.raises(SettingsError, match="is not a setting; give NAME=VALUE"):
        parse_settings([pair])


def test_a_model_is_named_by_its_path_unless_it_has_a_name() -> None:
    assert model_source("owner/name@main") == ModelSource(name="owner/name", path="owner/name", revision="main")
    assert model_source("m=owner/name") == ModelSource(name="m", path="owner/name")
    for text in ("", "=x", "x="):
        with pytest.raises(SettingsError, match="give a path, or name=path"):
            model_source(text)


@pytest.mark.promise("docs/security.md", "`/admin` exists only with `allow_model_changes`, in one process")
def test_models_that_change_are_for_one_process() -> None:
    with pytest.raises(
        SettingsError, match="workers is 2 and allow_model_changes is set; a model would be loaded in one"
    ):
        Settings(workers=2, allow_model_changes=True)
    with pytest.raises(SettingsError, match="allow_model_changes"):
        load_settings({"workers": 2}, {"SECONDPASS_ALLOW_MODEL_CHANGES": "1"})


@pytest.mark.parametrize("name", ["\ud800", "", " ", "a\nb", "\x1b[2J", "\u2028", "x" * 201])
def test_a_models_name_is_checked_before_it_is_loaded(name: str) -> None:
    with pytest.raises(SettingsError, match="give 1 to 200 printable characters"):
        ModelSource(name=name, path="/nowhere")
