"""Locking: names, statistics, and three files whose bytes depend on what was locked alone."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from amp_core.dataset import (
    BLOCK_SIZE,
    Bundle,
    ColumnStats,
    Member,
    RobotFacts,
    block_digests,
    check_alias,
    check_dataset_name,
    check_version,
    file_names,
    lock_bundle,
)
from amp_core.errors import DiskFull, InputRefused, IntegrityError, PhysicsFailed
from amp_core.features import FeatureLayout, feature_code_hash
from amp_core.files import partial_path
from amp_core.npz import mmap_member
from amp_core.strict_json import canonical_json
from amp_core.version import GENERATOR_RELEASE_DATE

JOINTS = ("left_knee", "right_knee")
LAYOUT = FeatureLayout.for_robot(JOINTS, ("left_foot", "right_foot"))
ROBOT = RobotFacts("stick", "sha256:" + "0" * 64, JOINTS, 0.02, LAYOUT)


def member(name: str, frames: int = 30, ranges: Any = None, **changes: Any) -> Member:
    rows = np.random.default_rng([*name.encode(), frames]).normal(size=(frames, LAYOUT.dim)).astype(np.float32)
    facts: dict[str, Any] = {
        "name": name,
        "digest": "sha256:" + hashlib.sha256(name.encode()).hexdigest(),
        "tier": 0,
        "mode": "rollout",
        "recipe_digest": "sha256:" + "1" * 64,
        "ranges": ranges or ((0, frames),),
        "quality_metrics": {"mean_sum_fn_over_mg": np.float64(0.9), "fell_at_frame": None},
        "load": lambda: rows,
        "gates": ({"name": "upright", "value": 1.0, "threshold": 0.5, "passed": name != "b"},),
    }
    return Member(**(facts | changes))


def lock(members: list[Member], folder: Path, **changes: Any) -> Bundle:
    folder.mkdir(exist_ok=True)
    facts: dict[str, Any] = {
        "name": "walk",
        "version": "0.11.0",
        "robot": ROBOT,
        "mujoco_version": "4.0.1",
        "gate_profile": "amp-0.11",
        "select": {"tier": 0},
    }
    return lock_bundle(members, folder, **(facts | changes))


MEMBERS: list[Callable[[], Member]] = [
    lambda: member("a", 40, ((5, 15), (20, 40))),
    lambda: member("b", 12),
    lambda: member("c", 50, ((49, 50),)),
]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return lock([make() for make in MEMBERS], tmp_path / "out")


def stats_of(bundle: Bundle) -> dict[str, Any]:
    return json.loads(bundle.normalization_stats.path.read_bytes())  # type: ignore[no-any-return]


def manifest_of(bundle: Bundle) -> dict[str, Any]:
    return json.loads(bundle.manifest.path.read_bytes())  # type: ignore[no-any-return]


def test_the_three_files_have_the_seeds_names_and_match_their_records(bundle: Bundle, tmp_path: Path) -> None:
    assert sorted(os.listdir(tmp_path / "out")) == [
        "dataset_manifest_v0.11.0.json",
        "features_v0.11.0.npz",
        "normalization_stats_v0.11.0.json",
    ]
    for file in bundle.files:
        data = file.path.read_bytes()
        assert (file.name, file.size) == (file.path.name, len(data))
        assert file.sha256 == "sha256:" + hashlib.sha256(data).hexdigest()


def test_rows_are_the_selected_frames_in_the_members_order(bundle: Bundle) -> None:
    a, b, c = (make().load() for make in MEMBERS)
    path = bundle.features.path
    expected = np.concatenate([a[5:15], a[20:40], b, c[49:50]])
    features = mmap_member(path, "features")
    assert features.dtype == np.float32
    assert np.array_equal(features, expected)
    assert np.array_equal(mmap_member(path, "clip_index"), np.repeat([0, 1, 2], [30, 12, 1]))
    assert np.array_equal(mmap_member(path, "segment_index"), np.repeat([0, 1, 2, 3], [10, 20, 12, 1]))
    assert np.array_equal(mmap_member(path, "sample_weight"), np.ones(43))
    assert [mmap_member(path, key).dtype for key in ("clip_index", "segment_index", "sample_weight")] == ["i4", "i4", "f4"]


def test_dataset_hash_is_what_the_docs_tell_users_to_compute(bundle: Bundle) -> None:
    rows = np.load(bundle.features.path)["features"]
    expected = "sha256:" + hashlib.sha256(np.ascontiguousarray(rows, dtype="<f4").tobytes()).hexdigest()
    assert bundle.dataset_hash == expected
    assert stats_of(bundle)["dataset_hash"] == manifest_of(bundle)["dataset_hash"] == expected


def test_statistics_have_the_seeds_keys_and_agree_with_numpy(bundle: Bundle) -> None:
    stats = stats_of(bundle)
    assert set(stats) == {
        *("version", "dataset_hash", "feature_code_hash", "generation_date", "num_clips", "num_frames"),
        *("mean", "std", "min", "max", "clip_low", "clip_high", "clips"),
    }
    rows = np.load(bundle.features.path)["features"].astype(np.float64)
    for key, value in {
        "mean": rows.mean(0),
        "std": rows.std(0),
        "min": rows.min(0),
        "max": rows.max(0),
        "clip_low": rows.mean(0) - 3 * rows.std(0),
        "clip_high": rows.mean(0) + 3 * rows.std(0),
    }.items():
        np.testing.assert_allclose(stats[key], value, rtol=1e-12, atol=1e-12)
    assert stats["clips"] == [{"name": n, "tier": 0, "frames": f} for n, f in (("a", 30), ("b", 12), ("c", 1))]
    assert (stats["num_clips"], stats["num_frames"]) == (3, 43)
    assert stats["feature_code_hash"] == feature_code_hash()


def test_the_manifest_says_what_the_contract_lists(bundle: Bundle) -> None:
    manifest = manifest_of(bundle)
    assert (manifest["name"], manifest["version"], manifest["num_segments"]) == ("walk", "0.11.0", 4)
    assert manifest["robot"] == {"name": "stick", "digest": ROBOT.digest, "control_dt": 0.02}
    assert manifest["joint_names"] == list(JOINTS)
    assert manifest["feature_layout"] == LAYOUT.to_dict()
    assert (manifest["mujoco_version"], manifest["gate_profile"], manifest["select"]) == ("4.0.1", "amp-0.11", {"tier": 0})
    assert manifest["gates"] == {
        "clips_by_tier": {"0": 3},
        "frames_by_tier": {"0": 43},
        "clips_failed_by_gate": {"upright": 1},
    }
    assert (manifest["waivers"], manifest["verification"]) == ([], None)
    features, stats = manifest["files"]["features"], manifest["files"]["normalization_stats"]
    assert (features["sha256"], features["size"]) == (bundle.features.sha256, bundle.features.size)
    assert (stats["sha256"], stats["size"]) == (bundle.normalization_stats.sha256, bundle.normalization_stats.size)
    assert features["blocks"]["digests"] == block_digests(bundle.features.path)
    clip = manifest["clips"][0]
    assert {"name", "digest", "tier", "mode", "recipe_digest", "frames", "quality_metrics"} < set(clip)
    alike = {"margins": {"load": 0.0, "slip": 0.0, "tilt": 0.0}, "weight": 1.0}
    assert clip["segments"] == [
        {"segment_index": 0, "start": 5, "end": 15, "row": 0, "tier": 0, **alike},
        {"segment_index": 1, "start": 20, "end": 40, "row": 10, "tier": 0, **alike},
    ]
    assert clip["quality_metrics"] == {"mean_sum_fn_over_mg": 0.9, "fell_at_frame": None}
    assert manifest["clips"][2]["segments"] == [{"segment_index": 3, "start": 49, "end": 50, "row": 42, "tier": 0, **alike}]


def test_a_good_window_of_a_rejected_clip_keeps_its_own_tier(tmp_path: Path) -> None:
    fell = member("fell", 40, ((5, 15), (20, 40)), tier=-1, range_tiers=(0, 1))
    bundle = lock([fell, member("good", 12)], tmp_path / "out")
    manifest = manifest_of(bundle)
    assert [segment["tier"] for clip in manifest["clips"] for segment in clip["segments"]] == [0, 1, 0]
    assert manifest["clips"][0]["tier"] == -1, "the whole clip is what it was"
    assert manifest["gates"]["clips_by_tier"] == {"-1": 1, "0": 1}
    assert manifest["gates"]["frames_by_tier"] == {"0": 22, "1": 20}
    assert [clip["tier"] for clip in stats_of(bundle)["clips"]] == [1, 0], "the worst of the frames that were taken"


@pytest.mark.parametrize("tiers", [(0,), (0, 0, 0), (0, 2)])
def test_tiers_that_do_not_fit_the_ranges_are_refused(tiers: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(InputRefused) as caught:
        lock([member("a", 40, ((5, 15), (20, 40)), range_tiers=tiers)], tmp_path / "out")
    assert caught.value.key == "range_tiers"


def test_the_same_members_give_the_same_bytes_in_any_order(bundle: Bundle, tmp_path: Path) -> None:
    again = lock([make() for make in reversed(MEMBERS)], tmp_path / "again")
    assert [file.sha256 for file in again.files] == [file.sha256 for file in bundle.files]


def test_nothing_in_the_files_tells_the_day_or_the_place(bundle: Bundle, tmp_path: Path) -> None:
    text = bundle.manifest.path.read_text() + bundle.normalization_stats.path.read_text()
    assert set(re.findall(r"\d{4}-\d\d-\d\d", text)) == {GENERATOR_RELEASE_DATE}
    assert str(tmp_path) not in text


def test_a_lock_after_a_killed_one_gives_the_same_files(bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    folder.mkdir()
    (folder / bundle.features.name).write_bytes(b"half")
    again = lock([make() for make in MEMBERS], folder)
    assert [file.sha256 for file in again.files] == [file.sha256 for file in bundle.files]


def broken(name: str) -> Member:
    rows = np.zeros((10, LAYOUT.dim), np.float32)
    rows[7, 2] = np.nan
    return member(name, 10, load=lambda: rows)


@pytest.mark.parametrize(
    ("members", "error", "words"),
    [
        (lambda: [], InputRefused, "holds no clip"),
        (lambda: [member("a"), member("a")], InputRefused, "comes twice"),
        (lambda: [member("a", ranges=((0, 5), (4, 6)))], InputRefused, r"\[4, 6\) after frame 5"),
        (lambda: [member("a", ranges=((3, 3),))], InputRefused, r"\[3, 3\)"),
        (lambda: [member("a", ranges=((-1, 3),))], InputRefused, r"\[-1, 3\)"),
        (lambda: [member("a", 10, ranges=((0, 11),))], IntegrityError, r"at least 11, 13"),
        (lambda: [member("a", load=lambda: np.zeros((30, LAYOUT.dim)))], IntegrityError, "float64"),
        (lambda: [member("a", load=lambda: np.zeros((30, 3), np.float32))], IntegrityError, r"\(30, 3\)"),
        (lambda: [member("a"), broken("z")], PhysicsFailed, r"frame 7.*joint_vel.left_knee.*'z'"),
        (lambda: [member("a", quality_metrics={"x": float("inf")})], PhysicsFailed, "metric of inf"),
    ],
)
def test_what_cannot_be_locked_is_refused_and_leaves_nothing(
    members: Callable[[], list[Member]], error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        lock(members(), tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []


def test_a_lock_that_fails_leaves_an_earlier_version_as_it_was(tmp_path: Path) -> None:
    earlier = lock([make() for make in MEMBERS], tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {file.name for file in earlier.files}
    with pytest.raises(PhysicsFailed):
        lock([member("a"), member("b", quality_metrics={"x": float("nan")})], tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_missing_folder_is_an_error_of_its_own_kind(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        lock_bundle(
            [member("a")],
            tmp_path / "file",
            name="walk",
            version="1.0.0",
            robot=ROBOT,
            mujoco_version="4.0.1",
            gate_profile="amp-0.11",
        )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "urandom", bytes)  # So that the partial file's name is known.
    partial_path(tmp_path / "features_v0.11.0.npz").symlink_to("/dev/full")
    with pytest.raises(DiskFull, match=r"cannot be written.*No space left"):
        lock([member("a", 3000)], tmp_path)
    assert os.listdir(tmp_path) == []


def test_progress_counts_frames_to_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    lock([make() for make in MEMBERS], tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(30, 43), (42, 43), (43, 43)]


def test_members_are_loaded_one_at_a_time(tmp_path: Path) -> None:
    """A member's frames can be freed before the next ones are asked for."""
    import weakref

    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def load() -> np.ndarray:
        nonlocal most
        rows = np.full((10, LAYOUT.dim), len(alive), np.float32)
        alive.append(weakref.ref(rows))
        most = max(most, sum(ref() is not None for ref in alive))
        return rows

    lock([member(f"clip{i}", 10, load=load) for i in range(20)], tmp_path / "out")
    assert len(alive) == 40  # They are as long as each other, so that they are compared first.
    assert most <= 2


