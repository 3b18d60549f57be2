"""npz clips, read without `zipfile` and without `np.load`.

A zip's table declares how many members there are, how large each is and where it lies; an npy header declares the size of its
array. All of it is compared with the bytes of the file before it is used. Only the members that a clip needs are
inflated, in pieces, and never past the size that their header justifies.
"""

from __future__ import annotations

import contextlib
import re
import struct
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NoReturn

from amp_core.errors import MotionRefused
from amp_core.formats.clip import Limits
from amp_core.formats.joint_names import NAME_KEYS
from amp_core.formats.pkl import read_pickled_array
from amp_core.formats.values import KEYS, RawArray, describe, quote
from amp_core.lineage import LINEAGE_MEMBERS

__all__ = ["NpzFields", "parse_npy", "read_directory"]

MAX_MEMBERS = 512
MAX_NAME_BYTES = 512
MAX_HEADER_BYTES = 10_000
MAX_RATIO = 200
# A clip that stands still deflates a thousandfold, so small arrays are not held to the ratio.
RATIO_FREE_BYTES = 8 * 1024 * 1024
_CHUNK = 1 << 18

_END = struct.Struct("<4s4H2LH")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_METHOD_STORED, _METHOD_DEFLATED = 0, 8
_ENCRYPTED, _STREAMED = 0x1, 0x8
_SAME_FLAGS = _ENCRYPTED | _STREAMED
_UNKNOWN32 = 0xFFFFFFFF

_HEADER = re.compile(
    rb"\s*\{\s*(?:'(?P<k1>\w+)'\s*:\s*(?P<v1>'[^']*'|True|False|\([^()]*\)))\s*,"
    rb"\s*(?:'(?P<k2>\w+)'\s*:\s*(?P<v2>'[^']*'|True|False|\([^()]*\)))\s*,"
    rb"\s*(?:'(?P<k3>\w+)'\s*:\s*(?P<v3>'[^']*'|True|False|\([^()]*\)))\s*,?\s*\}\s*"
)
_SHAPE = re.compile(rb"\((?:\s*\d{1,18}L?\s*,)*(?:\s*\d{1,18}L?\s*)?\)")


@dataclass(frozen=True, slots=True)
class _Member:
    name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    begin: int
    """Where its bytes are in the file."""


# A text of up to 120 characters, four bytes each, and its header.
_TEXT_BYTES = 2048
# 256 names of 200 characters, four bytes each, and their header.
_NAMES_BYTES = 256 * 1024
# All members together that may hold names.
_TEXTS_BYTES = 2 * 1024 * 1024
_TEXT_DTYPE = re.compile(r"<U(\d{1,3})")


class NpzFields(Mapping[str, RawArray | str]):
    """The members of an archive, by name without `.npy`: each is unpacked when it is asked for, and no other ever is.

    Args:
      limits: of all that is unpacked together.

    Raises:
      MotionRefused: a damaged archive; and of a member, one that unpacks to more than a clip can hold, or that is no array.
    """

    def __init__(self, data: bytes, limits: Limits) -> None:
        self._data = data
        self._limits = limits
        self._budget = limits.max_values * 8 + len(KEYS) * (MAX_HEADER_BYTES + 16)
        self._fields: dict[str, RawArray | str] = {}
        self._members: dict[str, list[_Member]] = {}
        for member in read_directory(data):
            self._members.setdefault(member.name.decode("latin-1").removesuffix(".npy"), []).append(member)

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, key: object) -> bool:
        # Without unpacking it, as a mapping would.
        return key in self._members

    def __getitem__(self, key: str) -> RawArray | str:
        if key not in self._fields:
            self._fields[key] = self._read(key, self._members[key])
        return self._fields[key]

    def read_texts(self, other_keys: Collection[str]) -> dict[str, RawArray]:
        """The small members of text, objects or bytes, but those under `other_keys`; nothing that is wrong with one refuses."""
        texts: dict[str, RawArray] = {}
        budget = _TEXTS_BYTES
        candidates = {key: members[0] for key, members in self._members.items() if key not in other_keys and len(members) == 1}
        for key, member in sorted(candidates.items(), key=lambda item: item[1].size):
            budget -= member.size
            if member.size > _NAMES_BYTES or budget < 0:
                break
            with contextlib.suppress(MotionRefused):
                array = _read_names(self._data, member, key)
                if array.items is not None or re.match(r"[<>|=]?[USu]", array.dtype):
                    texts[key] = array
        return texts

    def _read(self, key: str, members: list[_Member]) -> RawArray | str:
        member = members[0]
        if len(members) > 1:
            _refuse(f"the member {quote(key)} appears twice", "each array once", key=key)
        if key in LINEAGE_MEMBERS or key == "mujoco_version":
            return _read_text(self._data, member, key)
        if key in NAME_KEYS or key in ("body_names", "actuator_names", "meta"):
            return _read_names(self._data, member, key)
        if member.size > self._budget:
            fault = f"the member unpacks to {member.size} bytes"
            _refuse(fault, f"arrays of at most {self._limits.max_values} values", key=key)
        self._budget -= member.size
        return parse_npy(_unpack(self._data, member, key), key)


