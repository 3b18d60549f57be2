from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from amp_core.errors import InputRefused
from ampref_service.broker import Doorbell
from ampref_service.settings import FOREIGN_VARIABLES, Settings, unknown_variables


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("AMPREF_"):
            monkeypatch.delenv(name)


def test_defaults_keep_everything_in_one_folder_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = Settings.load()
    assert settings.data_dir == tmp_path / ".local/share/ampref"
    assert settings.database_url == f"sqlite:///{tmp_path}/.local/share/ampref/catalog.sqlite3"
    assert settings.blob_url == f"file://{tmp_path}/.local/share/ampref/blobs"
    assert settings.host == "127.0.0.1"
    assert settings.embedded
    assert (settings.max_upload_bytes, settings.max_duration_sec, settings.max_fps) == (64 * 2**20, 120.0, 1000.0)


def test_the_environment_is_read_and_overrides_win(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AMPREF_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("AMPREF_PORT", "9000")
    monkeypatch.setenv("AMPREF_LOG_LEVEL", "DEBUG")
    monkeypatch.setenv("AMPREF_BROKER_URL", "redis://127.0.0.1:6379/0")
    settings = Settings.load(host="127.0.0.2", port=9001)
    assert (settings.data_dir, settings.host, settings.port, settings.log_level) == (tmp_path, "127.0.0.2", 9001, "debug")
    assert not settings.embedded


def test_an_empty_broker_url_means_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMPREF_BROKER_URL", "")
    assert Settings.load().embedded


def test_robots_are_a_search_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMPREF_ROBOTS", os.pathsep.join(["/a/robot.yaml", "b/robot.yaml", ""]))
    assert Settings.load().robots == (Path("/a/robot.yaml"), Path("b/robot.yaml").absolute())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("AMPREF_PORT", "eight", "'eight'"),
        ("AMPREF_PORT", "70000", "65535"),
        ("AMPREF_MAX_DURATION_SEC", "nan", "finite"),
        ("AMPREF_MAX_ATTEMPTS", "0", "greater than or equal to 1"),
        ("AMPREF_LOG_LEVEL", "loud", "'debug'"),
        ("AMPREF_BROKER_URL", "amqp://x", "redis://"),
        ("AMPREF_DATABASE_URL", "mysql://root:secret@db/x", "postgresql://"),
        ("AMPREF_BLOB_URL", "/tmp/blobs", "file:///"),
        ("AMPREF_BLOB_URL", "file:///secret%00b", "file:///"),
        ("AMPREF_BLOB_URL", "file://secret/b", "names no folder"),
        ("AMPREF_BLOB_URL", "s3://[secret", "host or port"),
        ("AMPREF_DATABASE_URL", "sqlite:", "no kind that is known"),
        ("AMPREF_DATABASE_URL", "sqlite+secret:///x", "no kind that is known"),
        ("AMPREF_DATABASE_URL", "sqlite:////x?timeout=secret", "cannot be read"),
        ("AMPREF_DATABASE_URL", "sqlite:////x?nope=secret", "cannot be read"),
        ("AMPREF_DATABASE_URL", "sqlite:////x%00secret", "names no file"),
        ("AMPREF_DATABASE_URL", "sqlite:///~nosecretuser/x", "names no file"),
        ("AMPREF_DATABASE_URL", "postgresql+secret://x/y", "no kind that is known"),
        ("AMPREF_DATABASE_URL", "postgresql://h:secret/x", "cannot be read"),
        ("AMPREF_DATABASE_URL", "postgresql://h:99999/x", "host or port"),
        ("AMPREF_DATABASE_URL", "postgresql://me:se@secret@h/x", "write @ as %40"),
        ("AMPREF_DATABASE_URL", "postgresql://h/x?connect_timeout=secret", "cannot be read"),
        ("AMPREF_DATABASE_URL", "postgresql://h/x?nope=secret", "cannot be read"),
        ("AMPREF_BROKER_URL", "redis://:pa/secret@h:6379/0", "write @ as %40"),
        ("AMPREF_BROKER_URL", "redis://:12/secret@h:6379/0", "write @ as %40"),
        ("AMPREF_BROKER_URL", "redis://:12#secret@h:6379/0", "write @ as %40"),
        ("AMPREF_BROKER_URL", "redis://:12?secret@h:6379/0", "write @ as %40"),
        ("AMPREF_BROKER_URL", "redis://[secret", "host or port"),
        ("AMPREF_BROKER_URL", "redis://secret:99999", "host or port"),
        ("AMPREF_BROKER_URL", "redis://127.0.0.1:1/secret", "database's number"),
        ("AMPREF_DATA_DIR", "~nobody-of-that-name/x", "no home folder is known for ~nobody-of-that-name"),
    ],
)
def test_a_bad_value_is_refused_by_the_name_of_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InputRefused) as refused:
        Settings.load()
    assert name in str(refused.value)
    assert message in str(refused.value)
    assert "secret" not in str(refused.value)
    assert "docs/" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AMPREF_BLOB_URL", "s3://bucket/prefix"),
        ("AMPREF_DATABASE_URL", "sqlite:////tmp/x?timeout=5"),
        ("AMPREF_DATABASE_URL", "postgres://me:p%40ss/w@[::1]:5432/x?connect_timeout=5&sslmode=require&application_name=a"),
        ("AMPREF_DATABASE_URL", "postgresql+psycopg:///x?host=/run/postgresql"),
        ("AMPREF_BROKER_URL", "rediss://:p%40ss@[::1]:6379?ssl_cert_reqs=none"),
        ("AMPREF_BROKER_URL", "redis://redis"),
        ("AMPREF_BROKER_URL", "memory://"),
    ],
)
def test_a_url_with_options_and_a_quoted_password_is_taken(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert getattr(Settings.load(), name.removeprefix("AMPREF_").lower()) == value


@pytest.mark.parametrize("option", ["ssl_cert_reqs=secret", "nope=secret", "socket_timeout=secret"])
def test_an_option_of_the_broker_that_redis_does_not_take_is_refused_before_the_worker_starts(option: str) -> None:
    with pytest.raises(InputRefused, match="AMPREF_BROKER_URL") as refused:
        Doorbell(Settings.load(broker_url=f"rediss://127.0.0.1:1/0?{option}"))
    assert "secret" not in str(refused.value)


def test_every_bad_variable_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMPREF_PORT", "x")
    monkeypatch.setenv("AMPREF_MAX_FPS", "-1")
    with pytest.raises(InputRefused, match=r"AMPREF_PORT.*AMPREF_MAX_FPS"):
        Settings.load()


def test_a_heartbeat_that_would_lose_its_lease_is_refused() -> None:
    with pytest.raises(InputRefused, match=r"heartbeat_sec is 20 s; expected at most a third of lease_sec \(30 s\)"):
        Settings.load(heartbeat_sec=20.0, lease_sec=30.0)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings.load().port = 1  # type: ignore[misc]


def test_every_setting_has_a_description_and_a_row_in_the_docs() -> None:
    page = (Path(__file__).parents[3] / "docs" / "catalog.md").read_text()
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert f"| `AMPREF_{name.upper()}` |" in page, f"{name} is not in docs/catalog.md"
        assert field.description in page, f"docs/catalog.md says something else about {name}"


def test_a_misspelt_variable_is_known_as_one() -> None:
    names = [
        "AMPREF_DATADIR",
        "AMPREF_MAX_UPLOAD_BITES",
        "AMPREF_QQQ",
        "ampref_port",
        "AMPREF_PORT",
        "PATH",
        *FOREIGN_VARIABLES,
    ]
    assert unknown_variables(names) == {
        "AMPREF_DATADIR": "AMPREF_DATA_DIR",
        "AMPREF_MAX_UPLOAD_BITES": "AMPREF_MAX_UPLOAD_BYTES",
        "AMPREF_QQQ": None,
    }
    assert unknown_variables(f"AMPREF_{name.upper()}" for name in Settings.model_fields) == {}


def test_every_variable_that_the_code_names_is_known() -> None:
    """The client's names, and that of the compose file, are written down in the settings by hand."""
    root = Path(__file__).parents[3]
    files = [
        *root.glob("amp_core/**/*.py"),
        *root.glob("s*/**/*.py"),
        *root.glob("workers/**/*.py"),
        root / "docker-compose.yml",
    ]
    files = [file for file in files if "node_modules" not in file.parts]
    names = {name for file in files for name in re.findall(r"\bAMPREF_[A-Z]+(?:_[A-Z]+)*\b", file.read_text())}
    assert {"AMPREF_URL", "AMPREF_CACHE", "AMPREF_OFFLINE", "AMPREF_PUBLISHED_PORT"} <= names
    assert unknown_variables(names) == {}
