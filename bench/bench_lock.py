"""Locking 1,000 clips of 500 frames: seconds, and the peak memory of a process that does nothing else.

    python bench/bench_lock.py [--clips N] [--frames N]

Every clip is an export archive on disk, as a worker finds it; its features are mapped, selected in two segments, hashed, summed
and written, and the three files are synced. Making the exports is not measured. Peak memory is `ru_maxrss` of the process
that locks, imports included. What else a lock job does (queries, checks of the members, storing the blobs) is not in it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

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


def make(folder: Path, clips: int, frames: int) -> None:
    rng = np.random.default_rng(0)
    for index in range(clips):
        write_npz(folder / f"{index}.npz", {"features": rng.normal(size=(frames, LAYOUT.dim)).astype(np.float32)})


def lock(folder: Path, out: Path, clips: int, frames: int) -> dict[str, float]:
    """In a process of its own: lock, and say what it took."""
    started = time.perf_counter()
    bundle = lock_bundle(
        members(folder, clips, frames),
        out,
        name="walk",
        version="0.11.0",
        robot=ROBOT,
        mujoco_version="4.0.1",
        gate_profile="amp-0.11",
    )
    return {
        "seconds": time.perf_counter() - started,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "frames": bundle.num_frames,
        "features_mb": bundle.features.size / 1e6,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--frames", type=int, default=500)
    parser.add_argument("--child", nargs=2, type=Path)
    args = parser.parse_args()
    if args.child:
        folder, out = args.child
        print(json.dumps(lock(folder, out, args.clips, args.frames)))
        return 0
    with tempfile.TemporaryDirectory() as name:
        source, out = Path(name) / "exports", Path(name) / "out"
        source.mkdir()
        out.mkdir()
        make(source, args.clips, args.frames)
        command = [sys.executable, __file__, "--clips", str(args.clips), "--frames", str(args.frames), "--child", source, out]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
        figures = json.loads(done.stdout)
    print(
        f"{args.clips:,} clips of {args.frames} frames: {figures['seconds']:.2f} s, peak memory {figures['peak_mib']:.0f} MiB, "
        f"features {figures['features_mb']:.0f} MB"
    )
    passed = figures["seconds"] <= LIMIT_SEC and figures["peak_mib"] <= LIMIT_MIB
    required = {"seconds": f"<= {LIMIT_SEC:g}", "peak_mib": f"<= {LIMIT_MIB:g}"}
    print(json.dumps({"name": "lock", "figures": figures, "required": required, "passed": passed}))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
