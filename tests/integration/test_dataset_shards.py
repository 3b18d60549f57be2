"""Features in several files: the same rows, mapped as one array, and no way to take a part for the whole."""

from __future__ import annotations

import gc
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasetkit import make_bundle

from amp_core.dataset import Bundle, shard_names
from amp_core.errors import IntegrityError
from amp_core.npz import ALIGNMENT, PAGE_ALIGNMENT, NpzWriter, mmap_member, mmap_shards, write_npz

KEYS = ("features", "clip_index", "segment_index", "sample_weight")
SHARD = 700_000
"""Bytes; at most 8,192 rows of this layout."""


def lock(folder: Path, **options: Any) -> Bundle:
    """24,995 rows; so many that 700 kB are reached several times."""
    return make_bundle(folder, **{"clips": 5, "frames": 5_000, "version": "1.0.0", **options})


def manifest_of(bundle: Bundle) -> dict[str, Any]:
    return json.loads(bundle.manifest.path.read_bytes())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return lock(tmp_path_factory.mktemp("whole") / "out")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return lock(tmp_path_factory.mktemp("large") / "out", shard_bytes=SHARD)


def test_shards_hold_the_same_rows_as_one_file(whole: Bundle, large: Bundle) -> None:
    assert [file.name for file in large.shards] == [f"features_v1.0.0-0000{i}-of-00004.npz" for i in (1, 2, 3, 4)]
    assert all(file.size <= SHARD for file in large.shards)
    paths = [file.path for file in large.shards]
    for key in KEYS:
        expected = mmap_member(whole.features.path, key)
        array = mmap_shards(paths, key)
        assert (array.dtype, array.flags.writeable) == (expected.dtype, False)
        assert np.array_equal(array, expected), key
        assert np.array_equal(np.concatenate([np.load(path)[key] for path in paths]), expected), "numpy reads each of them"
    assert whole.dataset_hash == large.dataset_hash
    assert whole.normalization_stats.sha256 == large.normalization_stats.sha256


def test_the_manifest_pins_each_shard_and_says_which_rows_it_has(whole: Bundle, large: Bundle) -> None:
    manifest = manifest_of(large)
    assert manifest["schema"] == "ampref-dataset-manifest/2"
    entry = manifest["files"]["features"]
    assert entry["size"] == sum(file.size for file in large.shards)
    for shard, file in zip(entry["shards"], large.shards, strict=True):
        assert (shard["name"], shard["size"]) == (file.name, file.size)
        assert shard["sha256"] == "sha256:" + hashlib.sha256(file.path.read_bytes()).hexdigest()
        start, end = shard["rows"]
        assert len(mmap_member(file.path, "features")) == end - start
    assert [shard["rows"] for shard in entry["shards"]] == [[0, 8192], [8192, 16384], [16384, 24576], [24576, 24995]]
    rest = {key: value for key, value in manifest.items() if key not in ("files", "schema")}
    single = manifest_of(whole)
    assert single["schema"] == "ampref-dataset-manifest/1", "what a reader of one file knows"
    assert rest == {key: value for key, value in single.items() if key not in ("files", "schema")}


def test_the_same_members_give_the_same_shards(large: Bundle, tmp_path: Path) -> None:
    again = lock(tmp_path / "out", shard_bytes=SHARD)
    assert [file.sha256 for file in again.files] == [file.sha256 for file in large.files]


def test_no_shard_of_an_earlier_build_stays_beside_the_new_files(tmp_path: Path) -> None:
    lock(tmp_path / "out", shard_bytes=SHARD)
    strangers = ["features_v1.0.01.npz", "features_v1.0.0-rc.1.npz", "features_v1.0.0-00001-of-00002.npz.bak"]
    for name in strangers:
        (tmp_path / "out" / name).touch()
    for options in ({"clips": 3, "shard_bytes": SHARD}, {}, {"shard_bytes": SHARD}):
        bundle = lock(tmp_path / "out", **options)
        names = sorted([*(file.name for file in bundle.files), *strangers])
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


def test_one_shard_is_not_taken_for_the_features(large: Bundle) -> None:
    with pytest.raises(ValueError, match="in 4 shards"):
        _ = large.features


def test_the_mapping_lives_as_long_as_a_view_of_it_and_no_longer(tmp_path: Path) -> None:
    paths = write_parts(tmp_path, 4096, 4096, 100)
    view = mmap_shards(paths, "x")[4000:4200]
    gc.collect()
    assert np.array_equal(view[:, 0], np.arange(4000, 4200))
    assert count_maps(tmp_path) > 0
    del view
    gc.collect()
    assert count_maps(tmp_path) == 0


@pytest.mark.parametrize(("alignment", "rows"), [(ALIGNMENT, (4096, 100)), (PAGE_ALIGNMENT, (1000, 100))])
def test_parts_that_cannot_be_mapped_behind_each_other_are_read(tmp_path: Path, alignment: int, rows: tuple[int, ...]) -> None:
    array = mmap_shards(write_parts(tmp_path, *rows, alignment=alignment), "x")
    assert np.array_equal(array[:, 0], np.arange(sum(rows)))
    assert not array.flags.writeable
    assert count_maps(tmp_path) == 0


def test_parts_of_different_arrays_are_refused(tmp_path: Path) -> None:
    (first,) = write_parts(tmp_path, 4096)
    write_npz(second := tmp_path / "second.npz", {"x": np.zeros((5, 9), np.float32)})
    with pytest.raises(IntegrityError, match=re.escape("member 'x' does not continue that of part0.npz")):
        mmap_shards([first, second], "x")


def test_names_of_shards() -> None:
    assert shard_names("states_v1.0.0-rc.1.npz", 1) == ("states_v1.0.0-rc.1.npz",)
    assert shard_names("states_v1.0.0-rc.1.npz", 12)[11] == "states_v1.0.0-rc.1-00012-of-00012.npz"


def test_each_clip_is_a_line_of_the_manifest(whole: Bundle) -> None:
    lines = [line.strip().rstrip(b",") for line in whole.manifest.path.read_bytes().splitlines()]
    clips = [json.loads(line) for line in lines if line.startswith(b'{"augmentation"')]
    assert clips == manifest_of(whole)["clips"]
    assert [clip["name"] for clip in clips] == [f"clip{i}" for i in range(5)]


def write_parts(folder: Path, *rows: int, alignment: int = PAGE_ALIGNMENT) -> list[Path]:
    """Archives with a column of consecutive numbers, so many in each."""
    paths, first = [], 0
    for number, count in enumerate(rows):
        paths.append(folder / f"part{number}.npz")
        with NpzWriter(paths[-1], alignment=alignment) as writer:
            writer.add("x", np.arange(first, first + count, dtype=np.float32)[:, None].repeat(8, axis=1))
        first += count
    return paths


def count_maps(folder: Path) -> int:
    """How many parts of files in the folder this process has mapped."""
    return Path("/proc/self/maps").read_text().count(str(folder))
