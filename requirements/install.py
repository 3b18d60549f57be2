"""Runs `pip install` with these arguments and shows how far it is: a line that counts on a terminal, a few lines elsewhere.

    python install.py PIP_ARGUMENT...

What pip prints is shown only when it fails.
"""

import re
import subprocess
import sys
import time
from pathlib import Path

files = [Path(value) for flag, value in zip(sys.argv[1:], sys.argv[2:], strict=False) if flag == "-r"]
total = len({name for path in files for name in re.findall(r"^([\w.-]+)==", path.read_text(), re.MULTILINE)})
command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--progress-bar", "off", *sys.argv[1:]]
terminal = sys.stdout.isatty()
started = time.monotonic()
count = 0
output = []

with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as process:
    for line in process.stdout:
        output.append(line)
        if match := re.match(r"(?:Collecting|Requirement already satisfied:) ([\w.-]+)", line):
            count += 1
            text = f"  {count:3} of at most {total} packages, {time.monotonic() - started:3.0f} s: {match[1]}"
        elif total and line.startswith("Installing collected packages"):
            text = f"  unpacking {count} packages"
        else:
            continue
        if terminal:
            print(f"\r\x1b[K{text}", end="", flush=True)
        elif count % 20 == 0 or "unpacking" in text:
            print(text, flush=True)
if terminal:
    print("\r\x1b[K", end="")
if process.returncode == 0 and total:
    print(f"  done in {time.monotonic() - started:.0f} s")
elif process.returncode != 0:
    sys.stderr.write("".join(output))
sys.exit(process.returncode)
