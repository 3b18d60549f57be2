"""A large set through the whole service: submitted, scored, queried, locked and pulled; how each step's cost grows.

    python -m bench.bench_bulk [--clips 1000,10000,142000] [--frames N]

The service is `ampref api` in a process of its own, on PostgreSQL (durable) and a folder of blobs. For each number of clips, in
a new database:

* `submit`: `ampref submit FOLDER`, small motions (npz), each different, from the files to the journal's last line.
* `score`: a simulation, since no physics is in it: every job is claimed and completed by one of two processes, as workers do,
  with the arrays of a walk and features of its own, which are stored as a blob.
* `query`: `GET /v1/clips`, Tier 0, 50 a page: the first page (median of 20); `walk`: all pages of 200, one after the other.
* `lock`: a version of everything in Tier 0, from the request to its end, by a worker and its child. The readiness tests are off
  (`lock_tests=none`): no such test would let random features pass.
* `pull`: by the client into an empty cache, verified; `load`: `load_dataset` of that in a new process.

142,000 clips are as many as BONES-SEED has. Each figure is seconds; `growth` is the cost of a clip against that with the
smallest number of clips in the same run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from bench import servers
from bench.bench_lock import make_rollouts, store_rollout

LIMIT_GROWTH = 2.0
STEPS = ("submit", "score", "walk", "lock", "pull", "load")
_LOAD = """
import resource, sys, warnings
from amp_core import load_dataset
warnings.simplefilter("ignore")
data = load_dataset("bulk==1.0.0", url=sys.argv[1], cache_dir=sys.argv[2], offline=True, allow_not_ready=True)
print(len(data), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
AMPREF = str(Path(sys.executable).with_name("ampref"))


def write_motions(folder: Path, count: int, frames: int) -> None:
    """So many different motions of a standing robot, 1,000 a folder."""
    rng = np.random.default_rng(0)
    t = np.arange(frames) / 50.0
    for number in range(count):
        dof = np.zeros((frames, 8))
        dof[:, 2] = dof[:, 6] = 0.3 + 0.1 * np.sin(2 * np.pi * t + rng.uniform(0, 6))
        target = folder / f"{number // 1000:04d}"
        target.mkdir(exist_ok=True)
        root_pos, root_rot = np.tile([0.0, 0.0, 0.45], (frames, 1)), np.tile([0.0, 0.0, 0.0, 1.0], (frames, 1))
        np.savez(target / f"clip_{number:06d}.npz", fps=50.0, root_pos=root_pos, root_rot=root_rot, dof_pos=dof)


@contextlib.contextmanager
def serving(environment: dict[str, str]) -> Iterator[str]:
    """`ampref api`; its address."""
    subprocess.run([AMPREF, "migrate"], env=environment, check=True, capture_output=True)
    command = [AMPREF, "api", "--port", "0", "--json"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield str(servers.read_first_document(process)["url"])
        finally:
            process.kill()


def simulate_scores(data_dir: Path, database_url: str, frames: int, number: int) -> int:
    """Be worker `number` of the queued jobs, with results that are made up, until there is none; how many."""
    from amp_core.recipe import Recipe
    from amp_core.robot import Robot
    from ampref_service.blobs import open_blobs
    from ampref_service.catalog import Catalog
    from ampref_service.jobs import JobQueue
    from ampref_service.settings import Settings

    settings = Settings.load(data_dir=data_dir, database_url=database_url)
    robot, recipe = Robot.load("wildrobot"), Recipe.for_mode("rollout")
    catalog, blobs = Catalog.open(settings.database_url), open_blobs(settings.blob_url)
    queue, rng = JobQueue(catalog), np.random.default_rng(number)
    (folder := data_dir / f"worker-{number}").mkdir()
    rollout = make_rollouts(robot, recipe, folder, frames)[0]
    count = 0
    while (claim := queue.claim(f"bench-{number}", robots={robot.digest})) is not None:
        queue.complete_rollout(claim, store_rollout(rollout, recipe, blobs, folder, rng))
        count += 1
    catalog.close()
    return count


def lock(settings: Any, url: str) -> dict[str, Any]:
    """Ask for a version, and be the worker that locks it; its facts."""
    from ampref_service.blobs import open_blobs
    from ampref_service.catalog import Catalog
    from ampref_workers.runner import Runner

    body = {"version": "1.0.0", "select": {"robot": "wildrobot", "tier": [0]}}
    answer = httpx2.post(f"{url}/v1/datasets/bulk/versions", json=body, timeout=300)
    if answer.status_code != 202:
        raise RuntimeError(answer.text)
    catalog = Catalog.open(settings.database_url)
    state = Runner(settings, catalog, open_blobs(settings.blob_url)).run_once()
    catalog.close()
    version: dict[str, Any] = httpx2.get(f"{url}/v1/datasets/bulk/versions/1.0.0", timeout=300).raise_for_status().json()
    if state != "succeeded":
        raise RuntimeError(f"the lock ended as {state}")
    return version


def measure(count: int, frames: int, database_url: str, folder: Path) -> dict[str, Any]:
    """Every step once, for one number of clips."""
    from amp_core.client import pull
    from ampref_service.settings import Settings

    options = {"data_dir": folder / "data", "database_url": database_url, "lock_tests": "none", "lock_timeout_sec": 36_000.0}
    settings = Settings.load(**options, job_memory_mb=8192)
    settings.data_dir.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AMPREF_")}
    environment |= {f"AMPREF_{name.upper()}": str(value) for name, value in options.items()}
    (motions := folder / "motions").mkdir()
    write_motions(motions, count, frames)
    seconds: dict[str, float] = {}
    report: dict[str, Any] = {"clips": count}

    @contextlib.contextmanager
    def timed(step: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[step] = time.perf_counter() - start
        print(f"  {count:8,} clips  {step:8} {seconds[step]:10.2f} s", flush=True)

    with serving(environment) as url:
        with timed("submit"):
            command = [AMPREF, "submit", str(motions), "--mode", "rollout", "--url", url, "--quiet"]
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        with timed("score"), ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
            counts = [pool.submit(simulate_scores, settings.data_dir, database_url, frames, number) for number in (1, 2)]
            scored = sum(future.result() for future in counts)
        if scored != count:
            raise RuntimeError(f"{scored} of {count} clips were scored")
        pages = []
        for _ in range(20):
            start = time.perf_counter()
            httpx2.get(f"{url}/v1/clips", params={"tier": 0}, timeout=60).raise_for_status()
            pages.append(time.perf_counter() - start)
        report["first_page_ms"] = round(statistics.median(pages) * 1000, 1)
        with timed("walk"), httpx2.Client(timeout=60) as http:
            num_listed, cursor = 0, None
            while True:
                params = {"tier": 0, "limit": 200} | ({} if cursor is None else {"cursor": cursor})
                page = http.get(f"{url}/v1/clips", params=params).raise_for_status().json()
                num_listed, cursor = num_listed + len(page["items"]), page["next_cursor"]
                if cursor is None:
                    break
        with timed("lock"):
            version = lock(settings, url)
        if not num_listed == version["num_clips"] == count:
            raise RuntimeError(f"of {count} clips {num_listed} were listed and {version['num_clips']} locked")
        kinds = {"worker": resource.RUSAGE_SELF, "child": resource.RUSAGE_CHILDREN}
        peaks = {name: resource.getrusage(kind).ru_maxrss // 1024 for name, kind in kinds.items()}
        with timed("pull"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            local_version = pull("bulk==1.0.0", url=url, cache_dir=folder / "cache")
        with timed("load"):
            command = [sys.executable, "-c", _LOAD, url, str(folder / "cache")]
            num_rows, peak = map(int, subprocess.check_output(command, text=True).split())
    sizes: dict[str, int] = {}
    for file in version["files"]:
        kind = file["name"].partition("_v")[0]
        sizes[kind] = sizes.get(kind, 0) + file["size"]
    report |= {"seconds": {step: round(value, 2) for step, value in seconds.items()}}
    report |= {"mb": {name: round(size / 1e6, 1) for name, size in sizes.items()}, "files": len(local_version.files)}
    return report | {"peak_mib": peaks | {"reader": peak}, "frames": num_rows}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", default="1000,10000", help="numbers of clips, the smallest first")
    parser.add_argument("--frames", type=int, default=50)
    parser.add_argument("--one", nargs=2, metavar=("N", "DATABASE"))
    arguments = parser.parse_args()
    if arguments.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(int(arguments.one[0]), arguments.frames, arguments.one[1], Path(folder))))
        return 0
    results = []
    for count in arguments.clips.split(","):
        with servers.postgres(durable=True) as url:
            # In a process of its own, whose peak of memory is that of this number alone.
            command = [sys.executable, "-m", "bench.bench_bulk", "--frames", str(arguments.frames), "--one", count, url]
            process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        print(process.stdout, end="", flush=True)
        results.append(json.loads(process.stdout.splitlines()[-1]))
    first = results[0]
    for result in results:
        costs = {step: (result["seconds"][step] / result["clips"], first["seconds"][step] / first["clips"]) for step in STEPS}
        result["growth"] = {step: round(cost / base, 2) for step, (cost, base) in costs.items()}
    is_flat = all(growth <= LIMIT_GROWTH for result in results for growth in result["growth"].values())
    bounds = {"growth": f"<= {LIMIT_GROWTH:g}"}
    print(json.dumps({"name": "bulk", "figures": results, "required": bounds, "passed": is_flat}))
    return 0 if is_flat else 1


if __name__ == "__main__":
    sys.exit(main())
