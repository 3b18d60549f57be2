"""Coverage figures, on rows whose coverage is known beforehand."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from amp_core.dataset import Member, RobotFacts, lock_bundle
from amp_core.dataset.coverage import Coverage
from amp_core.features import FeatureLayout
from amp_core.strict_json import canonical_json

JOINTS = ("left_knee", "right_knee")
LAYOUT = FeatureLayout.for_robot(JOINTS, ("left_toe", "left_heel", "right_toe", "right_heel"))
DT = 0.02
FORWARD = LAYOUT.block("root_lin_vel").start
TURN = LAYOUT.block("root_ang_vel").start + 2
CONTACTS = LAYOUT.block("foot_contacts").start
Rows = NDArray[np.float32]


class Foot(NamedTuple):
    channels: tuple[int, ...]


FEET = (Foot((0, 1)), Foot((2, 3)))


def rows(count: int, **columns: Any) -> Rows:
    """Zeros, but for the columns given by number as `c3=…`."""
    made = np.zeros((count, LAYOUT.dim), np.float32)
    for name, values in columns.items():
        made[:, int(name[1:])] = values
    return made


def cover(*segments: Rows, feet: tuple[Foot, ...] = FEET, piece: int = 10**9) -> dict[str, Any]:
    coverage = Coverage(LAYOUT, DT, feet)
    for number, segment in enumerate(segments):
        coverage.begin_clip(f"clip{number}", f"sha256:{number}", original=True)
        coverage.begin_segment(0)
        for start in range(0, len(segment), piece):
            coverage.add(segment[start : start + piece])
    return coverage.to_dict()


def contacts(*feet: tuple[int, int, int, int]) -> Rows:
    made = rows(len(feet))
    made[:, CONTACTS:] = feet
    return made


def test_seconds_by_source_and_tier() -> None:
    coverage = Coverage(LAYOUT, DT, FEET)
    for name, source, tier, count, speed in (
        ("mirror", "sha256:a", 0, 50, 0.5),
        ("walk", "sha256:a", 0, 100, 0.2),
        ("hop", "sha256:b", 1, 25, 0.0),
    ):
        coverage.begin_clip(name, source, original=name != "mirror")
        coverage.begin_segment(tier)
        coverage.add(rows(count, **{f"c{FORWARD}": speed}))
    found = coverage.to_dict()
    assert found["seconds"] == 3.5
    assert found["tiers"] == [{"tier": 0, "seconds": 3.0, "sources": 1}, {"tier": 1, "seconds": 0.5, "sources": 1}]
    walk, hop = found["sources"]
    # A variant belongs to the clip that it was made from, and the source has that clip's name.
    assert walk == {"name": "walk", "digest": "sha256:a", "clips": 2, "seconds": 3.0, "share": 0.8571, "forward_speed": 0.3}
    assert (hop["name"], hop["clips"], hop["seconds"], hop["forward_speed"]) == ("hop", 1, 0.5, 0.0)


def test_the_seconds_of_a_speed() -> None:
    speeds = np.repeat([-0.15, 0.05, 0.25, 0.27], [10, 50, 5, 5])
    found = cover(rows(70, **{f"c{FORWARD}": speeds, f"c{TURN}": np.where(speeds < 0, -9000.0, 0.3)}))
    assert found["forward_speed"] == {"unit": "m/s", "bin": 0.1, "from": -0.2, "seconds": [0.2, 0.0, 1.0, 0.0, 0.2]}
    assert found["lateral_speed"] == {"unit": "m/s", "bin": 0.1, "from": 0.0, "seconds": [1.4]}
    # What is beyond the last bin is in it, and makes no list without end.
    turning = found["turning_rate"]
    assert (turning["from"], turning["seconds"][0], turning["seconds"][-1]) == (-12.5, 0.2, 1.2)
    assert sum(turning["seconds"]) == pytest.approx(found["seconds"])


def test_stance_counts_feet_not_channels() -> None:
    found = cover(contacts(*[(1, 1, 0, 0)] * 2, *[(1, 0, 0, 1)] * 3, *[(0, 0, 1, 0)] * 4, (0, 0, 0, 0)))["stance"]
    assert found == {"single_share": 0.6, "double_share": 0.3, "flight_share": 0.1, "steps_per_second": 5.0}


@pytest.mark.parametrize("piece", [1, 2, 3, 1000])
def test_a_step_is_a_change_of_the_foot_that_stands_alone(piece: int) -> None:
    left, right, both, none = (1, 1, 0, 0), (0, 0, 1, 1), (1, 1, 1, 1), (0, 0, 0, 0)
    # left → right → left within the first segment; that the next begins with right is no step; a hop on one foot is none.
    first, second = contacts(left, both, right, right, none, left), contacts(right, none, right, both, right)
    assert cover(first, second, piece=piece)["stance"]["steps_per_second"] == round(2 / (11 * DT), 4)


def test_without_feet_every_channel_is_one() -> None:
    assert cover(contacts((1, 1, 0, 0)), feet=())["stance"]["double_share"] == 1.0


def test_standing_still_varies_in_nothing() -> None:
    found = cover(rows(100, c0=0.3))
    assert found["feature_space"] == {
        "effective_dimensions": 0.0,
        "varying_dimensions": 0,
        "constant": list(LAYOUT.names),
        "poses": {"joint_cell": 0.2, "occupied": 1, "effective": 1.0},
        "velocities": {"speed_cell": 0.1, "turn_cell": 0.25, "occupied": 1, "effective": 1.0},
    }
    assert found["ranges"][0] == {"name": "joint_pos.left_knee", "p5": 0.3, "p95": 0.3}


def test_effective_dimensions_are_those_that_move_on_their_own() -> None:
    rng = np.random.default_rng(0)
    one, other, third = rng.normal(size=(3, 20_000))
    assert cover(rows(20_000, c0=one, c1=3 * one, c2=-one))["feature_space"]["effective_dimensions"] == 1.0
    apart = cover(rows(20_000, c0=one, c1=50 * other, c2=0.1 * third))["feature_space"]
    assert (apart["effective_dimensions"], apart["varying_dimensions"]) == (3.0, 3)
    # Two that move together and one alone: eigenvalues 2, 1, 0.
    mixed = cover(rows(20_000, c0=one, c1=one, c2=other))["feature_space"]
    assert mixed["effective_dimensions"] == pytest.approx(9 / 5, abs=0.01)


def test_it_is_the_participation_ratio_of_the_correlation_matrix() -> None:
    rng = np.random.default_rng(1)
    made = (rng.normal(size=(5000, LAYOUT.dim)) @ rng.normal(size=(LAYOUT.dim, LAYOUT.dim))).astype(np.float32)
    values = np.linalg.eigvalsh(np.corrcoef(made.astype(float).T))
    expected = values.sum() ** 2 / (values**2).sum()
    assert cover(made, piece=700)["feature_space"]["effective_dimensions"] == pytest.approx(expected, abs=0.006)


def test_poses_that_are_used_equally_count_in_full_and_others_less() -> None:
    even = cover(rows(400, c0=np.repeat([0.0, 0.5, 1.0, 1.5], 100)))["feature_space"]["poses"]
    assert (even["occupied"], even["effective"]) == (4, 4.0)
    uneven = cover(rows(400, c0=np.repeat([0.0, 0.5, 1.0, 1.5], [397, 1, 1, 1])))["feature_space"]["poses"]
    share = [397 / 400, 1 / 400, 1 / 400, 1 / 400]
    assert (uneven["occupied"], uneven["effective"]) == (4, round(math.exp(-sum(p * math.log(p) for p in share)), 1))
    # Trembling by less than half a cell is the same pose; another foot on the ground is another one.
    trembling = rows(400, c0=np.tile([-0.09, 0.09], 200))
    assert cover(trembling)["feature_space"]["poses"]["occupied"] == 1
    trembling[:200, CONTACTS] = 1
    assert cover(trembling)["feature_space"]["poses"]["occupied"] == 2


def test_the_same_again_covers_nothing_new() -> None:
    rng = np.random.default_rng(2)
    walk = rng.normal(size=(500, LAYOUT.dim)).astype(np.float32)
    once, twice = cover(walk), cover(walk, walk)
    for what in ("poses", "velocities"):
        assert once["feature_space"][what] == twice["feature_space"][what]
    assert once["ranges"] == twice["ranges"]
    assert twice["seconds"] == 2 * once["seconds"]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_ranges_are_quantiles_to_within_their_promise(scale: float) -> None:
    made = (np.random.default_rng(3).normal(size=(20_001, LAYOUT.dim)) * scale).astype(np.float32)
    for column, found in enumerate(cover(made, piece=999)["ranges"]):
        low, high = np.quantile(made[:, column].astype(float), [0.05, 0.95], method="inverted_cdf")
        assert found["p5"] == pytest.approx(low, rel=0.004, abs=1e-4)
        assert found["p95"] == pytest.approx(high, rel=0.004, abs=1e-4)


def test_pieces_and_their_order_change_nothing() -> None:
    made = np.random.default_rng(4).normal(size=(9001, LAYOUT.dim)).astype(np.float32)
    whole = cover(made)
    assert canonical_json(cover(made, piece=1237)) == canonical_json(whole)
    backwards = cover(made[::-1])
    assert canonical_json(backwards) == canonical_json(whole), "a mirror in time has the same steps"


def test_many_cells_are_merged_without_loss() -> None:
    made = rows(200_000, c0=np.arange(200_000) % 100_003)
    assert cover(made)["feature_space"]["poses"]["occupied"] == 100_003


def test_no_rows_have_no_coverage() -> None:
    with pytest.raises(ValueError, match="no rows"):
        Coverage(LAYOUT, DT).to_dict()


LOCK = """
import sys
import numpy as np
from amp_core.dataset import Member, RobotFacts, lock_bundle
from amp_core.features import FeatureLayout
from amp_core.strict_json import canonical_json
joints = tuple(f"joint_{i}" for i in range(40))
layout = FeatureLayout.for_robot(joints, ("left", "right"))
rows = np.random.default_rng(0).normal(size=(20_000, layout.dim)).astype(np.float32)
member = Member("a", "sha256:a", 0, "rollout", "sha256:b", ((0, len(rows)),), {}, lambda: rows)
robot = RobotFacts("many", "sha256:c", joints, 0.02, layout)
bundle = lock_bundle([member], sys.argv[1], name="a", version="1.0.0", robot=robot, mujoco_version="4", gate_profile="p")
print(bundle.manifest.sha256)
"""


def test_the_manifest_is_the_same_on_one_thread_and_on_many(tmp_path: Path) -> None:
    seen = set()
    for threads in ("1", "2", "7"):
        out = tmp_path / threads
        out.mkdir()
        counts = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        command = [sys.executable, "-c", LOCK, str(out)]
        seen.add(subprocess.run(command, env=os.environ | counts, check=True, capture_output=True, text=True).stdout)
    assert len(seen) == 1


def test_a_variant_is_of_its_originals_source(tmp_path: Path) -> None:
    members = [
        Member(name, f"sha256:{name}", 0, "rollout", "sha256:b", ((0, 50),), {}, load, lineage=lineage)
        for name, lineage in (("a-mirrored", "sha256:walk"), ("walk", ""), ("z-lone-variant", "sha256:gone"))
        for load in [partial(rows, 50, c0=len(name))]
    ]
    robot = RobotFacts("stick", "sha256:c", JOINTS, DT, LAYOUT, FEET)
    bundle = lock_bundle(members, tmp_path, name="a", version="1.0.0", robot=robot, mujoco_version="4", gate_profile="p")
    named = [(source["name"], source["digest"], source["clips"]) for source in bundle.coverage["sources"]]
    # A variant whose original is not in the version lends its own name.
    assert named == [("walk", "sha256:walk", 2), ("z-lone-variant", "sha256:gone", 1)]
    assert bundle.coverage["tiers"] == [{"tier": 0, "seconds": 3.0, "sources": 2}]


def test_the_manifest_holds_it(tmp_path: Path) -> None:
    made = np.random.default_rng(5).normal(size=(30, LAYOUT.dim)).astype(np.float32)
    member = Member("a", "sha256:a", -1, "rollout", "sha256:b", ((2, 12), (20, 30)), {}, lambda: made, range_tiers=(0, 1))
    robot = RobotFacts("stick", "sha256:c", JOINTS, DT, LAYOUT, FEET)
    bundle = lock_bundle([member], tmp_path, name="a", version="1.0.0", robot=robot, mujoco_version="4", gate_profile="p")
    found = json.loads(bundle.manifest.path.read_bytes())["coverage"]
    assert found == bundle.coverage
    assert [held["tier"] for held in found["tiers"]] == [0, 1]
    assert found["sources"][0]["seconds"] == found["seconds"] == 0.4
    assert [entry["name"] for entry in found["ranges"]] == list(LAYOUT.names)
