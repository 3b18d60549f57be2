"""Exports by the specification's physics reference schema."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

import amp_core
from amp_core.errors import IntegrityError, NotFound
from amp_core.formats import read_motion
from amp_core.metrics import METRICS
from amp_core.motions import bundled_motions
from amp_core.npz import write_npz
from amp_core.recipe import Recipe
from amp_core.reference import FORCE_ARRAYS, META, REFERENCE_ARRAYS, REFERENCE_KEYS, read_meta
from amp_core.robot import Robot
from amp_core.scoring import Score, score

WALK = next(path for path in bundled_motions() if path.name == "walk.pkl")


@pytest.fixture(scope="module")
def walk() -> Score:
    return score([read_motion(WALK, name="walk")], Robot.load("wildrobot"), Recipe.for_mode("rollout"))[0]


@pytest.fixture(scope="module")
def export(walk: Score, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "walk.npz"
    walk.export(path)
    return path


def test_the_schema_has_22_names() -> None:
    assert len(REFERENCE_KEYS) == len(set(REFERENCE_KEYS)) == 22
    assert set(REFERENCE_ARRAYS) < set(REFERENCE_KEYS)


def test_numpy_and_json_alone_read_meta(export: Path, walk: Score) -> None:
    with np.load(export, allow_pickle=False) as archive:
        assert archive[META].dtype == np.uint8
        meta = json.loads(archive[META].tobytes())
        assert set(REFERENCE_KEYS) < set(meta)
        for name in REFERENCE_ARRAYS:
            assert meta[name] == {
                "member": name,
                "dtype": archive[name].dtype.name,
                "shape": list(archive[name].shape),
            }
    assert meta == read_meta(export)
    assert Recipe.from_dict(meta["provenance"]["recipe"]) == walk.rollout.recipe
    assert meta["provenance"]["source_digest"] == walk.source_digest


def test_one_call_gives_the_specifications_dictionary(export: Path, walk: Score) -> None:
    reference = amp_core.read_reference(export)
    assert tuple(reference) == REFERENCE_KEYS
    rollout, metrics = walk.rollout, reference["quality_metrics"]
    for name in REFERENCE_ARRAYS:
        np.testing.assert_array_equal(reference[name], getattr(rollout, name))
    assert reference["feature_dim"] == reference["features"].shape[1] == 27
    assert (reference["fps"], reference["dt"]) == (50.0, 0.02)
    assert reference["num_frames"] == len(rollout.qpos)
    assert reference["duration_sec"] == pytest.approx(reference["num_frames"] * 0.02)
    assert reference["tier"] == metrics["tier"] == walk.tier
    assert metrics["tier_reason"] == walk.tier_reason
    assert {metric.name: metrics[metric.name] for metric in METRICS} == walk.quality_metrics
    np.testing.assert_array_equal(metrics["sum_fn_per_frame"], rollout.sum_fn_per_frame)
    np.testing.assert_array_equal(metrics["stab_force_per_frame"], np.abs(rollout.stab_force))
    assert reference["generation_mode"] == "rollout"
    assert {"height_kp": 60.0, "height_kd": 10.0, "force_cap": 4.0}.items() <= reference["harness_params"].items()
    assert reference["source_file"] == "walk.pkl"
    assert reference["robot"] == "wildrobot"
    assert reference["joint_names"] == list(Robot.load("wildrobot").joint_names)
    assert reference["generator_version"] == rollout.recipe.generator_version
    assert reference["generation_timestamp"].endswith("T00:00:00Z")


def test_the_bytes_do_not_depend_on_the_day(walk: Score, export: Path) -> None:
    target = io.BytesIO()
    walk.export(target)
    assert target.getvalue() == export.read_bytes()


@pytest.mark.parametrize(("change", "match"), [("drop", "features"), ("cut", "shape"), ("text", "not JSON")])
def test_an_export_that_is_not_what_meta_says_is_refused(export: Path, tmp_path: Path, change: str, match: str) -> None:
    arrays = dict(np.load(export))
    if change == "drop":
        del arrays["features"]
    elif change == "cut":
        arrays["features"] = arrays["features"][:-1]
    else:
        arrays[META] = np.frombuffer(b"{", np.uint8)
    write_npz(tmp_path / "bad.npz", arrays)
    with pytest.raises((IntegrityError, NotFound)) as refused:
        amp_core.read_reference(tmp_path / "bad.npz")
    assert match in str(refused.value)


def test_an_older_export_has_no_meta(export: Path, tmp_path: Path) -> None:
    arrays = dict(np.load(export))
    del arrays[META]
    write_npz(tmp_path / "old.npz", arrays)
    with pytest.raises(NotFound):
        amp_core.read_reference(tmp_path / "old.npz")


def test_meta_may_be_a_text(export: Path, tmp_path: Path) -> None:
    arrays = dict(np.load(export))
    arrays[META] = np.array(arrays[META].tobytes().decode())
    write_npz(tmp_path / "text.npz", arrays)
    assert read_meta(tmp_path / "text.npz") == read_meta(export)
    assert set(FORCE_ARRAYS) <= set(read_meta(tmp_path / "text.npz")["quality_metrics"])
