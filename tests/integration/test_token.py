"""`ampref token`, and what `ampref up` and `ampref api` do where there is no key."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from amp_core.cli import main as cli
from amp_core.client import ApiClient, Retry
from amp_core.errors import Unauthorized
from ampref_service.catalog import Catalog, keys, schema
from ampref_service.keys import ROLES, digest_token
from ampref_service.settings import Settings


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("AMPREF_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AMPREF_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def run(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: str, code: int = 0) -> tuple[str, str]:
        assert cli.run(arguments) == code, capsys.readouterr()
        output = capsys.readouterr()
        return output.out, output.err

    return call


def test_a_key_is_printed_once_and_its_text_is_stored_nowhere(run: Any, data_dir: Path) -> None:
    out, err = run("token", "create", "admin", "--role", "operator")
    text = out.strip()
    assert digest_token(text)
    assert "it is the first" in err
    catalog = Catalog.open(Settings.load().database_url)
    with catalog.session() as session:
        (key,) = keys.list_keys(session)
    catalog.close()
    assert (key.name, key.hint, key.scopes, key.bounds.is_open) == ("admin", text[-4:], ROLES["operator"], True)
    assert key.digest == digest_token(text)
    assert text not in repr(key)
    assert key.digest not in repr(key)
    stored = b"".join(path.read_bytes() for path in data_dir.rglob("*") if path.is_file())
    assert text.encode() not in stored
    assert key.digest.encode() in stored
    out, err = run("token", "list")
    assert text not in out + err


def test_it_has_what_the_options_say(run: Any) -> None:
    run("token", "create", "admin", "--quiet")
    out, err = run(
        *("token", "create", "node7", "--role", "reader", "--scope", "jobs:write", "--dataset", "walk*", "--robot", "atlas"),
        *("--expires", "90d", "--max-bytes", "5", "--max-queued", "6", "--max-planning-sec", "7", "--json"),
    )
    key = json.loads(out)
    assert "  quotas    max-bytes 5, max-queued 6, max-planning-sec 7\n" in err
    assert "warning: the service has no robot 'atlas', only g1, wildrobot (AMPREF_ROBOTS adds others)" in err
    assert key["scopes"] == ["clips:read", "jobs:read", "jobs:write", "datasets:read"]
    assert (key["datasets"], key["robots"], key["state"]) == (["walk*"], ["atlas"], "valid")
    assert (key["max_bytes"], key["max_queued"], key["max_planning_sec"]) == (5, 6, 7.0)
    assert key["expires_at"] > key["created_at"]
    assert key["token"] not in err, "where logs are kept"
    table = " ".join(run("token", "list")[0].split())
    assert "Quotas" in table
    assert "max-queued 6" in table
    listed = json.loads(run("token", "list", "--json")[0])
    assert [row["name"] for row in listed] == ["admin", "node7"]
    assert listed[1] == {name: value for name, value in key.items() if name != "token"}


def test_revoking_by_name_and_by_id(run: Any) -> None:
    first = json.loads(run("token", "create", "node7", "--json")[0])
    assert run("token", "create", "node7", code=1)[1].count("there is a key 'node7' that is not revoked") == 1
    run("token", "revoke", "node7")
    second = json.loads(run("token", "create", "node7", "--json")[0])
    run("token", "revoke", second["id"])
    assert [row["state"] for row in json.loads(run("token", "list", "--json")[0])] == ["revoked", "revoked"]
    assert first["id"] != second["id"]
    assert "no key 'node7'" in run("token", "revoke", "node7", code=1)[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("bad name",), "cannot be used"),
        (("key_1",), "cannot be used"),
        (("x", "--role", "king"), "there is no role 'king'"),
        (("x", "--scope", "clips"), "there is no scope 'clips'"),
        (("x", "--dataset", "Walk"), "dataset name"),
        (("x", "--dataset", "*walk"), "dataset name"),
        (("x", "--expires", "soon"), "no period"),
        (("x", "--expires", "0d"), "no period"),
        (("x", "--max-queued", "0"), "1"),
        (("x", "--max-queued", "99999999999999999999"), "is more than 2147483647"),
        (("x", "--max-bytes", "99999999999999999999"), "is more than 9007199254740992"),
        (("x", "--max-planning-sec", "inf"), "is more than 1000000000"),
        (("x", "--max-planning-sec", "1e400"), "is more than 1000000000"),
        (("self",), "cannot be used"),
    ],
)
def test_what_cannot_be_is_wrong_usage(run: Any, arguments: tuple[str, ...], words: str) -> None:
    assert words in run("token", "create", *arguments, code=2)[1]


@pytest.mark.parametrize("verb", ["token list", "token revoke ada", "fsck", "backup copy", "worker --until-empty"])
def test_a_folder_without_a_catalog_is_refused_and_gets_none(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AMPREF_DATA_DIR", "misspelt")
    assert cli.run([*verb.split(), *(() if verb.startswith("worker") else ("--data-dir", "misspelt"))]) == 1
    assert f"no service keeps its catalog in {tmp_path / 'misspelt' / 'catalog.sqlite3'}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_old_catalog_is_not_migrated_by_the_way(run: Any) -> None:
    url = Settings.load().database_url
    schema.upgrade(url, "0009")
    assert "Run `ampref migrate`" in run("token", "create", "x", code=1)[1]


@pytest.mark.parametrize("verb", ["up", "api"])
def test_another_address_than_loopback_needs_a_key_or_the_word(run: Any, data_dir: Path, verb: str) -> None:
    schema.upgrade(Settings.load().database_url)
    _, err = run(verb, "--host", "0.0.0.0", "--port", "0", code=2)
    command = f"ampref token create NAME --role operator --data-dir {data_dir}"
    assert command in err.replace("\n", " ")
    assert "--no-auth" in err
    # The command that it names is true.
    run(*command.replace("NAME", "admin").split()[1:])
    with served(data_dir, verb, "--host", "0.0.0.0") as (url, log), ApiClient(url) as api:
        with pytest.raises(Unauthorized, match="set AMPREF_TOKEN"):
            api.list_datasets()
        assert "may do everything" not in log.read_text()
        assert "request_refused" in log.read_text(), "by default"
        assert ("workers=elsewhere" in log.read_text()) == (verb == "api")


def test_a_refused_start_leaves_nothing_behind(run: Any, data_dir: Path) -> None:
    for verb in ("up", "api"):
        assert "there is no key yet" in run(verb, "--host", "0.0.0.0", "--port", "0", code=2)[1].replace("\n", " ")
    assert not data_dir.exists()


def test_the_word_opens_it_with_a_warning(run: Any, data_dir: Path) -> None:
    run("token", "create", "admin")
    with served(data_dir, "up", "--host", "0.0.0.0", "--no-auth") as (url, log), ApiClient(url, retry=Retry(attempts=1)) as api:
        assert api.list_datasets() == []
        assert "no request needs a key (--no-auth): whoever reaches 0.0.0.0 may do everything" in log.read_text()


def test_a_fresh_service_on_loopback_works_without_a_key_until_the_first(run: Any, data_dir: Path) -> None:
    with served(data_dir, "up") as (url, _), ApiClient(url, retry=Retry(attempts=1)) as api:
        assert api.list_datasets() == []
        text = run("token", "create", "admin", "--quiet")[0].strip()
        for _ in range(400):
            try:
                api.list_datasets()
            except Unauthorized:
                break
            time.sleep(0.01)
        else:
            pytest.fail("it stayed open")
        with ApiClient(url, token=text, retry=Retry(attempts=1)) as keyed:
            assert keyed.list_datasets() == []


@contextlib.contextmanager
def served(data_dir: Path, verb: str, *options: str) -> Iterator[tuple[str, Path]]:
    """The URL of a service in a process of its own, and its log."""
    log = data_dir.parent / f"{verb}.log"
    command = [sys.executable, "-m", "amp_core", verb, "--port", "0", "--json", *options]
    with log.open("wb") as stderr, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process:
        try:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "}\n")
            document = json.loads("".join(lines) + "}")
            yield document["url"], log
        finally:
            process.terminate()
            process.wait(30)
