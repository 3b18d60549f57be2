"""Files that want memory or time: read in a process of their own, whose peak is measured."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("hostile.py")
ROOT = Path(__file__).parents[3]
NAMES = re.findall(r'^    "(\w+)": lambda', SCRIPT.read_text(), flags=re.MULTILINE)
LIMIT_MIB = 512


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("kind", ["pkl", "npz", "json", "csv", "other"])
def test_hostile_files_stay_small_and_end(kind: str) -> None:
    kinds = ("pkl", "npz", "json", "csv")
    names = [name for name in NAMES if name.startswith(kind) or (kind == "other" and not name.startswith(kinds))]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *names],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["case"] for line in lines] == names
    for line in lines:
        assert line["said"] != "read", line
        assert line["peak_mib"] < LIMIT_MIB, line