# Statistics

COLUMNS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40)


@settings(max_examples=80, deadline=None)
@given(values=COLUMNS, cut=st.integers(0, 40), seed=st.integers(0, 9))
def test_statistics_do_not_depend_on_pieces_or_order(values: list[float], cut: int, seed: int) -> None:
    rows = np.array(values, np.float32)[:, None]
    whole, pieces = ColumnStats(1), ColumnStats(1)
    whole.add(rows)
    mixed = np.random.default_rng(seed).permutation(rows)
    pieces.add(mixed[:cut])
    pieces.add(mixed[cut:])
    assert canonical_json(whole.to_dict()) == canonical_json(pieces.to_dict())


@settings(max_examples=80, deadline=None)
@given(values=COLUMNS)
def test_statistics_are_the_nearest_floats_to_the_exact_ones(values: list[float]) -> None:
    from fractions import Fraction

    rows = np.array(values, np.float32)[:, None]
    stats = ColumnStats(1)
    stats.add(rows)
    exact = [Fraction(float(value)) for value in rows[:, 0]]
    mean = sum(exact) / len(exact)
    variance = sum((value - mean) ** 2 for value in exact) / len(exact)
    found = stats.to_dict()
    assert found["mean"] == [float(mean)]
    assert found["std"] == [math.sqrt(variance)]
    assert (found["min"], found["max"]) == ([float(rows.min())], [float(rows.max())])


