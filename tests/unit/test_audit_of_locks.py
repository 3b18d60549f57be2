"""`make audit` asks an advisory source about every locked package, and says so where it cannot."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

REQUIREMENTS = Path(__file__).parents[2] / "requirements"


class Source:
    """An advisory source: advisories by package and version, and what was asked."""

    def __init__(self) -> None:
        self.advisories: dict[tuple[str, str], list[str]] = {}
        self.questions: list[tuple[str, str]] = []
        self.body: Any = None
        self.url = ""


@pytest.fixture
def source() -> Iterator[Source]:
    state = Source()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            queries = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
            pins = [(query["package"]["name"], query["version"]) for query in queries]
            state.questions += pins
            results = [{"vulns": [{"id": name} for name in state.advisories.get(pin, ())]} for pin in pins]
            data = json.dumps({"results": results} if state.body is None else state.body).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def run(url: str, folder: Path = REQUIREMENTS) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(folder / "audit.py"), "--url", url]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_locked_package_is_asked_about(source: Source) -> None:
    done = run(source.url)
    assert (done.returncode, done.stdout) == (0, f"no known vulnerability in {len(source.questions)} locked packages\n")
    names = {name for name, _ in source.questions}
    assert {"numpy", "fastapi", "sqlalchemy", "jax", "celery", "pytest"} <= names
    assert len(source.questions) > 100


def test_what_is_known_fails_unless_it_is_accepted(source: Source, tmp_path: Path) -> None:
    shutil.copytree(REQUIREMENTS, tmp_path / "requirements")
    (tmp_path / "requirements" / "all.txt").write_text("Some_Package[extra]==1.2 \\\n    --hash=sha256:0\n")
    source.advisories["some-package", "1.2"] = ["PYSEC-1", "GHSA-2"]
    done = run(source.url, tmp_path / "requirements")
    assert done.returncode == 1
    assert "some-package 1.2: PYSEC-1, https://osv.dev/vulnerability/PYSEC-1" in done.stderr
    with (tmp_path / "requirements" / "accepted_advisories.txt").open("a") as file:
        file.write("PYSEC-1 it is of a function that nothing calls\nGHSA-2 on Windows alone\n")
    done = run(source.url, tmp_path / "requirements")
    assert (done.returncode, "2 accepted" in done.stdout) == (0, True)


@pytest.mark.parametrize("body", [[], {"results": []}, {"results": 1}, "x"])
def test_a_source_that_cannot_be_asked_fails_nothing_and_is_named(source: Source, body: Any) -> None:
    source.body = body
    done = run(source.url)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("not checked: ")
    assert source.url in done.stderr


def test_a_source_that_is_not_there_fails_nothing() -> None:
    done = run("http://127.0.0.1:9")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("not checked: ")
