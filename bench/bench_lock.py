"""Locking 1,000 clips of 500 frames: seconds and peak memory of a real lock job, and of `lock_bundle` alone.

    python -m bench.bench_lock [--clips N] [--frames N]

The job is what `POST /v1/datasets/{name}/versions` leaves to a worker, in a new process: the version is begun in the catalog,
`Runner.run_once` claims it, selects the members, starts its sandboxed child, which checks every member and writes the three
files, stores their blobs and publishes the version. The time runs from the beginning of the version to its end, with the
child's start and every sync. Peak memory is the larger `ru_maxrss` of worker and child. The 1,000 scored clips (one in ten
falls in the end and takes part by its windows) are put into the catalog and the blob store beforehand, which is not measured:
no physics is in it. Each has the arrays of the bundled walk, from which the lock measures its metrics, and random features, so
that none is a duplicate.

The readiness tests are turned off (`lock_tests=none`): what is measured is the checking and writing of a version, and no such
test would let random features pass. `ampref verify` has the tests' own times.

`lock_bundle` alone, in another new process, takes the same number of members from archives in a folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from amp_core.dataset import Member, RobotFacts, lock_bundle
from amp_core.features import FeatureLayout
from amp_core.npz import mmap_member, write_npz

LIMIT_SEC = 20.0
LIMIT_MIB = 300.0

LEG = ("hip_pitch", "hip_roll", "knee_pitch", "ankle_pitch")
JOINTS = tuple(f"{side}_{joint}" for side in ("left", "right") for joint in LEG)
LAYOUT = FeatureLayout.for_robot(JOINTS, ("left_toe", "left_heel", "right_toe", "right_heel"))
ROBOT = RobotFacts("wildrobot", "sha256:" + "0" * 64, JOINTS, 0.02, LAYOUT)


def members(folder: Path, clips: int, frames: int) -> list[Member]:
    """The exports in `folder` as members, each with two segments and one frame left out between them."""
    metrics = {f"metric_{i}": i / 7 for i in range(25)}
    gates = [{"name": f"gate_{i}", "value": 0.5, "threshold": 0.4, "passed": True} for i in range(12)]
    return [
        Member(
            name=f"clip_{index:06d}",
            digest=f"sha256:{index:064x}",
            tier=0,
            mode="rollout",
            recipe_digest="sha256:" + "1" * 64,
            ranges=((0, frames // 2), (frames // 2 + 1, frames)),
            quality_metrics=metrics,
            load=partial(mmap_member, folder / f"{index}.npz", "features"),
            gates=gates,
        )
        for index in range(clips)
    ]


def write_exports(folder: Path, clips: int, frames: int) -> None:
    rng = np.random.default_rng(0)
    for index in range(clips):
        write_npz(folder / f"{index}.npz", {"features": rng.normal(size=(frames, LAYOUT.dim)).astype(np.float32)})


def lock(folder: Path, out: Path, clips: int, frames: int) -> dict[str, float]:
    """In a process of its own: lock, with seconds and peak memory."""
    start = time.perf_counter()
    bundle = lock_bundle(
        members(folder, clips, frames),
        out,
        name="walk",
        version="0.12.0",
        robot=ROBOT,
        mujoco_version="4.0.1",
        gate_profile="amp-0.12",
    )
    return {
        "seconds": time.perf_counter() - start,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "frames": bundle.num_frames,
        "features_mb": sum(file.size for file in bundle.shards) / 1e6,
    }


def make_rollouts(robot: Any, recipe: Any, folder: Path, frames: int) -> list[tuple[Any, Any, Any, Any]]:
    """The arrays of two rollouts with their metrics, verdict and windows: the bundled walk, and the same with a fall."""
    from amp_core.formats import read_motion
    from amp_core.motions import bundled_motions
    from amp_core.quality import EXPORT_ARRAYS, FrameSeries, measure
    from amp_core.scoring import score
    from amp_core.segments import find_segments
    from amp_core.tiers import classify, gate_profile

    motion = read_motion(next(path for path in bundled_motions() if path.stem == "walk"), name="walk")
    result = score([motion], robot, recipe)[0]
    result.export(export := folder / "export.npz")
    with np.load(export) as archive:
        count = len(archive["qpos"])
        # The walk as often as it fits, and the same with a fall in the end.
        walk = {key: np.resize(v, (frames, *v.shape[1:])) if v.shape[:1] == (count,) else v for key, v in archive.items()}
    walk["clip_frames"] = np.array(frames)
    lying = {
        key: np.where(np.arange(frames)[:, None] < frames - 25, walk[key], [0.0, 0.0, 0.1, *[0.0] * (walk[key].shape[1] - 3)])
        for key in ("qpos", "root_pos")
    }
    versions = []
    for arrays in (walk, walk | lying):
        series = FrameSeries.from_export({key: arrays[key] for key in EXPORT_ARRAYS}, recipe, robot)
        metrics, profile = measure(series), gate_profile(recipe.gate_profile)
        verdict = classify(metrics, profile, recipe.mode, height_range=robot.height_range)
        versions.append((arrays, metrics, verdict, find_segments(series, profile, recipe.mode, robot.control_dt)))
    return versions


def store_rollout(rollout: tuple[Any, Any, Any, Any], recipe: Any, blobs: Any, folder: Path, rng: np.random.Generator) -> Any:
    """One of `make_rollouts` with random features, so that it is no duplicate; its export is stored."""
    from amp_core.features import feature_code_hash
    from ampref_service.catalog.records import NewRollout, Segment

    arrays, metrics, verdict, windows = rollout
    frames = len(arrays["qpos"])
    features = rng.normal(size=(frames, arrays["features"].shape[1])).astype(np.float32)
    write_npz(export := folder / "export.npz", arrays | {"features": features})
    return NewRollout(
        mode=recipe.mode,
        tier=verdict.tier,
        tier_reason=verdict.tier_reason,
        gate_profile=recipe.gate_profile,
        metrics=metrics,
        frames=frames,
        duration_sec=frames / 50.0,
        arrays_digest=blobs.put_file(export),
        arrays_size=export.stat().st_size,
        feature_code_hash=feature_code_hash(),
        mujoco_version="4.0.1",
        result={"gates": [gate.to_dict() for gate in verdict.gates], "segments": [window.to_dict() for window in windows]},
        segments=[Segment(window.start, window.stop, window.tier, window.score) for window in windows],
    )


def seed(data_dir: Path, clips: int, frames: int) -> None:
    """A catalog with `clips` scored clips of `frames` frames, their exports in the blob store."""
    from sqlalchemy import update

    from amp_core.recipe import Recipe
    from amp_core.robot import Robot
    from ampref_service.blobs import open_blobs
    from ampref_service.catalog import Catalog, rollouts, schema, tables
    from ampref_service.catalog.clips import submit
    from ampref_service.catalog.records import NewClip, RecipeRow
    from ampref_service.settings import Settings

    settings = Settings.load(data_dir=data_dir, lock_tests="none")
    schema.upgrade(settings.database_url)
    catalog, blobs = Catalog.open(settings.database_url), open_blobs(settings.blob_url)
    robot, recipe = Robot.load("wildrobot"), Recipe.for_mode("rollout")
    versions = make_rollouts(robot, recipe, data_dir, frames)
    rng = np.random.default_rng(0)
    with catalog.begin() as session:
        for index in range(clips):
            source = "sha256:" + hashlib.sha256(f"motion {index}".encode()).hexdigest()
            clip = NewClip(
                name=f"clip_{index:06d}",
                robot="wildrobot",
                robot_digest=robot.digest,
                source_digest=source,
                source_format="npz",
                blob_digest=source,
                size=100_000,
                frames_in=frames,
                fps_in=50.0,
                duration_sec=frames / 50.0,
            )
            submission = submit(session, clip, RecipeRow(recipe.digest, recipe.mode, recipe.to_dict()))
            rollout = store_rollout(versions[index % 10 == 9], recipe, blobs, data_dir, rng)
            rollouts.add(session, submission.clip.id, recipe.digest, rollout)
        # No worker scored the clips: their jobs count as done, so that the lock is the only job left.
        session.execute(update(tables.jobs).values(state="succeeded"))
    catalog.close()


def lock_job(data_dir: Path) -> dict[str, float]:
    """In a process of its own: begin a version, and be the worker that locks it."""
    from ampref_service import logs
    from ampref_service.blobs import open_blobs
    from ampref_service.catalog import Catalog
    from ampref_service.catalog.datasets import get_version
    from ampref_service.catalog.locking import begin_version
    from ampref_service.catalog.records import Select
    from ampref_service.settings import Settings
    from ampref_workers.runner import Runner

    logs.configure("warning", json=True)
    settings = Settings.load(data_dir=data_dir, lock_tests="none")
    catalog, blobs = Catalog.open(settings.database_url), open_blobs(settings.blob_url)
    runner = Runner(settings, catalog, blobs)
    start = time.perf_counter()
    with catalog.begin() as session:
        begin_version(session, "walk", "0.12.0", Select(robot="wildrobot", tiers=(0,), segments=True))
    state = runner.run_once()
    seconds = time.perf_counter() - start
    with catalog.session() as session:
        version = get_version(session, "walk", "0.12.0")
    if state != "succeeded" or version.num_clips is None or version.num_frames is None:
        raise RuntimeError(f"the lock job ended as {state}")
    worker, child = (
        resource.getrusage(process).ru_maxrss / 1024 for process in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return {
        "seconds": seconds,
        "peak_mib": max(worker, child),
        "worker_mib": worker,
        "child_mib": child,
        "clips": version.num_clips,
        "frames": version.num_frames,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--frames", type=int, default=500)
    parser.add_argument("--child", nargs=2, type=Path)
    parser.add_argument("--job", type=Path)
    parser.add_argument("--seed", type=Path)
    args = parser.parse_args()
    if args.child:
        folder, out = args.child
        print(json.dumps(lock(folder, out, args.clips, args.frames)))
        return 0
    if args.job:
        print(json.dumps(lock_job(args.job)))
        return 0
    if args.seed:
        seed(args.seed, args.clips, args.frames)
        return 0
    size = ["--clips", str(args.clips), "--frames", str(args.frames)]
    with tempfile.TemporaryDirectory() as name:
        data, source, out = (Path(name) / part for part in ("data", "exports", "out"))
        for folder in (data, source, out):
            folder.mkdir()
        run_self(*size, "--seed", str(data))
        measures = json.loads(run_self("--job", str(data)))
        write_exports(source, args.clips, args.frames)
        bundle = json.loads(run_self(*size, "--child", str(source), str(out)))
    measures |= {"lock_bundle_seconds": bundle["seconds"], "lock_bundle_peak_mib": bundle["peak_mib"]}
    print(
        f"{measures['clips']:,} clips, {measures['frames']:,} frames: the lock job took {measures['seconds']:.2f} s,\n"
        f"peak memory {measures['worker_mib']:.0f} MiB in the worker and {measures['child_mib']:.0f} MiB in its child;\n"
        f"lock_bundle alone {bundle['seconds']:.2f} s and {bundle['peak_mib']:.0f} MiB"
    )
    is_pass = measures["seconds"] <= LIMIT_SEC and measures["peak_mib"] <= LIMIT_MIB
    requirements = {"seconds": f"<= {LIMIT_SEC:g}", "peak_mib": f"<= {LIMIT_MIB:g}"}
    print(json.dumps({"name": "lock", "figures": measures, "required": requirements, "passed": is_pass}))
    return 0 if is_pass else 1


def run_self(*arguments: str) -> str:
    """What a new process of this program prints."""
    command = [sys.executable, "-m", "bench.bench_lock", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parents[1]).stdout


if __name__ == "__main__":
    sys.exit(main())
