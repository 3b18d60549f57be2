"""Two `make` in one folder: the second waits for the first one's installation."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

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


def test_the_commands_own_exit_code_is_kept(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(tmp_path / "lock"), sys.executable, "-c", "raise SystemExit(3)"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 3
