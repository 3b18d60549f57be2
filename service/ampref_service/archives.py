"""The members of a tar archive that a user sent: where each lies, without reading any of them.

The standard library's reader keeps whatever an archive calls a header in memory; this one reads what tar programs write (ustar,
pax and GNU names) and refuses the rest.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from ampref_service.errors import BadRequest

_BLOCK = tarfile.BLOCKSIZE
_MAX_NAME_BYTES = 4096
_MAX_PAX_BYTES = 64 * 1024
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
_LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE)
_REMEDY = "Let tar make it: tar c FILE... | curl --data-binary @- -H 'Content-Type: application/x-tar' …"


@dataclass(frozen=True)
class ArchiveMember:
    """A member that is no folder: its bytes are `size` from `offset` on, unless `fault` says why it cannot be taken."""

    name: str
    offset: int
    size: int
    fault: str | None = None


def iterate_members(file: BinaryIO) -> Iterator[ArchiveMember]:
    """The members of an archive in their order.

    Raises:
      BadRequest: it is no tar archive, or one that was cut off.
    """
    end = os.fstat(file.fileno()).st_size
    position, name = 0, None
    while position < end:
        header = _read(file, position, _BLOCK)
        position += _BLOCK
        if not any(header):
            return  # Blocks of zeros end an archive.
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.TarError as error:
            raise _archive_error(f"the body is no tar archive ({error} at byte {position - _BLOCK:,})") from None
        if not 0 <= info.size <= end - position:
            raise _archive_error(f"the archive was cut off within {_printable(name or info.name)}")
        offset = position
        position += info.size + -info.size % _BLOCK
        if info.type == tarfile.XHDTYPE:
            name = _read_pax_name(file, offset, info.size) or name
        elif info.type == tarfile.GNUTYPE_LONGNAME:
            name = _decode_name(_read(file, offset, min(info.size, _MAX_NAME_BYTES)).rstrip(b"\0"))
        elif info.type != tarfile.XGLTYPE:
            if info.type != tarfile.DIRTYPE:
                fault = None if info.type in _FILES else "it is a link" if info.type in _LINKS else "it is no ordinary file"
                yield ArchiveMember(_printable(name or info.name), offset, info.size, fault)
            name = None
    raise _archive_error("the archive has no end: it was cut off")


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    data = os.pread(file.fileno(), size, offset)
    if len(data) != size:
        raise _archive_error("the archive was cut off")
    return data


def _read_pax_name(file: BinaryIO, offset: int, size: int) -> str | None:
    """The `path` among the records `LENGTH KEY=VALUE` of an extended header."""
    if size > _MAX_PAX_BYTES:
        raise _archive_error("an extended header of the archive is too long")
    data, start = _read(file, offset, size), 0
    while start < size:
        length = data[start : start + 20].partition(b" ")[0]
        if not length.isdigit() or not 0 < int(length) <= size - start:
            raise _archive_error("an extended header of the archive cannot be read")
        record = data[start : start + int(length)].partition(b" ")[2].removesuffix(b"\n")
        key, _, value = record.partition(b"=")
        if key == b"path":
            return _decode_name(value[:_MAX_NAME_BYTES])
        start += int(length)
    return None


def _decode_name(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _printable(name: str) -> str:
    """A name that can be sent and stored, whatever its bytes were."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _archive_error(message: str) -> BadRequest:
    return BadRequest(message, key="body", expected="a tar archive of motion files", remedy=_REMEDY)
