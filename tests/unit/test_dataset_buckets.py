"""Versions that hold clips in several physics: the manifest's buckets, and what the client makes of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from amp_core.client import Dataset, load_dataset
from amp_core.dataset import Bundle, Member, RobotFacts, lock_bundle
from amp_core.errors import RecipeRefused
from amp_core.features import FeatureLayout

JOINTS = ("knee",)
LAYOUT = FeatureLayout.for_robot(JOINTS, ("foot",))
ROBOT = RobotFacts("hopper", "sha256:" + "0" * 64, JOINTS, 0.02, LAYOUT)
SLIPPERY, HEAVY = {"friction": 0.7}, {"friction": 1.0, "mass": 1.1, "damping": 1.0}


def sha(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def member(name: str, physics: dict[str, float] | None = None, frames: int = 20, **changes: Any) -> Member:
    rows = np.random.default_rng(list(f"{name} {physics}".encode())).normal(size=(frames, LAYOUT.dim)).astype(np.float32)
    facts: dict[str, Any] = {
        "name": name,
        "digest": sha(name),
        "tier": 0,
        "mode": "tracked",
        "recipe_digest": sha(f"{physics}"),
        "ranges": ((0, frames),),
        "quality_metrics": {},
        "load": lambda: rows,
        "physics": physics,
        "gates": ({"name": "slip", "value": 1.0, "threshold": 0.5, "passed": physics != SLIPPERY},),
    }
    return Member(**(facts | changes))


def lock(members: list[Member], folder: Path) -> Bundle:
    folder.mkdir()
    return lock_bundle(
        members, folder, name="hop", version="1.0.0", robot=ROBOT, mujoco_version="4.0.1", gate_profile="amp-0.11"
    )


def manifest_of(bundle: Bundle) -> dict[str, Any]:
    return json.loads(bundle.manifest.path.read_bytes())  # type: ignore[no-any-return]


def members() -> list[Member]:
    """Two clips in the robot's own physics, in slippery and in heavy ones, where one gives two windows; a variant."""
    return [
        member("a"),
        member("a", SLIPPERY),
        member("b"),
        member("b", SLIPPERY, tier=-1, ranges=((0, 8), (12, 20)), range_tiers=(0, 0)),
        member("b", HEAVY, frames=30),
        member("c", HEAVY),
        member("a+mirror", SLIPPERY, lineage=sha("a"), parent=sha("a"), augmentation="mirror"),
    ]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return lock(members(), tmp_path / "locked")


def load(bundle: Bundle, cache: Path) -> Dataset:
    def answer(request: httpx2.Request) -> httpx2.Response:
        file = request.url.path.rpartition("/")[2]
        if file == "1.0.0":
            return httpx2.Response(200, json={"version": "1.0.0", "manifest_sha256": bundle.manifest.sha256})
        [found] = [item for item in bundle.files if item.name == file]
        return httpx2.Response(200, stream=httpx2.ByteStream(found.path.read_bytes()))

    return load_dataset("hop==1.0.0", url="http://test", cache_dir=cache, transport=httpx2.MockTransport(answer))


@pytest.fixture
def data(bundle: Bundle, tmp_path: Path) -> Dataset:
    return load(bundle, tmp_path / "cache")


