"""How a version is written: `name==version`, `name@alias` or `name`; and a digest."""

from __future__ import annotations

import re
from dataclasses import dataclass

from amp_core.dataset.names import check_alias, check_dataset_name, check_version
from amp_core.errors import InputRefused

__all__ = ["Spec", "check_digest", "parse_spec"]

_ALIAS = re.compile(r"(?!v\d)[a-z][a-z0-9._-]*")
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})", re.IGNORECASE)


@dataclass(frozen=True)
class Spec:
    """A dataset and either an exact version or an alias (`latest` when the text has neither)."""

    name: str
    version: str | None
    alias: str | None

    def __str__(self) -> str:
        return f"{self.name}=={self.version}" if self.version else f"{self.name}@{self.alias}"


def parse_spec(text: str) -> Spec:
    """`walk==0.11.0`, `walk@production` or `walk` (its latest version); anything else is `InputRefused`."""
    if not isinstance(text, str):
        raise InputRefused(f"a {type(text).__name__} names no dataset", key="spec", expected="text such as 'walk==0.11.0'")
    name, pin, version = (part.strip() for part in text.partition("=="))
    if pin:
        if _ALIAS.fullmatch(version):
            raise InputRefused(
                f"{version[:80]!r} is no version but may be an alias",
                key="spec",
                expected="name==MAJOR.MINOR.PATCH, name@alias, or a name for its latest version",
                remedy=f"For an alias write {name[:64]}@{version[:64]}",
            )
        return Spec(check_dataset_name(name), check_version(version), None)
    if any(sign in text for sign in "=<>~!"):
        raise InputRefused(
            f"{text if len(text) <= 80 else text[:80] + '…'!r} does not name one version",
            key="spec",
            expected="name==version, name@alias, or a name for its latest version",
            remedy="Datasets are pinned exactly, for example walk==0.11.0; ranges are not supported.",
        )
    name, at, alias = (part.strip() for part in text.partition("@"))
    return Spec(check_dataset_name(name), None, check_alias(alias) if at else "latest")


def check_digest(digest: str, key: str) -> str:
    """`digest` as `sha256:` and 64 lower-case hex digits; the prefix may be missing."""
    match = _DIGEST.fullmatch(digest.strip()) if isinstance(digest, str) else None
    if match is None:
        raise InputRefused("this is not a SHA-256 digest", key=key, expected="'sha256:' and 64 hex digits")
    return "sha256:" + match[1].lower()
