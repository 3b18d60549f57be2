"""Keys: their text, the scopes that they can have, and what a caller may do.

    amp_ + 32 random characters + 6 characters of CRC-32 over what stands before, all in base 62

The checksum tells a typing error, and a scanner for leaked secrets, without a look at the database. The catalog has the SHA-256
of the whole text. That needs no slow hash: 62^32 keys are too many to be tried.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import zlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from amp_core.dataset.names import check_dataset_name
from amp_core.errors import Forbidden, InputRefused, Unauthorized
from ampref_service.catalog.records import NO_BOUNDS, Bounds, Key, NewKey

MAX_BYTES = 2**53
MAX_QUEUED = 2**31 - 1
MAX_SEC = 1e9
"""The highest bounds that a key can have: what every JSON reader, and each column, keeps exact; 31 years."""

PREFIX = "amp_"
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM_CHARACTERS = 32
_HINT_CHARACTERS = 4

SCOPES = {
    "clips:read": "see clips, rollouts and robots, and download them",
    "clips:write": "upload, augment, score and delete clips",
    "clips:purge": "purge clips and rollouts that have been of no use for long",
    "clips:priority": "put a job before others (a priority above 0)",
    "jobs:read": "see jobs and events",
    "jobs:write": "cancel jobs and try them again",
    "datasets:read": "see datasets and download versions",
    "datasets:write": "lock, yank and archive versions, set aliases",
    "datasets:waive": "lock a version although a test failed (waivers)",
    "metrics:read": "read the metrics",
    "audit:read": "read the audit log; not with a key that is bound to datasets or robots",
    "webhooks:write": "see, make, test and remove webhooks",
    "keys:write": "make, list and revoke keys with no more rights than its own",
}
"""Every scope, and what it permits."""

_READER = ("clips:read", "jobs:read", "datasets:read")
_ENGINEER = (*_READER, "clips:write", "jobs:write")
ROLES = {
    "reader": _READER,
    "engineer": _ENGINEER,
    "lead": (*_ENGINEER, "clips:priority", "datasets:write", "datasets:waive"),
    "operator": tuple(SCOPES),
}
"""Shorthands for scopes."""

HOW_TO_GET_A_KEY = (
    "Ask the operator for a key (ampref token create NAME), and set AMPREF_TOKEN to it or send the header "
    "Authorization: Bearer amp_…"
)


def make_token() -> str:
    """The text of a new key."""
    text = PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM_CHARACTERS))
    return text + _checksum(text)


def _checksum(text: str) -> str:
    number, digits = zlib.crc32(text.encode()), ""
    for _ in range(6):
        number, digit = divmod(number, len(_ALPHABET))
        digits = _ALPHABET[digit] + digits
    return digits


def digest_token(text: str) -> str:
    """What the catalog has of a key.

    Raises:
      Unauthorized: it is no key; the error does not repeat it.
    """
    if not re.fullmatch(PREFIX + "[0-9A-Za-z]{38}", text, re.ASCII):
        raise Unauthorized(
            "what was sent is no key",
            key="authorization",
            expected=f"{PREFIX} and 38 letters and digits",
            remedy="Copy the key as a whole; " + HOW_TO_GET_A_KEY[0].lower() + HOW_TO_GET_A_KEY[1:],
        )
    if text[-6:] != _checksum(text[:-6]):
        raise Unauthorized(
            "the key has a typing error: its checksum does not fit",
            key="authorization",
            remedy="Copy it once more from where it was first printed",
        )
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def resolve_scopes(scopes: Iterable[str], roles: Iterable[str]) -> tuple[str, ...]:
    """The scopes and those of the roles, in the order of `SCOPES`; those of a reader where neither names any.

    Raises:
      InputRefused: there is no such scope or role.
    """
    names = set(scopes)
    for kind, texts, choices in (("scope", names, SCOPES), ("role", set(roles), ROLES)):
        if missing := sorted(texts - choices.keys()):
            raise InputRefused(
                f"there is no {kind} {', '.join(map(repr, missing))}", key=kind, expected=f"of {', '.join(choices)}"
            )
    for role in roles:
        names |= set(ROLES[role])
    return tuple(scope for scope in SCOPES if scope in (names or _READER))


def parse_groups(pairs: Iterable[str]) -> dict[str, str]:
    """The role of each group of a proxy's users, of texts `GROUP=ROLE`.

    Raises:
      InputRefused: a text is of another form, or there is no such role.
    """
    roles: dict[str, str] = {}
    for pair in pairs:
        group, _, role = pair.rpartition("=")
        if not group.strip() or role.strip() not in ROLES:
            raise InputRefused(
                f"AMPREF_PROXY_GROUPS has {pair[:80]!r}",
                expected=f"GROUP=ROLE, separated by commas, with a role of {', '.join(ROLES)}",
                remedy="Correct it, then start again",
            )
        roles[group.strip()] = role.strip()
    return roles


def make_bounds(datasets: Collection[str], robots: Collection[str]) -> Bounds:
    """The bounds of a key; where a list is empty, all.

    Raises:
      InputRefused: a name that no dataset has, or an empty one.
    """
    for pattern in datasets:
        check_dataset_name(pattern.removesuffix("*") + "a" * pattern.endswith("*"))
    if not all(name.strip() and name.isprintable() and len(name) <= 120 for name in robots):
        raise InputRefused("a robot's name cannot be used", key="robots", expected="printable text of at most 120 characters")
    return Bounds(*(tuple(dict.fromkeys(names)) or None for names in (datasets, robots)))


def make_key(
    name: str,
    scopes: tuple[str, ...],
    bounds: Bounds,
    *,
    expires_in_sec: float | None = None,
    max_bytes: int | None = None,
    max_queued: int | None = None,
    max_planning_sec: float | None = None,
) -> tuple[str, NewKey]:
    """A new key: its text, which is known nowhere else, and what is to be stored.

    Raises:
      InputRefused: the name cannot be used.
    """
    # `key_…` is an id, and `/v1/keys/self` the key that asks.
    is_reserved = name.startswith("key_") or name == "self"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", name, re.ASCII) or is_reserved:
        raise InputRefused(
            f"the name {name[:80]!r} cannot be used",
            key="name",
            expected="1 to 64 letters, digits, '.', '_', '@' or '-', not beginning with key_ and not self; for example "
            "alice-laptop",
        )
    text = make_token()
    new = NewKey(
        name=name,
        digest=digest_token(text),
        hint=text[-_HINT_CHARACTERS:],
        scopes=scopes,
        bounds=bounds,
        expires_in_sec=expires_in_sec,
        max_bytes=max_bytes,
        max_queued=max_queued,
        max_planning_sec=max_planning_sec,
    )
    return text, new


def describe_key(key: Key) -> dict[str, Any]:
    """A key as JSON, without its text, which nobody has."""
    return {
        "id": key.id,
        "name": key.name,
        "hint": key.hint,
        "state": "valid" if key.is_valid else "expired" if key.revoked_at is None else "revoked",
        "scopes": list(key.scopes),
        "datasets": None if key.bounds.datasets is None else list(key.bounds.datasets),
        "robots": None if key.bounds.robots is None else list(key.bounds.robots),
        **{name: format_time(getattr(key, name)) for name in ("created_at", "expires_at", "last_used_at", "revoked_at")},
        "created_by": key.created_by,
        "max_bytes": key.max_bytes,
        "max_queued": key.max_queued,
        "max_planning_sec": key.max_planning_sec,
    }


def format_time(at: float | None) -> str | None:
    """Epoch seconds as RFC 3339."""
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def format_minute(at: float) -> str:
    """Epoch seconds for people: `2026-11-30 07:31 UTC`."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")


