"""A loaded version: normalization, sampling, transitions."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from amp_core.client import STD_FLOOR, Dataset, load_dataset
from amp_core.dataset import Bundle, Member, RobotFacts, lock_bundle
from amp_core.errors import IntegrityError
from amp_core.features import FeatureLayout
from amp_core.npz import write_npz

JOINTS = ("knee",)
LAYOUT = FeatureLayout.for_robot(JOINTS, ("foot",))
LENGTHS = (5, 1, 9, 2)


def lock(folder: Path) -> Bundle:
    """Four clips of one segment each. The first feature numbers the rows, the last one is the contact."""
    folder.mkdir()

    def rows(index: int) -> np.ndarray:
        made = np.random.default_rng(index).normal(size=(LENGTHS[index], LAYOUT.dim)).astype(np.float32)
        made[:, 0] = np.arange(LENGTHS[index]) + sum(LENGTHS[:index])
        made[:, LAYOUT.block("root_height").slice] = 0.5
        # Nearly always on, so that off is more than three deviations away.
        made[:, LAYOUT.block("foot_contacts").slice] = 0.0 if index == 1 else 1.0
        return made

    members = [
        Member(
            name=f"clip{index}",
            digest="sha256:" + hashlib.sha256(b"%d" % index).hexdigest(),
            tier=0,
            mode="rollout",
            recipe_digest="sha256:" + "1" * 64,
            ranges=((0, length),),
            quality_metrics={},
            load=lambda index=index: rows(index),
        )
        for index, length in enumerate(LENGTHS)
    ]
    robot = RobotFacts("hopper", "sha256:" + "0" * 64, JOINTS, 0.02, LAYOUT)
    return lock_bundle(
        members, folder, name="hop", version="1.0.0", robot=robot, mujoco_version="4.0.1", gate_profile="amp-0.11"
    )


def service(bundle: Bundle) -> httpx2.MockTransport:
    """As much of the API as the client relies on."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        file = request.url.path.rpartition("/")[2]
        if file == "1.0.0":
            return httpx2.Response(200, json={"version": "1.0.0", "manifest_sha256": bundle.manifest.sha256})
        found = [item for item in bundle.files if item.name == file]
        if not found:
            return httpx2.Response(404)
        return httpx2.Response(200, stream=httpx2.ByteStream(found[0].path.read_bytes()))

    return httpx2.MockTransport(answer)


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    bundle = lock(tmp_path / "locked")
    return load_dataset("hop==1.0.0", url="http://test", cache_dir=tmp_path / "cache", transport=service(bundle))


def reweighted(data: Dataset, folder: Path, weights: Callable[[np.ndarray], np.ndarray]) -> Dataset:
    """The same rows with other weights, as a later rule might set them."""
    return with_array(data, folder, "sample_weight", weights(np.arange(len(data))))


def with_array(data: Dataset, folder: Path, key: str, values: np.ndarray) -> Dataset:
    """The same version with another array, as a service may have locked it."""
    with np.load(data.pulled.features) as archive:
        arrays = dict(archive)
    arrays[key] = values.astype(arrays[key].dtype)
    write_npz(folder / "other.npz", arrays)
    return Dataset(dataclasses.replace(data.pulled, shards=(folder / "other.npz",)))


def test_it_says_what_it_is(data: Dataset) -> None:
    assert repr(data) == "<Dataset hop==1.0.0: 17 frames of 10 features, 4 clips>"
    assert (len(data), data.dim, data.layout) == (17, 10, LAYOUT.to_dict())
    assert data.block("root_lin_vel") == LAYOUT.block("root_lin_vel").slice
    with pytest.raises(KeyError, match="joint_pos, joint_vel"):
        data.block("nothing")


