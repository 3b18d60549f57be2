"""Archives: numpy reads them, they map, their bytes depend on the arrays alone."""

from __future__ import annotations

import contextlib
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
from amp_core.npz import ALIGNMENT, NpzWriter, mmap_member, write_npz

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


def test_mapping_gives_the_arrays_back(archive: Path) -> None:
    for name, array in ARRAYS.items():
        mapped = mmap_member(archive, name)
        assert same(mapped, array)
        assert not mapped.flags.writeable


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
    with pytest.raises(FileNotFoundError):
        mmap_member(archive.with_name("b.npz"), "features")


@pytest.mark.parametrize("keep", [0, 10, 200, -1])
def test_truncated_archives_are_refused(archive: Path, keep: int) -> None:
    archive.write_bytes(archive.read_bytes()[:keep])
    with pytest.raises(IntegrityError, match="cannot be read"):
        mmap_member(archive, "features")


def write_member(path: Path, member: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", member)
    return path


def npy(header: str, data: bytes = bytes(64)) -> bytes:
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header.encode() + data


def npy_of(descr: str, shape: tuple[int, ...], data: bytes = bytes(64)) -> bytes:
    return npy(f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}}}", data)


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (npy_of("<f8", (1 << 40,)), "declares"),
        (npy_of("<f8", (7,)), "declares"),
        (npy_of("<f8", (9,)), "declares"),
        (npy_of("<f8", (-1, -8)), "in shape"),
        (npy_of("<f8", (1,) * 70, bytes(8)), "dimension"),
        (npy_of("<U0", (0,), b""), "declares"),
        (npy_of("<U0", (5,), b""), "declares"),
        (npy_of("<S0", (5,), b""), "declares"),
        (npy_of("<U1", (16,), b"\xff" * 64), "not text"),
        (npy_of(">U1", (1,), b"\0\x11\0\0"), "not text"),
        (npy_of("<x9", (1,)), "cannot be read"),
        (npy("{'descr': '<f8', 'fortran_order': ("), "cannot be read"),
        (npy("[" * 9000), "cannot be read"),
        (npy("{'descr': '<f8'}"), "cannot be read"),
        (b"\x93NUMPY\x02\0" + struct.pack("<L", 1 << 31), "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_a_header_that_does_not_fit_its_data_is_refused(tmp_path: Path, member: bytes, reason: str) -> None:
    with pytest.raises(IntegrityError, match=reason):
        mmap_member(write_member(tmp_path / "a.npz", member), "x")


def test_numpys_column_major_arrays_are_mapped(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=ARRAYS["fortran"])
    assert same(mmap_member(tmp_path / "a.npz", "x"), ARRAYS["fortran"])


def test_text_may_have_every_character(tmp_path: Path) -> None:
    text = np.array([chr(0x10FFFF), "\N{GREEK SMALL LETTER ALPHA}", ""])
    write_npz(tmp_path / "a.npz", {"x": text})
    assert same(mmap_member(tmp_path / "a.npz", "x"), text)
    swapped = np.array(text, dtype=text.dtype.newbyteorder(">"))
    np.savez(tmp_path / "b.npz", x=swapped)
    assert (mmap_member(tmp_path / "b.npz", "x") == swapped).all()


def test_a_member_that_reaches_past_the_end_is_refused(tmp_path: Path) -> None:
    """Its sizes agree with each other; only the file ends earlier, as its directory stands where the data should."""
    path = write_member(tmp_path / "a.npz", npy_of("<f8", (8,)))
    data = path.read_bytes().replace(npy_of("<f8", (8,)), npy_of("<f8", (800,), bytes(64)))
    size = struct.pack("<LL", len(npy_of("<f8", (8,))), len(npy_of("<f8", (8,))))
    long = len(npy_of("<f8", (800,))) - 64 + 6400
    data = data.replace(size, struct.pack("<LL", long, long))
    end = data.rindex(b"PK\x05\x06")
    data = data[: end + 16] + struct.pack("<L", data.index(b"PK\x01\x02")) + data[end + 20 :]
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="6400 bytes of data that are not there"):
        mmap_member(path, "x")


def test_an_encrypted_member_is_refused(archive: Path) -> None:
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(data)
    with pytest.raises(IntegrityError, match="encrypted"):
        mmap_member(archive, "features")


@settings(max_examples=300, deadline=None)
@given(positions=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(1, 255)), min_size=1, max_size=3))
def test_damage_anywhere_is_an_integrity_error_or_an_array(
    tmp_path_factory: pytest.TempPathFactory, positions: list[tuple[int, int]]
) -> None:
    target = io.BytesIO()
    write_npz(target, {"x": np.array(["left_knee", "b"]), "y": np.arange(3)})
    data = bytearray(target.getvalue())
    for position, bits in positions:
        data[position % len(data)] ^= bits
    path = tmp_path_factory.mktemp("damage") / "a.npz"
    path.write_bytes(data)
    for name in ("x", "y"):
        with contextlib.suppress(IntegrityError, NotFound):
            mmap_member(path, name).tolist()


def test_pickled_members_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{}], object))
    with pytest.raises(IntegrityError, match="pickle"):
        mmap_member(tmp_path / "a.npz", "x")


def test_compressed_members_are_not_mapped(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.arange(1000))
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
