"""Archives: numpy reads them, they map, their bytes depend on the arrays alone."""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amp_core.errors import InputRefused, IntegrityError, NotFound
from amp_core.npz import ALIGNMENT, NpzWriter, mmap_member, read_npz, write_npz

ARRAYS = {
    "features": np.arange(12, dtype=np.float32).reshape(4, 3),
    "scalar": np.array(3.5),
    "names": np.array(["left_knee", "b"]),
    "empty": np.zeros((0, 27), np.float32),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big_endian": np.arange(3, dtype=">i4"),
    "strided": np.arange(20, dtype=np.int16)[::3],
    "flags": np.array([True, False]),
}

DIGEST = "67fe94c6cf7229079c64c32860207d86f51cd62bdae4b538de1619b245e1121d"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "a.npz"
    write_npz(path, ARRAYS)
    return path


def same(left: np.ndarray, right: np.ndarray) -> bool:
    return left.shape == right.shape and left.dtype == right.dtype.newbyteorder("<") and bool((left == right).all())


def test_numpy_reads_it_without_pickle(archive: Path) -> None:
    with np.load(archive, allow_pickle=False) as loaded:
        assert list(loaded) == list(ARRAYS)
        assert all(same(loaded[name], array) for name, array in ARRAYS.items())
    assert zipfile.ZipFile(archive).testzip() is None


def test_read_and_map_give_the_arrays_back(archive: Path) -> None:
    read = read_npz(archive)
    for name, array in ARRAYS.items():
        mapped = mmap_member(archive, name)
        assert same(read[name], array)
        assert same(mapped, array)
        assert not mapped.flags.writeable
    assert list(read_npz(archive, ["scalar"])) == ["scalar"]


def test_member_data_is_aligned_in_the_file(archive: Path) -> None:
    offsets = [mmap_member(archive, name).offset for name, array in ARRAYS.items() if array.size]  # type: ignore[attr-defined]
    assert offsets
    assert all(offset % ALIGNMENT == 0 for offset in offsets)


def test_the_bytes_depend_on_the_arrays_alone(archive: Path, tmp_path: Path) -> None:
    other = tmp_path / "b.npz"
    write_npz(other, {name: np.array(array, order="F") for name, array in ARRAYS.items()})
    assert other.read_bytes() == archive.read_bytes()
    assert {info.date_time for info in zipfile.ZipFile(archive).infolist()} == {(1980, 1, 1, 0, 0, 0)}


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, 50), max_size=6))
def test_rows_may_come_in_any_pieces(cuts: list[int]) -> None:
    rows = np.arange(150, dtype=np.float32).reshape(50, 3)
    whole, pieces = io.BytesIO(), io.BytesIO()
    write_npz(whole, {"x": rows})
    with NpzWriter(pieces) as writer:
        writer.begin("x", (50, 3), np.float32)
        for piece in np.split(rows, sorted(cuts)):
            writer.write(piece)
    assert pieces.getvalue() == whole.getvalue()


def test_an_archive_may_begin_inside_a_file() -> None:
    target = io.BytesIO()
    target.write(b"prefix")
    write_npz(target, {"x": np.arange(3)})
    assert zipfile.ZipFile(target).testzip() is None


def test_the_bytes_are_those_of_every_release(archive: Path) -> None:
    """Digests of archives stand in manifests and catalogs: a writer with other bytes is another generator version."""
    assert hashlib.sha256(archive.read_bytes()).hexdigest() == DIGEST


def test_what_a_block_raises_comes_out_and_leaves_no_file(tmp_path: Path) -> None:
    def fail() -> None:
        with NpzWriter(tmp_path / "a.npz") as writer:
            writer.begin("x", (2,), np.float32)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_the_operating_systems_error() -> None:
    with open("/dev/full", "r+b", buffering=0) as full, pytest.raises(OSError, match="No space"):
        write_npz(full, ARRAYS)


