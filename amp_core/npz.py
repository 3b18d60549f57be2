"""Deterministic `.npz` archives that can be memory-mapped.

`numpy.savez` stamps the day into every member and puts the data wherever it falls. An archive written here is the same
bytes for the same arrays on any day and machine, any numpy reads it with `allow_pickle=False`, and the data of every member
starts on a 64-byte boundary of the file, so that an array can be mapped instead of read.

Members are stored, not deflated; the alignment is made by padding each local header's extra field; members and archives over
2 GiB use ZIP64. Arrays are little-endian and C-contiguous, whatever the memory layout they came from.
"""

from __future__ import annotations

import ctypes
import io
import math
import mmap
import os
import struct
import sys
import tokenize
import weakref
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from amp_core.errors import InputRefused, IntegrityError, NotFound

__all__ = [
    "ALIGNMENT",
    "ARCHIVE_FAULTS",
    "PAGE_ALIGNMENT",
    "NpzWriter",
    "StoredArray",
    "locate_arrays",
    "mmap_member",
    "mmap_shards",
    "write_npz",
]

ALIGNMENT = 64
"""Bytes. A cache line, and what numpy itself pads a `.npy` header to."""

PAGE_ALIGNMENT = 1 << 14
"""Bytes. A multiple of the pages of x86-64 (4 KiB) and of ARM machines with 4 or 16 KiB: data on such boundaries, and of such a
length, can be mapped behind that of another file."""

# Booleans, integers, floats, complex numbers, bytes and text: everything with a fixed size that needs no pickle.
_KINDS = "biufcSU"

_ENCRYPTED, _UTF8_NAME = 0x1, 0x800
_LOCAL_HEADER = 30  # Bytes, without the name and the extra field.
_ZIP64_EXTRA = 20  # Bytes that zipfile appends to the extra field of a large member.
_PAD_ID = 0xD935  # "alignment" in the zip world; readers skip extra fields that they do not know.
_PAD_MIN = 6  # Bytes: id, size, the alignment as uint16.
_MAX_HEADER = 10_000  # Characters of a .npy header; ours have 118, numpy refuses longer ones as well.
_CHUNK = 8 << 20

ARCHIVE_FAULTS = (
    *(zipfile.BadZipFile, struct.error, NotImplementedError, EOFError, OSError),
    *(ValueError, TypeError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError, OverflowError),
)
"""What zipfile and numpy raise for damaged bytes; a member's name that is not UTF-8 is a `ValueError`."""


def write_npz(target: str | os.PathLike[str] | BinaryIO, arrays: Mapping[str, ArrayLike]) -> None:
    """Write `arrays` as one archive, in the mapping's order.

    Args:
      target: a path, or a seekable binary file at the place where the archive begins.
      arrays: name to array; any shape; numbers, booleans or fixed-size text. Object arrays are refused (`InputRefused`).
    """
    with NpzWriter(target) as writer:
        for name, array in arrays.items():
            writer.add(name, array)