def test_normalized_rows_have_mean_0_and_deviation_1(data: Dataset) -> None:
    normal = data.normalize(data.features)
    height = data.block("root_height")
    varying = np.ones(data.dim, bool)
    varying[height] = False
    np.testing.assert_allclose(normal.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(normal.std(0)[varying], 1, rtol=1e-5)
    assert normal.dtype == np.float32
    np.testing.assert_allclose(data.denormalize(normal), data.features, atol=1e-5)


def test_a_constant_feature_is_0_and_a_deviation_from_it_is_finite(data: Dataset) -> None:
    height = data.block("root_height")
    assert np.asarray(data.stats["std"])[height] == 0.0
    assert (data.normalize(data.features)[:, height] == 0).all()
    fallen = np.array(data.features[0])
    fallen[height] = 0.4
    assert data.normalize(fallen)[height] == pytest.approx(-0.1 / STD_FLOOR, rel=1e-4)


def test_clipping_limits_everything_but_contacts(data: Dataset) -> None:
    far = np.full((2, 3, data.dim), 100.0)
    far[..., data.block("foot_contacts")] = 0.0
    clipped, free = data.normalize(far, clip=True), data.normalize(far)
    contacts = data.block("foot_contacts")
    others = np.delete(clipped, np.arange(data.dim)[contacts], axis=-1)
    assert (others == 3.0).all()
    assert (clipped[..., contacts] == free[..., contacts]).all()
    assert (free[..., contacts] < -3).all()


@pytest.mark.parametrize("shape", [(), (9,), (10, 2)])
def test_other_shapes_are_refused(data: Dataset, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected 10 features"):
        data.normalize(np.zeros(shape))


def test_samples_are_rows_and_repeat_with_the_seed(data: Dataset) -> None:
    drawn = data.sample(np.random.default_rng(3), 500)
    assert drawn.shape == (500, data.dim)
    assert set(drawn[:, 0].astype(int)) == set(range(17))
    assert np.array_equal(drawn, data.features[drawn[:, 0].astype(int)])
    assert np.array_equal(drawn, data.sample(np.random.default_rng(3), 500))
    drawn[:] = 0  # A copy: the mapped rows stay as they are.
    assert data.features[5, 0] == 5


@pytest.mark.parametrize("draw", ["sample", "sample_transitions"])
@pytest.mark.parametrize(
    ("n", "refused", "said"),
    [
        (0, ValueError, "n is 0; expected 1 to 268,435,456 rows"),
        (-3, ValueError, "n is -3; expected 1 to"),
        (10**12, ValueError, "n is 1000000000000; expected 1 to"),
        (10**500, ValueError, "n is far more; expected 1 to"),
        (4.0, TypeError, "n is 4.0; expected a whole number of rows"),
        (True, TypeError, "n is True; expected a whole number"),
        (None, TypeError, "n is None; expected a whole number"),
        ((3, 2), TypeError, "n is a tuple; expected a whole number"),
    ],
)
def test_a_number_of_rows_that_is_none_is_refused(
    data: Dataset, draw: str, n: object, refused: type[Exception], said: str
) -> None:
    with pytest.raises(refused, match=said):
        getattr(data, draw)(np.random.default_rng(0), n)


@pytest.mark.parametrize("draw", ["sample", "sample_transitions"])
@pytest.mark.parametrize("rng", [0, None, np.random, np.random.RandomState(0)])
def test_what_is_no_generator_is_refused(data: Dataset, draw: str, rng: object) -> None:
    with pytest.raises(TypeError, match=r"rng is .*; expected a numpy Generator, such as numpy\.random\.default_rng"):
        getattr(data, draw)(rng, 4)


def test_any_integer_type_is_a_number_of_rows(data: Dataset) -> None:
    assert data.sample(np.random.default_rng(0), np.int32(3)).shape == (3, data.dim)  # type: ignore[arg-type]


def test_transitions_are_consecutive_frames_of_one_segment(data: Dataset) -> None:
    first, second = data.sample_transitions(np.random.default_rng(0), 2000)
    pairs = set(zip(first[:, 0].astype(int).tolist(), second[:, 0].astype(int).tolist(), strict=True))
    assert pairs == {(row, row + 1) for row in range(16) if data.segment_index[row] == data.segment_index[row + 1]}
    assert len(pairs) == sum(length - 1 for length in LENGTHS)


def test_weights_decide_what_is_drawn(data: Dataset, tmp_path: Path) -> None:
    """Weight on rows 2, 3, 4 (the last of its segment) and 16 (the last of all): two of them begin a transition."""
    weighted = reweighted(data, tmp_path, lambda row: np.isin(row, (3, 4, 16)) + 3.0 * (row == 2))
    rows = weighted.sample(np.random.default_rng(0), 4000)[:, 0].astype(int)
    counts = np.bincount(rows, minlength=17)
    assert set(np.flatnonzero(counts)) == {2, 3, 4, 16}
    assert counts[2] / counts[3] == pytest.approx(3, rel=0.2)
    first, second = weighted.sample_transitions(np.random.default_rng(0), 4000)
    assert set(first[:, 0].astype(int)) == {2, 3}
    assert (second[:, 0] == first[:, 0] + 1).all()


def test_weights_can_be_left_out(data: Dataset, tmp_path: Path) -> None:
    weighted = reweighted(data, tmp_path, lambda row: (row == 2) + 0.0)
    for draw in ("sample", "sample_transitions"):
        drawn = getattr(weighted, draw)(np.random.default_rng(5), 300, weighted=False)
        # What a version without weights gives, draw by draw.
        assert np.array_equal(drawn, getattr(data, draw)(np.random.default_rng(5), 300))
        assert len(np.unique(np.asarray(drawn)[..., 0])) > 10


def test_rows_are_drawn_evenly(data: Dataset) -> None:
    counts = np.bincount(data.sample(np.random.default_rng(1), 17_000)[:, 0].astype(int), minlength=17)
    assert (abs(counts - 1000) < 200).all()


def related(data: Dataset, lineages: list[str]) -> Dataset:
    for clip, lineage in zip(data.manifest["clips"], lineages, strict=True):
        clip["lineage"] = lineage
    return data


@pytest.mark.parametrize("seed", range(8))
def test_a_split_keeps_a_clip_and_its_variants_together(data: Dataset, seed: int) -> None:
    related(data, ["a", "b", "a", "c"])
    parts = data.split((0.6, 0.4), seed=seed)
    assert not set(parts[0].lineages) & set(parts[1].lineages)
    assert sorted(clip for part in parts for clip in part.clips) == [0, 1, 2, 3]
    assert all(len(part) and ({0, 2} <= set(part.clips) or not {0, 2} & set(part.clips)) for part in parts)
    assert np.array_equal(np.sort(np.concatenate([part.rows for part in parts])), np.arange(len(data)))
    again = data.split((0.6, 0.4), seed=seed)
    assert [part.clips for part in again] == [part.clips for part in parts]
    for part in parts:
        drawn = part.sample(np.random.default_rng(0), 200)[:, 0]
        assert set(drawn) <= set(part.features[:, 0])
        if any(LENGTHS[clip] > 1 for clip in part.clips):
            first, second = part.sample_transitions(np.random.default_rng(0), 200)
            assert np.array_equal(second[:, 0], first[:, 0] + 1)
            assert set(first[:, 0]) | set(second[:, 0]) <= set(part.features[:, 0])


def test_the_seed_decides_a_split(data: Dataset) -> None:
    assert len({data.split((0.5, 0.5), seed=seed)[0].clips for seed in range(20)}) > 1


def test_a_split_that_cannot_be_is_refused(data: Dataset) -> None:
    for fractions in ((0.5, 0.6), (), (1.0, 0.0), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="add up to 1"):
            data.split(fractions)
    with pytest.raises(ValueError, match="1 lineage groups, too few for 2 parts"):
        related(data, ["a"] * 4).split((0.5, 0.5))


def test_a_manifest_from_before_lineage_has_originals_alone(data: Dataset) -> None:
    for clip in data.manifest["clips"]:
        clip.pop("lineage", None)
    assert len(data.split((0.25,) * 4)) == 4


@pytest.mark.parametrize("key", ["mean", "std", "min", "max", "clip_low", "clip_high"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda values: 5, "the value 5"),
        (lambda values: None, "the value null"),
        (lambda values: "0123456789", 'the value "0123456789"'),
        (lambda values: dict.fromkeys("0123456789", 1.0), "the value {"),
        (lambda values: values[:-1], "a list of 9"),
        (lambda values: [*values[:-1], None], "the value null"),
        (lambda values: [*values[:-1], "1"], 'the value "1"'),
        (lambda values: [*values[:-1], True], "the value true"),
        (lambda values: [*values[:-1], [1.0]], r"the value \[1\.0\]"),
        (lambda values: [*values[:-1], 1e39], r"the value 1e\+39"),
    ],
)
def test_statistics_that_are_no_numbers_are_refused(
    data: Dataset, tmp_path: Path, key: str, change: Callable[[list[float]], Any], words: str
) -> None:
    stats = tmp_path / "stats.json"
    stats.write_text(json.dumps(data.stats | {key: change(data.stats[key])}))
    with pytest.raises(IntegrityError, match=rf"key '{key}': {words}.* in this file of hop.* expected 10 finite numbers"):
        Dataset(dataclasses.replace(data.pulled, normalization_stats=stats))


def test_a_negative_deviation_is_refused(data: Dataset, tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    stats.write_text(json.dumps(data.stats | {"std": [-1.0, *data.stats["std"][1:]]}))
    with pytest.raises(IntegrityError, match=r"the value -1\.0 .* expected 10 finite numbers from 0 on"):
        Dataset(dataclasses.replace(data.pulled, normalization_stats=stats))


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (np.nan, "a weight of nan"),
        (np.inf, "a weight of inf"),
        (-np.inf, "a weight of -inf"),
        (-1.0, r"a weight of -1\.0"),
    ],
)
def test_weights_that_cannot_be_drawn_by_are_refused(data: Dataset, tmp_path: Path, weight: float, words: str) -> None:
    with pytest.raises(IntegrityError, match=rf"key 'sample_weight': {words}.* expected finite numbers from 0 on"):
        reweighted(data, tmp_path, lambda row: np.where(row == 7, weight, 1.0))