def test_a_constant_column_has_no_deviation_at_all() -> None:
    stats = ColumnStats(1)
    stats.add(np.full((100_000, 1), 0.1, np.float32))
    found = stats.to_dict()
    assert found["std"] == [0.0]
    assert found["mean"] == found["clip_low"] == found["clip_high"] == [float(np.float32(0.1))]


def test_statistics_refuse_what_is_not_a_number() -> None:
    with pytest.raises(ValueError, match="NaN"):
        ColumnStats(1).add(np.array([[np.inf]], np.float32))
    with pytest.raises(ValueError, match="no rows"):
        ColumnStats(1).to_dict()


# Names and JSON


@pytest.mark.parametrize("name", ["walk", "a", "walk-flat.v2", "0", "a" * 64])
def test_dataset_names(name: str) -> None:
    assert check_dataset_name(name) == name


@pytest.mark.parametrize("name", ["", "Walk", ".a", "a.", "-a", "a..b", "a/b", "a b", "ä", "a" * 65, "a\n", "..", 3])
def test_bad_dataset_names(name: Any) -> None:
    with pytest.raises(InputRefused, match="not a dataset name"):
        check_dataset_name(name)


@pytest.mark.parametrize("version", ["0.11.0", "1.2.3-rc.1", "10.20.30", "1.0.0-2025-12-25"])
def test_versions(version: str) -> None:
    assert check_version(version) == version
    assert file_names(version).features == f"features_v{version}.npz"


