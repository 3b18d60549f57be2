"""The curriculum query at 150,000 clips, on SQLite and on PostgreSQL: p50 and p99 of pages, wherever they lie, and of numbers.

    python -m bench.bench_curriculum [--clips N] [--rounds N] [--only sqlite|postgresql] [--database URL] [--case TEXT]

Measured is `ampref_service.catalog.curriculum.list_clips` in a session of its own, from the call to the records, over a
connection that is open, in a process that does with the garbage collector what the server does at its start (`gc.freeze`).
`cpu_ms` is the median processor time of this process a page. A database that `--database` names is filled when it is empty,
and kept.

Each case is a filter. Its list is sorted by every sort column in both directions, but for those whose order the filter decides
and which are cases of their own; of each order the first page, the last and one at a random depth are measured. A page that is
not full before the end of its list is a failure.

One filter, any sort, 50 clips a page: 20 ms. The rest: 150 ms. That includes

* one filter whose clips all lie at the far end of the sort, because the metric or tag goes with the sort column. An index that
  has the two columns would answer it, but there are over 700 such pairs. So either every clip of the filter is looked up or all
  rows are read: on SQLite 15 to 25 ms of processor time where the filter leaves up to 20,000 clips, else 40 to 50 ms.
* pages of 200: reading the clips takes 6 to 8 ms of processor time, in addition to a walk that may pass all rows.

Then, of each filter, the histograms of four metrics and the facets, computed each time: at the median 100 and 150 ms, but for
the cases of `WHOLE_SCANS`, which are reported alone. The service keeps what took long for some seconds.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Connection, func, insert, select, text

from amp_core.recipe import GATE_PROFILE
from amp_core.tiers import GATE_PROFILES, SUPERSEDED_PROFILES
from ampref_service.catalog import Catalog, clips, schema
from ampref_service.catalog import tables as t
from ampref_service.catalog.curriculum import ClipQuery, encode_cursor, list_clips
from ampref_service.catalog.distribution import count_facets, measure_histogram
from bench.servers import postgres

ONE_FILTER_MS, OTHERS_MS = 20.0, 150.0
HISTOGRAM_MS, FACETS_MS = 100.0, 150.0
HISTOGRAMS = ("slip_rate", "height_std", "fell_at_frame", "duration_sec")

ONE_FILTER: dict[str, dict[str, Any]] = {
    "no filter": {},
    "Tier 0 (8 %)": {"tier": 0},
    "Rejected (70 %)": {"tier": -1},
    "the common mode": {"mode": "rollout"},
    "the rare mode (10 %)": {"mode": "teacher_forced"},
    "a robot with 2 % of the clips": {"robot": "small"},
    "a robot without clips": {"robot": "none"},
    "the common profile (99 %)": {"gate_profile": "amp-0.12"},
    "an older profile (50 %), which represents 1 %": {"gate_profile": "amp-0.11"},
    "a rare profile (2 %)": {"gate_profile": "amp-0.12-dynamic"},
    "a profile without clips": {"gate_profile": "none"},
    "a tag with 30 %": {"tags": ("walk",)},
    "a tag with 0.5 %": {"tags": ("golden",)},
    "a tag with 19 clips": {"tags": ("rare",)},
    "clips from 20 s on (3 %)": {"min_duration_sec": 20.0},
    "clips from 200 s on (none)": {"min_duration_sec": 200.0},
    "a range with half of the clips": {"metrics": {"height_std": (0.015, None)}},
    "a range with 6 %": {"metrics": {"height_mean": (0.46, 0.465)}},
    "a range with 0.6 %": {"metrics": {"height_mean": (0.46, 0.4605)}},
    "a range with none": {"metrics": {"height_mean": (2.0, None)}},
}
DECISIVE: dict[str, set[str]] = {
    "a tag with 30 %": {"left_foot_contact_rate"},
    "a range with half of the clips": {"height_variance"},
}
"""The sort columns whose order a filter decides: sorted so, all its clips may be at the far end. They are measured below."""

OTHER_CASES: dict[str, dict[str, Any]] = {
    "a range with 6 %, all at the far end": {
        "metrics": {"height_std": (0.0381, None)},
        "sort": "height_variance",
        "descending": False,
    },
    "a range with half of the clips, all at the far end": {
        "metrics": {"height_std": (0.015, None)},
        "sort": "height_variance",
        "descending": False,
    },
    "a tag with 30 %, all at the far end": {"tags": ("walk",), "sort": "left_foot_contact_rate"},
    "no filter, 200 a page": {"limit": 200},
    "Tier 0, 200 a page": {"tier": 0, "limit": 200},
    "Tier 0 and three ranges": {
        "tier": 0,
        "metrics": {"p90_stab_force_over_mg": (None, 0.1), "slip_rate": (None, 0.2), "height_std": (0.005, None)},
    },
    "two ranges that exclude each other (half and half)": {
        "metrics": {"height_std": (0.015, None), "height_variance": (None, 0.000224)}
    },
    "two ranges that exclude each other (10 % and 90 %)": {
        "metrics": {"height_std": (0.0323, None), "height_variance": (None, 0.00104)}
    },
    "tag and range that exclude each other (30 % and 30 %)": {
        "tags": ("walk",),
        "metrics": {"left_foot_contact_rate": (0.7, None)},
    },
    "long clips that contain a word": {"min_duration_sec": 20.0, "name": "WALK_0"},
    "a word that is in no name": {"name": "no such clip"},
}

WHOLE_SCANS: dict[str, dict[str, Any]] = {
    "a tag with 70 %": {"tags": ("other",)},
    "two ranges that leave 95 %": {"metrics": {"height_std": (0.005, None), "height_mean": (0.1, None)}},
}
"""Filters that no index holds together and that leave nearly everything."""


NO_MARKS = dict.fromkeys(("best", "best_in_mode", "best_by_profile"), 0)


def fill(catalog: Catalog, count: int, seed: int = 0) -> None:
    """`count` clips with plausible metrics, one rollout each (a tenth has two modes, 1 % none yet).

    Half of them were also judged by amp-0.11, 1 % by that alone, and 2 % also by amp-0.12-dynamic.
    """
    rng = np.random.default_rng(seed)
    digest = "sha256:" + "0" * 64
    with catalog.begin() as session:
        for mode, profile in product(("rollout", "teacher_forced"), GATE_PROFILES):
            recipe = {"digest": f"{digest[:50]}{mode[0]}{profile}", "mode": mode, "recipe": {"mode": mode}, "created_at": 0.0}
            session.execute(insert(t.recipes).values(recipe))
    # An index that is made at the end costs a tenth of one that is updated while random values come in.
    indexes = sorted(t.curriculum.indexes, key=lambda index: str(index.name))
    with catalog.begin() as session:
        for index in indexes:
            index.drop(session)
    for begin in range(0, count, 5000):
        rows: dict[Any, list[dict[str, Any]]] = {table: [] for table in (t.clips, t.rollouts, t.clip_tags, t.curriculum)}
        for number in range(begin, min(begin + 5000, count)):
            add_rows(rows, rng, number, digest)
        with catalog.begin() as session:
            for table, values in rows.items():
                session.execute(insert(table), values)
    with catalog.begin() as session:
        for index in indexes:
            index.create(session)
    if catalog.dialect == "postgresql":
        with catalog.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))


def add_rows(rows: dict[Any, list[dict[str, Any]]], rng: np.random.Generator, index: int, digest: str) -> None:
    """One clip with its tags, rollouts and curriculum. Ids come in the order of creation, as real ids do."""
    clip_id = f"clip_{index:026d}"
    created_at, duration = 1.7e9 + index * 7.0 + float(rng.random()), float(np.round(rng.lognormal(1.7, 0.7), 2))
    robot = "small" if rng.random() < 0.02 else "wildrobot"
    walking = bool(rng.random() < 0.3)
    name = f"{'walk' if walking else 'move'}_{index:06d}"
    rows[t.clips].append(
        {
            "id": clip_id,
            "identity": f"sha256:{index:064x}",
            "name": name,
            "robot": robot,
            "robot_digest": digest,
            "source_digest": f"sha256:{index:064x}",
            "source_format": "pkl",
            "read_options": {},
            "blob_digest": f"sha256:{index:064x}",
            "size": 40_000,
            "frames_in": 100,
            "fps_in": 50.0,
            "duration_sec": duration,
            "created_at": created_at,
            "actor": "anonymous",
        }
    )
    tags = ["walk" if walking else "other"]
    tags += ["golden"] * (rng.random() < 0.005) + ["rare"] * (index % 8000 == 5)
    rows[t.clip_tags].extend({"clip_id": clip_id, "tag": tag} for tag in tags)
    modes = ["rollout"] if rng.random() > 0.1 else ["rollout", "teacher_forced"]
    if rng.random() < 0.01:
        modes = []
    place = {
        "clip_id": clip_id,
        "robot": robot,
        "created_at": created_at,
        "duration_sec": duration,
        "name_folded": name,
    }
    profiles = [GATE_PROFILE] if index % 100 else []
    profiles += ["amp-0.11"] * (index % 2 == 0) + ["amp-0.12-dynamic"] * (index % 50 == 1)
    scored: list[dict[str, Any]] = []
    for mode, profile in product(modes, profiles):
        tier = int(rng.choice([0, 1, -1], p=[0.08, 0.22, 0.70]))
        metrics = draw_metrics(rng, tier, walking)
        rollout_id = f"rollout_{index:015d}{mode[:6]}{profile[-4:]}"
        rows[t.rollouts].append(
            {
                "id": rollout_id,
                "clip_id": clip_id,
                "recipe_digest": f"{digest[:50]}{mode[0]}{profile}",
                "mode": mode,
                "tier": tier,
                "tier_reason": "All Tier 0 gates passed" if tier == 0 else "mean_sum_fn_over_mg 0.71 < 0.85",
                "gate_profile": profile,
                "frames": int(duration * 50),
                "duration_sec": duration,
                "arrays_digest": digest,
                "arrays_size": 100_000,
                "feature_code_hash": digest,
                "mujoco_version": "4.0.1",
                "result": {"tier": tier},
                "created_at": created_at + 5.0,
                **metrics,
            }
        )
        scored.append(
            {**place, **NO_MARKS, **metrics, "mode": mode, "gate_profile": profile, "tier": tier, "rollout_id": rollout_id}
        )
    if not scored:
        empty_row = {column.name: None for column in t.curriculum.c}
        scored.append({**empty_row, **place, **NO_MARKS, "mode": t.UNSCORED, "gate_profile": t.UNSCORED})
    scored.sort(key=lambda row: (row["gate_profile"] in SUPERSEDED_PROFILES, (0, 1, -1, None).index(row["tier"])))
    for mark, key in (("best", "clip_id"), ("best_in_mode", "mode"), ("best_by_profile", "gate_profile")):
        for value in {row[key] for row in scored}:
            next(row for row in scored if row[key] == value)[mark] = 1
    rows[t.curriculum].extend(scored)


def draw_metrics(rng: np.random.Generator, tier: int, walking: bool) -> dict[str, Any]:
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


def positions(session: Connection, query: dict[str, Any], rng: random.Random) -> Iterator[str | None]:
    """Cursors of the first page, of one at a random depth and of the last one."""
    yield None
    request = ClipQuery(**query)
    clip_id = f"clip_{rng.randrange(session.execute(select(func.count()).select_from(t.clips)).scalar_one()):026d}"
    column = t.curriculum.c[request.sort]
    key = session.execute(select(column).where(t.curriculum.c.clip_id == clip_id, t.curriculum.c.best == 1)).scalar_one()
    yield encode_cursor(request, key, clip_id)
    ends = list_clips(session, ClipQuery(**query | {"descending": not request.descending})).items
    if ends:
        clip = ends[-1]
        metrics = clip.rollout.metrics if clip.rollout else {}
        key = getattr(clip, request.sort) if request.sort in ("created_at", "duration_sec") else metrics.get(request.sort)
        yield encode_cursor(request, key, clip.id)


def measure(catalog: Catalog, name: str, case: dict[str, Any], rounds: int) -> dict[str, Any]:
    """p50 and p99 in ms over first, deep and last pages of every order, and the page that took longest."""
    rng = random.Random(1)
    sorts = [sort for sort in t.SORT_COLUMNS if sort not in DECISIVE.get(name, ())]
    orders = [{"sort": sort, "descending": descending} for sort in sorts for descending in (False, True)]
    if "sort" in case:
        orders = [{}] * len(orders)
    times: list[tuple[float, str]] = []
    cpu: list[float] = []
    for order in orders * rounds:
        facts = {"limit": 50, **case, **order}
        with catalog.session() as session:
            cursors = list(positions(session, facts, rng))
        for cursor in cursors:
            query = ClipQuery(**facts, cursor=cursor)
            start, cpu_start = time.perf_counter(), time.process_time()
            with catalog.session() as session:
                page = list_clips(session, query)
            times.append(((time.perf_counter() - start) * 1000, f"{'-' * query.descending}{query.sort}"))
            cpu.append((time.process_time() - cpu_start) * 1000)
            if page.next_cursor is not None and len(page.items) < query.limit:
                raise RuntimeError(f"a page of {facts} has {len(page.items)} clips and is not the last")
    times.sort()
    return {
        "p50_ms": round(times[len(times) // 2][0], 2),
        "p99_ms": round(times[math.ceil(len(times) * 0.99) - 1][0], 2),
        "worst_ms": round(times[-1][0], 2),
        "worst_sort": times[-1][1],
        "cpu_ms": round(sorted(cpu)[len(cpu) // 2], 2),
        "pages": len(times),
    }


def measure_numbers(catalog: Catalog, case: dict[str, Any], rounds: int) -> dict[str, float]:
    """The median time in ms of a histogram, of those of `HISTOGRAMS`, and of the facets."""
    query = ClipQuery(**{name: value for name, value in case.items() if name not in ("sort", "descending", "limit")})

    def measure_median(compute: Callable[[Connection], object]) -> float:
        times = []
        for _ in range(max(rounds, 3) + 1):
            start = time.perf_counter()
            with catalog.session() as session:
                compute(session)
            times.append((time.perf_counter() - start) * 1000)
        return round(statistics.median(times[1:]), 1)

    histograms = [measure_median(partial(measure_histogram, query=query, metric=metric)) for metric in HISTOGRAMS]
    return {"histogram_ms": max(histograms), "facets_ms": measure_median(partial(count_facets, query=query))}


def iterate_catalogs(only: str | None, database: str | None) -> Iterator[Catalog]:
    """The catalogs to measure, one after the other."""

    def open_migrated(url: str) -> Iterator[Catalog]:
        schema.upgrade(url)
        catalog = Catalog.open(url)
        try:
            yield catalog
        finally:
            catalog.close()

    if database is not None:
        yield from open_migrated(database)
        return
    if only != "postgresql":
        with tempfile.TemporaryDirectory() as folder:
            yield from open_migrated(f"sqlite:///{Path(folder) / 'catalog.sqlite3'}")
    if only != "sqlite":
        with postgres(durable=True) as url:
            yield from open_migrated(url)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=150_000)
    parser.add_argument("--rounds", type=int, default=3, help="pages of each order and depth")
    parser.add_argument("--only", choices=("sqlite", "postgresql"))
    parser.add_argument("--database", help="URL of a database to use and keep, instead of new ones")
    parser.add_argument("--case", default="", help="only the cases whose name contains this")
    arguments = parser.parse_args()
    document: dict[str, Any] = {"clips": arguments.clips, "rounds": arguments.rounds}
    passes = True
    for catalog in iterate_catalogs(arguments.only, arguments.database):
        start = time.perf_counter()
        with catalog.session() as session:
            total = clips.count(session)["total"]
        if not total:
            fill(catalog, arguments.clips)
        document["clips"] = total or arguments.clips
        print(f"  {catalog.dialect}: {document['clips']} clips ready in {time.perf_counter() - start:.1f} s", flush=True)
        gc.collect()
        gc.freeze()
        groups: dict[str, Any] = {}
        for group, cases, limit_ms in (
            ("one_filter", ONE_FILTER, ONE_FILTER_MS),
            ("others", OTHER_CASES, OTHERS_MS),
        ):
            results = {
                name: measure(catalog, name, case, arguments.rounds) for name, case in cases.items() if arguments.case in name
            }
            for name, row in results.items():
                print(
                    f"  {catalog.dialect:10} {name:54} p50 {row['p50_ms']:6.2f}  p99 {row['p99_ms']:6.2f}  "
                    f"worst {row['worst_ms']:6.2f} ({row['worst_sort']})  cpu {row['cpu_ms']:5.2f} ms",
                    flush=True,
                )
            slowest = max((row["p99_ms"] for row in results.values()), default=0.0)
            passes &= slowest <= limit_ms
            groups[group] = {"worst_p99_ms": slowest, "cases": results}
        numbers = {
            name: measure_numbers(catalog, case, arguments.rounds)
            for name, case in (ONE_FILTER | OTHER_CASES | WHOLE_SCANS).items()
            if arguments.case in name
        }
        for name, row in numbers.items():
            line = f"histogram {row['histogram_ms']:6.1f}  facets {row['facets_ms']:6.1f} ms"
            print(f"  {catalog.dialect:10} {name:54} {line}", flush=True)
            if name not in WHOLE_SCANS:
                passes &= row["histogram_ms"] <= HISTOGRAM_MS and row["facets_ms"] <= FACETS_MS
        groups["numbers"] = numbers
        document[catalog.dialect] = groups
    requirements = {"one_filter_p99_ms": ONE_FILTER_MS, "others_p99_ms": OTHERS_MS}
    requirements |= {"histogram_ms": HISTOGRAM_MS, "facets_ms": FACETS_MS}
    print(json.dumps({"name": "curriculum", "figures": document, "required": requirements, "passed": passes}))
    return 0 if passes else 1


if __name__ == "__main__":
    sys.exit(main())
