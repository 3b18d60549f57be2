"""Deterministic `.npz` archives that can be memory-mapped.

`numpy.savez` stamps the day into every member and puts the data wherever it falls. An archive written here is the same
bytes for the same arrays on any day and machine, any numpy reads it with `allow_pickle=False`, and the data of every member
starts on a 64-byte boundary of the file, so that an array can be mapped instead of read.

The container is a plain zip (PKWARE APPNOTE 6.3): members are stored, not deflated; the alignment is made by padding each
local header's extra field; sizes and checksum are written back into the local header once they are known; members and archives
over 4 GiB use ZIP64. Arrays are little-endian and C-contiguous, whatever the memory layout they came from.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from amp_core.errors import InputRefused, IntegrityError, NotFound

__all__ = ["ALIGNMENT", "NpzWriter", "mmap_member", "read_npz", "write_npz"]

ALIGNMENT = 64
"""Bytes. A cache line, and what numpy itself pads a `.npy` header to."""

# Booleans, integers, floats, complex numbers, bytes and text: everything with a fixed size that needs no pickle.
_KINDS = "biufcSU"

_DOS_EPOCH = (0, (1 << 5) | 1)  # 1980-01-01 00:00:00 as (time, date): the earliest moment that a zip can hold.
_UTF8_NAME = 0x800
_U32 = 0xFFFFFFFF
_U16 = 0xFFFF
_ZIP64_EXTRA = 20  # id, size, uncompressed size, compressed size
_PAD_ID = 0xD935  # "alignment" in the zip world; readers skip extra fields that they do not know.
_PAD_MIN = 6  # id, size, the alignment as uint16
_MAX_HEADER = 10_000  # characters of a .npy header; ours have 118, numpy refuses longer ones as well.
_CHUNK = 8 << 20


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
    """Writes one archive, member by member, and rows as they come.

        with NpzWriter(path) as writer:
            writer.begin("features", (None, 27), np.float32)   # the number of rows is not known yet
            for rows in source:
                writer.write(rows)
            writer.add("clip_index", clip_index)

    Memory stays at one chunk. If the block raises, a file that the writer opened itself is removed.
    """

    def __init__(self, target: str | os.PathLike[str] | BinaryIO) -> None:
        if isinstance(target, (str, os.PathLike)):
            self._path: Path | None = Path(target)
            self._file: BinaryIO = open(self._path, "wb")  # noqa: SIM115 (closed by close or __exit__)
        else:
            self._path = None
            self._file = target
        self._start = self._file.tell()
        self._position = self._start
        self._entries: list[_Entry] = []
        self._names: set[str] = set()
        self._open: _OpenMember | None = None
        self._closed = False

    def add(self, name: str, array: ArrayLike) -> None:
        """Write one whole array as member `name`."""
        values = np.asarray(array)
        self.begin(name, values.shape, values.dtype)
        self.write(values)
        self._end()

    def begin(self, name: str, shape: tuple[int | None, ...], dtype: DTypeLike) -> None:
        """Start member `name`; its rows follow by `write`.

        Args:
          name: the array's name, without `.npy`.
          shape: of the whole array; `None` in the first place when the number of rows is known only at the end.
          dtype: of the elements; stored little-endian.
        """
        self._end()
        if self._closed:
            raise ValueError("the archive is closed")
        if not name or name != name.strip() or any(c in name for c in "/\\:\0") or name in self._names:
            raise ValueError(f"not a member name, or a second member of that name: {name!r}")
        stored = _stored_dtype(name, np.dtype(dtype))
        if any(size is None for size in shape[1:]) or any(size is not None and size < 0 for size in shape):
            raise ValueError(f"only the number of rows can be left open, not {shape}")
        filename = f"{name}.npy".encode()
        offset = self._position
        fixed = offset - self._start + 30 + len(filename) + _ZIP64_EXTRA + _PAD_MIN
        extra = _ZIP64_EXTRA + _PAD_MIN + (-fixed) % ALIGNMENT
        header = _npy_header(shape, stored)
        self._names.add(name)
        self._open = _OpenMember(_Entry(filename, offset - self._start, extra), shape, stored, len(header))
        # Zeros hold the place of both headers, which are written when sizes and checksum are known.
        self._put(bytes(30 + len(filename) + extra + len(header)))

    def write(self, rows: ArrayLike) -> None:
        """Append rows, shape (k, …), to the member that was begun; an array without rows (shape `()`) is written whole."""
        member = self._open
        if member is None:
            raise ValueError("begin a member before writing to it")
        values = np.asarray(rows)
        if _stored_dtype(member.name, values.dtype) != member.dtype:
            raise ValueError(f"member {member.name!r} holds {member.dtype}, not {values.dtype}")
        if values.shape[1:] != member.shape[1:] or values.ndim != len(member.shape):
            raise ValueError(f"member {member.name!r} has shape {member.shape}; rows of shape {values.shape} do not fit")
        member.rows += values.shape[0] if values.ndim else 1
        step = max(1, _CHUNK // max(1, values[:1].nbytes)) if values.ndim else 1
        # Conversion to little-endian C order happens a bounded piece at a time, so that it costs no second copy of the array.
        for piece in (values[i : i + step] for i in range(0, len(values), step)) if values.ndim else (values,):
            data = np.ascontiguousarray(piece, dtype=member.dtype).reshape(-1).view(np.uint8).data
            member.crc = zlib.crc32(data, member.crc)
            member.nbytes += len(data)
            self._put(data)

    def close(self) -> None:
        """Finish the open member and write the archive's directory. Writing is complete only after this."""
        if self._closed:
            return
        self._end()
        directory = self._position - self._start
        for entry in self._entries:
            self._put(entry.central())
        self._put(_end_of_directory(len(self._entries), directory, self._position - self._start - directory))
        self._file.flush()
        self._closed = True
        if self._path is not None:
            self._file.close()

    def __enter__(self) -> NpzWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            try:
                self.close()
            except BaseException:
                self._abandon()
                raise
        else:
            self._abandon()

    def _abandon(self) -> None:
        self._closed = True
        if self._path is not None:
            try:
                self._file.close()
            finally:
                self._path.unlink(missing_ok=True)

    def _put(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._position += len(data)

    def _end(self) -> None:
        member, self._open = self._open, None
        if member is None:
            return
        expected = member.shape[0] if member.shape else 1
        if expected is not None and member.rows != expected:
            raise ValueError(f"member {member.name!r} was begun with {expected} rows and got {member.rows}")
        shape = (member.rows, *member.shape[1:]) if member.shape else ()
        header = _npy_header(shape, member.dtype)
        entry = member.entry
        entry.size = len(header) + member.nbytes
        entry.crc = _crc32_concat(zlib.crc32(header), member.crc, member.nbytes)
        self._file.seek(self._start + entry.offset)
        self._file.write(entry.local() + header)
        self._file.seek(self._position)
        self._entries.append(entry)


def read_npz(path: str | os.PathLike[str], keys: Iterable[str] | None = None) -> dict[str, NDArray[Any]]:
    """The arrays of an archive, checksums verified, nothing unpickled.

    Args:
      path: an archive from `write_npz` or `numpy.savez`.
      keys: which members; all by default. `NotFound` lists what there is.
    Raises:
      IntegrityError: the file is not such an archive, is truncated, or declares more data than it holds.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive)
            wanted = list(members) if keys is None else list(keys)
            return {key: _read_member(path, archive, _member(path, members, key), key) for key in wanted}
    except (zipfile.BadZipFile, EOFError, struct.error, NotImplementedError, zlib.error, UnicodeDecodeError) as error:
        raise _unreadable(path, str(error) or type(error).__name__) from error


def mmap_member(path: str | os.PathLike[str], name: str) -> NDArray[Any]:
    """One array of an archive, read-only and memory-mapped (`numpy.memmap`): its pages are read when they are touched.

    The member's checksum is not verified here: compare the file's digest. An array without elements cannot be mapped and comes
    back as an ordinary, empty one.

    Raises:
      NotFound: no such member; the error lists what there is.
      IntegrityError: the member is compressed, truncated or not an array.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            info = _member(path, _members(archive), name)
        if info.compress_type != zipfile.ZIP_STORED:
            raise _unreadable(path, f"member {name!r} is compressed; only a stored one can be mapped")
        size = path.stat().st_size
        with open(path, "rb") as file:
            file.seek(info.header_offset)
            local = struct.unpack("<4s5H3L2H", file.read(30))
            if local[0] != b"PK\x03\x04":
                raise _unreadable(path, f"member {name!r} has no local header")
            begin = info.header_offset + 30 + local[9] + local[10]
            file.seek(begin)
            shape, fortran, dtype = _read_npy_header(path, file, name)
            offset = file.tell()
    except (zipfile.BadZipFile, EOFError, struct.error, NotImplementedError, UnicodeDecodeError) as error:
        raise _unreadable(path, str(error) or type(error).__name__) from error
    nbytes = _nbytes(shape, dtype)
    if info.file_size != offset - begin + nbytes or offset + nbytes > size:
        raise _unreadable(path, f"member {name!r} declares {nbytes} bytes of data that are not there")
    if nbytes == 0:
        empty = np.empty(shape, dtype)
        empty.flags.writeable = False
        return empty
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape, order="F" if fortran else "C")


