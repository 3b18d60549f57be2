"""JSON clips: one object with `fps`, `root_pos`, `root_rot`, `dof_pos`.

Python's parser spends memory out of proportion to the text (`[[],[],…`), so everything that could cost is counted in the bytes
before the parser sees them.
"""

from __future__ import annotations

import codecs
import json
import re
from typing import Any, NoReturn

from amp_core.errors import MotionRefused
from amp_core.formats.values import quote
from amp_core.strict_json import JsonFault, parse_json

__all__ = ["read_json_clip"]

MAX_CONTAINERS = 300_000
MAX_VALUES = 2_500_000
MAX_STRINGS = 50_000
MAX_STRING_BYTES = 1024 * 1024
MAX_ESCAPED_BYTES = 1024 * 1024

# One string literal. The possessive quantifiers keep a hostile text from being scanned twice.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_REMEDY = "Write it with json.dumps(..., allow_nan=False)"


def read_json_clip(data: bytes) -> dict[str, Any]:
    """The top-level object's keys and values; numbers and lists as they are, nothing interpreted.

    Text that is not ASCII comes back as Latin-1: no key or value that a clip needs has any.

    Raises:
      MotionRefused: not strict JSON, or out of proportion.
    """
    body = data.removeprefix(codecs.BOM_UTF8)
    if b"\0" in body:
        _refuse("the text holds zero bytes; it may be UTF-16", "UTF-8")
    if not body.isascii():
        # In pieces, so that no decoded copy of the whole is ever made.
        decoder = codecs.getincrementaldecoder("utf-8")()
        view = memoryview(body)
        try:
            for start in range(0, len(view), 1 << 16):
                decoder.decode(bytes(view[start : start + (1 << 16)]))
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            _refuse(f"the text is not UTF-8 ({error.reason})", "UTF-8")
    _check_costs(body)
    # Every structural character of JSON is ASCII, so a text that was checked to be UTF-8 may be parsed as Latin-1: one byte
    # a character, where a single emoji would make Python's decoded text four times as large.
    text = body.decode("latin-1")
    del body
    try:
        document = parse_json(text)
    except json.JSONDecodeError as error:
        _refuse(f"the JSON is not valid: {error.msg} (line {error.lineno}, column {error.colno})")
    except JsonFault as fault:
        key, frame, column = (*fault.place, None, None, None)[:3]
        raise MotionRefused(
            f"column {column}: {fault.what}" if isinstance(column, int) else fault.what,
            key=quote(key).strip("'") if isinstance(key, str) else None,
            frame=frame if isinstance(frame, int) else None,
            expected=fault.expected,
            remedy=_REMEDY,
        ) from None
    if not isinstance(document, dict):
        raise MotionRefused(
            "the JSON does not hold an object at its top",
            expected='{"fps": …, "root_pos": […], "root_rot": […], "dof_pos": […]}',
            remedy="Write one object a file",
        )
    return document


def _refuse(what: str, expected: str = "strict JSON (RFC 8259)") -> NoReturn:
    raise MotionRefused(what, expected=expected, remedy=_REMEDY) from None


def _check_costs(body: bytes) -> None:
    """Count what the parser would make objects of. Counts inside strings only make the bound stricter."""
    if body.count(b"[") + body.count(b"{") > MAX_CONTAINERS:
        _refuse("the JSON holds too many lists", f"at most {MAX_CONTAINERS}; a clip has one a frame and array")
    if body.count(b",") > MAX_VALUES:
        _refuse("the JSON holds too many values", f"at most {MAX_VALUES}; use .npz for long clips")
    if body.count(b'"') > 2 * MAX_STRINGS:
        _refuse("the JSON holds too many strings", f"at most {MAX_STRINGS}")
    escaped_bytes = 0
    start = body.find(b'"')
    while start >= 0:
        match = _STRING.match(body, start)
        if match is None:
            _refuse("a string is not closed: the file may be cut off")
        length = match.end() - start
        if length > MAX_STRING_BYTES:
            _refuse(f"a string of {length} bytes", f"strings of at most {MAX_STRING_BYTES} bytes")
        if body.find(b"\\", start, match.end()) >= 0:
            escaped_bytes += length
            if escaped_bytes > MAX_ESCAPED_BYTES:
                _refuse("the JSON holds too many escaped strings", f"at most {MAX_ESCAPED_BYTES} bytes of strings with '\\'")
        start = body.find(b'"', match.end())
