"""Claiming a job from a long queue, on SQLite and on PostgreSQL: p50 and p99 of `JobQueue.claim`.

    python -m bench.bench_claim [--jobs N] [--claims N] [--only sqlite|postgresql]

The queue has N jobs of 50 keys, most of them of one: half for a robot that the worker lacks, a third postponed, a part of them
due by now. Every claim is followed by the end of its job, which is not measured.
A claim is measured from the call to the record, its commit included, over an open connection. On both databases a commit is on
the disk when it returns: `commit_ms` is what a transaction of one small row takes here, which no claim can be faster than.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import insert, text, update

from ampref_service.catalog import Catalog, schema
from ampref_service.catalog import tables as t
from ampref_service.catalog.engine import chunked
from ampref_service.jobs import JobQueue
from bench.servers import postgres

LIMIT_MS = 5.0
ROBOT, OTHER_ROBOT = "sha256:" + "1" * 64, "sha256:" + "2" * 64


def fill(catalog: Catalog, count: int) -> None:
    """Queue the jobs, without their clips: a claim reads only the job table."""
    rng = random.Random(1)
    at = time.time()
    rows = []
    for number in range(count):
        is_later = number % 3 == 2
        rows.append(
            {
                "id": f"job_{number:026d}",
                "kind": "rollout",
                "state": "queued",
                "clip_id": f"clip_{number:026d}",
                "recipe_digest": "sha256:" + "3" * 64,
                "payload": {},
                "attempts": 0,
                "max_attempts": 3,
                # Of the postponed ones a tenth is due during the measurement.
                "not_before": at + (rng.uniform(0, 30) if rng.random() < 0.1 else 280) if is_later else 0.0,
                "created_at": at - count + number,
                "updated_at": at,
                "revision": 1,
                "token": 0,
                "cancel_requested": 0,
                "progress": 0.0,
                "actor": "bench",
                "owner": "key_heavy" if rng.random() < 0.9 else f"key_{rng.randrange(49):02d}",
                "priority": 0,
                "rank": rng.choice((0, 0, 0, -5)),
                "robot_digest": OTHER_ROBOT if number % 2 else ROBOT,
            }
        )
    for part in chunked(rows):
        with catalog.begin() as session:
            session.execute(insert(t.jobs), part)


def measure(call: Callable[[], Any], rounds: int, after: Callable[[Any], Any] = lambda _: None) -> dict[str, float]:
    """p50 and p99 of a call in ms."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        result = call()
        times.append((time.perf_counter() - start) * 1000)
        after(result)
    times.sort()
    return {"p50_ms": round(times[len(times) // 2], 2), "p99_ms": round(times[math.ceil(len(times) * 0.99) - 1], 2)}


@contextmanager
def open_catalog(name: str) -> Iterator[Catalog]:
    """A new catalog on SQLite or PostgreSQL."""
    with tempfile.TemporaryDirectory() as folder, postgres(durable=True) as server:
        url = server if name == "postgresql" else f"sqlite:///{Path(folder) / 'catalog.sqlite3'}"
        schema.upgrade(url)
        catalog = Catalog.open(url)
        try:
            yield catalog
        finally:
            catalog.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=142_000)
    parser.add_argument("--claims", type=int, default=300)
    parser.add_argument("--only", choices=("sqlite", "postgresql"))
    arguments = parser.parse_args()
    document: dict[str, Any] = {"jobs": arguments.jobs, "load": os.getloadavg()[0]}
    is_fast = True
    for name in ("sqlite", "postgresql") if arguments.only is None else (arguments.only,):
        with open_catalog(name) as catalog:
            fill(catalog, arguments.jobs)
            if name == "postgresql":
                with catalog.engine.connect() as connection:
                    connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("VACUUM ANALYZE jobs"))
            queue = JobQueue(catalog)

            def claim(queue: JobQueue = queue) -> Any:
                job_claim = queue.claim("bench", worker_id="worker_bench", robots={ROBOT})
                assert job_claim is not None
                return job_claim

            def end(job_claim: Any, queue: JobQueue = queue) -> None:
                queue.complete(job_claim, {})

            def commit(catalog: Catalog = catalog) -> None:
                with catalog.begin() as session:
                    session.execute(update(t.jobs).where(t.jobs.c.id == f"job_{0:026d}").values(rung_at=time.time()))

            gc.collect()
            gc.freeze()
            measure(claim, 20, end)
            result = measure(claim, arguments.claims, end)
            result["commit_p50_ms"] = measure(commit, 100)["p50_ms"]
        document[name] = result
        is_fast &= result["p50_ms"] <= LIMIT_MS
        print(f"  {name:10} {result}", flush=True)
    bounds = {"p50_ms": LIMIT_MS}
    print(json.dumps({"name": "claim", "figures": document, "required": bounds, "passed": is_fast}))
    return 0 if is_fast else 1


if __name__ == "__main__":
    sys.exit(main())
