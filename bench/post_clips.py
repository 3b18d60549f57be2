"""POST /v1/clips while the workers are busy: latency at a fixed rate, and whether anything was lost.

    python bench/post_clips.py [--rate 20] [--seconds 20] [--workers N] [--mode rollout] [--json OUT]

Starts the embedded service (SQLite, local blobs, workers in the same process; the default settings) in an empty folder and
posts a distinct 10 s clip every 1/rate seconds, whether or not the answers have come (open loop): a latency counts from the
moment its request was due, so a stall is charged to every request that it delays. The load generator shares the machine.
It looks five times a second whether child processes are at work, as otherwise nothing would have been measured, and in the
end looks up every clip that was accepted: its job is there, and its bytes are on the disk under their digest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from amp_core.cpus import usable_cpus

FPS, SECONDS_OF_MOTION = 50.0, 10.0


def clip(number: int) -> bytes:
    """A 10 s clip as GMR writes it, different from every other number's."""
    frames = int(FPS * SECONDS_OF_MOTION) + 1
    t = np.arange(frames) / FPS
    dof = np.zeros((frames, 8))
    dof[:, 2] = dof[:, 6] = 0.3 + 0.1 * np.sin(2 * np.pi * t + number * 1e-4)
    motion = {
        "fps": FPS,
        "root_pos": np.tile([0.0, 0.0, 0.45], (frames, 1)),
        "root_rot": np.tile([0.0, 0.0, 0.0, 1.0], (frames, 1)),
        "dof_pos": dof,
        "local_body_pos": None,
        "link_body_list": None,
    }
    return pickle.dumps(motion)


def serve(folder: str, workers: int | None) -> None:
    """The service itself, in a process of its own."""
    from ampref_service import logs
    from ampref_service.app import create_app
    from ampref_service.catalog import schema
    from ampref_service.server import listen, make_server
    from ampref_service.settings import Settings
    from ampref_workers.embedded import EmbeddedWorker

    logs.configure("warning")
    arguments: dict[str, Any] = {} if workers is None else {"worker_concurrency": workers}
    settings = Settings(data_dir=Path(folder), port=0, **arguments)
    schema.upgrade(settings.database_url)
    worker = EmbeddedWorker(settings)
    app = create_app(settings, notify=worker.notify, background=worker.running)
    listener = listen(settings)
    print(listener.getsockname()[1], flush=True)
    make_server(app, settings).run(sockets=[listener])


def _children(server: int) -> int:
    """Child processes of the service that do jobs: those that read uploads are always there."""
    pids = " ".join(_text(path) for path in Path(f"/proc/{server}/task").glob("*/children")).split()
    return sum("ampref_workers" in _text(Path(f"/proc/{pid}/cmdline")) for pid in pids)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""  # that thread has just ended


def measure(url: str, server: int, blobs: Path, rate: float, seconds: float, mode: str) -> dict[str, Any]:
    """Post at `rate` for `seconds`, to be scored in `mode`; latencies in ms and what became of the jobs."""
    total = int(rate * seconds)
    bodies = [clip(number) for number in range(total + 1)]
    with httpx2.Client(base_url=url, timeout=60, limits=httpx2.Limits(max_connections=64)) as client:

        def post(number: int, due: float) -> tuple[float, int, str | None]:
            answer = client.post("/v1/clips", data={"mode": mode}, files={"file": (f"clip{number}.pkl", bodies[number])})
            late = time.perf_counter() - due
            return late * 1e3, answer.status_code, answer.json().get("job", {}).get("id")

        children: list[int] = []
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.2):
                children.append(_children(server))

        # The workers get something to do first.
        post(total, time.perf_counter())
        while client.get("/v1/jobs", params={"state": "running"}).json()["items"] == []:
            time.sleep(0.05)
        watcher = threading.Thread(target=watch)
        watcher.start()
        with ThreadPoolExecutor(64) as pool:
            start, pending = time.perf_counter() + 0.2, []
            for number in range(total):
                due = start + number / rate
                time.sleep(max(0.0, due - time.perf_counter()))
                pending.append(pool.submit(post, number, due))
            results = [task.result() for task in pending]
        over.set()
        watcher.join()
        jobs: dict[str, str] = {}
        cursor = None
        while True:
            page = client.get("/v1/jobs", params={"limit": 500} | ({"cursor": cursor} if cursor else {})).json()
            jobs |= {job["id"]: job["state"] for job in page["items"]}
            cursor = page["next_cursor"]
            if cursor is None:
                break
    times = sorted(ms for ms, _, _ in results)
    accepted_jobs = [job for _, status, job in results if status == 202]
    states = list(jobs.values())
    stored_digests = {path.parent.name + path.name for path in blobs.glob("sha256/*/*")}
    num_unstored = sum(hashlib.sha256(body).hexdigest() not in stored_digests for body in bodies)
    return {
        "posts": total,
        "rate_per_sec": rate,
        "accepted": len(accepted_jobs),
        "lost": sum(job not in jobs for job in accepted_jobs),
        "unstored": num_unstored,
        "failed": states.count("failed") + states.count("quarantined"),
        "scored_meanwhile": states.count("succeeded"),
        "children_at_work": round(statistics.fmean(children), 2),
        "p50_ms": round(statistics.median(times), 1),
        "p90_ms": round(times[int(0.90 * len(times))], 1),
        "p99_ms": round(times[min(int(0.99 * len(times)), len(times) - 1)], 1),
        "max_ms": round(times[-1], 1),
        "bytes_a_clip": len(bodies[0]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--workers", type=int, help="jobs at a time; the service's default unless given")
    parser.add_argument(
        "--mode", default="rollout", help="what the workers are busy with; planning a 10 s clip outlasts the run"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.workers)
        return 0
    load_before = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory(prefix="ampref-bench-") as folder:
        command = [sys.executable, __file__, "--serve", folder]
        command += ["--workers", str(options.workers)] if options.workers else []
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                url = f"http://127.0.0.1:{int(server.stdout.readline())}"
                deadline = time.monotonic() + 60
                while time.monotonic() < deadline:
                    try:
                        if httpx2.get(url + "/readyz").status_code == 200:
                            break
                    except httpx2.TransportError:
                        time.sleep(0.1)
                result = measure(url, server.pid, Path(folder) / "blobs", options.rate, options.seconds, options.mode)
            finally:
                server.send_signal(signal.SIGTERM)
                server.wait(timeout=60)
    result |= {"cores": usable_cpus(), "workers": options.workers or "default", "load_before": load_before}
    all_stored = result["accepted"] == result["posts"] and result["lost"] == result["unstored"] == result["failed"] == 0
    result["mode"] = options.mode
    # A planned clip takes longer than the whole run: there it is enough that children are at work.
    busy = result["children_at_work"] >= 0.8 and (result["scored_meanwhile"] > 0 or options.mode != "rollout")
    result["ok"] = result["p99_ms"] <= 100.0 and all_stored and busy
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