class NpzWriter:
    """Writes one archive, member by member, and the rows of a member as they come.

        with NpzWriter(path) as writer:
            writer.begin("features", (10_000, 27), np.float32)
            for rows in source:
                writer.write(rows)
            writer.add("clip_index", clip_index)

    Memory stays at one chunk. The archive is complete when the block ends; if the block raises, a file that the writer opened
    itself is removed.

    Args:
      alignment: bytes; the data of every member begins on a multiple of it. At most 32 KiB, a power of two.
    """

    def __init__(self, target: str | os.PathLike[str] | BinaryIO, *, alignment: int = ALIGNMENT) -> None:
        self._alignment = alignment
        self._path = Path(target) if isinstance(target, (str, os.PathLike)) else None
        self._archive = zipfile.ZipFile(target, "w")
        self._member: _Member | None = None

    def add(self, name: str, array: ArrayLike) -> None:
        """Write one whole array as member `name`."""
        values = np.asarray(array)
        self.begin(name, values.shape, values.dtype)
        self.write(values)

    def begin(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        """Start member `name`; its rows follow by `write`.

        Args:
          name: the array's name, without `.npy`.
          shape: of the whole array.
          dtype: of the elements; stored little-endian.
        """
        self._end_member()
        file_name = f"{name}.npy"
        if not name or name != name.strip() or any(c in name for c in "/\\:\0") or file_name in self._archive.namelist():
            raise ValueError(f"not a member name, or a second member of that name: {name!r}")
        stored_dtype = _stored_dtype(name, np.dtype(dtype))
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": stored_dtype.str, "fortran_order": False, "shape": shape})
        large = header.tell() + math.prod(shape) * stored_dtype.itemsize > zipfile.ZIP64_LIMIT
        # The padding counts the ZIP64 field in every member, so that the data's offset does not depend on the member's size.
        fixed_size = self._archive.start_dir + _LOCAL_HEADER + len(file_name.encode()) + _ZIP64_EXTRA + _PAD_MIN
        # The header of a .npy is a multiple of 64 bytes as well.
        fixed_size += header.tell() % self._alignment
        pad = _PAD_MIN + -fixed_size % self._alignment + (0 if large else _ZIP64_EXTRA)
        info = zipfile.ZipInfo(file_name)  # Of 1980-01-01, the earliest day that a zip can hold.
        info.create_system = 3  # Unix, whose permissions are in the high half of the attributes.
        info.external_attr = 0o100644 << 16
        info.extra = struct.pack("<HHH", _PAD_ID, pad - 4, self._alignment) + bytes(pad - _PAD_MIN)
        stream = self._archive.open(info, "w", force_zip64=large)
        info.flag_bits |= _UTF8_NAME  # zipfile writes the local header once more when the stream is closed.
        stream.write(header.getvalue())
        self._member = _Member(name, info, stream, shape, stored_dtype)

    def write(self, rows: ArrayLike) -> None:
        """Append rows, shape (k, …), to the member that was begun; an array without rows (shape `()`) is written whole."""
        member = self._member
        if member is None:
            raise ValueError("begin a member before writing to it")
        values = np.asarray(rows)
        if _stored_dtype(member.name, values.dtype) != member.dtype:
            raise ValueError(f"member {member.name!r} holds {member.dtype}, not {values.dtype}")
        if values.shape[1:] != member.shape[1:] or values.ndim != len(member.shape):
            raise ValueError(f"member {member.name!r} has shape {member.shape}; rows of shape {values.shape} do not fit")
        values = np.atleast_1d(values)
        member.rows += len(values)
        step = max(1, _CHUNK // max(1, values[:1].nbytes))
        # Conversion to little-endian C order happens a bounded piece at a time, so that it costs no second copy of the array.
        for first in range(0, len(values), step):
            piece = np.ascontiguousarray(values[first : first + step], dtype=member.dtype)
            member.stream.write(piece.reshape(-1).view(np.uint8).data)

    def __enter__(self) -> NpzWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        complete = False
        try:
            try:
                if kind is None:
                    self._end_member()
                elif self._member is not None:
                    self._member.stream.close()
            finally:
                self._archive.close()
            complete = kind is None
        finally:
            if self._path is not None and not complete:
                self._path.unlink()

    def _end_member(self) -> None:
        member, self._member = self._member, None
        if member is None:
            return
        member.stream.close()
        member.info.extra = b""  # The archive's directory needs no padding.
        expected = member.shape[0] if member.shape else 1
        if member.rows != expected:
            raise ValueError(f"member {member.name!r} was begun with {expected} rows and got {member.rows}")


@dataclass
class _Member:
    """A member that is being written."""

    name: str
    info: zipfile.ZipInfo
    stream: IO[bytes]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    rows: int = 0


def mmap_member(path: str | os.PathLike[str], name: str) -> NDArray[Any]:
    """One array of an archive, read-only and memory-mapped (`numpy.memmap`): its pages are read when they are touched.

    The member's checksum is not verified here: compare the file's digest. An array without elements cannot be mapped and comes
    back as an ordinary, empty one. Text is read once, since numpy fails on characters that do not exist.

    Raises:
      FileNotFoundError: no such file.
      NotFound: no such member; the error lists what there is.
      IntegrityError: the file is not an archive, or the member is compressed, truncated or not an array.
    """
    path = Path(path)
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                files = {info.filename: info for info in archive.infolist()}
            if f"{name}.npy" not in files:
                names = ", ".join(sorted(file.removesuffix(".npy") for file in files))
                raise NotFound("there is no such array", file=str(path), key=name, expected=f"one of {names}")
            shape, fortran, dtype, offset = _read_header(path, file, files[f"{name}.npy"], os.fstat(file.fileno()).st_size)
            if 0 in shape:
                empty = np.empty(shape, dtype)
                empty.flags.writeable = False
                return empty
            array = np.memmap(file, dtype=dtype, mode="r", offset=offset, shape=shape, order="F" if fortran else "C")
            if dtype.kind == "U":
                code_points = np.memmap(file, np.dtype("u4").newbyteorder(dtype.byteorder), "r", offset, array.nbytes // 4)
                if code_points.max() > sys.maxunicode:
                    raise _archive_error(path, f"member {name!r} is not text")
            return array
        except ARCHIVE_FAULTS as error:
            raise _archive_error(path, str(error) or type(error).__name__) from error


@dataclass(frozen=True)
class StoredArray:
    """An array of an archive: its shape, its dtype and the offset of its data in the file, in bytes. It is row-major."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int


def locate_arrays(file: BinaryIO, path: Path) -> dict[str, StoredArray]:
    """Where the arrays of an archive are in a seekable file, in the archive's order. Nothing of their data is read.

    Args:
      path: what errors call the file.

    Raises:
      IntegrityError: the file is not an archive, or a member is compressed, truncated, column-major or not an array.
    """
    arrays = {}
    try:
        size = file.seek(0, os.SEEK_END)
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                shape, fortran, dtype, offset = _read_header(path, file, info, size)
                if fortran and len(shape) > 1:
                    raise _archive_error(path, f"member {info.filename!r} is column-major")
                arrays[info.filename.removesuffix(".npy")] = StoredArray(shape, dtype, offset)
    except ARCHIVE_FAULTS as error:
        raise _archive_error(path, str(error) or type(error).__name__) from error
    return arrays


def mmap_shards(paths: Sequence[str | os.PathLike[str]], name: str) -> NDArray[Any]:
    """One array whose rows lie in several archives, one after the other; read-only.

    The files are mapped behind each other, so that nothing is read before it is touched. Where that cannot be done (another
    alignment than `PAGE_ALIGNMENT`, larger pages, no POSIX), the array is read into memory.

    Raises: as `mmap_member`, and
      IntegrityError: the arrays of the files do not fit together.
    """
    parts = [mmap_member(path, name) for path in paths]
    if len(parts) == 1:
        return parts[0]
    for path, part in zip(paths, parts, strict=True):
        if (
            part.ndim == 0
            or (part.shape[1:], part.dtype) != (parts[0].shape[1:], parts[0].dtype)
            or not part.flags.c_contiguous
        ):
            raise _archive_error(Path(path), f"member {name!r} does not continue that of {Path(paths[0]).name}")
    array = _map_behind_each_other(parts)
    if array is None:
        array = np.concatenate(parts)
        array.flags.writeable = False
    return array


_MAP_FIXED = 0x10  # On Linux and macOS alike; Python's mmap does not name it.


def _map_behind_each_other(parts: Sequence[NDArray[Any]]) -> NDArray[Any] | None:
    """The memory-mapped arrays as one, by mapping their files anew; None where that cannot be done."""
    page = mmap.ALLOCATIONGRANULARITY
    offsets = [part.offset for part in parts if isinstance(part, np.memmap)]
    is_aligned = all(offset % page == 0 for offset in offsets) and all(part.nbytes % page == 0 for part in parts[:-1])
    if os.name != "posix" or len(offsets) < len(parts) or not is_aligned:
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    failure = ctypes.c_void_p(-1).value
    size = sum(part.nbytes for part in parts)
    start = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if start == failure:
        return None
    address = start
    for part, offset in zip(parts, offsets, strict=True):
        with open(part.filename, "rb") as file:  # type: ignore[attr-defined]
            flags = mmap.MAP_SHARED | _MAP_FIXED
            if libc.mmap(address, part.nbytes, mmap.PROT_READ, flags, file.fileno(), offset) == failure:
                libc.munmap(start, size)
                return None
        address += part.nbytes
    mapping = _Mapping()
    mapping.__array_interface__ = {
        "data": (start, True),
        "shape": (sum(len(part) for part in parts), *parts[0].shape[1:]),
        "typestr": parts[0].dtype.str,
        "version": 3,
    }
    # At the exit of the interpreter, others may still read.
    weakref.finalize(mapping, libc.munmap, start, size).atexit = False
    return np.asarray(mapping)


class _Mapping:
    """Owns mapped memory, as the base of the array over it."""

    __array_interface__: dict[str, Any]


def _stored_dtype(name: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.hasobject or dtype.names is not None or dtype.subdtype is not None or dtype.kind not in _KINDS:
        raise InputRefused(
            f"an array of {dtype} cannot be stored without pickle",
            key=name,
            expected="numbers, booleans or fixed-size text",
            remedy="Convert it first, for example with numpy.asarray(values, dtype=float).",
        )
    return dtype.newbyteorder("<")


def _read_header(
    path: Path, file: BinaryIO, info: zipfile.ZipInfo, length: int
) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """A stored member's shape, whether it is column-major, its dtype and the offset of its data in the file, in bytes.

    The sizes that the file declares must agree with each other and with the `length` of the file.
    """
    name = info.filename.removesuffix(".npy")
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & _ENCRYPTED:
        raise _archive_error(path, f"member {name!r} is compressed or encrypted; only a stored one can be mapped")
    file.seek(info.header_offset)
    name_length, extra_length = struct.unpack("<26x2H", file.read(_LOCAL_HEADER))
    start = file.seek(name_length + extra_length, os.SEEK_CUR)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file, max_header_size=_MAX_HEADER)
    if dtype.hasobject or dtype.kind not in _KINDS:
        raise _archive_error(path, f"member {name!r} holds {dtype}, which would need pickle")
    if not dtype.itemsize or any(size < 0 for size in shape):
        raise _archive_error(path, f"member {name!r} declares an array of {dtype} in shape {shape}")
    offset, size = file.tell(), math.prod(shape) * dtype.itemsize
    if start + info.file_size != offset + size or offset + size > length:
        raise _archive_error(path, f"member {name!r} declares {size} bytes of data that are not there")
    return shape, fortran, dtype, offset


def _archive_error(path: Path, reason: str) -> IntegrityError:
    return IntegrityError(
        f"the archive cannot be read ({reason})",
        file=str(path),
        expected="an .npz of plain arrays",
        remedy="Delete the file and make or download it again.",
    )
