"""Two `make` in one folder: the second waits for the first one's installation."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "requirements" / "one_at_a_time.py"


def test_a_second_one_waits_and_says_so(tmp_path: Path) -> None:
    lock, done = tmp_path / "lock", tmp_path / "done"
    command = [sys.executable, str(SCRIPT), str(lock), sys.executable, "-c", f"open({str(done)!r}, 'w')"]
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert waiting.stderr is not None
        assert "another make" in waiting.stderr.readline()
        assert not done.exists()
    assert waiting.wait(60) == 0
    waiting.stderr.close()
    assert done.exists()


@pytest.mark.parametrize("python", ["no-such-python", "false"])
def test_a_python_that_cannot_be_used_is_refused_with_the_command_to_type(python: str, tmp_path: Path) -> None:
    command = ["make", f"VENV={tmp_path / 'venv'}", f"PYTHON={python}", "demo"]
    done = subprocess.run(command, cwd=SCRIPT.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"error: {python} is not Python 3.11 or newer; name one that is: make PYTHON=/path/to/python3.11 demo" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_commands_own_exit_code_is_kept(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(tmp_path / "lock"), sys.executable, "-c", "raise SystemExit(3)"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 3
