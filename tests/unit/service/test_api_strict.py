"""Strict JSON: what two readers could understand differently is refused, and never with a 500."""

from __future__ import annotations

import pytest

from amp_core.strict_json import MAX_DEPTH
from ampref_service.api.strict import parse_body
from ampref_service.errors import BadRequest


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1e400}', "too large"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a": {"b": 1, "b": 1}}', "twice"),
        (b"[" * 100_000, "nested"),
        (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, "nested"),
        (b"1" * 5_000, "digits"),
        (b'"\\ud800"', "surrogate"),
        (b'{"\\udc00": 1}', "surrogate"),
        (b"\xff\xfe", "UTF-8"),
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"{} {}", "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b'{"a": "\x00"}', "not JSON"),
    ],
)
def test_refuses_with_a_400(text: bytes, says: str) -> None:
    with pytest.raises(BadRequest, match=says) as refused:
        parse_body(text)
    assert refused.value.status == 400


def test_reads_what_is_json() -> None:
    text = '{"a": [1, -2.5, true, null, "ü 𝄞 \\ud834\\udd1e"], "b": {}}'
    assert parse_body(text.encode()) == {"a": [1, -2.5, True, None, "ü 𝄞 𝄞"], "b": {}}


def test_brackets_inside_of_strings_are_no_nesting() -> None:
    text = '["' + "[{" * (MAX_DEPTH * 4) + '\\"[", []]'
    assert parse_body(text.encode())[1] == []


def test_the_deepest_that_is_allowed() -> None:
    text = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert parse_body(text) is not None
    with pytest.raises(BadRequest):
        parse_body(b"[" + text + b"]")
