"""Runs every benchmark in this folder and writes what they measured, with the machine that they ran on.

    make bench                      all of them; results in bench/results.json
    make bench ARGS='--only lock'   those whose name contains `lock`
    make bench ARGS='--list'        what there is

A benchmark is any other program in this folder but `corpus`, which needs a folder of motions. It prints what it likes, closes
with one JSON object on stdout, and exits with 0 when every ratio that is required of it was reached. Each runs in a process of
its own, one after the other, so that none measures the load of another. Ratios are taken within one run, because another run
may meet another machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from amp_core.cpus import usable_cpus
from amp_core.kernels import kernel_variables

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results.json"
LIMIT_SEC = 1800
NO_BENCHMARKS = {"run", "servers", "corpus", "corpus_child", "corpus_results", "corpus_summary"}


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, cores that may be used, memory, and the versions of what is measured."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        processor = models[0] if models else processor
    return {
        "processor": processor,
        "cores": usable_cpus(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("mujoco-core", "numpy", "fastapi", "sqlalchemy", "uvicorn")},
    }


def name_of(script: Path) -> str:
    """What `--only` and the results call a benchmark."""
    return script.stem.removeprefix("bench_")


def closing_object(text: str) -> dict[str, Any] | None:
    """The JSON object that a benchmark's output ends with, on one line or on several."""
    lines = text.rstrip().splitlines()
    for start in range(len(lines) - 1, -1, -1):
        if lines[start].startswith("{"):
            try:
                document = json.loads("\n".join(lines[start:]))
            except ValueError:
                return None
            return document if isinstance(document, dict) else None
    return None


def run(script: Path) -> dict[str, Any]:
    """Run one benchmark: its name, whether it passed, how long it took, and what it measured."""
    start = time.monotonic()
    command = [sys.executable, "-m", f"bench.{script.stem}"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=FOLDER.parent, env=os.environ | kernel_variables()
    )
    watchdog = threading.Timer(LIMIT_SEC, process.kill)
    watchdog.start()
    output = ""
    try:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(f"  {line}")
            sys.stdout.flush()
            output += line
        code = process.wait()
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
    facts = {"name": name_of(script), "passed": code == 0, "seconds": round(time.monotonic() - start, 1)}
    result = closing_object(output)
    if result is None:
        return facts | {"passed": False, "error": f"it printed no result and exited with {code}"}
    return facts | {"measured": result}


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the benchmarks of this folder.")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="those whose name contains NAME; may be repeated"
    )
    parser.add_argument("--list", action="store_true", help="list them and stop")
    arguments = parser.parse_args()
    scripts = sorted((path for path in FOLDER.glob("*.py") if path.stem not in NO_BENCHMARKS), key=name_of)
    programs = [s for s in scripts if not arguments.only or any(part in name_of(s) for part in arguments.only)]
    if arguments.list:
        print(*map(name_of, programs), sep="\n")
        return 0
    if not programs:
        print(f"error: no benchmark matches; there are: {', '.join(map(name_of, scripts))}", file=sys.stderr)
        return 2
    results = []
    for script in programs:
        print(f"== {name_of(script)}", flush=True)
        results.append(run(script))
    RESULTS.write_text(json.dumps({"machine": machine(), "results": results}, indent=2) + "\n")
    print()
    for result in results:
        verdict = "ok    " if result["passed"] else "FAILED"
        print(f"{verdict} {result['name']} ({result['seconds']} s) {result.get('error', '')}".rstrip())
    print(f"written to {RESULTS.relative_to(FOLDER.parent)}")
    return 0 if all(result["passed"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