def test_a_bucket_has_its_rows_with_their_hash_and_statistics(bundle: Bundle) -> None:
    manifest = manifest_of(bundle)
    features = np.load(bundle.features.path)["features"]
    owner = np.load(bundle.features.path)["clip_index"]
    buckets = manifest["buckets"]
    assert [bucket["name"] for bucket in buckets] == ["canonical", "friction=0.7", "mass=1.1"]
    assert buckets[1]["physics"] == {"friction": 0.7, "mass": 1.0, "damping": 1.0}
    assert [bucket["num_clips"] for bucket in buckets] == [2, 3, 2]
    assert [bucket["num_segments"] for bucket in buckets] == [2, 4, 2]
    for index, bucket in enumerate(buckets):
        rows = np.concatenate([np.arange(start, end) for start, end in bucket["rows"]])
        of_clips = [manifest["clips"][clip]["bucket"] == index for clip in owner]
        assert np.array_equal(rows, np.flatnonzero(of_clips))
        mine = features[rows]
        assert bucket["num_frames"] == len(mine)
        assert bucket["dataset_hash"] == "sha256:" + hashlib.sha256(np.ascontiguousarray(mine).tobytes()).hexdigest()
        figures = bucket["statistics"]
        assert set(figures) == {"mean", "std", "min", "max", "clip_low", "clip_high"}
        np.testing.assert_allclose(figures["mean"], mine.astype(np.float64).mean(0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(figures["std"], mine.astype(np.float64).std(0), rtol=1e-12)
        np.testing.assert_array_equal(figures["max"], mine.max(0).astype(np.float64))
    assert sum(bucket["num_frames"] for bucket in buckets) == manifest["num_frames"] == len(features)
    assert buckets[1]["gates"] == {
        "clips_by_tier": {"0": 2, "-1": 1},
        "frames_by_tier": {"0": 56},
        "clips_failed_by_gate": {"slip": 3},
    }
    for clip in manifest["clips"]:
        assert clip["physics"] == buckets[clip["bucket"]]["physics"]


def test_the_versions_own_statistics_are_over_all_rows(bundle: Bundle, tmp_path: Path) -> None:
    """The rows decide, and not how they are divided: the same ones in one bucket have the same statistics."""
    alone = lock([dataclasses.replace(one, physics=None) for one in members()], tmp_path / "alone")
    assert bundle.normalization_stats.path.read_bytes() == alone.normalization_stats.path.read_bytes()
    assert bundle.dataset_hash == alone.dataset_hash


def test_the_order_of_the_members_does_not_matter(bundle: Bundle, tmp_path: Path) -> None:
    again = lock(members()[::-1], tmp_path / "again")
    for one, other in zip(bundle.files, again.files, strict=True):
        assert one.path.read_bytes() == other.path.read_bytes()


def test_a_version_of_the_robots_own_physics_has_one_bucket(tmp_path: Path) -> None:
    bundle = lock([member("a"), member("b", {"mass": 1.0})], tmp_path / "own")
    manifest, stats = manifest_of(bundle), json.loads(bundle.normalization_stats.path.read_bytes())
    [bucket] = manifest["buckets"]
    assert (bucket["name"], bucket["rows"], bucket["dataset_hash"]) == ("canonical", [[0, 40]], bundle.dataset_hash)
    assert bucket["statistics"] == {key: stats[key] for key in bucket["statistics"]}
    assert bucket["gates"] == manifest["gates"]


def test_physics_that_no_recipe_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeRefused):
        lock([member("a", {"friction": 0.0})], tmp_path / "none")


def test_the_client_gives_a_buckets_rows_and_statistics(data: Dataset) -> None:
    assert [bucket.name for bucket in data.buckets] == ["canonical", "friction=0.7", "mass=1.1"]
    slippery = data.bucket("friction=0.7")
    assert slippery is data.buckets[1]
    assert repr(slippery) == "<DatasetBucket friction=0.7 of hop==1.0.0: 56 frames, 3 clips>"
    assert slippery.physics == {"friction": 0.7, "mass": 1.0, "damping": 1.0}
    assert {data.manifest["clips"][clip]["physics"]["friction"] for clip in slippery.clips} == {0.7}
    np.testing.assert_array_equal(slippery.features, data.features[slippery.rows])
    np.testing.assert_allclose(slippery.stats["mean"], slippery.features.astype(np.float64).mean(0), atol=1e-12)
    # One discriminator sees every bucket, so all are normalized alike.
    np.testing.assert_array_equal(slippery.normalize(slippery.features), data.normalize(slippery.features))
    with pytest.raises(KeyError, match=r"canonical, friction=0\.7, mass=1\.1"):
        data.bucket("friction=0.9")


@pytest.mark.parametrize("weighted", [True, False])
def test_sampling_from_a_bucket(data: Dataset, weighted: bool) -> None:
    there = {row.tobytes() for row in data.bucket("mass=1.1").features}
    assert len(there) == 50
    rng = np.random.default_rng(0)
    drawn = data.sample(rng, 2000, weighted=weighted, bucket="mass=1.1")
    assert {row.tobytes() for row in drawn} == there
    before, after = data.sample_transitions(rng, 500, weighted=weighted, bucket="mass=1.1")
    assert {row.tobytes() for row in np.concatenate((before, after))} <= there
    place = {row.tobytes(): i for i, row in enumerate(data.features)}
    for s, t in zip(before, after, strict=True):
        assert place[t.tobytes()] == place[s.tobytes()] + 1
    with pytest.raises(KeyError, match="no bucket"):
        data.sample(rng, 1, bucket="mass=2")
    with pytest.raises(TypeError):
        data.sample(rng, "many", bucket="mass=1.1")  # type: ignore[arg-type]


def test_a_clips_buckets_stay_together_in_a_split(data: Dataset) -> None:
    for seed in range(8):
        train, rest = data.split((0.5, 0.5), seed=seed)
        names = [{data.manifest["clips"][clip]["name"].partition("+")[0] for clip in part.clips} for part in (train, rest)]
        assert not names[0] & names[1]
        assert names[0] | names[1] == {"a", "b", "c"}
        for part in (train, rest):
            for bucket in data.buckets:
                both = sorted(set(part.clips) & set(bucket.clips))
                if not both:
                    with pytest.raises(ValueError, match="no clip in the bucket"):
                        part.bucket(bucket.name)
                    continue
                inside = part.bucket(bucket.name)
                assert list(inside.clips) == both
                assert set(inside.lineages) <= set(part.lineages)
                drawn = part.sample(np.random.default_rng(0), 50, bucket=bucket.name)
                assert {row.tobytes() for row in drawn} <= {row.tobytes() for row in inside.features}


def test_a_version_from_before_there_were_buckets_still_loads(data: Dataset, tmp_path: Path) -> None:
    manifest = {key: value for key, value in data.manifest.items() if key != "buckets"}
    manifest["clips"] = [
        {key: value for key, value in clip.items() if key not in ("bucket", "physics")} for clip in manifest["clips"]
    ]
    old = tmp_path / "manifest.json"
    old.write_text(json.dumps(manifest))
    loaded = Dataset(dataclasses.replace(data.pulled, manifest=old))
    assert loaded.buckets == ()
    rng = np.random.default_rng(0)
    assert loaded.sample(rng, 10).shape == (10, LAYOUT.dim)
    assert len(loaded.split((0.5, 0.5))) == 2
    with pytest.raises(KeyError, match="before buckets were recorded"):
        loaded.sample(rng, 10, bucket="canonical")