class _Entry:
    """What the local header and the directory say about one member. `offset` counts from the archive's beginning."""

    def __init__(self, filename: bytes, offset: int, extra: int) -> None:
        self.filename = filename
        self.offset = offset
        self.extra = extra
        self.size = 0
        self.crc = 0

    def local(self) -> bytes:
        big = self.size >= _U32
        size = _U32 if big else self.size
        zip64 = struct.pack("<HHQQ", 1, 16, self.size, self.size) if big else b""
        pad = self.extra - len(zip64)
        return (
            struct.pack(
                "<4s5H3L2H",
                *(b"PK\x03\x04", 45 if big else 20, _UTF8_NAME, 0, *_DOS_EPOCH),
                *(self.crc, size, size, len(self.filename), self.extra),
            )
            + self.filename
            + zip64
            + struct.pack("<HHH", _PAD_ID, pad - 4, ALIGNMENT)
            + bytes(pad - _PAD_MIN)
        )

    def central(self) -> bytes:
        wide = b""
        size, offset = self.size, self.offset
        if size >= _U32:
            wide += struct.pack("<QQ", size, size)
            size = _U32
        if offset >= _U32:
            wide += struct.pack("<Q", offset)
            offset = _U32
        extra = struct.pack("<HH", 1, len(wide)) + wide if wide else b""
        version = 45 if wide else 20
        # "Made by" is Unix (3), with the mode 0644 in the high half of the external attributes.
        return (
            struct.pack(
                "<4s6H3L5H2L",
                *(b"PK\x01\x02", (3 << 8) | version, version, _UTF8_NAME, 0, *_DOS_EPOCH),
                *(self.crc, size, size, len(self.filename), len(extra), 0, 0, 0, 0o100644 << 16, offset),
            )
            + self.filename
            + extra
        )


