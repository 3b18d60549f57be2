"""Where the command prints to may be closed, full or a locale of ASCII; a file's name may be no text."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from amp_core.cli import main as cli

CLIP = Path(__file__).parents[3] / "amp_core/motions/squat.json"
COMMAND = f'"{sys.executable}" -P -m amp_core.cli check'


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (f"{COMMAND} *.json", 0),
        (f"{COMMAND} *.json --json", 0),
        (f"{COMMAND} *.json >&-", 0),
        (f"{COMMAND} nothing.json 2>&-", 1),
        (f"{COMMAND} *.json >/dev/full", 1),
    ],
)
def test_no_stream_leads_to_a_traceback(line: str, code: int, tmp_path: Path) -> None:
    shutil.copyfile(CLIP, os.fsencode(tmp_path) + b"/squat\xff.json")
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert done.returncode == code, done.stderr


@pytest.mark.parametrize("verb", ["clips", "jobs"])
def test_a_limit_beyond_all_reason_is_wrong_usage(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([verb, "--limit", "9" * 20]) == 2
    assert "is more than 1000000000" in capsys.readouterr().err
