"""JSON that two readers could understand differently is refused, with its place; what is written is always the same bytes."""

from __future__ import annotations

import json
import time

import pytest

from amp_core.strict_json import MAX_DEPTH, JsonFault, canonical_json, json_digest, parse_json, read_json


@pytest.mark.parametrize(
    ("text", "message", "place"),
    [
        ('{"a": NaN}', "NaN", ("a",)),
        ('{"a": [0, [1, -Infinity]]}', "-Infinity", ("a", 1, 1)),
        ('{"b": 0, "a": 1e400}', "too large", ("a",)),
        ("[1" + "0" * 350 + "]", "too large", (0,)),
        ("1" * 5_000, "5000 characters", ()),
        ("0." + "1" * 5_000, "5002 characters", ()),
        ('{"a": 1, "b": 2, "b": 2}', "'b' appears twice", ("b",)),
        ('["\\ud800"]', "surrogate", ()),
        ('{"\\udc00": 1}', "surrogate", ()),
        ('["\\udc00\\ud800"]', "surrogate", ()),
        ("[" * 100_000, "nested", ()),
        ('{"a":' * 5_000 + "1" + "}" * 5_000, "nested", ()),
    ],
)
def test_a_fault_names_the_value_and_its_place(text: str, message: str, place: tuple[str | int, ...]) -> None:
    with pytest.raises(JsonFault, match=message) as refused:
        parse_json(text)
    assert refused.value.place == place


@pytest.mark.parametrize("data", [b"", b"{", b"{} {}", b"{'a': 1}", b'"\x00"', b"\xff\xfe", b'"\xed\xa0\x80"'])
def test_wrong_syntax_and_wrong_text_are_value_errors(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_json(data)


def test_what_is_json_is_read() -> None:
    text = '{"a": [1, -2.5, true, null, "ü 𝄞 \\ud834\\udd1e \\\\ud800"], "b": {}, "c": 18446744073709551615}'
    expected = {"a": [1, -2.5, True, None, "ü 𝄞 𝄞 \\ud800"], "b": {}, "c": 2**64 - 1}
    assert read_json(text.encode()) == expected
    assert isinstance(parse_json("1" + "0" * 40), float)


def test_brackets_inside_of_strings_are_no_levels() -> None:
    assert parse_json('["' + "[{" * (MAX_DEPTH * 4) + '\\"[", []]')[1] == []
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)


@pytest.mark.parametrize("text", ['["' + '\\"' * 300_000 + "[" * 100, "[" * 100 + '"' + "\\" * 600_001, '{"a":1,' * 200_000])
def test_hostile_text_is_refused_in_linear_time(text: str) -> None:
    begin = time.process_time()
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)
    assert time.process_time() - begin < 2.0


def test_canonical_json_is_sorted_and_refuses_nan() -> None:
    assert canonical_json({"b": 0.1, "a": ["ü", None]}) == '{\n  "a": [\n    "ü",\n    null\n  ],\n  "b": 0.1\n}\n'.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json([float("nan")])


def test_a_digest_is_that_of_sorted_ascii() -> None:
    assert json_digest({"b": 1.0, "a": "ü"}) == json_digest(json.loads('{"a": "\\u00fc", "b": 1.0}'))
    assert json_digest({"a": 1}) != json_digest({"a": 1.0})