class _OpenMember:
    """A member that is being written."""

    def __init__(self, entry: _Entry, shape: tuple[int | None, ...], dtype: np.dtype[Any], header: int) -> None:
        self.entry = entry
        self.name = entry.filename.decode()[: -len(".npy")]
        self.shape = shape
        self.dtype = dtype
        self.header = header
        self.rows = 0
        self.nbytes = 0
        self.crc = 0


def _stored_dtype(name: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.hasobject or dtype.names is not None or dtype.subdtype is not None or dtype.kind not in _KINDS:
        raise InputRefused(
            f"an array of {dtype} cannot be stored without pickle",
            key=name,
            expected="numbers, booleans or fixed-size text",
            remedy="Convert it first, for example with numpy.asarray(values, dtype=float).",
        )
    return dtype.newbyteorder("<")


def _npy_header(shape: tuple[int | None, ...], dtype: np.dtype[Any]) -> bytes:
    """A version 1.0 `.npy` header, as long for any number of rows as for any other (numpy leaves the same 21 digits' room)."""
    sizes = tuple(0 if size is None else size for size in shape)
    text = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': {sizes!r}, }}"
    room = 21 - len(str(sizes[0])) if sizes else 0
    length = 10 + len(text) + room + 1
    text += " " * (room + -length % ALIGNMENT) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode("latin-1")


def _end_of_directory(count: int, offset: int, size: int) -> bytes:
    wide = b""
    if count >= _U16 or offset >= _U32 or size >= _U32:
        wide = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, (3 << 8) | 45, 45, 0, 0, count, count, size, offset)
        wide += struct.pack("<4sLQL", b"PK\x06\x07", 0, offset + size, 1)
    count, size, offset = min(count, _U16), min(size, _U32), min(offset, _U32)
    return wide + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, size, offset, 0)


