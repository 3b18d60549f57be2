"""Floods of uploads: memory of the API with its readers, and whether it answers meanwhile.

    python bench/bench_uploads.py [--json OUT]

Three floods, each at once: 60 npz (2.8 MB) of 120,000 frames and 66 values, which are not for this robot; 40 JSON clips of
3.6 MB; 60 npz (2.1 MB) of a minute at 1,000 fps. A client that is turned away (503) comes again when it is told to. The
service runs without workers. `/healthz` is asked ten times a second, before and during each flood; memory is what is resident
of the API and its readers together.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from amp_core.cpus import usable_cpus

MIB = 1 << 20
MAX_RSS_MB, MAX_HEALTH_MS = 600.0, 200.0
_TRIES = 100
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def make_arrays(frames: int, joints: int, noise: int, seed: int) -> dict[str, Any]:
    """A clip that stands, some of whose joints are noise of so many steps, which bounds its compression."""
    rng = np.random.default_rng(seed)
    dof = np.zeros((frames, joints))
    dof[:, 2] = 0.2 + 0.1 * np.sin(np.arange(frames) / 300 + seed)
    dof[:, joints - 6 :] += rng.integers(0, noise, (frames, 6)) / 1e4
    root_pos, root_rot = np.tile([0, 0, 0.45], (frames, 1)), np.tile([0, 0, 0, 1.0], (frames, 1))
    return {"fps": 1000.0, "root_pos": root_pos, "root_rot": root_rot, "dof_pos": dof}


def make_npz(frames: int, joints: int, noise: int, seed: int) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **make_arrays(frames, joints, noise, seed))
    return buffer.getvalue()


def make_json(seed: int) -> bytes:
    arrays = make_arrays(36_500, 8, 100, seed)
    return json.dumps({key: np.round(value, 4).tolist() for key, value in arrays.items()}).encode()


FLOODS: dict[str, tuple[int, str, Callable[[int], bytes]]] = {
    "npz of 120,000 × 66": (60, "npz", lambda seed: make_npz(119_999, 59, 90, seed)),
    "JSON": (40, "json", make_json),
    "a minute at 1,000 fps": (60, "npz", lambda seed: make_npz(60_001, 8, 10**8, seed)),
}


def serve(folder: str) -> None:
    """The service itself, in a process of its own."""
    from ampref_service import logs
    from ampref_service.app import create_app
    from ampref_service.catalog import schema
    from ampref_service.server import listen, make_server
    from ampref_service.settings import Settings

    logs.configure("error")
    settings = Settings(data_dir=Path(folder), port=0)
    schema.upgrade(settings.database_url)
    listener = listen(settings)
    print(listener.getsockname()[1], flush=True)
    make_server(create_app(settings), settings).run(sockets=[listener])


def read_text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""  # Of a thread or a process that has just ended.


def ask(url: str) -> None:
    """Ask `/healthz` ten times a second until stdin ends; prints the milliseconds."""
    end = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        end.set()

    threading.Thread(target=wait, daemon=True).start()
    milliseconds = []
    with httpx2.Client(base_url=url, timeout=120) as client:
        client.get("/healthz")
        print("ready", flush=True)
        while not end.wait(0.1):
            start = time.perf_counter()
            assert client.get("/healthz").status_code == 200
            milliseconds.append((time.perf_counter() - start) * 1e3)
    print(json.dumps(milliseconds))


class Watch:
    """Asks `/healthz`, in a process of its own, and looks at memory while the block runs."""

    def __init__(self, url: str, pid: int) -> None:
        self.milliseconds: list[float] = []
        self.rss_mb: list[float] = []
        self._pid = pid
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look)
        command = [sys.executable, __file__, "--ask", url]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self.milliseconds = json.loads(self._process.communicate()[0])

    def _look(self) -> None:
        while not self._end.wait(0.05):
            children = " ".join(read_text(path) for path in Path(f"/proc/{self._pid}/task").glob("*/children"))
            pages = [read_text(Path(f"/proc/{pid}/statm")).split() for pid in (self._pid, *children.split())]
            self.rss_mb.append(sum(int(fields[1]) for fields in pages if fields) * _PAGE_BYTES / MIB)


def post_until_answered(url: str, name: str, data: bytes) -> Counter[int]:
    """The statuses that one client saw, the last of which is not 503."""
    statuses: Counter[int] = Counter()
    for _ in range(_TRIES):
        answer = httpx2.post(url + "/v1/clips", files={"file": (name, data)}, timeout=300)
        statuses[answer.status_code] += 1
        if answer.status_code != 503:
            break
        time.sleep(float(answer.headers["retry-after"]))
    return statuses


def measure(url: str, pid: int, count: int, suffix: str, make: Callable[[int], bytes]) -> dict[str, Any]:
    bodies = [make(seed) for seed in range(count)]
    with Watch(url, pid) as idle:
        time.sleep(3)
    with Watch(url, pid) as busy, ThreadPoolExecutor(count) as pool:
        start = time.perf_counter()
        tasks = [pool.submit(post_until_answered, url, f"clip{n}.{suffix}", body) for n, body in enumerate(bodies)]
        statuses = sum((task.result() for task in tasks), Counter[int]())
        seconds = time.perf_counter() - start
    median = statistics.median(idle.milliseconds)
    return {
        "uploads": count,
        "mb_each": round(len(bodies[0]) / 1e6, 2),
        "sec": round(seconds, 1),
        "statuses": {str(status): number for status, number in sorted(statuses.items())},
        "rss_idle_mb": round(max(idle.rss_mb)),
        "rss_mb": round(max(busy.rss_mb)),
        "healthz_idle_ms": round(median, 1),
        "healthz_p50_ms": round(statistics.median(busy.milliseconds), 1),
        "healthz_max_ms": round(max(busy.milliseconds), 1),
        "healthz_p50_ratio": round(statistics.median(busy.milliseconds) / median, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--ask", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return 0
    if options.ask:
        ask(options.ask)
        return 0
    result: dict[str, Any] = {"cores": usable_cpus(), "load_before": round(os.getloadavg()[0], 1), "floods": {}}
    for name, flood in FLOODS.items():
        with tempfile.TemporaryDirectory(prefix="ampref-bench-") as folder:
            command = [sys.executable, __file__, "--serve", folder]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
                try:
                    assert server.stdout is not None
                    url = f"http://127.0.0.1:{int(server.stdout.readline())}"
                    post_until_answered(url, "first.npz", make_npz(51, 8, 10, 1))
                    result["floods"][name] = measure(url, server.pid, *flood)
                    print(name, result["floods"][name], flush=True)
                finally:
                    server.send_signal(signal.SIGTERM)
                    server.wait(timeout=60)
    floods = result["floods"].values()
    result["ok"] = all(
        set(flood["statuses"]) <= {"202", "413", "422", "503"}
        and flood["rss_mb"] <= MAX_RSS_MB
        and flood["healthz_max_ms"] <= MAX_HEALTH_MS
        for flood in floods
    )
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
