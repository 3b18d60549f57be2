"""What a service leaves behind when it is stopped: a database file that holds everything by itself."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import httpx2
from workerkit import wait_until

CLIP = Path(__file__).parents[2] / "amp_core/motions/squat.json"


def test_after_a_clean_stop_every_row_is_in_the_main_file(tmp_path: Path) -> None:
    script = Path(__file__).parent / "api" / "server.py"
    database = tmp_path / "catalog.sqlite3"
    with subprocess.Popen([sys.executable, str(script), str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        wait_until(lambda: _is_ready(url), "the API is ready")
        # With the file open elsewhere the service's last connection is not the last one, which would merge the log by itself.
        with closing(sqlite3.connect(database)) as reader:
            assert reader.execute("SELECT count(*) FROM clips").fetchone() == (0,)
            answer = httpx2.post(f"{url}/v1/clips", files={"file": ("squat.json", CLIP.read_bytes())}, timeout=60)
            clip = answer.json()["clip"]["id"]
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == -signal.SIGTERM  # uvicorn sends it to itself again when everything is closed.
            with closing(sqlite3.connect(f"file:{database}?immutable=1", uri=True)) as main_file:  # Without its log.
                assert main_file.execute("SELECT id FROM clips").fetchall() == [(clip,)]


def _is_ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz").status_code == 200
    except httpx2.ConnectError:
        return False
