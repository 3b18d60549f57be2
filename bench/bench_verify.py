"""The readiness tests on a version of a minute: 1A to 7, and the micro-training apart.

    python -m bench.bench_verify [--threads N] [--json FILE]

The version consists of bundled motions on the bundled robot: the Tier 0 motions of mode `rollout`, two mirrored variants, and
three clips of mode `tracked`, because test 1C plans their beginnings again. Its generation is not timed. The times are those of
`verify` in a fresh process, so that they include importing and compiling the policy side. The bounds are absolute, as there is
no baseline to divide by: on two cores 2 minutes for 1A to 7 on 60 s of data, 5 minutes for the micro-training.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from amp_core.augment import Augmentation, augment
from amp_core.cpus import usable_cpus
from amp_core.formats import Motion, read_motion
from amp_core.motions import bundled_motions, reading_options
from amp_core.recipe import Recipe
from amp_core.robot import Robot
from amp_core.scoring import score
from amp_core.verify import TESTS, Subject, verify
from amp_core.verify.report import FAIL, SKIP

PLAIN = ("march_in_place", "side_step", "walk", "walk_backward")
MIRRORED_CLIPS = ("side_step", "walk")
TRACKED_CLIPS = ("walk_long_stride", "weight_shift")
SECONDS = 60.0
LIMIT_SEC = {"1A to 7": 120.0, "smoke": 300.0}


def subject(robot: Robot, threads: int) -> Subject:
    """A minute of Tier 0 clips, or a little more."""
    motions: dict[str, Motion] = {
        path.stem: read_motion(path, name=path.stem, **reading_options(path)) for path in bundled_motions()
    }
    mirror = Augmentation.parse("mirror")
    untracked_clips = [motions[name] for name in PLAIN] + [augment(motions[name], robot, mirror) for name in MIRRORED_CLIPS]
    tracked_clips = [motions[name] for name in TRACKED_CLIPS] + [augment(motions[TRACKED_CLIPS[0]], robot, mirror)]
    scores = score(untracked_clips, robot, Recipe.for_mode("rollout"), nthread=threads)
    scores += score(tracked_clips, robot, Recipe.for_mode("tracked"), nthread=threads)
    failing = [result.name for result in scores if result.tier != 0]
    if failing:
        raise RuntimeError(f"not Tier 0, as the version's clips must be: {', '.join(failing)}")
    return Subject.of_scores(scores, untracked_clips + tracked_clips, robot)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there as well")
    args = parser.parse_args()
    version = subject(Robot.load("wildrobot"), args.threads)
    seconds = sum(clip.frames for clip in version.clips) * version.robot.control_dt
    print(f"{len(version.clips)} clips, {seconds:.1f} s")
    parts = {"1A to 7": [test.id for test in TESTS if test.id != "smoke"], "smoke": ["smoke"]}
    wall: dict[str, float] = {}
    tests: dict[str, dict[str, Any]] = {}
    for part, ids in parts.items():
        start = time.perf_counter()
        verification = verify(version, only=ids, nthread=args.threads)
        wall[part] = round(time.perf_counter() - start, 1)
        for test in verification.tests:
            if test.id in ids:
                tests[test.id] = {"status": test.status, "wall_sec": round(test.wall_sec, 2)}
                print(f"{test.name}: {test.status}, {test.wall_sec:.1f} s {test.reason}")
        print(f"{part}: {wall[part]:.1f} s, at most {LIMIT_SEC[part]:g}")
    complete = all(test["status"] not in (FAIL, SKIP) for test in tests.values())
    is_pass = complete and seconds >= SECONDS and all(wall[part] <= LIMIT_SEC[part] for part in parts)
    result = json.dumps(
        {
            "name": "verify",
            "figures": {"clip_seconds": seconds, "clips": len(version.clips), "wall_sec": wall, "tests": tests},
            "required": {f"wall_sec.{part}": f"<= {bound:g}" for part, bound in LIMIT_SEC.items()},
            "passed": is_pass,
        }
    )
    if args.json:
        args.json.write_text(result + "\n")
    print(result)
    return 0 if is_pass else 1


if __name__ == "__main__":
    sys.exit(main())
