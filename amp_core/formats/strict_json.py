"""JSON clips: one object with `fps`, `root_pos`, `root_rot`, `dof_pos`.

Python's parser accepts what JSON does not have (NaN, Infinity) or what nobody means (a key twice, numbers that overflow,
lone surrogates), and spends memory out of proportion to the text (`[[],[],…`). Everything that could cost is counted in the
bytes before the parser sees them; the rest is refused while it parses.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from typing import Any

from amp_core.errors import MotionRefused
from amp_core.formats.values import quote

__all__ = ["read_json"]

MAX_CONTAINERS = 300_000
MAX_VALUES = 2_500_000
MAX_STRINGS = 50_000
MAX_STRING_BYTES = 1024 * 1024
MAX_ESCAPED_BYTES = 1024 * 1024
MAX_DIGITS = 400
MAX_DEPTH = 64

# One whole string literal. The possessive quantifiers keep a hostile text from being scanned twice.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_ESCAPE = re.compile(rb"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)


def read_json(data: bytes, file: str) -> dict[str, Any]:
    """The top-level object's keys and values; numbers and lists as they are, nothing interpreted.

    Raises:
      MotionRefused: not strict JSON, or out of proportion.
    """
    body = data.removeprefix(codecs.BOM_UTF8)
    _check_text(body, file)
    _check_costs(body, file)
    # Every structural character of JSON is ASCII, so a text that was checked to be UTF-8 may be parsed as Latin-1: one byte
    # a character, where a single emoji would make Python's decoded text four times as large.
    text = body.decode("latin-1")
    del body
    strict = _Strict(file)
    try:
        document = json.loads(
            text,
            object_pairs_hook=strict.pairs,
            parse_float=strict.real,
            parse_int=strict.integer,
            parse_constant=strict.constant,
        )
    except MotionRefused:
        raise
    except json.JSONDecodeError as error:
        raise _refuse(file, f"the JSON is not valid: {error.msg} (line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise _too_deep(file) from None
    if strict.fault is not None:
        raise strict.fault.at(document, file)
    if not isinstance(document, dict):
        raise MotionRefused(
            "the JSON does not hold an object at its top",
            file=file,
            expected='{"fps": …, "root_pos": […], "root_rot": […], "dof_pos": […]}',
            remedy="Write one object a file",
        )
    return document


class _NoNumber(float):
    """NaN in place of what is no finite number, so that the parser goes on and where it stood can be told."""

    what: str
    expected: str

    def __new__(cls, what: str, expected: str) -> _NoNumber:
        made = super().__new__(cls, math.nan)
        made.what, made.expected = what, expected
        return made

    def at(self, document: Any, file: str) -> MotionRefused:
        """The refusal, with the place of this number in the parsed document: its key, and the frame in an array."""
        key, frame, column = None, None, None
        for name, value in document.items() if isinstance(document, dict) else ():
            if value is self:
                key = name
            for row, item in enumerate(value) if isinstance(value, list) else ():
                found = next((i for i, one in enumerate(item) if one is self), None) if isinstance(item, list) else None
                if item is self or found is not None:
                    key, frame, column = name, row, found
        return MotionRefused(
            self.what if column is None else f"column {column}: {self.what}",
            file=file,
            key=None if key is None else quote(key).strip("'"),
            frame=frame,
            expected=self.expected,
            remedy="Write it with json.dumps(..., allow_nan=False)",
        )


def _refuse(file: str, what: str, expected: str = "strict JSON (RFC 8259)") -> MotionRefused:
    return MotionRefused(what, file=file, expected=expected, remedy="Write it with json.dumps(..., allow_nan=False)")


def _too_deep(file: str) -> MotionRefused:
    return _refuse(file, "the JSON is nested too deeply", f"at most {MAX_DEPTH} levels; a clip needs 3")


def _check_text(body: bytes, file: str) -> None:
    """UTF-8, checked in pieces so that no decoded copy of the whole is ever made."""
    if b"\0" in body:
        raise _refuse(file, "the text holds zero bytes; it may be UTF-16", "UTF-8")
    if body.isascii():
        return
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(body)
    try:
        for start in range(0, len(view), 1 << 16):
            decoder.decode(bytes(view[start : start + (1 << 16)]))
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise _refuse(file, f"the text is not UTF-8 ({error.reason})", "UTF-8") from None


def _check_costs(body: bytes, file: str) -> None:
    """Counts what the parser would make objects of. Counts inside strings only make the bound stricter."""
    if body.count(b"[") + body.count(b"{") > MAX_CONTAINERS:
        raise _refuse(file, "the JSON holds too many lists", f"at most {MAX_CONTAINERS}; a clip has one a frame and array")
    if body.count(b",") > MAX_VALUES:
        raise _refuse(file, "the JSON holds too many values", f"at most {MAX_VALUES}; use .npz for long clips")
    if body.count(b'"') > 2 * MAX_STRINGS:
        raise _refuse(file, "the JSON holds too many strings", f"at most {MAX_STRINGS}")
    escaped = 0
    at = body.find(b'"')
    while at >= 0:
        match = _STRING.match(body, at)
        if match is None:
            raise _refuse(file, "a string is not closed: the file may be cut off")
        length = match.end() - match.start()
        if length > MAX_STRING_BYTES:
            raise _refuse(file, f"a string of {length} bytes", f"strings of at most {MAX_STRING_BYTES} bytes")
        if body.find(b"\\", match.start(), match.end()) >= 0:
            escaped += length
            if escaped > MAX_ESCAPED_BYTES:
                raise _refuse(
                    file, "the JSON holds too many escaped strings", f"at most {MAX_ESCAPED_BYTES} bytes of strings with '\\'"
                )
            _check_surrogates(match.group(), file)
        at = body.find(b'"', match.end())


def _check_surrogates(literal: bytes, file: str) -> None:
    """Every escaped surrogate has its partner next to it."""
    open_high = -1
    for match in _ESCAPE.finditer(literal):
        code = int(match[1], 16) if match[1] else 0
        if 0xDC00 <= code <= 0xDFFF:
            if open_high != match.start():
                break
            open_high = -1
            continue
        if open_high >= 0:
            break
        open_high = match.end() if 0xD800 <= code <= 0xDBFF else -1
    else:
        if open_high < 0:
            return
    raise _refuse(file, "a string holds half a character (a lone surrogate)", "whole Unicode characters")


class _Strict:
    """The parser's hooks; each refuses what JSON must not have."""

    def __init__(self, file: str) -> None:
        self._file = file
        self.fault: _NoNumber | None = None

    def pairs(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = {}
        for key, value in pairs:
            if key in found:
                raise MotionRefused(
                    f"the key {quote(key)} appears twice",
                    file=self._file,
                    key=quote(key).strip("'"),
                    expected="each key once",
                    remedy="Remove one of them",
                )
            found[key] = value
        return found

    def real(self, text: str) -> float:
        if len(text) > MAX_DIGITS:
            return self._no_number(f"a number of {len(text)} characters", f"at most {MAX_DIGITS}")
        value = float(text)
        if math.isinf(value):
            return self._no_number(f"the number {quote(text, 24)} is too large for a float64", "finite numbers")
        return value

    def integer(self, text: str) -> int | float:
        if len(text) > 18:
            return self.real(text)
        return int(text)

    def constant(self, text: str) -> float:
        return self._no_number(f"{text} is no number in JSON", "finite numbers; JSON has no NaN or Infinity")

    def _no_number(self, what: str, expected: str) -> float:
        """Stands for the first of them; the others are told once that one is mended."""
        if self.fault is None:
            self.fault = _NoNumber(what, expected)
            return self.fault
        return math.nan