def _crc32_concat(first: int, second: int, length: int) -> int:
    """The CRC-32 of two joined byte strings from theirs: `first` times x^(8·length), plus `second`, over GF(2) modulo the CRC's
    polynomial (bits reflected, so that x^0 is the highest bit)."""

    def times(a: int, b: int) -> int:
        product = 0
        for bit in range(31, -1, -1):
            if a >> bit & 1:
                product ^= b
            b = (b >> 1) ^ (0xEDB88320 if b & 1 else 0)
        return product

    power, square, exponent = 1 << 31, 1 << 30, 8 * length
    while exponent:
        if exponent & 1:
            power = times(power, square)
        square = times(square, square)
        exponent >>= 1
    return times(first, power) ^ second


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    return {info.filename.removesuffix(".npy"): info for info in archive.infolist() if info.filename.endswith(".npy")}


def _member(path: Path, members: dict[str, zipfile.ZipInfo], name: str) -> zipfile.ZipInfo:
    if name not in members:
        raise NotFound("there is no such array", file=str(path), key=name, expected=f"one of {', '.join(sorted(members))}")
    return members[name]


def _read_member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> NDArray[Any]:
    with archive.open(info) as file:
        shape, fortran, dtype = _read_npy_header(path, file, name)
        # The header is believed only as far as the archive bears it out, before anything is allocated.
        nbytes = _nbytes(shape, dtype)
        if info.file_size != file.tell() + nbytes:
            raise _unreadable(path, f"member {name!r} declares {nbytes} bytes of data and holds another number")
        if info.compress_type == zipfile.ZIP_STORED and nbytes > path.stat().st_size:
            raise _unreadable(path, f"member {name!r} declares more data than the file is long")
        flat = np.empty(nbytes, np.uint8)
        done = 0
        while done < nbytes:
            got = cast(io.BufferedIOBase, file).readinto(flat[done : done + _CHUNK].data)
            if not got:
                raise _unreadable(path, f"member {name!r} is truncated")
            done += got
        file.read(1)  # The checksum is compared when the end is read.
    return flat.view(dtype).reshape(shape, order="F" if fortran else "C")


def _read_npy_header(path: Path, file: Any, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file, max_header_size=_MAX_HEADER)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise _unreadable(path, f"member {name!r} is not a numpy array") from error
    if dtype.hasobject or dtype.kind not in _KINDS or any(size < 0 for size in shape):
        raise _unreadable(path, f"member {name!r} holds {dtype}, which would need pickle")
    return shape, fortran, dtype


def _nbytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    count = dtype.itemsize
    for size in shape:
        count *= size
    return count


def _unreadable(path: Path, why: str) -> IntegrityError:
    return IntegrityError(
        f"the archive cannot be read ({why})",
        file=str(path),
        expected="an .npz of plain arrays",
        remedy="Delete the file and make or download it again.",
    )
