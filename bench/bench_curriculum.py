"""The curriculum query at 100,000 clips, on SQLite and on PostgreSQL: p50 and p99 of pages, wherever they lie.

    python bench/bench_curriculum.py [--clips N] [--rounds N] [--only sqlite|postgresql] [--database URL] [--case TEXT]

Measured is `ampref_service.catalog.curriculum.list_clips` in a session of its own, from the call to the records, over a
connection that is open, in a process that does with the garbage collector what the server does at its start (`gc.freeze`).
`cpu_ms` is the median processor time of this process a page. A database that `--database` names is filled when it is empty,
and kept.
Each case takes first pages, pages at random depths (the list is walked once to collect cursors), and the last page.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import insert, text

from ampref_service.catalog import Catalog, clips, curriculum, rollouts, schema
from ampref_service.catalog import tables as t
from bench.servers import postgres

LIMIT_MS = 20.0
Query = curriculum.ClipQuery

CASES: dict[str, dict[str, Any]] = {
    "newest first": {},
    "newest first, 200 a page": {"limit": 200},
    "Tier 0 (8 %), by load": {"tier": 0, "sort": "p10_sum_fn_over_mg"},
    "Tier 0, newest, 200 a page": {"tier": 0, "limit": 200},
    "Tier 1, by slip, ascending": {"tier": 1, "sort": "slip_rate", "descending": False},
    "Rejected, by the frame of the fall (half NULL)": {"tier": -1, "sort": "fell_at_frame", "descending": False},
    "one mode, by drift": {"mode": "rollout", "sort": "root_drift_m", "descending": False},
    "a robot with 2 % of the clips": {"robot": "small", "sort": "height_mean"},
    "a tag with 30 %": {"tags": ("walk",), "sort": "duration_sec"},
    "a tag with 0.5 %": {"tags": ("golden",), "sort": "joint_rmse_rad", "descending": False},
    "a tag with 12 clips": {"tags": ("rare",)},
    "Tier 0 or better load, three ranges": {
        "tier": 0,
        "metrics": {"p90_stab_force_over_mg": (None, 0.1), "slip_rate": (None, 0.2), "height_std": (0.005, None)},
        "sort": "joint_rmse_rad",
        "descending": False,
    },
    "a narrow range (0.3 %)": {"metrics": {"height_mean": (0.46, 0.4605)}, "sort": "max_tilt_deg"},
    "long clips that contain a word": {"min_duration_sec": 20.0, "name": "WALK_0", "sort": "created_at"},
    "a word that is in no name": {"name": "no such clip"},
    "tag and range that exclude each other (30 % and 30 %)": {
        "tags": ("walk",),
        "metrics": {"left_foot_contact_rate": (0.7, None)},
    },
    "two ranges that exclude each other (half and half)": {
        "metrics": {"height_std": (0.02, None), "height_variance": (None, 0.0004)},
        "sort": "root_drift_m",
    },
}


def fill(catalog: Catalog, count: int, seed: int = 0) -> None:
    """`count` clips with plausible metrics, one rollout each (a tenth has two modes, 1 % none yet)."""
    rng = np.random.default_rng(seed)
    digest = "sha256:" + "0" * 64
    with catalog.begin() as session:
        for mode in ("rollout", "teacher_forced"):
            session.execute(
                insert(t.recipes).values(digest=f"{digest[:-1]}{mode[0]}", mode=mode, recipe={"mode": mode}, created_at=0.0)
            )
    # An index that is made at the end costs a tenth of one that is kept while random values come in.
    indexes = sorted(t.curriculum.indexes, key=lambda index: str(index.name))
    with catalog.begin() as session:
        for index in indexes:
            index.drop(session)
    for begin in range(0, count, 5000):
        size = min(5000, count - begin)
        rows: dict[Any, list[dict[str, Any]]] = {table: [] for table in (t.clips, t.rollouts, t.clip_tags, t.curriculum)}
        for number in range(begin, begin + size):
            _one(rows, rng, number, digest)
        with catalog.begin() as session:
            for table, values in rows.items():
                session.execute(insert(table), values)
    with catalog.begin() as session:
        for index in indexes:
            index.create(session)
    if catalog.dialect == "postgresql":
        with catalog.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))


def _one(rows: dict[Any, list[dict[str, Any]]], rng: np.random.Generator, index: int, digest: str) -> None:
    # Ids come in the order of creation, as real ones do.
    clip_id = f"clip_{index:026d}"
    created, duration = 1.7e9 + index * 7.0 + float(rng.random()), float(np.round(rng.lognormal(1.7, 0.7), 2))
    robot = "small" if rng.random() < 0.02 else "wildrobot"
    walking = bool(rng.random() < 0.3)
    name = f"{'walk' if walking else 'move'}_{index:06d}"
    facts: dict[str, Any] = {
        "name": name,
        "robot": robot,
        "robot_digest": digest,
        "source_digest": f"sha256:{index:064x}",
        "source_format": "pkl",
        "size": 40_000,
        "frames_in": 100,
        "fps_in": 50.0,
        "duration_sec": duration,
        "created_at": created,
    }
    rows[t.clips].append(
        {
            "id": clip_id,
            "identity": f"sha256:{index:064x}",
            "blob_digest": f"sha256:{index:064x}",
            "read_options": {},
            "actor": "anonymous",
            **facts,
        }
    )
    tags = (
        (["walk"] if walking else ["other"])
        + (["golden"] if rng.random() < 0.005 else [])
        + (["rare"] if index % 8000 == 5 else [])
    )
    listed = {"clip_id": clip_id, "name_folded": name, "read_options": "{}", "tags": f",{','.join(sorted(tags))},", **facts}
    rows[t.clip_tags].extend({"clip_id": clip_id, "tag": tag} for tag in tags)
    modes = ["rollout"] if rng.random() > 0.1 else ["rollout", "teacher_forced"]
    if rng.random() < 0.01:
        modes = []
    best: dict[str, Any] | None = None
    for mode in modes:
        tier = int(rng.choice([0, 1, -1], p=[0.08, 0.22, 0.70]))
        metrics = _metrics(rng, tier, walking)
        rollout_id = f"rollout_{index:020d}{mode[:6]}"
        rows[t.rollouts].append(
            {
                "id": rollout_id,
                "clip_id": clip_id,
                "recipe_digest": f"{digest[:-1]}{mode[0]}",
                "mode": mode,
                "tier": tier,
                "tier_reason": "All Tier 0 gates passed" if tier == 0 else "mean_sum_fn_over_mg 0.71 < 0.85",
                "gate_profile": "amp-0.11",
                "frames": int(duration * 50),
                "duration_sec": duration,
                "arrays_digest": digest,
                "arrays_size": 100_000,
                "feature_code_hash": digest,
                "mujoco_version": "4.0.1",
                "result": {"tier": tier},
                "created_at": created + 5.0,
                **metrics,
            }
        )
        spoken = listed | {
            "rollout_id": rollout_id,
            "tier": tier,
            "recipe_digest": f"{digest[:-1]}{mode[0]}",
            "mode": mode,
            "tier_reason": "All Tier 0 gates passed" if tier == 0 else "mean_sum_fn_over_mg 0.71 < 0.85",
            "frames": int(duration * 50),
            "scored_at": created + 5.0,
            **metrics,
        }
        rows[t.curriculum].append({"scope": mode, **spoken})
        rank = {0: 0, 1: 1, -1: 2}
        if best is None or rank[tier] <= rank[best["tier"]]:
            best = spoken
    if best is None:
        best = {column.name: None for column in t.curriculum.c} | listed
    rows[t.curriculum].append(best | {"scope": rollouts.ANY_MODE})


def _metrics(rng: np.random.Generator, tier: int, walking: bool) -> dict[str, Any]:
    values: dict[str, Any] = {name: float(rng.beta(2, 5)) for name in t.METRIC_COLUMNS}
    std = float(rng.lognormal(-4.2, 0.6))
    values |= {
        "mean_sum_fn_over_mg": float(rng.normal({0: 0.98, 1: 0.8, -1: 0.6}[tier], 0.05)),
        "p90_stab_force_over_mg": float(rng.beta(2, 20)),
        "height_mean": float(rng.normal(0.44, 0.03)),
        "height_std": std,
        "height_variance": std**2,
        # No walking clip has a foot on the ground for so long: what the exclusive case asks for.
        "left_foot_contact_rate": float(rng.uniform(0.4, 0.65) if walking else rng.uniform(0.4, 0.95)),
        "max_tilt_deg": float(rng.gamma(3, 8)),
        "finite_frame_rate": 1.0,
        "solver_warnings": 0.0,
        "fell_at_frame": int(rng.integers(0, 400)) if tier == -1 and rng.random() < 0.5 else None,
    }
    return values


def measure(catalog: Catalog, rounds: int, part: str = "") -> dict[str, dict[str, float]]:
    """For each case: p50 and p99 in ms over first, deep and last pages, how many clips match, and in how many pages."""
    found: dict[str, dict[str, float]] = {}
    rng = random.Random(1)
    gc.collect()
    gc.freeze()
    for name, asked in CASES.items():
        if part not in name:
            continue
        cursors: list[str | None] = [None]
        matches = empty = 0
        # A cursor belongs to a list, not to a page size: walked is in the largest pages, measured in the usual ones.
        while len(cursors) <= 2500:
            with catalog.session() as session:
                page = curriculum.list_clips(session, Query(**{**asked, "limit": curriculum.MAX_LIMIT}, cursor=cursors[-1]))
            matches += len(page.items)
            empty += not page.items
            if page.next_cursor is None:
                break
            cursors.append(page.next_cursor)
        times: list[float] = []
        worked: list[float] = []
        for turn in range(rounds):
            cursor = (None, cursors[-1], rng.choice(cursors))[turn % 3]
            query = Query(**{"limit": 50, **asked}, cursor=cursor)
            begun, begun_cpu = time.perf_counter(), time.process_time()
            with catalog.session() as session:
                curriculum.list_clips(session, query)
            times.append((time.perf_counter() - begun) * 1000)
            worked.append((time.process_time() - begun_cpu) * 1000)
        times.sort()
        worked.sort()
        found[name] = {
            "p50_ms": round(times[len(times) // 2], 2),
            "p99_ms": round(times[math.ceil(len(times) * 0.99) - 1], 2),
            "worst_ms": round(times[-1], 2),
            "cpu_ms": round(worked[len(worked) // 2], 2),
            "matches": matches,
            "pages": len(cursors),
            "empty_pages": empty,
        }
        row = found[name]
        print(
            f"  {catalog.dialect:10} {name:54} p50 {row['p50_ms']:6.2f}  p99 {row['p99_ms']:6.2f}  "
            f"cpu {row['cpu_ms']:5.2f} ms  {matches:6} clips in {len(cursors):4} pages, {empty} empty",
            flush=True,
        )
    return found


@contextmanager
def catalogs(only: str | None, database: str | None) -> Iterator[Iterator[Catalog]]:
    """The catalogs to measure, one after the other."""

    def each() -> Iterator[Catalog]:
        if database is not None:
            yield from _opened(database)
            return
        if only != "postgresql":
            with tempfile.TemporaryDirectory() as folder:
                yield from _opened(f"sqlite:///{Path(folder) / 'catalog.sqlite3'}")
        if only != "sqlite":
            with postgres(durable=True) as url:
                yield from _opened(url)

    def _opened(url: str) -> Iterator[Catalog]:
        schema.upgrade(url)
        catalog = Catalog.open(url)
        try:
            yield catalog
        finally:
            catalog.close()

    yield each()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=300, help="pages a case")
    parser.add_argument("--only", choices=("sqlite", "postgresql"))
    parser.add_argument("--database", help="URL of a database to use and keep, instead of new ones")
    parser.add_argument("--case", default="", help="only the cases whose name contains this")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"clips": arguments.clips, "pages_a_case": arguments.rounds}
    with catalogs(arguments.only, arguments.database) as opened:
        for catalog in opened:
            begun = time.perf_counter()
            with catalog.session() as session:
                there = clips.count(session)["total"]
            if not there:
                fill(catalog, arguments.clips)
            figures["clips"] = there or arguments.clips
            print(f"  {catalog.dialect}: {figures['clips']} clips ready in {time.perf_counter() - begun:.1f} s", flush=True)
            cases = measure(catalog, arguments.rounds, arguments.case)
            figures[catalog.dialect] = {"worst_p99_ms": max(case["p99_ms"] for case in cases.values()), "cases": cases}
    passed = all(figures[name]["worst_p99_ms"] <= LIMIT_MS for name in ("sqlite", "postgresql") if name in figures)
    print(json.dumps({"name": "curriculum", "figures": figures, "required": {"worst_p99_ms": LIMIT_MS}, "passed": passed}))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