def _read_text(data: bytes, member: _Member, key: str) -> str:
    """A short text, from numpy's array of no dimensions."""
    if member.size > _TEXT_BYTES:
        _refuse(f"the member unpacks to {member.size} bytes", "a short text", key=key)
    array = parse_npy(_unpack(data, member, key), key)
    match = _TEXT_DTYPE.fullmatch(array.dtype)
    if match is None or array.shape != () or array.data is None or len(array.data) != 4 * int(match[1]):
        _refuse(f"it is {describe(array)} of type {quote(array.dtype)}", "one short text", key=key)
    try:
        return bytes(array.data).decode("utf-32-le").rstrip("\0")
    except UnicodeDecodeError:
        _refuse("it is not text", "one short text", key=key)


def _read_names(data: bytes, member: _Member, key: str) -> RawArray:
    """An array of names; where it is an object array, its pickle is walked and never run."""
    if member.size > _NAMES_BYTES:
        _refuse(f"the member unpacks to {member.size} bytes", "a list of joint names", key=key)
    array = parse_npy(_unpack(data, member, key), key, objects=True)
    if array.dtype == "|O" and array.data is not None:
        try:
            return read_pickled_array(bytes(array.data))
        except MotionRefused as error:
            error.key = key
            raise
    return array


def _refuse(what: str, expected: str = "a whole .npz archive", *, key: str | None = None) -> NoReturn:
    raise MotionRefused(what, key=key, expected=expected, remedy="Export it again with np.savez")


def read_directory(data: bytes) -> list[_Member]:
    """The members as the table of contents at the end has them, or a refusal.

    The header in front of each member must say the same, members may not overlap, and nothing may lie between the table and the
    archive's end: readers that go by one or the other would find different members.
    """
    end = data.rfind(b"PK\x05\x06", max(0, len(data) - 65_557))
    if end < 0 or end + _END.size > len(data):
        _refuse("the archive has no end: it was cut off or damaged")
    _, disk, first_disk, disk_entries, total, size, start, comment = _END.unpack_from(data, end)
    if disk or first_disk or disk_entries != total or end + _END.size + comment != len(data):
        _refuse("the archive's end does not fit the file")
    if total > MAX_MEMBERS or size > MAX_MEMBERS * (_CENTRAL.size + MAX_NAME_BYTES):
        _refuse(f"the archive has {total} members", f"at most {MAX_MEMBERS}")
    if start + size != end:
        _refuse("the archive's table of contents is not where its end says")
    members = []
    ranges = []
    position = start
    for _ in range(total):
        if position + _CENTRAL.size > start + size:
            _refuse("the archive's table of contents is cut off")
        (magic, _, _, flags, method, _, _, crc, packed_len, raw_len, name_len, extra_len, comment_len, _, _, _, offset) = (
            _CENTRAL.unpack_from(data, position)
        )
        if magic != b"PK\x01\x02":
            _refuse("the archive's table of contents is damaged")
        if name_len > MAX_NAME_BYTES:
            _refuse(f"a member's name has {name_len} bytes", f"names of at most {MAX_NAME_BYTES} bytes")
        if _UNKNOWN32 in (packed_len, raw_len, offset):
            _refuse("the archive claims members of 4 GiB or more")
        name = data[position + _CENTRAL.size : position + _CENTRAL.size + name_len]
        begin = _check_local_header(data, name, offset, flags, method, (crc, raw_len, packed_len))
        members.append(_Member(name, flags, method, crc, packed_len, raw_len, begin))
        ranges.append((offset, begin + packed_len))
        position += _CENTRAL.size + name_len + extra_len + comment_len
    if position != start + size:
        _refuse("the archive's table of contents does not fill its size")
    ranges = [*sorted(ranges), (start, end)]
    if any(first[1] > second[0] for first, second in pairwise(ranges)):
        _refuse("members of the archive lie over each other or over its table of contents")
    return members


def _check_local_header(data: bytes, name: bytes, offset: int, flags: int, method: int, facts: tuple[int, int, int]) -> int:
    """Compare the header in front of a member with the table of contents; where the member's bytes begin.

    Args:
      facts: the checksum, the size and the packed size by the table.
    """
    key = name.decode("latin-1").removesuffix(".npy")
    if offset + _LOCAL.size > len(data) or data[offset : offset + 4] != b"PK\x03\x04":
        _refuse("the member is not where the table of contents says", key=key)
    (_, _, local_flags, local_method, _, _, crc, packed, size, name_len, extra_len) = _LOCAL.unpack_from(data, offset)
    begin: int = offset + _LOCAL.size + name_len + extra_len
    local_name = data[offset + _LOCAL.size : offset + _LOCAL.size + name_len]
    if local_name != name:
        fault = f"the archive's table of contents calls the member {quote(name.decode('latin-1'))}, the header in front of it"
        _refuse(f"{fault} {quote(local_name.decode('latin-1'))}", "one name a member", key=key)
    sizes = size, packed
    if _UNKNOWN32 in sizes:
        sizes = _read_large_sizes(data[begin - extra_len : begin]) or sizes
    # What streams an archive knows checksum and sizes only after the member, and leaves zeros in front of it.
    is_streamed = local_flags & flags & _STREAMED
    if (local_method, local_flags & _SAME_FLAGS) != (method, flags & _SAME_FLAGS) or (
        (crc, *sizes) != facts and not (is_streamed and {crc, *sizes} <= {0, *facts})
    ):
        _refuse("the header in front of the member differs from the table of contents", key=key)
    return begin


