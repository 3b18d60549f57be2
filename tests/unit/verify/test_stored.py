"""Clips as they are stored: read when they are asked for, and not a moment longer."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pytest

from amp_core.errors import IntegrityError
from amp_core.npz import write_npz
from amp_core.verify import Subject
from amp_core.verify.stored import StoredArrays, stored_clip


def stored(sound: Subject, folder: Path, count: int) -> list[StoredArrays]:
    for number in range(count):
        with open(folder / f"{number}.npz", "wb") as file:
            write_npz(file, dict(sound.clips[0].arrays))
    return [StoredArrays(folder / f"{number}.npz") for number in range(count)]


def test_a_large_version_holds_no_file_open(sound: Subject, tmp_path: Path) -> None:
    """A process may have about a thousand files open; a version may have more clips than that, of a dozen arrays each."""
    gc.collect()  # What earlier tests left open.
    before = len(os.listdir("/proc/self/fd"))
    found = stored(sound, tmp_path, 20)
    held = [arrays[key] for arrays in found for key in arrays]
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(held) == 20 * len(sound.clips[0].arrays)
    for key, array in sound.clips[0].arrays.items():
        np.testing.assert_array_equal(found[7][key], array)
    with pytest.raises(ValueError, match="read-only"):
        found[0]["features"][0] = 0.0
    with pytest.raises(KeyError):
        found[0]["none"]


def test_an_archive_that_is_none_is_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"no archive")
    with pytest.raises(IntegrityError, match="cannot be read") as error:
        StoredArrays(tmp_path / "a.npz")
    assert "Score the clip again" in (error.value.remedy or "")


def test_windows_are_judged_by_their_worst_tier(sound: Subject, tmp_path: Path) -> None:
    path = tmp_path / "0.npz"
    stored(sound, tmp_path, 1)
    clip = sound.clips[0]
    reading = {"format": None}
    made = stored_clip(
        name="a", tier=-1, recipe=clip.recipe.to_dict(), attempt=0, arrays=path, ranges=[(0, 10, 0), (12, 30, 1)],
        source=None, source_digest="sha256:0", reading=reading,
    )  # fmt: skip
    assert made.tier == 1
    assert made.recipe == clip.recipe
    assert made.motion is None
    np.testing.assert_array_equal(
        made.version_features, np.concatenate([clip.arrays["features"][0:10], clip.arrays["features"][12:30]])
    )
