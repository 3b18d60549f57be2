"""Reading a `multipart/form-data` body as it arrives: fields into memory, the file into the spool."""

from __future__ import annotations

from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.requests import Request

from ampref_service.errors import BadRequest
from ampref_service.spool import Spool

_MAX_FIELDS = 128
_MAX_FIELD_BYTES = 64 * 1024
_WRITE_BYTES = 256 * 1024  # Collected before they are written, so that a thread is not asked for every packet.


async def read_form(request: Request, spool: Spool) -> FormData:
    """The fields of a form and its file, of which there may be one.

    Raises:
      BadRequest: it cannot be read, or has more or longer fields than any form.
      DiskFull, Unavailable: the spool cannot be written.
    """
    if "content-type" not in request.headers:
        return FormData()  # Without a body: what is missing is named by the endpoint.
    _, options = parse_options_header(request.headers["content-type"])
    if b"boundary" not in options:
        raise _form_error("the Content-Type names no boundary", "multipart/form-data; boundary=…")
    form = _Form(spool)
    parser = MultipartParser(
        options[b"boundary"],
        {
            "on_part_begin": form.begin_part,
            "on_header_field": form.add_header_name,
            "on_header_value": form.add_header_value,
            "on_header_end": form.end_header,
            "on_headers_finished": form.end_headers,
            "on_part_data": form.add_data,
            "on_part_end": form.end_part,
        },
    )
    try:
        async for chunk in request.stream():
            parser.write(chunk)
            await form.write(_WRITE_BYTES)
        parser.finalize()
        await form.write(1)
    except BaseException as error:
        form.close()
        if isinstance(error, FormParserError):
            expected = "multipart/form-data, whose parts have headers of at most 4 kB"
            raise _form_error("the form cannot be read", expected) from None
        raise
    return FormData(form.items)


def _form_error(message: str, expected: str = "multipart/form-data") -> BadRequest:
    remedy = "Let a client build the form, one file a request: curl -F file=@walk.npz -F name=walk"
    return BadRequest(message, key="body", expected=expected, remedy=remedy)


class _Form:
    """What the parser of a form calls, and the items that come of it."""

    def __init__(self, spool: Spool) -> None:
        self.items: list[tuple[str, str | UploadFile]] = []
        self._spool = spool
        self._file: BinaryIO | None = None
        self._unwritten = bytearray()
        self._fields = 0
        self.begin_part()

    def begin_part(self) -> None:
        self._headers: list[tuple[bytes, bytes]] = []
        self._header_name, self._header_value = b"", b""
        self._name = ""
        self._value = bytearray()
        self._upload: UploadFile | None = None

    def add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def end_header(self) -> None:
        self._headers.append((self._header_name.lower(), self._header_value))
        self._header_name, self._header_value = b"", b""

    def end_headers(self) -> None:
        _, options = parse_options_header(dict(self._headers).get(b"content-disposition"))
        if b"name" not in options:
            raise _form_error("a part of the form has no name in its Content-Disposition")
        self._name = _decode(options[b"name"])
        if b"filename" in options:
            if self._file is not None:
                raise _form_error("there is more than one file", "one file a request")
            self._file = self._spool.open_file()
            headers = Headers(raw=self._headers)
            self._upload = UploadFile(self._file, size=0, filename=_decode(options[b"filename"]), headers=headers)
            self.items.append((self._name, self._upload))
            return
        self._fields += 1
        if self._fields > _MAX_FIELDS:
            raise _form_error("there are too many fields", f"at most {_MAX_FIELDS} text fields")

    def add_data(self, data: bytes, start: int, end: int) -> None:
        if self._upload is not None:
            self._unwritten += data[start:end]
            self._upload.size = (self._upload.size or 0) + end - start
        elif len(self._value) + end - start > _MAX_FIELD_BYTES:
            expected = "text fields of at most 64 kB: a name has at most 120 characters"
            raise _form_error("a text field is too long", expected)
        else:
            self._value += data[start:end]

    def end_part(self) -> None:
        if self._upload is None:
            self.items.append((self._name, _decode(self._value)))

    async def write(self, least: int) -> None:
        """Write what has come of the file, where that is `least` bytes."""
        if self._file is not None and len(self._unwritten) >= least:
            data, self._unwritten = bytes(self._unwritten), bytearray()
            await self._spool.write(self._file, data)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _decode(data: bytes | bytearray) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")