def _read_large_sizes(extra: bytes) -> tuple[int, int] | None:
    """The two sizes in the field of an extra that has 64 bits for each, which numpy writes for small members, too."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1 and 16 <= length <= len(extra) - 4:
            size, packed = struct.unpack_from("<2Q", extra, 4)
            return size, packed
        extra = extra[4 + length :]
    return None


def _unpack(data: bytes, member: _Member, key: str) -> bytes | memoryview:
    """The member's bytes, checked against its declared size and its CRC."""
    if member.flags & _ENCRYPTED:
        _refuse("the member is encrypted", "a plain archive", key=key)
    if member.method not in (_METHOD_STORED, _METHOD_DEFLATED):
        _refuse(f"the member is packed with zip method {member.method}", "stored or deflated members", key=key)
    if member.method == _METHOD_DEFLATED and member.size > max(RATIO_FREE_BYTES, MAX_RATIO * member.packed):
        _refuse(
            f"the member unpacks to {member.size} bytes from {member.packed}: a zip bomb",
            f"a ratio of at most {MAX_RATIO}",
            key=key,
        )
    content = memoryview(data)[member.begin : member.begin + member.packed]
    if member.method == _METHOD_STORED:
        if member.packed != member.size:
            _refuse("a stored member declares two sizes", key=key)
        out: bytes | memoryview = content
    else:
        out = _inflate(content, member.size, key)
    if zlib.crc32(out) != member.crc:
        _refuse("the member's checksum is wrong: the file is damaged", key=key)
    return out


def _inflate(packed: memoryview, size: int, key: str) -> bytes:
    """Exactly `size` bytes, or a refusal; the output grows only as bytes come out. They never change, so nobody copies them."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    pieces: list[bytes] = []
    length = position = 0
    try:
        while not inflater.eof and (position < len(packed) or inflater.unconsumed_tail):
            chunk = inflater.unconsumed_tail
            if not chunk:
                chunk = bytes(packed[position : position + _CHUNK])
                position += len(chunk)
            pieces.append(inflater.decompress(chunk, _CHUNK))
            length += len(pieces[-1])
            if length > size:
                _refuse(f"the member unpacks to more than the {size} bytes it declares: a zip bomb", key=key)
    except zlib.error as error:
        _refuse(f"the member cannot be unpacked ({error})", key=key)
    if not inflater.eof or length != size:
        _refuse(f"the member unpacks to {length} bytes but declares {size}", key=key)
    return b"".join(pieces)


def parse_npy(raw: bytes | memoryview, key: str, *, objects: bool = False) -> RawArray:
    """The header of an npy member, with the bytes behind it.

    The header is a Python literal; it is matched as text and never evaluated.

    Args:
      objects: whether an array of objects is permitted; its bytes are a pickle.

    Raises:
      MotionRefused: not an npy, or a header other than numpy's own for a plain array.
    """
    view = memoryview(raw)
    if bytes(view[:6]) != b"\x93NUMPY" or len(view) < 12:
        _refuse("the member is not an npy array", key=key)
    major = view[6]
    if major == 1:
        length, begin = struct.unpack_from("<H", view, 8)[0], 10
    elif major in (2, 3):
        length, begin = struct.unpack_from("<L", view, 8)[0], 12
    else:
        _refuse(f"the npy member is of version {major}", "version 1, 2 or 3", key=key)
    if length > MAX_HEADER_BYTES or begin + length > len(view):
        _refuse(f"the npy header claims {length} bytes", "a header that fits the file", key=key)
    match = _HEADER.fullmatch(bytes(view[begin : begin + length]))
    fields = {match[f"k{i}"]: match[f"v{i}"] for i in (1, 2, 3)} if match else {}
    descr, order, shape = (fields.get(name, b"") for name in (b"descr", b"fortran_order", b"shape"))
    if len(fields) != 3 or not descr.startswith(b"'") or order not in (b"True", b"False") or not _SHAPE.fullmatch(shape):
        _refuse("the npy header does not describe a plain array", "float32 or float64 arrays", key=key)
    sizes = tuple(int(n) for n in re.findall(rb"\d+", shape))
    if len(sizes) > 8:
        _refuse(f"the array has {len(sizes)} dimensions", "2", key=key)
    array = RawArray(descr[1:-1].decode("latin-1"), sizes, order == b"True", view[begin + length :])
    if "O" in array.dtype and not objects:
        # Its bytes are a pickle.
        _refuse(f"it is an object array ({describe(array)})", "plain numbers: np.asarray(..., dtype=np.float64)", key=key)
    return array