@dataclass(frozen=True)
class Caller:
    """Who a request is from, and what it may do. Without arguments: anybody, of an open service, who may do everything.

    Args:
      name: what audit rows name: `key:NAME`, `user:NAME` (of a proxy) or `anonymous`.
      owner: whose jobs wait in one queue, and whose quotas count: the key's id, or `name`; empty for anybody.
      key: None for a user of a proxy, and for anybody.
    """

    name: str = "anonymous"
    owner: str = ""
    scopes: frozenset[str] = frozenset(SCOPES)
    bounds: Bounds = NO_BOUNDS
    key: Key | None = None

    @classmethod
    def of_key(cls, key: Key) -> Caller:
        """The caller that has a key."""
        return cls(key.actor, key.id, frozenset(key.scopes), key.bounds, key)

    def check_key(self, noun: str) -> None:
        """Raise `Forbidden` for a user of a proxy: what is made ends with the key that made it, and users end nowhere here.

        Args:
          noun: what is to be made, such as `a link`.
        """
        if self.key is None and self.name != Caller().name:
            raise Forbidden(
                f"{noun} ends with the key that made it, and this request has none",
                expected="a key",
                remedy="Make it with a key: Authorization: Bearer amp_…",
            )

    def check_scope(self, *scopes: str) -> None:
        """Raise `Forbidden` where it lacks one of the scopes."""
        if missing := [scope for scope in scopes if scope not in self.scopes]:
            options = " --scope ".join(("", *missing)).lstrip()
            # A role has what goes with a scope: who uploads also follows the job. An operator's would be too much.
            role = next((role for role, names in ROLES.items() if role != "operator" and set(missing) <= set(names)), None)
            raise Forbidden(
                f"{self._label} lacks the scope {', '.join(missing)}",
                expected=f"a key with {', '.join(scopes)}",
                remedy="Ask the operator for a key that has it: ampref token create NAME "
                + (options if role is None else f"--role {role} (or {options}, which is that alone)"),
            )

    def check_dataset(self, name: str) -> None:
        """Raise `Forbidden` for a dataset that is out of its bounds by its name."""
        if not self.bounds.includes_dataset(name):
            raise Forbidden(
                f"{self._label} is not for the dataset {name[:80]!r}",
                expected=f"of {', '.join(self.bounds.datasets or ())}",
                remedy="Ask the operator for a key that is bound to it, or to none: ampref token create NAME --dataset PATTERN",
            )

    def check_robot(self, name: str) -> None:
        """Raise `Forbidden` for a robot that is out of its bounds."""
        if not self.bounds.includes_robot(name):
            raise Forbidden(
                f"{self._label} is not for the robot {name[:80]!r}",
                expected=f"of {', '.join(self.bounds.robots or ())}",
                remedy="Ask the operator for a key that is bound to it, or to none: ampref token create NAME --robot ROBOT",
            )

    @classmethod
    def of_user(cls, user: str, scopes: Iterable[str]) -> Caller:
        """A user whom a trusted proxy names."""
        return cls(f"user:{user}", f"user:{user}", frozenset(scopes))

    @property
    def _label(self) -> str:
        return f"the key {self.key.name!r}" if self.key is not None else self.name
