"""Rows of an export."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amp_core import frames as module
from amp_core.errors import InputRefused, IntegrityError
from amp_core.frames import frame_arrays, select_frames, slice_frames
from amp_core.npz import locate_arrays, write_npz

ROWS = 7


def make_arrays() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "features": rng.normal(size=(ROWS, 5)).astype(np.float32),
        "qpos": rng.normal(size=(ROWS, 9)),
        "initial_qpos": rng.normal(size=ROWS),
        "reference_contacts": rng.random((ROWS, 2)) > 0.5,
        "sum_fn_per_frame": rng.normal(size=ROWS),
        "clip_frames": np.array(ROWS),
    }


@pytest.fixture
def export(tmp_path: Path) -> Path:
    write_npz(tmp_path / "export.npz", make_arrays())
    return tmp_path / "export.npz"


def read(path: Path, *query: Any, **options: Any) -> dict[str, Any]:
    with open(path, "rb") as file:
        data = slice_frames(file, select_frames(locate_arrays(file, path), *query, **options))
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)


def test_rows_are_those_of_the_export(export: Path) -> None:
    arrays = make_arrays()
    window = read(export, None, 2, 5)
    assert list(window) == ["features", "qpos", "reference_contacts", "sum_fn_per_frame"]
    for name, rows in window.items():
        assert rows.dtype == arrays[name].dtype
        np.testing.assert_array_equal(rows, arrays[name][2:5])
    assert list(read(export, ["sum_fn_per_frame", "qpos", "qpos"])) == ["sum_fn_per_frame", "qpos"]
    assert read(export, ["qpos"], 7, 7)["qpos"].shape == (0, 9)


def test_floats_in_single_precision_and_nothing_else(export: Path) -> None:
    arrays = make_arrays()
    window = read(export, None, 0, None, dtype="float32")
    assert {name: rows.dtype.name for name, rows in window.items()} == {
        "features": "float32",
        "qpos": "float32",
        "reference_contacts": "bool",
        "sum_fn_per_frame": "float32",
    }
    np.testing.assert_array_equal(window["qpos"], arrays["qpos"].astype(np.float32))


def test_an_array_that_is_as_long_by_chance_has_no_row_a_frame(export: Path) -> None:
    with open(export, "rb") as file:
        assert "initial_qpos" not in frame_arrays(locate_arrays(file, export))


@pytest.mark.parametrize(
    ("query", "key", "words"),
    [
        ((["qpso"],), "arrays", "'qpso'"),
        ((["clip_frames"],), "arrays", "features, qpos, reference_contacts, sum_fn_per_frame"),
        ((None, 3, 8), "stop", "7 frames"),
        ((None, 4, 3), "start", "rows 4 to 3"),
        ((None, 9, None), "start", "0 <= start <= stop <= 7"),
        ((None, -1, None), "start", "rows -1 to 7"),
    ],
)
def test_what_there_is_not_is_named(export: Path, query: Any, key: str, words: str) -> None:
    with pytest.raises(InputRefused) as caught:
        read(export, *query)
    assert caught.value.key == key
    assert words in str(caught.value)


def test_a_window_is_bounded_and_says_what_fits(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WINDOW_BYTES", 3 * 72)
    monkeypatch.setattr(module, "_CHUNK", 100)
    with pytest.raises(InputRefused, match="3 rows of these arrays"):
        read(export, ["qpos"])
    np.testing.assert_array_equal(read(export, ["qpos"], 1, 4)["qpos"], make_arrays()["qpos"][1:4])


def test_what_is_no_export_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.npz"
    write_npz(path, {"weights": np.zeros(3)})
    with pytest.raises(IntegrityError, match="no export"):
        read(path)
    np.savez_compressed(path, qpos=np.zeros((3, 2)))
    with pytest.raises(IntegrityError, match="compressed"):
        read(path)
    np.savez(path, qpos=np.asfortranarray(np.zeros((3, 2))))
    with pytest.raises(IntegrityError, match="column-major"):
        read(path)
    path.write_bytes(b"PK" + bytes(400))
    with pytest.raises(IntegrityError, match="cannot be read"):
        read(path)


def test_a_file_that_is_cut_is_refused(export: Path) -> None:
    with open(export, "rb") as file:
        window = select_frames(locate_arrays(file, export), ["sum_fn_per_frame"])
    cut = io.BytesIO(export.read_bytes()[: window.arrays["sum_fn_per_frame"].offset + 8])
    with pytest.raises(IntegrityError, match="ends before"):
        slice_frames(cut, window)