@pytest.mark.parametrize(
    "version",
    [
        *("", "1", "1.2", "1.2.3.4", "01.2.3", "1.2.3-", "1.2.3-a..b", "1.2.3+x", "latest", "1.2.3/..", "1.2.3\n"),
        *("1.2.3-" + "a" * 60, None),
    ],
)
def test_bad_versions(version: Any) -> None:
    with pytest.raises(InputRefused, match="not a version"):
        check_version(version)


def test_a_version_with_a_v_is_told_how_to_write_it() -> None:
    with pytest.raises(InputRefused, match=r"Write 0\.11\.0, without the v"):
        check_version("v0.11.0")


@pytest.mark.parametrize("alias", ["latest", "production", "a-b"])
def test_aliases(alias: str) -> None:
    assert check_alias(alias) == alias


@pytest.mark.parametrize("alias", ["", "0.11.0", "1", "Latest", "a/b", "@a"])
def test_bad_aliases(alias: str) -> None:
    with pytest.raises(InputRefused, match="not an alias"):
        check_alias(alias)


def test_json_is_canonical() -> None:
    assert canonical_json({"b": 0.1, "a": ["ü", None]}) == '{\n  "a": [\n    "ü",\n    null\n  ],\n  "b": 0.1\n}\n'.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": float("nan")})


def test_blocks_cover_the_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * (BLOCK_SIZE + 1))
    expected = [blake3(part).hexdigest() for part in (b"x" * BLOCK_SIZE, b"x")]
    assert block_digests(path) == expected


# --- Identical members ----------------------------------------------------------------------------------------------------


def test_members_with_identical_features_count_once(tmp_path: Path) -> None:
    """A motion that was uploaded as two formats, or under two names, is one motion."""
    first = member("a", ranges=((0, 10), (12, 30)))
    copy = member("b", ranges=((0, 10), (12, 30)), load=first.load)
    other = member("c", ranges=((0, 10), (12, 30)))
    bundle = lock([copy, other, first], tmp_path)
    manifest = json.loads(bundle.manifest.path.read_bytes())
    entry = {"name": "b", "digest": copy.digest, "recipe_digest": copy.recipe_digest}
    original = {"name": "a", "digest": first.digest, "recipe_digest": first.recipe_digest}
    assert manifest["duplicates"] == list(bundle.duplicates) == [entry | {"of": original}]
    assert [clip["name"] for clip in manifest["clips"]] == ["a", "c"]
    assert (bundle.num_clips, bundle.num_frames, bundle.num_segments) == (2, 56, 4)
    (tmp_path / "alone").mkdir()
    alone = lock([first, other], tmp_path / "alone")
    assert (alone.dataset_hash, alone.normalization_stats.sha256) == (bundle.dataset_hash, bundle.normalization_stats.sha256)
    assert alone.features.sha256 == bundle.features.sha256
    assert alone.duplicates == ()


def test_other_frames_of_the_same_features_are_no_duplicate(tmp_path: Path) -> None:
    first = member("a", ranges=((0, 10),))
    assert lock([first, member("b", ranges=((10, 20),), load=first.load)], tmp_path).duplicates == ()