@pytest.mark.parametrize("array", [np.array([{}], object), np.zeros(2, [("a", "f4")]), np.zeros(1, "M8[s]")])
def test_what_needs_pickle_is_refused_and_nothing_is_left(array: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="without pickle"):
        write_npz(tmp_path / "a.npz", {"x": array})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "a/b", "..\\a", "C:a", "a\0"])
def test_names_that_are_paths_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="member name"):
        write_npz(tmp_path / "a.npz", {name: np.zeros(1)})


def test_writing_what_was_not_declared_is_refused() -> None:
    with NpzWriter(io.BytesIO()) as writer:
        writer.begin("x", (2, 3), np.float32)
        with pytest.raises(ValueError, match="do not fit"):
            writer.write(np.zeros((1, 4), np.float32))
        with pytest.raises(ValueError, match="float64"):
            writer.write(np.zeros((1, 3)))
        writer.write(np.zeros((1, 3), np.float32))
        with pytest.raises(ValueError, match="begun with 2 rows and got 1"):
            writer.begin("y", (1,), np.float32)


def test_a_missing_member_lists_what_there_is(archive: Path) -> None:
    with pytest.raises(NotFound, match="big_endian, empty, features"):
        mmap_member(archive, "nothing")
    with pytest.raises(NotFound, match="big_endian, empty, features"):
        read_npz(archive, ["nothing"])


def test_a_flipped_bit_is_found_by_reading(archive: Path) -> None:
    data = bytearray(archive.read_bytes())
    data[mmap_member(archive, "features").offset] ^= 1  # type: ignore[attr-defined]
    archive.write_bytes(data)
    with pytest.raises(IntegrityError, match="CRC"):
        read_npz(archive)


@pytest.mark.parametrize("keep", [0, 10, 200, -1])
def test_truncated_archives_are_refused(archive: Path, keep: int) -> None:
    archive.write_bytes(archive.read_bytes()[:keep])
    with pytest.raises(IntegrityError, match="cannot be read"):
        read_npz(archive)
    with pytest.raises(IntegrityError, match="cannot be read"):
        mmap_member(archive, "features")


def test_a_header_that_declares_more_than_there_is_allocates_nothing(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 40,)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as lying:
        lying.writestr("x.npy", header.getvalue() + b"\0" * 64)
    for read in (read_npz, lambda path: mmap_member(path, "x")):
        with pytest.raises(IntegrityError, match="declares"):
            read(tmp_path / "a.npz")


def test_pickled_members_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{}], object))
    with pytest.raises(IntegrityError, match="pickle"):
        read_npz(tmp_path / "a.npz")
    with pytest.raises(IntegrityError, match="pickle"):
        mmap_member(tmp_path / "a.npz", "x")


def test_compressed_archives_are_read_and_not_mapped(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.arange(1000))
    assert (read_npz(tmp_path / "a.npz")["x"] == np.arange(1000)).all()
    with pytest.raises(IntegrityError, match="compressed"):
        mmap_member(tmp_path / "a.npz", "x")


def test_members_and_archives_over_the_limit_of_zip_get_zip64_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is lowered, so that no 2 GiB are written."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1 << 12)
    path = tmp_path / "big.npz"
    arrays = {"x": np.arange(1000.0), "y": np.arange(3), "z": np.arange(2000.0)}
    write_npz(path, arrays)
    data = path.read_bytes()
    for size in (8 * 1000 + 128, 8 * 2000 + 128):
        assert data.count(struct.pack("<QQ", size, size)) == 2, "the size stands in the local header and in the directory"
    assert b"PK\x06\x06" in data
    with np.load(path, allow_pickle=False) as loaded:
        assert all(same(loaded[name], array) for name, array in arrays.items())
    for name, array in arrays.items():
        mapped = mmap_member(path, name)
        assert same(mapped, array)
        assert mapped.offset % ALIGNMENT == 0  # type: ignore[attr-defined]
        assert same(read_npz(path, [name])[name], array)