def test_weights_that_draw_nothing_are_refused(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="a weight of 0 for every row"):
        reweighted(data, tmp_path, lambda row: 0.0 * row)


@pytest.mark.parametrize("key", ["segment_index", "clip_index"])
@pytest.mark.parametrize(
    ("change", "row"),
    [
        (lambda index: index[::-1], 0),
        (lambda index: 0 * index, 5),
        (lambda index: index + 1, 0),
        (lambda index: -index, 5),
        (lambda index: np.roll(index, -1), 4),
        (lambda index: np.where(np.arange(17) == 16, 1 << 30, index), 16),
    ],
)
def test_indices_that_are_not_those_of_the_manifest_are_refused(
    data: Dataset, tmp_path: Path, key: str, change: Callable[[np.ndarray], np.ndarray], row: int
) -> None:
    with pytest.raises(IntegrityError, match=rf"key '{key}': -?\d+ in row {row} .* expected \d, as in the manifest"):
        with_array(data, tmp_path, key, change(np.array(getattr(data, key))))


@pytest.mark.parametrize("end", [-5, 0, 4, 10**25])
def test_a_manifest_whose_segments_are_not_its_rows_is_refused(data: Dataset, tmp_path: Path, end: int) -> None:
    data.manifest["clips"][0]["segments"][0]["end"] = end
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps(data.manifest))
    with pytest.raises(IntegrityError, match=r"key 'clips': segments of others .* expected segments of 17 frames together"):
        Dataset(dataclasses.replace(data.pulled, manifest=manifest))
