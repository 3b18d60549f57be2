"""`ampref submit FOLDER` against a real API: batches, a journal, and what a kill leaves of both."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serverkit import Served, serving
from sqlalchemy import func, select

from amp_core.cli.bulk import JOURNAL
from ampref_service.catalog import Catalog
from ampref_service.catalog.tables import clips, jobs

from .conftest import motion_bytes

AMPREF = str(Path(sys.executable).with_name("ampref"))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("bulk")) as served:
        yield served


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Three clips, one of them deeper, a file that is none, and one that cannot be used; other bytes for every test."""
    seed = 1000 * (1 + abs(hash(request.node.name)) % 1000)
    folder = tmp_path / "clips"
    (folder / "deeper").mkdir(parents=True)
    for index, name in enumerate(("a.json", "b.json", "deeper/c.json")):
        (folder / name).write_bytes(motion_bytes(seed + index))
    (folder / "bad.json").write_text("{}")
    (folder / "notes.txt").write_text("no clip")
    return folder


def start(served: Served, *arguments: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AMPREF_")}
    return subprocess.Popen(
        [AMPREF, "submit", "--url", served.url, "--mode", "rollout", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def submit(served: Served, *arguments: str) -> tuple[int, str, str]:
    process = start(served, *arguments)
    output, errors = process.communicate(timeout=120)
    assert "Traceback" not in errors
    return process.returncode, output, errors


def journal(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / JOURNAL).read_bytes().splitlines()]


def count(served: Served, table: Any) -> int:
    catalog = Catalog.open(f"sqlite:///{served.folder / 'catalog.sqlite3'}")
    try:
        with catalog.session() as session:
            return session.execute(select(func.count()).select_from(table)).scalar_one()
    finally:
        catalog.close()


def test_a_folder_is_sent_and_the_next_run_sends_nothing(served: Served, folder: Path) -> None:
    before = count(served, clips)
    status, output, errors = submit(served, str(folder), "--json")
    assert status == 1
    answers = json.loads(output)
    assert [Path(answer["file"]).name for answer in answers] == ["a.json", "b.json", "c.json"]
    assert f"error: {folder / 'bad.json'}" in errors
    assert len(journal(folder)) == 4
    assert count(served, clips) - before == 3

    status, output, errors = submit(served, str(folder), "--json")
    assert status == 1
    assert json.loads(output) == answers
    assert "4 of 4 files are in the journal; 0 to send" in errors
    assert "error: 1 file was refused before and has not changed since" in errors
    assert errors.count(f"error: {folder / 'bad.json'}") == 1, "the reason is told again"
    assert len(journal(folder)) == 4


def test_a_file_that_was_mended_is_sent_again(served: Served, folder: Path) -> None:
    submit(served, str(folder))
    (folder / "bad.json").write_bytes(motion_bytes(99))
    status, _, errors = submit(served, str(folder))
    assert (status, "3 of 4 files are in the journal; 1 to send" in errors) == (0, True), errors


def test_refused_files_are_sent_again_on_demand_and_other_terms_begin_anew(served: Served, folder: Path) -> None:
    submit(served, str(folder))
    _, _, errors = submit(served, str(folder), "--retry-refused")
    assert "3 of 4 files are in the journal; 1 to send" in errors
    _, _, errors = submit(served, str(folder), "--seed", "7")
    assert "are in the journal" not in errors


def test_a_run_that_was_killed_goes_on_where_it_was(served: Served, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for index in range(120):
        (folder / f"{index:03d}.json").write_bytes(motion_bytes(50_000 + index))
    before = count(served, jobs)
    process = start(served, str(folder))
    deadline = time.monotonic() + 60
    path = folder / JOURNAL
    while not path.exists() or path.read_bytes().count(b"\n") < 10:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with path.open("ab") as file:
        file.write(b'{"terms": "half a li')
    n_journaled = path.read_bytes().count(b"\n")
    assert 10 <= n_journaled < 120
    status, _, errors = submit(served, str(folder))
    assert status == 0, errors
    assert f"{n_journaled} of 120 files are in the journal" in errors
    assert len({entry["file"] for entry in journal(folder)}) == len(journal(folder)) == 120
    assert count(served, jobs) - before == 120


def test_a_journal_that_is_none_is_refused_and_kept(served: Served, folder: Path) -> None:
    (folder / JOURNAL).write_text("dear diary\n")
    status, _, errors = submit(served, str(folder))
    assert status == 1
    assert "line 1 is none of a journal" in errors
    assert (folder / JOURNAL).read_text() == "dear diary\n"


def test_a_folder_without_motions_is_refused(served: Served, tmp_path: Path) -> None:
    status, _, errors = submit(served, str(tmp_path))
    assert (status, "there is no motion file in it" in errors) == (1, True)


def test_a_name_that_is_no_unicode_is_sent_and_found_in_the_journal(served: Served, folder: Path) -> None:
    (folder / "bad.json").unlink()
    (folder / os.fsdecode(b"caf\xe9.json")).write_bytes(motion_bytes(77_000))
    status, _, errors = submit(served, str(folder))
    assert status == 0, errors
    status, _, errors = submit(served, str(folder))
    assert (status, "4 of 4 files are in the journal; 0 to send" in errors) == (0, True), errors
