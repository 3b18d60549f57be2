"""Keys as text, roles and bounds; the page on keys says the same."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import pytest

from amp_core.errors import InputRefused, Unauthorized
from ampref_service.catalog.records import Bounds
from ampref_service.keys import ROLES, SCOPES, digest_token, make_bounds, make_token, parse_groups, resolve_scopes

PAGE = (Path(__file__).parents[3] / "docs" / "keys.md").read_text()


def test_a_key_has_a_checksum_and_is_never_the_same() -> None:
    keys = {make_token() for _ in range(50)}
    assert len(keys) == 50
    for key in keys:
        assert re.fullmatch(r"amp_[0-9A-Za-z]{38}", key)
        value = 0
        for digit in key[-6:]:
            value = value * 62 + "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz".index(digit)
        assert value == zlib.crc32(key[:-6].encode())
        assert re.fullmatch(r"sha256:[0-9a-f]{64}", digest_token(key))


def test_every_typing_error_of_one_character_is_noticed() -> None:
    key = make_token()
    for place in range(4, len(key)):
        wrong = key[:place] + ("x" if key[place] != "x" else "y") + key[place + 1 :]
        with pytest.raises(Unauthorized, match="checksum"):
            digest_token(wrong)


def test_the_page_has_every_scope_and_role() -> None:
    for scope, meaning in SCOPES.items():
        assert f"| `{scope}` | {meaning} |" in re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", PAGE)
    rows = {role: re.findall(rf"^\| `{role}`[^|]*\| (.+) \|$", PAGE, re.MULTILINE)[0] for role in ROLES}
    assert rows["operator"] == "all"
    assert ROLES["operator"] == tuple(SCOPES)
    parents = {"engineer": "reader", "lead": "engineer"}
    for role in ("reader", "engineer", "lead"):
        scopes = set(re.findall(r"`([a-z]+:[a-z]+)`", rows[role])) | set(ROLES.get(parents.get(role, ""), ()))
        assert scopes == set(ROLES[role]), role


def test_roles_and_scopes_add_up() -> None:
    assert resolve_scopes((), ()) == resolve_scopes((), ["reader"])
    assert resolve_scopes(["jobs:write"], ["reader"]) == ("clips:read", "jobs:read", "jobs:write", "datasets:read")
    assert resolve_scopes(["jobs:write"], ()) == ("jobs:write",)


def test_groups_of_a_proxy() -> None:
    assert parse_groups(["a=lead", " CN=x,OU=y = reader".replace(",", ";"), "*=reader"]) == {
        "a": "lead",
        "CN=x;OU=y": "reader",
        "*": "reader",
    }
    with pytest.raises(InputRefused, match="AMPREF_PROXY_GROUPS has 'a=king'"):
        parse_groups(["a=king"])


@pytest.mark.parametrize(
    ("wide", "narrow", "covers"),
    [
        ((), ("walk",), True),
        (("walk",), (), False),
        (("walk*",), ("walk",), True),
        (("walk*",), ("walk*",), True),
        (("walk*",), ("walk-a*", "walk"), True),
        (("walk-a*",), ("walk*",), False),
        (("walk",), ("walk*",), False),
        (("walk", "run"), ("run",), True),
        (("walk",), ("run",), False),
    ],
)
def test_bounds_of_a_key_that_another_makes(wide: tuple[str, ...], narrow: tuple[str, ...], covers: bool) -> None:
    assert make_bounds(wide, ()).covers(make_bounds(narrow, ())) is covers


def test_names_within_bounds() -> None:
    bounds = Bounds(("walk*", "run"), ("g1",))
    assert [name for name in ("walk", "walk-fast", "run", "runs", "wal") if bounds.includes_dataset(name)] == [
        "walk",
        "walk-fast",
        "run",
    ]
    assert bounds.includes_robot("g1")
    assert not bounds.includes_robot("g1-edu")
