"""JSON read strictly, and written so that one value is one sequence of bytes.

Python's parser accepts what JSON does not have (NaN, Infinity), what two readers may understand differently (a key twice,
numbers that overflow, lone surrogates) and nesting until its stack ends. It also takes very long over integers of thousands of
digits.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from amp_core.digests import digest_of

__all__ = [
    "MAX_DEPTH",
    "JsonFault",
    "canonical_json",
    "finite_data",
    "format_json",
    "json_data",
    "json_digest",
    "parse_json",
    "read_json",
]

MAX_DEPTH = 64
"""Levels of lists and objects."""

_MAX_DIGITS = 400
_MAX_INTEGER_DIGITS = 30  # Longer integers are read as float64.
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
# A string literal, closed or cut off at the end of the text, or a bracket. Possessive quantifiers: a text is scanned once.
_STRING_OR_BRACKET = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]', re.DOTALL)


class JsonFault(ValueError):
    """Text that is JSON by its syntax, but not one that every reader understands alike.

    Args:
      what: what was wrong.
      expected: what would have been right.
      place: keys and positions that lead from the top to the value; empty where it is not known.
    """

    def __init__(self, what: str, expected: str, place: tuple[str | int, ...] = ()) -> None:
        super().__init__(f"{what}; expected {expected}")
        self.what = what
        self.expected = expected
        self.place = place


def read_json(data: bytes) -> Any:
    """The value of a JSON text in UTF-8.

    Raises:
      ValueError: a `UnicodeDecodeError`, a `json.JSONDecodeError` or a `JsonFault`.
    """
    return parse_json(data.decode("utf-8"))


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Integers of more than 30 digits are read as float64.

    Raises:
      json.JSONDecodeError: the syntax is wrong.
      JsonFault: NaN, an infinity or a number that overflows; a key that appears twice; half a character; too many levels.
    """
    depth = 0
    # Only a text with many brackets can be nested deeply.
    for match in _STRING_OR_BRACKET.finditer(text) if text.count("[") + text.count("{") > MAX_DEPTH else ():
        depth += (match[0] in ("[", "{")) - (match[0] in ("]", "}"))
        if depth > MAX_DEPTH:
            raise JsonFault("the JSON is nested too deeply", f"at most {MAX_DEPTH} levels")
    numbers = _Numbers()
    value = json.loads(
        text,
        object_pairs_hook=_build_object,
        parse_float=numbers.parse_float,
        parse_int=numbers.parse_int,
        parse_constant=numbers.parse_constant,
    )
    if numbers.fault is not None:
        numbers.fault.place = _find_place(value, numbers.placeholder) or ()
        raise numbers.fault
    if _SURROGATE_ESCAPE.search(text):
        try:
            format_json(value).encode("utf-8")
        except UnicodeEncodeError:
            raise JsonFault("a string holds half a character (a lone surrogate)", "whole Unicode characters") from None
    return value


def json_data(value: Any) -> Any:
    """`value` with dataclasses as objects of their fields and tuples as lists, all the way down."""
    if is_dataclass(value):
        return {entry.name: json_data(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, Mapping):
        return {key: json_data(item) for key, item in value.items()}
    return [json_data(item) for item in value] if isinstance(value, list | tuple) else value


def finite_data(value: Any) -> Any:
    """`value` as JSON has it: arrays as lists, a number that is not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): finite_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_data(item) for item in value]
    if hasattr(value, "tolist"):  # numpy's arrays and scalars
        return finite_data(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def format_json(value: Any, *, ensure_ascii: bool = False, **options: Any) -> str:
    """`value` as JSON text; `options` are those of `json.dumps`.

    Raises:
      ValueError: NaN or an infinity, which JSON does not have.
    """
    return json.dumps(value, allow_nan=False, ensure_ascii=ensure_ascii, **options)


def canonical_json(value: Any) -> bytes:
    """`value` as UTF-8 JSON with sorted keys, two spaces of indentation and a newline at the end.

    Numbers are written as Python's `repr` writes them (the shortest decimal that reads back as the same float64).

    Raises:
      ValueError: NaN or an infinity, which JSON does not have.
    """
    return format_json(value, sort_keys=True, indent=2).encode("utf-8") + b"\n"


def json_digest(value: Any) -> str:
    """`sha256:…` over `value` as JSON in ASCII with sorted keys and without blanks."""
    text = format_json(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return digest_of(text.encode("ascii"))


class _Numbers:
    """The parser's hooks for numbers.

    The first number that is not finite is remembered as a fault and stands in the document as a NaN of its own, so that its
    place can be found after parsing.
    """

    def __init__(self) -> None:
        self.fault: JsonFault | None = None
        self.placeholder = float("nan")

    def parse_float(self, text: str) -> float:
        if len(text) > _MAX_DIGITS:
            return self._refuse(f"a number of {len(text)} characters", f"at most {_MAX_DIGITS} digits")
        value = float(text)
        if math.isinf(value):
            ascii_text = ascii(text[:24]) + "…" * (len(text) > 24)
            return self._refuse(f"the number {ascii_text} is too large for a float64", "finite numbers")
        return value

    def parse_int(self, text: str) -> int | float:
        return int(text) if len(text) <= _MAX_INTEGER_DIGITS else self.parse_float(text)

    def parse_constant(self, text: str) -> float:
        return self._refuse(f"{text} is no number in JSON", "finite numbers; JSON has no NaN or Infinity")

    def _refuse(self, what: str, expected: str) -> float:
        if self.fault is not None:
            return math.nan
        self.fault = JsonFault(what, expected)
        return self.placeholder


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys: set[str] = set()
        key = next(key for key, _ in pairs if key in keys or keys.add(key))  # type: ignore[func-returns-value]
        raise JsonFault(f"the key {key[:60]!a} appears twice", "each key once", (key,))
    return value


def _find_place(value: Any, number: float) -> tuple[str | int, ...] | None:
    """The keys and positions that lead to this very number object."""
    if value is number:
        return ()
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            place = _find_place(item, number)
            if place is not None:
                return (key, *place)
    return None
